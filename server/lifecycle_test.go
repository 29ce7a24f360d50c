package server_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
)

// untilCancelled is a build that waits for its end, having said that it runs.
func untilCancelled(running chan<- struct{}) *script {
	return &script{build: func(ctx context.Context, _ *builder.Job) (*builder.Image, error) {
		running <- struct{}{}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
}

func grace(d time.Duration) func(*server.Options, *fleet.Options) {
	return func(o *server.Options, _ *fleet.Options) { o.Grace = d }
}

func (d *daemon) cancelBuild(id string) *slipwayv1.Build {
	d.t.Helper()
	r, err := d.client.CancelBuild(as(d.t, "acme"), &slipwayv1.CancelBuildRequest{Id: id})
	check(d.t, err)
	return r.Build
}

func TestCancel(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1)
	first := d.call("acme", shop())
	<-running
	second := d.call("acme", shop())
	if b := d.cancelBuild(second.id); b.Status != slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED {
		t.Errorf("cancelled while queued: %v", b)
	}
	wantCode(t, second.result(), failure.Cancelled)
	d.cancelBuild(first.id)
	wantCode(t, first.result(), failure.Cancelled)
	if b := d.cancelBuild(first.id); b.Status != slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED {
		t.Errorf("cancelled again: %v", b)
	}
}

// A cancel that comes as soon as the id is known is not lost, and does not wait
// for the builds before.
func TestCancelAtOnce(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1)
	d.call("acme", shop())
	<-running
	for range 40 {
		c := d.call("acme", shop())
		d.cancelBuild(c.id)
		wantCode(t, c.result(), failure.Cancelled)
	}
}

// A build that waits in the queue and whose session is gone ends as well.
func TestCancelQueuedWithoutSession(t *testing.T) {
	d := start(t, &script{}, 0)
	b := d.left("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	check(t, d.engine.Submit(t.Context(), fleet.Job{ID: b.ID, Org: b.Org, App: b.App}))
	if got := d.cancelBuild(b.ID); got.Status != slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED {
		t.Errorf("status %v", got.Status)
	}
	wantCode(t, d.watch(b.ID), failure.Cancelled)
}

// left is the record of a build that a daemon left when it was killed.
func (d *daemon) left(id string) *records.Build {
	d.t.Helper()
	b, err := d.records.Create(d.t.Context(), records.Build{ID: id, Org: "acme", App: "shop", Pipeline: "PIPELINE_CLASSIC", Created: time.Now()})
	check(d.t, err)
	return b
}

func TestJoin(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1, grace(time.Nanosecond))
	s := shop()
	s.IdempotencyKey = "k"
	first := d.call("acme", s)
	<-running
	second := d.call("acme", s)
	if !second.joined || second.id != first.id || first.joined {
		t.Fatalf("builds %s and %s, joined %v", first.id, second.id, second.joined)
	}
	other := shop()
	other.App, other.IdempotencyKey = "blog", "k"
	if c := d.call("acme", other); c.joined {
		t.Error("a key joins the builds of two apps")
	}
	// The one who started it leaves; the build goes on for the other.
	first.cancel()
	for first.recv(func(*slipwayv1.BuildResponse) bool { return false }) == nil {
	}
	check(t, second.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Cancel{Cancel: &slipwayv1.Cancel{}}}))
	res := second.result()
	wantCode(t, res, failure.Cancelled)
	if res.Error.Blame != slipwayv1.Blame_BLAME_USER {
		t.Errorf("the build ended by itself: %v", res.Error)
	}
	third := d.call("acme", s)
	if !third.joined || !proto.Equal(third.result(), res) {
		t.Error("joining an ended build gives another result")
	}
}

// A build that was never accepted does not take its key with it.
func TestRefusedBuildFreesItsKey(t *testing.T) {
	d := start(t, &script{}, 0, func(_ *server.Options, o *fleet.Options) { o.Backlog = 1 })
	first := d.call("acme", shop())
	s := shop()
	s.IdempotencyKey = "k"
	c := d.call("acme", s)
	err := c.recv(func(*slipwayv1.BuildResponse) bool { return false })
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("above the backlog: %v", err)
	}
	wantCode(t, d.watch(c.id), failure.Busy)
	d.cancelBuild(first.id)
	first.result()
	if again := d.call("acme", s); again.joined {
		t.Error("the key still stands for the build that was refused")
	}
}

func TestClientThatNeverComesBack(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1, grace(time.Nanosecond))
	first := d.call("acme", shop())
	<-running
	second := d.call("acme", shop())
	d.gone(second)
	d.gone(first)
	// Nobody watches, so the log tells: both end, the queued one as well.
	for _, c := range []*call{second, first} {
		res := d.replay(c.id)
		wantCode(t, res, failure.Cancelled)
		if res.Error.Blame != slipwayv1.Blame_BLAME_NETWORK {
			t.Errorf("blame %v", res.Error)
		}
	}
}

