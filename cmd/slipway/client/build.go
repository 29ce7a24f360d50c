package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrDetached ends [Client.Build] when the build goes on without its client.
var ErrDetached = errors.New("the build goes on without this client")

// wantsServed is how many wants are served at a time, so that a small one need
// not wait for a large one.
const wantsServed = 2

// Context is the build context as a build sends it.
type Context interface {
	// Manifest makes the manifest, which may take a while, and passes it on
	// in parts, the last one marked. It stops at the first error of send, and
	// when ctx ends. Another error fails the build.
	Manifest(ctx context.Context, send func(*slipwayv1.ManifestPart) error) error

	// Send reads what w wants of the manifest and passes it to emit in frames,
	// in order. It may be called concurrently. A file that it cannot send as the manifest
	// says it reports in a frame.
	Send(ctx context.Context, w *slipwayv1.Want, emit func(*slipwayv1.ContentFrame) error) error
}

// Job is one build to run.
type Job struct {
	Start   *slipwayv1.Start
	Context Context // nil if the build needs none
	// Answer answers an ask. It may be called concurrently and never fails:
	// an answer that is not there is None.
	Answer func(context.Context, *slipwayv1.Ask) *slipwayv1.Answer
	// Agent serves a connection to one of the start's SSH agents until the
	// connection ends. It may be called concurrently. Nil serves none.
	Agent    func(*sshagent.Conn)
	Observer Observer
}

// Build runs the job and returns its result, which may be a failure. It
// returns an error instead when there is no result to be had.
//
// When ctx ends, Build asks the daemon to cancel and waits a moment for the
// result of that. When the connection breaks after the daemon accepted the
// build, Build follows the build over a new one; contents cannot be sent then.
// A build is never started twice. A detached job ends with [ErrDetached] as
// soon as the daemon needs nothing more from here.
func (c *Client) Build(ctx context.Context, j Job) (*slipwayv1.Result, error) {
	// The session outlives ctx, so that there is a stream to cancel on.
	live, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	b := &build{c: c, job: j, obs: &observed{to: j.Observer}, stop: stop, giveUp: giveUp}
	b.sendCtx, b.stopSending = context.WithCancel(live)
	b.wants = make(chan struct{}, wantsServed)
	b.agents = sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		return b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Agent{Agent: f}})
	}, b.forward)
	defer b.group.Wait()
	defer b.agents.Close(errOver)
	defer stop(nil)

	release := context.AfterFunc(ctx, func() { stop(nil) })
	stream, err := c.builds.Build(live)
	if !release() {
		return nil, cancelled("interrupted before the build began")
	}
	if err != nil {
		return nil, c.fail(err)
	}
	b.stream = stream

	done := make(chan struct{})
	defer close(done)
	b.group.Go(func() { b.interrupt(ctx, live, done) })
	b.group.Go(b.open)
	res, err := b.receive(ctx, live)
	if own := ownCause(ctx); own != nil && (err != nil || res.GetError() != nil) {
		return nil, own // the daemon only says that the build was cancelled
	}
	return res, err
}

// ownCause returns why this side gave a build up; nil if somebody interrupted
// it or nothing did.
func ownCause(ctx context.Context) error {
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return AsError(cause)
}

// build is one run of [Client.Build].
type build struct {
	giveUp context.CancelCauseFunc // cancels the build for a reason of this side

	c   *Client
	job Job
	obs *observed

	stream slipwayv1.BuildService_BuildClient
	stop   context.CancelCauseFunc // ends the stream
	group  sync.WaitGroup

	sendCtx     context.Context // ends when nothing more is to be sent but Cancel
	stopSending context.CancelFunc
	wants       chan struct{} // tickets
	agents      *sshagent.Conns

	broken atomic.Bool // the stream is gone
	sendMu sync.Mutex  // a stream takes one message at a time
}

func (b *build) send(m *slipwayv1.BuildRequest) error {
	b.sendMu.Lock()
	defer b.sendMu.Unlock()
	return b.stream.Send(m)
}

// open sends the start and the manifest. A send that fails says only that the
// stream broke; receive learns why.
func (b *build) open() {
	if b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Start{Start: b.job.Start}}) != nil || b.job.Context == nil {
		return
	}
	var broken error
	err := b.job.Context.Manifest(b.sendCtx, func(part *slipwayv1.ManifestPart) error {
		if broken = b.sendCtx.Err(); broken == nil {
			broken = b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Manifest{Manifest: part}})
		}
		return broken
	})
	if err != nil && broken == nil && b.sendCtx.Err() == nil {
		b.giveUp(err)
	}
}

// receive serves the stream until the result, and follows the build elsewhere
// if the stream breaks.
func (b *build) receive(ctx, live context.Context) (*slipwayv1.Result, error) {
	for {
		m, err := b.stream.Recv()
		if err != nil {
			return b.lost(ctx, live, err)
		}
		switch m := m.GetMessage().(type) {
		case *slipwayv1.BuildResponse_Accepted:
			b.obs.accepted(m.Accepted)
		case *slipwayv1.BuildResponse_Want:
			b.serve(m.Want)
		case *slipwayv1.BuildResponse_Ask:
			b.group.Go(func() { b.answer(m.Ask) })
		case *slipwayv1.BuildResponse_Agent:
			b.agents.Frame(m.Agent)
		case *slipwayv1.BuildResponse_Event:
			b.obs.event(m.Event)
		}
		if b.obs.result != nil {
			return b.obs.result, nil
		}
		if b.job.Start.GetDetach() && b.mayLeave(m.GetEvent()) {
			return nil, ErrDetached
		}
	}
}

