package server

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
)

// A Worker takes builds from the queue and runs them.
type Worker struct {
	opts Options
	hub  *hub
}

var errCancelled = &failure.Error{
	Code: failure.Cancelled, Blame: failure.User, Retryable: true, Err: context.Canceled,
	Message: "the build was cancelled", Hint: "finished steps stay cached",
}

var errStopped = &failure.Error{
	Code: failure.DaemonStopped, Blame: failure.Builder, Retryable: true,
	Message: "the daemon stopped while the build ran", Hint: "deploy again: finished steps stay cached, contents that had arrived are kept",
}

// Run runs up to n builds at a time until ctx ends, then waits for those
// under way and ends those that still wait in the queue: their clients talk
// to this process.
func (w *Worker) Run(ctx context.Context, n int) {
	var running sync.WaitGroup
	defer w.dismiss(context.WithoutCancel(ctx))
	defer running.Wait()
	free := newPlaces(n)
	for free.take(ctx) {
		task, err := w.opts.Engine.Next(ctx)
		if err != nil {
			free.give()
			if ctx.Err() != nil || errors.Is(err, fleet.ErrClosed) {
				return
			}
			w.opts.Log.Error("queue", "err", err)
			if !pause(ctx, time.Second) {
				return
			}
			continue
		}
		running.Go(func() {
			defer free.give()
			w.do(context.WithoutCancel(ctx), task, free)
		})
	}
}