// gone ends a call and waits until the daemon has noticed.
func (d *daemon) gone(c *call) {
	c.cancel()
	for c.recv(func(*slipwayv1.BuildResponse) bool { return false }) == nil {
	}
}

// replay follows a log below the server, without watching the build.
func (d *daemon) replay(id string) *slipwayv1.Result {
	d.t.Helper()
	var res *slipwayv1.Result
	for e, err := range d.engine.Watch(as(d.t, ""), id, 1) {
		check(d.t, err)
		ev := &slipwayv1.Event{}
		check(d.t, proto.Unmarshal(e.Payload, ev))
		if r := ev.GetResult(); r != nil {
			if res != nil {
				d.t.Error("more than one result")
			}
			res = r
		}
	}
	if res == nil {
		d.t.Fatal("no result")
	}
	return res
}

func TestWatcherComesAndGoes(t *testing.T) {
	running, end := make(chan struct{}, 1), make(chan struct{})
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		running <- struct{}{}
		<-end
		return image(ctx, job, "x")
	}}, 1, grace(time.Nanosecond))
	c := d.call("acme", shop())
	<-running
	ctx, cancel := context.WithCancel(as(t, "reader"))
	w, err := d.client.WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: c.id})
	check(t, err)
	_, err = w.Recv()
	check(t, err)
	cancel()
	for err == nil {
		_, err = w.Recv()
	}
	close(end)
	if res := c.result(); res.Error != nil {
		t.Errorf("result %v", res.Error)
	}
}

func TestWatchFrom(t *testing.T) {
	d := start(t, &script{}, 1)
	c := d.call("acme", shop())
	c.result()
	n := uint64(len(c.events))
	for _, tc := range []struct {
		from   uint64
		replay bool
		want   uint64
	}{{0, false, n}, {1, true, n}, {n, false, 1}, {n + 1, true, 0}, {3, true, n - 2}, {1<<64 - 1, true, 0}} {
		s, err := d.client.WatchBuild(as(t, "acme"), &slipwayv1.WatchBuildRequest{Id: c.id, FromSeq: tc.from, ReplayOnly: tc.replay})
		check(t, err)
		got := uint64(0)
		for ; err == nil; got++ {
			_, err = s.Recv()
		}
		if got--; got != tc.want || err != io.EOF {
			t.Errorf("from %d, replay %v: %d events, %v; want %d", tc.from, tc.replay, got, err, tc.want)
		}
	}
}

func TestDrain(t *testing.T) {
	running, end := make(chan struct{}, 1), make(chan struct{})
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		running <- struct{}{}
		<-end
		return image(ctx, job, "x")
	}}, 1)
	under, waits := d.call("acme", shop()), (*call)(nil)
	<-running
	waits = d.call("acme", shop())
	d.srv.Drain()
	go func() { close(end) }()
	d.drain()
	if res := under.result(); res.Error != nil {
		t.Errorf("the build under way: %v", res.Error)
	}
	// It never ran; its client hears now, not when a daemon is back.
	res := waits.result()
	if res.Error != nil {
		wantCode(t, res, failure.DaemonStopped)
	}
}

func TestStop(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1)
	c := d.call("acme", shop())
	<-running
	d.srv.Stop()
	res := c.result()
	wantCode(t, res, failure.DaemonStopped)
	if !res.Error.Retryable {
		t.Error("not retryable")
	}
}

// A queue that closes under a build is not a user who cancels it.
func TestQueueClosesUnderABuild(t *testing.T) {
	running := make(chan struct{}, 1)
	d := start(t, untilCancelled(running), 1)
	c := d.call("acme", shop())
	<-running
	check(t, d.engine.Close(t.Context()))
	d.drain()
	b, err := d.records.Get(t.Context(), "acme", c.id)
	if err != nil || b.Status != records.Failed {
		t.Errorf("record %v, %v", b, err)
	}
}

// again is an engine whose jobs were all given to a worker before.
type again struct{ fleet.Engine }

func (a again) Next(ctx context.Context) (*fleet.Task, error) {
	task, err := a.Engine.Next(ctx)
	if err == nil {
		task.Attempt = 2
	}
	return task, err
}

// A build that a worker may have begun never runs twice, also where its client
// is still there.
func TestNeverRunTwice(t *testing.T) {
	ran := make(chan struct{}, 1)
	d := start(t, &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		ran <- struct{}{}
		return image(ctx, job, "x")
	}}, 1, func(o *server.Options, f *fleet.Options) { o.Engine = again{fleet.NewMemory(f)} })
	c := d.call("acme", shop())
	wantCode(t, c.result(), failure.DaemonStopped)
	if len(ran) > 0 {
		t.Error("it ran again")
	}
	b, err := d.records.Get(t.Context(), "acme", c.id)
	check(t, err)
	if b.Status != records.Failed {
		t.Errorf("the record says %s", b.Status)
	}
}

