package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// A Front serves BuildService.
type Front struct {
	slipwayv1.UnimplementedBuildServiceServer

	opts     Options
	hub      *hub
	started  time.Time
	draining atomic.Bool
}

// maxDockerfile bounds the recipe, which goes through the queue.
const maxDockerfile = 384 << 10

// maxKey bounds idempotency keys.
const maxKey = 200

// appName is what an app may be called: it names a repository, too.
var appName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// tagName is the form of an image's tag (OCI distribution spec, pulling
// manifests).
var tagName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// Build implements BuildService.
func (f *Front) Build(stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse]) error {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	start := first.GetStart()
	ctx := stream.Context()
	if err := f.checkStart(ctx, start); err != nil {
		return err
	}
	b, joined, err := f.record(ctx, start)
	if err != nil {
		return err
	}
	out := &sender{stream: stream}
	defer out.close()
	if joined {
		return f.join(stream, out, b)
	}
	s, err := f.submit(ctx, b, start, out)
	if err != nil {
		return err
	}
	return f.converse(ctx, stream, b, s, out)
}

// A sender serialises what goes to one client.
type sender struct {
	mu     sync.Mutex
	closed bool
	stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse]
}

func (s *sender) send(m *slipwayv1.BuildResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClientLost
	}
	return s.stream.Send(m)
}

// close makes sends fail: a stream must not be used after its handler.
func (s *sender) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *sender) accepted(id string, joined bool) error {
	return s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Accepted{
		Accepted: &slipwayv1.Accepted{BuildId: id, Joined: joined},
	}})
}

func (s *sender) event(e *slipwayv1.Event) error {
	return s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Event{Event: e}})
}

// checkStart refuses what can never become a build. It sets the environment of a
// release that has none if the caller's token has.
func (f *Front) checkStart(ctx context.Context, s *slipwayv1.Start) error {
	invalid := func(hint, format string, args ...any) error {
		return failure.At(failure.Userf(failure.InvalidArgument, hint, format, args...), failure.Preflight, 0)
	}
	switch {
	case s == nil:
		return invalid("update the client", "the first message must be a start")
	case len(s.App) > 100 || !appName.MatchString(s.App):
		return invalid("use lower-case letters, digits and single dots, dashes or underscores between them", "%q is no name for an app", s.App)
	case s.Tag != "" && !tagName.MatchString(s.Tag):
		return invalid("use letters, digits, dots, dashes and underscores, 128 at most", "%q is no tag for an image", s.Tag)
	case len(s.GetDockerfile().GetContent()) > maxDockerfile:
		return invalid("move long texts into files of the context", "the Dockerfile has %d bytes, %d are allowed", len(s.Dockerfile.Content), maxDockerfile)
	case len(s.IdempotencyKey) > maxKey:
		return invalid("use a shorter one", "the idempotency key has %d bytes, %d are allowed", len(s.IdempotencyKey), maxKey)
	case proto.Size(s) > fleet.MaxPayload:
		return invalid("pass long values in files of the context", "build arguments, labels and Dockerfile have %d bytes, %d are allowed", proto.Size(s), fleet.MaxPayload)
	case s.Detach && len(s.AgentIds) > 0:
		return invalid("leave --detach out, or give the key as a secret", "an SSH agent is asked while the build runs: --ssh does not go with --detach")
	}
	if err := cmp.Or(checkNames("--build-secret", s.SecretIds), checkNames("--ssh", s.AgentIds)); err != nil {
		return failure.At(err, failure.Preflight, 0)
	}
	if err := allow(ctx, tokens.ScopeBuildWrite, s.App); err != nil {
		return err
	}
	if err := f.checkRelease(ctx, s); err != nil {
		return err
	}
	if err := f.mayRead(ctx, s.Image); err != nil {
		return err
	}
	if err := f.mayWrite(ctx, s); err != nil {
		return err
	}
	if f.draining.Load() {
		return errDraining
	}
	return nil
}

// record writes the build down, or finds the one with the same key.
func (f *Front) record(ctx context.Context, start *slipwayv1.Start) (*records.Build, bool, error) {
	p := caller(ctx)
	if err := f.claim(ctx, start); err != nil {
		return nil, false, err
	}
	b, err := f.opts.Records.Create(ctx, records.Build{
		ID: ulid.Make().String(), Org: p.Org, App: start.App, Pipeline: start.Pipeline.String(), CreatedBy: p.Actor(),
		Created: time.Now().UTC(), Status: records.Queued, IdempotencyKey: recordKey(start), Plan: start.PlanOnly,
	})
	if errors.Is(err, records.ErrExists) {
		return b, true, nil
	}
	return b, false, err
}

// recordKey is what a build shares with those that join it. A build that is
// released to one environment does not stand for another.
func recordKey(s *slipwayv1.Start) string {
	switch {
	case s.PlanOnly:
		return "" // what it says is of the moment, and it must not stand for a build
	case s.IdempotencyKey == "" || s.Environment == "":
		return s.IdempotencyKey
	}
	return s.Environment + " " + s.IdempotencyKey
}

