package server

import (
	"context"
	"errors"
	"sync"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
)

var errDraining = &failure.Error{
	Code: failure.Unavailable, Phase: failure.Queue, Blame: failure.Builder, Retryable: true,
	Message: "the daemon is stopping", Hint: "deploy again in a moment",
}

var errLeft = &failure.Error{
	Code: failure.Cancelled, Blame: failure.User, Retryable: true, Err: context.Canceled,
	Message: "the client ended the build, or has gone", Hint: "build again: finished steps stay cached",
}

// Do records a build of the caller's, has it wait its turn in the queue and run,
// and returns its result when it has ended. It ends with ctx. An error says
// that the queue did not take it.
func (f *Front) Do(ctx context.Context, g builder.Guest) (*slipwayv1.Result, error) {
	if f.draining.Load() {
		return nil, errDraining
	}
	b, _, err := f.record(ctx, g.Start)
	if err != nil {
		return nil, err
	}
	defer f.hub.watch(b.ID)() // whoever else watches is not the last to leave
	s, err := f.enqueue(ctx, b, g.Start, func(s *session) error {
		s.guest, s.send = &g, func(*slipwayv1.BuildResponse) error { return errClientLost }
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { f.stop(context.WithoutCancel(ctx), b.ID, leaving(ctx)) })()
	f.await(ctx, s)
	if b, err = f.opts.Records.Get(context.WithoutCancel(ctx), b.Org, b.ID); err != nil {
		return nil, err
	}
	return buildProto(b).Result, nil
}

// leaving is why the caller of a guest has gone.
func leaving(ctx context.Context) *failure.Error {
	if e, ok := errors.AsType[*failure.Error](context.Cause(ctx)); ok {
		return e
	}
	return errLeft
}

// await returns when the session's build has ended. It tells the guest where it
// waits.
func (f *Front) await(ctx context.Context, s *session) {
	ctx, stop := context.WithCancel(ctx)
	var told sync.WaitGroup
	told.Go(func() { f.positions(ctx, s) })
	<-s.over
	stop()
	told.Wait()
}

// places are how many builds may run at a time.
type places struct {
	mu   sync.Mutex
	free int           // less than none while builds have gone on that had rested
	news chan struct{} // closed when one has become free
}

func newPlaces(n int) *places { return &places{free: n, news: make(chan struct{})} }

// take waits for a place, and reports whether it got one before ctx ended.
func (p *places) take(ctx context.Context) bool {
	for {
		p.mu.Lock()
		got, news := p.free > 0, p.news
		if got {
			p.free--
		}
		p.mu.Unlock()
		if got {
			return true
		}
		select {
		case <-news:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *places) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	close(p.news)
	p.news = make(chan struct{})
}

// rest gives a place to others until resume is called, which does not wait for
// one: who rested is not to wait for those that it let go first.
func (p *places) rest() (resume func()) {
	p.give()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.free--
	})
}