// dismiss ends the builds of this process that never started.
func (w *Worker) dismiss(ctx context.Context) {
	for _, s := range w.hub.all() {
		waiting, err := w.opts.Engine.Remove(ctx, s.id)
		if err != nil || !waiting {
			continue // ended, or not queued yet; what is left is for Recover
		}
		b := &records.Build{ID: s.id, App: s.start.App}
		if err := finish(ctx, w.opts, s.log, b, failed(s.id, s.start.App, errStopped)); err != nil {
			w.opts.Log.Error("end of build", "build", s.id, "err", err)
		}
		w.hub.remove(s.id)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Stop ends the builds under way, for a daemon that must stop now.
func (w *Worker) Stop() {
	for _, s := range w.hub.all() {
		s.cancel(errStopped)
	}
}

// do runs one build to its end and writes its result.
func (w *Worker) do(ctx context.Context, task *fleet.Task, free *places) {
	b := &records.Build{ID: task.ID, Org: task.Org}
	s := w.hub.get(task.ID)
	var res *slipwayv1.Result
	var release *records.Release
	var log fleet.Log
	if s == nil || task.Attempt > 1 {
		// Its client talked to a daemon that is gone.
		res = w.lost(ctx, task)
		var err error
		if log, err = w.opts.Engine.Log(ctx, task.ID); err != nil && !errors.Is(err, fleet.ErrEnded) {
			w.opts.Log.Error("build log", "build", task.ID, "err", err)
		}
	} else {
		log = s.log
		res = w.build(s, task, free)
		release = releaseOf(&w.opts, task.Org, s.start, res)
	}
	defer w.hub.remove(task.ID)
	res, err := conclude(ctx, &w.opts, b, res, release)
	if err != nil {
		w.opts.Log.Error("end of build", "build", task.ID, "err", err)
	}
	if err := tell(ctx, log, res); err != nil {
		w.opts.Log.Error("log of build", "build", task.ID, "err", err)
	}
	if err := task.Done(ctx); err != nil {
		w.opts.Log.Error("queue", "build", task.ID, "err", err)
	}
}

// lost is the result of a build whose session is gone: the one on record, if a
// daemon was killed between recording and logging it.
func (w *Worker) lost(ctx context.Context, task *fleet.Task) *slipwayv1.Result {
	b, err := w.opts.Records.Get(ctx, task.Org, task.ID)
	if err != nil {
		return failed(task.ID, task.App, errStopped)
	}
	if b.Done() {
		if res := buildProto(b).Result; res != nil {
			return res
		}
	}
	return failed(b.ID, b.App, errStopped)
}

// build runs the build of a session, until it is done or cancelled.
func (w *Worker) build(s *session, task *fleet.Task, free *places) *slipwayv1.Result {
	now := time.Now()
	ctx := context.WithoutCancel(s.ctx)
	if err := w.opts.Records.Start(ctx, task.ID, now.UTC()); err != nil {
		w.opts.Log.Error("record start", "build", task.ID, "err", err)
	}
	var signals sync.WaitGroup
	done := make(chan struct{})
	signals.Go(func() {
		select {
		case _, ok := <-task.Signals():
			if ok {
				s.cancel(errCancelled)
			} else {
				s.cancel(errStopped) // the queue is closed
			}
		case <-done:
		}
	})
	defer signals.Wait()
	defer close(done)
	defer s.end()
	w.opts.Metrics.begin()
	defer w.opts.Metrics.end()
	res := w.run(s, task, now, free)
	if s.start.GetContext() != nil {
		res.Timings.Context = s.contextDone().Milliseconds()
		res.Context = s.Context()
	}
	w.opts.Metrics.Received(res.GetContext())
	if res.Digest != "" {
		tag, err := w.opts.Records.TagOf(ctx, task.Org, s.start.App, res.Digest)
		if err != nil {
			w.opts.Log.Warn("same image", "build", task.ID, "err", err)
		}
		res.SameAs = tag
	}
	if res.Status != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED {
		if err := s.keep(ctx); err != nil {
			w.opts.Log.Warn("keep contents", "build", task.ID, "err", err)
		}
	}
	return res
}

// run has the builder build, or the guest.
func (w *Worker) run(s *session, task *fleet.Task, now time.Time, free *places) *slipwayv1.Result {
	created := createdAt(task.ID)
	req := builder.Request{ID: task.ID, Org: task.Org, Created: created, Queued: max(0, now.Sub(created)), Start: s.start}
	if s.guest != nil {
		return s.guest.Run(s.ctx, builder.Turn{Request: req, Emit: s.Emit, Rest: free.rest})
	}
	if err := s.gather(s.ctx); err != nil {
		return failed(task.ID, s.start.App, failure.As(err))
	}
	return w.opts.Builder.Build(s.ctx, req, s)
}

// finish writes a result to the record and to the log, and ends the log.
func finish(ctx context.Context, o Options, log fleet.Log, b *records.Build, res *slipwayv1.Result) error {
	return errors.Join(o.Records.End(ctx, ended(b, res)), tell(ctx, log, res))
}

// tell writes a result to a log, and ends it; nil is no log.
func tell(ctx context.Context, log fleet.Log, res *slipwayv1.Result) error {
	if log == nil {
		return nil
	}
	event := &slipwayv1.Event{Time: timestamppb.Now(), Event: &slipwayv1.Event_Result{Result: res}}
	raw, err := proto.Marshal(event)
	if err == nil {
		_, err = log.Append(raw)
	}
	return errors.Join(err, log.End(ctx), log.Close(ctx))
}

// Recover ends the builds that a daemon before this one left unfinished. It
// must be called before Run: what the queue still hands out afterwards has its
// result by then.
func (w *Worker) Recover(ctx context.Context) error {
	left, err := w.opts.Records.Unfinished(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range left {
		errs = append(errs, w.recover(ctx, b))
		w.opts.Log.Warn("build was left unfinished", "build", b.ID, "app", b.App)
	}
	return errors.Join(errs...)
}

func (w *Worker) recover(ctx context.Context, b *records.Build) error {
	res := failed(b.ID, b.App, errStopped)
	log, err := w.opts.Engine.Log(ctx, b.ID)
	switch {
	case errors.Is(err, fleet.ErrEnded):
		// Everybody has seen how it ended.
		if told, err := w.told(ctx, b.ID); err != nil {
			return err
		} else if told != nil {
			res = told
		}
		return w.opts.Records.End(ctx, ended(b, res))
	case err != nil:
		return errors.Join(err, w.opts.Records.End(ctx, ended(b, res)))
	}
	return finish(ctx, w.opts, log, b, res)
}

// told returns the result at the end of a log, nil if it has none.
func (w *Worker) told(ctx context.Context, id string) (*slipwayv1.Result, error) {
	tail, err := w.opts.Engine.Tail(ctx, id)
	if err != nil || tail.Seq == 0 {
		return nil, err
	}
	event := &slipwayv1.Event{}
	err = each(w.opts.Engine.Watch(ctx, id, tail.Seq), func(e fleet.Entry) (bool, error) {
		return false, proto.Unmarshal(e.Payload, event)
	})
	return event.GetResult(), err
}

// failed is the result of a build that no builder ran.
func failed(id, app string, e *failure.Error) *slipwayv1.Result {
	res := &slipwayv1.Result{
		BuildId: id, App: app, Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED,
		Error: builder.Proto(e), Timings: &slipwayv1.Timings{},
	}
	if e.Code == failure.Cancelled {
		res.Status = slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED
	}
	return res
}

var ends = map[slipwayv1.ResultStatus]string{
	slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED: records.Succeeded,
	slipwayv1.ResultStatus_RESULT_STATUS_FAILED:    records.Failed,
	slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED: records.Cancelled,
}

// ended is b as its result leaves it.
func ended(b *records.Build, res *slipwayv1.Result) records.Build {
	out := *b
	out.Status, out.Ended, out.Digest = ends[res.Status], time.Now().UTC(), res.Digest
	if i := strings.LastIndexByte(res.Image, ':'); i >= 0 {
		out.Tag = res.Image[i+1:]
	}
	// A result is plain data; encoding it cannot fail.
	out.Result, _ = proto.Marshal(res)
	return out
}

var statuses = map[string]slipwayv1.BuildStatus{
	records.Queued:    slipwayv1.BuildStatus_BUILD_STATUS_QUEUED,
	records.Running:   slipwayv1.BuildStatus_BUILD_STATUS_RUNNING,
	records.Succeeded: slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED,
	records.Failed:    slipwayv1.BuildStatus_BUILD_STATUS_FAILED,
	records.Cancelled: slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED,
}

func buildProto(b *records.Build) *slipwayv1.Build {
	out := &slipwayv1.Build{
		Id: b.ID, Org: b.Org, App: b.App, Status: statuses[b.Status], CreatedBy: b.CreatedBy,
		Pipeline: slipwayv1.Pipeline(slipwayv1.Pipeline_value[b.Pipeline]), Created: timestamppb.New(b.Created),
	}
	if !b.Started.IsZero() {
		out.Started = timestamppb.New(b.Started)
	}
	if !b.Ended.IsZero() {
		out.Ended = timestamppb.New(b.Ended)
		out.Duration = durationpb.New(b.Ended.Sub(b.Created))
	}
	res := &slipwayv1.Result{}
	if len(b.Result) > 0 && proto.Unmarshal(b.Result, res) == nil {
		out.Result = res
	}
	return out
}