// mayLeave reports whether ev says that the daemon needs nothing more from
// the client: the context is complete, or the preflight of a build without one.
func (b *build) mayLeave(ev *slipwayv1.Event) bool {
	last := slipwayv1.PhaseName_PHASE_NAME_CONTEXT
	if b.job.Context == nil {
		last = slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT
	}
	return ev.GetPhase().GetDone() && ev.GetPhase().GetName() == last
}

// serve sends what w wants, a few wants at a time, without holding up what
// the daemon says meanwhile.
func (b *build) serve(w *slipwayv1.Want) {
	b.group.Go(func() {
		select {
		case b.wants <- struct{}{}:
		case <-b.sendCtx.Done():
			return
		}
		defer func() { <-b.wants }()
		told := false
		emit := func(f *slipwayv1.ContentFrame) error {
			if err := b.sendCtx.Err(); err != nil {
				return err
			}
			told = told || f.GetError() != nil
			return b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Content{Content: f}})
		}
		err := errors.New("the build has no context")
		if b.job.Context != nil {
			err = b.job.Context.Send(b.sendCtx, w, emit)
		}
		// The daemon hears of what failed, and it comes back as the result.
		if err != nil && !told && b.sendCtx.Err() == nil {
			emit(&slipwayv1.ContentFrame{WantId: w.GetId(), Last: true, Error: &slipwayv1.ContentError{Message: err.Error()}})
		}
	})
}

func (b *build) answer(ask *slipwayv1.Ask) {
	a := b.job.Answer(b.sendCtx, ask)
	a.AskId = ask.GetId()
	b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Answer{Answer: a}})
}

var errOver = errors.New("the build needs no agent any more")

// forward serves a connection to an SSH agent.
func (b *build) forward(conn *sshagent.Conn) {
	b.group.Go(func() {
		defer conn.Close()
		if b.job.Agent != nil {
			b.job.Agent(conn)
		}
	})
}

// lost is called when the stream ended without a result.
func (b *build) lost(ctx, live context.Context, err error) (*slipwayv1.Result, error) {
	b.broken.Store(true)
	b.stopSending()
	b.agents.Close(err)
	if live.Err() != nil {
		return nil, AsError(context.Cause(live))
	}
	id := b.obs.build()
	if !isLost(err) {
		return nil, b.c.fail(err)
	}
	if id == "" {
		if ctx.Err() != nil {
			return nil, cancelled("interrupted before the build began")
		}
		e := lostError(b.c.opts.Address, err)
		e.Hint = "The build had not begun: run the same command again."
		return nil, e
	}
	incomplete := b.job.Context != nil && !b.obs.contextDone
	res, ferr := b.c.follow(live, id, b.obs, lostError(b.c.opts.Address, err))
	if live.Err() != nil {
		return nil, AsError(context.Cause(live))
	}
	if incomplete && res.GetError() != nil && res.GetError().GetHint() == "" {
		res.Error.Hint = "The connection broke while the context was travelling. Run the same command again: what arrived is kept."
	}
	return res, ferr
}

// interrupt waits for ctx to end and then for the build to: by a message on
// its stream, by a call of its own if that brings nothing, and at last by
// letting go.
func (b *build) interrupt(ctx, live context.Context, done <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-done:
		return
	}
	if ownCause(ctx) == nil {
		b.obs.do(Observer.Cancelling)
	}
	b.stopSending()
	if !b.broken.Load() {
		b.group.Go(func() {
			b.send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Cancel{Cancel: &slipwayv1.Cancel{}}})
		})
		if wait(done, b.c.opts.cancelWait()/3) {
			return
		}
	}
	if id := b.obs.build(); id != "" {
		cctx, cancel := context.WithTimeout(live, b.c.opts.cancelWait())
		_, err := b.c.CancelBuild(cctx, id)
		cancel()
		if err != nil {
			b.stop(cancelled(fmt.Sprintf("interrupted, but the daemon could not be told (%s); it cancels builds whose client is gone", AsError(err).GetMessage())))
			return
		}
	}
	if !wait(done, b.c.opts.cancelWait()) {
		b.stop(cancelled("interrupted; the daemon has not said yet how the build ended"))
	}
}

// wait waits for done at most d and reports whether it came.
func wait(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// isLost reports whether a stream ended because of its connection rather than
// by the daemon's decision.
func isLost(err error) bool {
	if errors.Is(err, io.EOF) {
		return true // the daemon went away in order, but without a result
	}
	if _, ok := detail(err); ok {
		return false
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.DeadlineExceeded:
		return true
	}
	return false
}

func lostError(a Address, err error) *Error {
	cause := "the daemon closed it"
	if !errors.Is(err, io.EOF) {
		cause, _ = connectCause(status.Convert(err).Message())
	}
	e := NewError(CodeConnectionLost, slipwayv1.Blame_BLAME_NETWORK, fmt.Sprintf("the connection to %s broke: %s", a.HostPort(), cause), "")
	e.Phase, e.Retryable = "connect", true
	return e
}