func result(status slipwayv1.ResultStatus, id string) *slipwayv1.Result {
	return &slipwayv1.Result{Status: status, BuildId: id, App: "shop", Digest: "sha256:1"}
}

func (d *daemon) endLog(id string, res *slipwayv1.Result) {
	d.t.Helper()
	log, err := d.engine.Log(d.t.Context(), id)
	check(d.t, err)
	if res != nil {
		raw, err := proto.Marshal(&slipwayv1.Event{Event: &slipwayv1.Event_Result{Result: res}})
		check(d.t, err)
		_, err = log.Append(raw)
		check(d.t, err)
	}
	check(d.t, errors.Join(log.End(d.t.Context()), log.Close(d.t.Context())))
}

func TestRecover(t *testing.T) {
	const queued, logged, recorded = "01ARZ3NDEKTSV4RRFFQ69G5FA1", "01ARZ3NDEKTSV4RRFFQ69G5FA2", "01ARZ3NDEKTSV4RRFFQ69G5FA3"
	ok := slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED
	d := start(t, &script{}, 0)
	for _, id := range []string{queued, logged, recorded} {
		b := d.left(id)
		check(t, d.engine.Submit(t.Context(), fleet.Job{ID: id, Org: b.Org, App: b.App}))
	}
	d.endLog(logged, result(ok, logged)) // killed before the record
	raw, err := proto.Marshal(result(ok, recorded))
	check(t, err)
	check(t, d.records.End(t.Context(), records.Build{ID: recorded, Status: records.Succeeded, Ended: time.Now(), Result: raw})) // before the log
	check(t, d.srv.Recover(t.Context()))
	check(t, d.srv.Recover(t.Context()))
	d.work(1)
	for id, want := range map[string]string{queued: failure.DaemonStopped, logged: "", recorded: ""} {
		wantCode(t, d.replay(id), want)
		wantCode(t, d.watch(id), want)
		b, err := d.client.GetBuild(as(t, "acme"), &slipwayv1.GetBuildRequest{Id: id})
		check(t, err)
		wantCode(t, b.Build.Result, want)
		if (want == "") != (b.Build.Status == slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED) {
			t.Errorf("%s is %v", id, b.Build.Status)
		}
	}
}

// The record has the result when the log is no longer kept.
func TestResultWithoutLog(t *testing.T) {
	const id = "01ARZ3NDEKTSV4RRFFQ69G5FA4"
	d := start(t, &script{}, 0)
	b := d.left(id)
	raw, err := proto.Marshal(result(slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, id))
	check(t, err)
	b.Status, b.Ended, b.Result = records.Succeeded, time.Now(), raw
	check(t, d.records.End(t.Context(), *b))
	if res := d.watch(id); res.Digest != "sha256:1" {
		t.Errorf("result %v", res)
	}
	s, err := d.client.WatchBuild(as(t, "acme"), &slipwayv1.WatchBuildRequest{Id: id, ReplayOnly: true})
	check(t, err)
	if _, err = s.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("replay of a log that is gone: %v", err)
	}
}

func TestQueuePosition(t *testing.T) {
	d := start(t, &script{}, 0)
	d.call("acme", shop())
	c := d.call("acme", shop())
	check(t, c.recv(func(m *slipwayv1.BuildResponse) bool { return m.GetEvent().GetQueued().GetPosition() == 2 }))
	d.work(1)
	if res := c.result(); res.Error != nil {
		t.Errorf("result %v", res.Error)
	}
}

// FuzzBuild sends messages in any order; the daemon must give every build an
// end and keep running.
func FuzzBuild(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Add([]byte{1, 1, 2, 2, 7})
	f.Add([]byte{5, 3, 4, 6})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := start(t, &script{build: needAll}, 1)
		c := d.call("acme", withContext(shop()))
		for _, op := range ops[:min(len(ops), 20)] {
			var m slipwayv1.BuildRequest
			switch op % 8 {
			case 0:
				m.Message = &slipwayv1.BuildRequest_Manifest{Manifest: &slipwayv1.ManifestPart{Last: op > 128}}
			case 1:
				m.Message = &slipwayv1.BuildRequest_Manifest{Manifest: &slipwayv1.ManifestPart{Entries: ops, Last: op > 128}}
			case 2:
				m.Message = &slipwayv1.BuildRequest_Content{Content: &slipwayv1.ContentFrame{WantId: uint64(op >> 4), Data: ops, Size: uint32(len(ops))}}
			case 3:
				m.Message = answer(uint64(op>>4), "x").Message
			case 4:
				m.Message = &slipwayv1.BuildRequest_Start{Start: shop()}
			case 5:
				m.Message = &slipwayv1.BuildRequest_Content{}
			case 6:
				m.Message = &slipwayv1.BuildRequest_Answer{}
			}
			if c.stream.Send(&m) != nil {
				break
			}
		}
		_ = c.stream.CloseSend()
		c.result()
	})
}