// claim makes the app one of the caller's org, if it is nobody's; to plan, it
// need not be anybody's. What BuildKit's clients build may be for no app.
func (f *Front) claim(ctx context.Context, start *slipwayv1.Start) error {
	a := accessOf(ctx)
	if !appName.MatchString(start.App) {
		return nil
	}
	if !start.PlanOnly {
		return refused(a.guard.Claim(ctx, a.principal, start.App))
	}
	owner, err := a.guard.Owner(ctx, start.App)
	if err == nil && owner != "" {
		err = refused(a.guard.Claim(ctx, a.principal, start.App))
	}
	return err
}

// submit opens the log and session of a deploy and queues it.
func (f *Front) submit(ctx context.Context, b *records.Build, start *slipwayv1.Start, out *sender) (*session, error) {
	return f.enqueue(ctx, b, start, func(s *session) error {
		s.send = out.send
		if out.accepted(b.ID, false) != nil {
			return errClientLost
		}
		return nil
	})
}

// enqueue opens the log and session of a build and queues it, once accept has
// told its client.
func (f *Front) enqueue(ctx context.Context, b *records.Build, start *slipwayv1.Start, accept func(*session) error) (*session, error) {
	ctx = context.WithoutCancel(ctx) // a client that goes now is like one that goes later
	raw, err := proto.Marshal(start)
	if err != nil {
		return nil, f.refuse(ctx, b, nil, err)
	}
	log, err := f.opts.Engine.Log(ctx, b.ID)
	if err != nil {
		return nil, f.refuse(ctx, b, nil, err)
	}
	s := newSession(b.ID, start, f.opts.Cache.Org(b.Org), log)
	s.alert = func(err error) { f.opts.Log.Error("build log", "build", b.ID, "err", err) }
	f.hub.add(s) // before anybody knows the id, and cancels it
	f.bind(ctx, s)
	if err := accept(s); err != nil {
		f.hub.remove(b.ID)
		return nil, f.refuse(ctx, b, log, err)
	}
	if err := f.opts.Engine.Submit(ctx, fleet.Job{ID: b.ID, Org: b.Org, App: s.lane(b.App), Payload: raw}); err != nil {
		f.hub.remove(b.ID)
		return nil, f.refuse(ctx, b, log, err)
	}
	if cause := context.Cause(s.ctx); cause != nil { // cancelled before it was in the queue
		f.stop(ctx, b.ID, failure.As(cause))
	}
	return s, nil
}

// bind ends a build if the token that started it is revoked, also when nobody
// watches it. That the token expires does not matter: it was good when the
// build began.
func (f *Front) bind(ctx context.Context, s *session) {
	a := accessOf(ctx)
	a.principal.Expires = time.Time{}
	good, leave := a.guard.Enter(context.WithoutCancel(ctx), a.principal)
	stop := context.AfterFunc(good, func() {
		if cause := endedCause(good); cause != nil {
			f.stop(context.WithoutCancel(good), s.id, failure.As(cause))
		}
	})
	f.hub.atEnd(s.id, func() { stop(); leave() })
}

// refuse records that a build could not be queued, and ends its log for those
// who joined it. Its idempotency key is free again: nothing was built.
func (f *Front) refuse(ctx context.Context, b *records.Build, log fleet.Log, err error) error {
	if errors.Is(err, fleet.ErrBacklog) {
		err = &failure.Error{Code: failure.Busy, Phase: failure.Queue, Blame: failure.Builder, Retryable: true, Err: err,
			Message: fmt.Sprintf("app %s has as many unfinished builds as it may", b.App), Hint: "wait for one to end, or cancel one with slipway builds cancel"}
	}
	return errors.Join(err, f.opts.Records.Free(ctx, b.ID), finish(ctx, f.opts, log, b, failed(b.ID, b.App, failure.As(err))))
}

// converse relays between the client and the build until the result is out
// or the client has gone.
func (f *Front) converse(ctx context.Context, stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse], b *records.Build, s *session, out *sender) error {
	leave := f.hub.watch(s.id)
	defer leave()
	ctx, stop := context.WithCancelCause(ctx)
	// Recv ends with the stream, soon after this call: nobody waits for it.
	go f.listen(ctx, stop, stream, s)
	var told sync.WaitGroup
	told.Go(func() { f.positions(ctx, s) })
	err := f.toResult(ctx, b, 1, out.event)
	// What waits for the client must not wait on.
	s.leave(errClientLost)
	stop(nil)
	told.Wait()
	return err
}

// listen takes what the client says until it stops.
func (f *Front) listen(ctx context.Context, stop context.CancelCauseFunc, stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse], s *session) {
	defer f.caught(ctx, slipwayv1.BuildService_Build_FullMethodName, func(err error) {
		s.leave(err)
		s.cancel(err)
	})
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			s.leave(errSilent) // it has said all it had to say, and still listens
			return
		}
		if err != nil {
			s.leave(errClientLost)
			stop(err)
			return
		}
		if err := f.hear(ctx, s, m); err != nil {
			s.leave(err)
			f.stop(context.WithoutCancel(ctx), s.id, failure.As(err))
			return
		}
	}
}

var errSilent = &failure.Error{
	Code: failure.ClientLost, Phase: failure.Context, Blame: failure.Net, Retryable: true,
	Message: "the client closed its side of the connection while the build needed it",
	Hint:    "update the client and deploy again",
}

func (f *Front) hear(ctx context.Context, s *session, m *slipwayv1.BuildRequest) error {
	switch m := m.Message.(type) {
	case *slipwayv1.BuildRequest_Manifest:
		return s.addManifest(m.Manifest)
	case *slipwayv1.BuildRequest_Content:
		s.frame(ctx, m.Content)
	case *slipwayv1.BuildRequest_Answer:
		s.answer(m.Answer)
	case *slipwayv1.BuildRequest_Agent:
		s.agents.Frame(m.Agent)
	case *slipwayv1.BuildRequest_Cancel:
		f.stop(context.WithoutCancel(ctx), s.id, errCancelled)
	case *slipwayv1.BuildRequest_Start:
		return failure.At(failure.Userf(failure.InvalidArgument, "update the client", "a second start in one call"), failure.Context, 0)
	}
	return nil
}

// patience is how long a build may wait before its client hears of a queue.
const patience = 300 * time.Millisecond

// positions logs the build's place in the queue as it changes, once it has
// waited for a moment.
func (f *Front) positions(ctx context.Context, s *session) {
	var mu sync.Mutex
	var at int
	var open bool
	tell := func() {
		if open && at > 0 {
			s.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Queued{Queued: &slipwayv1.Queued{Position: uint32(at)}}})
			s.place(at)
		}
	}
	timer := time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		open = true
		tell()
	})
	defer timer.Stop()
	for now, err := range f.opts.Engine.Positions(ctx, s.id) {
		mu.Lock()
		at = now
		if err != nil {
			at = 0
		}
		tell()
		mu.Unlock()
		if now == 0 {
			return
		}
	}
}

// join follows a build that somebody else started. Of what the client says
// only that it wants to cancel matters.
func (f *Front) join(stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse], out *sender, b *records.Build) error {
	ctx := stream.Context()
	defer f.hub.watch(b.ID)()
	if err := out.accepted(b.ID, true); err != nil {
		return err
	}
	go func() { // ends with the stream, soon after this call
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if m.GetCancel() != nil {
				f.stop(context.WithoutCancel(ctx), b.ID, errCancelled)
			}
		}
	}()
	return f.toResult(ctx, b, 1, out.event)
}

// toResult follows a build to its result. One that has ended has a result
// even if its log has none: the log may be gone, or a daemon was killed just
// then.
func (f *Front) toResult(ctx context.Context, b *records.Build, from uint64, send func(*slipwayv1.Event) error) error {
	last, told := uint64(0), false
	err := f.follow(ctx, b.ID, from, b.Done(), func(e *slipwayv1.Event) error {
		last, told = e.Seq, told || e.GetResult() != nil
		return send(e)
	})
	if told || (err != nil && !errors.Is(err, errNoLog)) {
		return err
	}
	b, getErr := f.opts.Records.Get(ctx, b.Org, b.ID)
	if getErr != nil {
		return getErr
	}
	res := buildProto(b).Result
	if res == nil {
		return err
	}
	return send(&slipwayv1.Event{Seq: max(from, last+1), Time: timestamppb.New(b.Ended), Event: &slipwayv1.Event_Result{Result: res}})
}

var errNoLog = errors.New("no log")

// follow passes a build's events on until its log ends. With replay it stops
// at the last event there is; the error wraps [errNoLog] if nothing is kept.
func (f *Front) follow(ctx context.Context, id string, from uint64, replay bool, send func(*slipwayv1.Event) error) error {
	last := uint64(1<<63 - 1)
	if replay {
		tail, err := f.opts.Engine.Tail(ctx, id)
		if errors.Is(err, fleet.ErrNotFound) {
			e := failure.Userf(failure.NotFound, "see slipway builds show for its result", "the log of build %s is no longer kept", id)
			e.Err = errNoLog
			return e
		}
		if err != nil {
			return err
		}
		last = tail.Seq
	}
	if from > last {
		return nil
	}
	return each(f.opts.Engine.Watch(ctx, id, from), func(e fleet.Entry) (bool, error) {
		event := &slipwayv1.Event{}
		if err := proto.Unmarshal(e.Payload, event); err != nil {
			return false, fmt.Errorf("event %d of build %s: %w", e.Seq, id, err)
		}
		event.Seq = e.Seq
		return e.Seq < last, send(event)
	})
}

// each passes entries on until f says to stop.
func each(entries iter.Seq2[fleet.Entry, error], f func(fleet.Entry) (more bool, err error)) error {
	for e, err := range entries {
		if err != nil {
			return err
		}
		more, err := f(e)
		if err != nil || !more {
			return err
		}
	}
	return nil
}
