package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A want is one request for contents under way.
type want struct {
	id       uint64
	entries  []uint32
	frames   chan *slipwayv1.ContentFrame
	receiver *buildctx.Receiver
	done     chan struct{} // closed when nobody takes frames any more
}

// wantBytes is about how much one want asks for. Contents are there when their
// want is served, so that a build may begin with the first while the others
// are on their way.
const wantBytes = 32 << 20

// wantsOpen is how many wants one Need has under way.
const wantsOpen = 2

// Need implements builder.Session. Needs at the same time ask the client for
// each content once: a Need waits for what another one has asked for.
func (s *session) Need(ctx context.Context, groups ...[]int) error {
	m, err := s.Manifest(ctx)
	if err != nil {
		return err
	}
	s.enter()
	defer s.exit()
	for _, entries := range groups {
		if len(entries) == 0 {
			continue // to buildctx, nil means all
		}
		if err := s.need(ctx, m, entries); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) need(ctx context.Context, m *buildctx.Manifest, entries []int) error {
	for {
		landed := s.landings()
		missing, err := buildctx.Needs(ctx, m, entries, &contents{Contents: s.cache.Contents()})
		if err != nil || len(missing) == 0 {
			return err
		}
		if err := s.spoiled(); err != nil {
			return err
		}
		mine, others, stale := s.claim(missing, landed)
		if stale {
			continue
		}
		if err := s.fetchAll(ctx, m, mine); err != nil {
			return s.spoil(err)
		}
		for _, w := range others {
			if err := s.await(ctx, w.done); err != nil {
				return err
			}
		}
		if len(others) == 0 {
			return nil
		}
		// See what the others have brought, and bring the rest.
	}
}

// spoil remembers that the context itself is at fault: whatever else is needed
// of it, the build will fail, and need not ask for more.
func (s *session) spoil(err error) error {
	if f := failure.As(err); f.Code == failure.ContextChanged || f.Code == failure.ContextInvalid {
		s.mu.Lock()
		s.fault = err
		s.mu.Unlock()
	}
	return err
}

func (s *session) spoiled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

func (s *session) landings() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.landed
}

// claim makes wants of the entries that are not on their way, and returns the
// wants that bring the others. It is stale when a want has ended since entries
// were found to be missing.
func (s *session) claim(entries []uint32, landed uint64) (mine, others []*want, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.landed != landed {
		return nil, nil, true
	}
	seen := map[*want]bool{}
	var bytes int64
	for _, i := range entries {
		e := &s.m.Entries[i]
		w := s.flights[e.Digest]
		if w != nil {
			if !seen[w] {
				seen[w] = true
				others = append(others, w)
			}
			continue
		}
		if len(mine) == 0 || bytes >= wantBytes {
			s.lastID++
			mine = append(mine, &want{id: s.lastID, frames: make(chan *slipwayv1.ContentFrame), done: make(chan struct{})})
			bytes = 0
		}
		w = mine[len(mine)-1]
		w.entries = append(w.entries, i)
		bytes += e.Size
		seen[w] = true
		s.flights[e.Digest] = w
	}
	return mine, others, false
}

// fetchAll has the wants served in order, a few at a time.
func (s *session) fetchAll(ctx context.Context, m *buildctx.Manifest, ws []*want) error {
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, wantsOpen)
	for _, w := range ws {
		slots <- struct{}{}
		store, err := s.openWant(ctx, m, w)
		g.Go(func() (fault error) {
			defer func() { <-slots }()
			defer s.land(w)
			defer rescue.Into(&fault)
			if err != nil {
				return err
			}
			return s.fetch(ctx, w, store)
		})
	}
	return g.Wait()
}

// openWant asks the client for what w wants.
func (s *session) openWant(ctx context.Context, m *buildctx.Manifest, w *want) (*contents, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	store := &contents{Contents: s.cache.Contents().For(s.start.App)}
	ask := &slipwayv1.Want{Id: w.id, Entries: w.entries}
	receiver, err := buildctx.NewReceiver(m, ask, store, nil)
	if err != nil {
		return nil, err
	}
	s.open(m, w, receiver)
	if err := s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Want{Want: ask}}); err != nil {
		return nil, errClientLost
	}
	store.writer = store.Writer(ctx)
	return store, nil
}

// fetch stores what comes for w.
func (s *session) fetch(ctx context.Context, w *want, store *contents) error {
	stop := s.report()
	err := w.receiver.Receive(ctx, func(ctx context.Context) (*slipwayv1.ContentFrame, error) {
		select {
		case f := <-w.frames:
			return f, nil
		case <-s.lost:
			return nil, s.lostCause()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	})
	stop()
	// What has arrived is kept, whatever happened to the rest.
	flushErr := store.writer.Flush(context.WithoutCancel(ctx))
	if err == nil {
		err = flushErr
	}
	return contentFailure(err)
}

func contentFailure(err error) error {
	var known *failure.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	switch {
	case errors.Is(err, buildctx.ErrSource), errors.Is(err, buildctx.ErrDigest), errors.Is(err, layercache.ErrDigest):
		return &failure.Error{Code: failure.ContextChanged, Phase: failure.Context, Blame: failure.User, Retryable: true, Message: err.Error(), Err: err,
			Hint: "deploy again when nothing writes to the context, or add the file to .dockerignore"}
	case errors.Is(err, buildctx.ErrProtocol):
		return &failure.Error{Code: failure.ContextInvalid, Phase: failure.Context, Blame: failure.User, Retryable: true, Message: err.Error(), Err: err,
			Hint: "update the client and deploy again"}
	}
	return err
}

// open lets w take frames.
func (s *session) open(m *buildctx.Manifest, w *want, r *buildctx.Receiver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.receiver = r
	s.wants[w.id] = w
	for _, i := range w.entries {
		s.progress.WantedFiles++
		s.progress.WantedBytes += uint64(m.Entries[i].Size)
	}
}

// land ends a want.
func (s *session) land(w *want) {
	s.mu.Lock()
	delete(s.wants, w.id)
	for _, i := range w.entries {
		delete(s.flights, s.m.Entries[i].Digest)
	}
	s.landed++
	if w.receiver != nil {
		add(&s.progress, w.receiver.Progress())
	}
	late := s.told
	s.mu.Unlock()
	close(w.done)
	if late {
		s.emitContext(s.Context())
	}
}

func add(p *slipwayv1.ContextProgress, r buildctx.ReceiveProgress) {
	p.SentFiles += uint64(r.Files)
	p.SentBytes += uint64(r.Bytes)
	p.WireBytes += uint64(r.Wire)
}

// frame hands a frame to its want and waits until there is room for it.
func (s *session) frame(ctx context.Context, f *slipwayv1.ContentFrame) {
	s.mu.Lock()
	w := s.wants[f.GetWantId()]
	s.mu.Unlock()
	if w == nil {
		return // of a want that has failed
	}
	select {
	case w.frames <- f:
	case <-w.done:
	case <-ctx.Done():
	}
}

// report emits progress twice a second until it is stopped.
func (s *session) report() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				s.emitContext(s.Context())
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func (s *session) emitContext(p *slipwayv1.ContextProgress) {
	s.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Context{Context: p}})
}

// Context implements builder.Session.
func (s *session) Context() *slipwayv1.ContextProgress {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := proto.CloneOf(&s.progress)
	for _, w := range s.wants {
		add(p, w.receiver.Progress())
	}
	return p
}

// keep holds what has arrived of the context for a while, so that the next
// try sends only the rest.
func (s *session) keep(ctx context.Context) error {
	select {
	case <-s.manifest:
	default:
		return nil
	}
	lease, err := s.cache.Lease(ctx, "context-"+s.start.App, keepContents)
	if err != nil {
		return err
	}
	_, err = buildctx.Needs(lease.Context(ctx), s.m, nil, &contents{Contents: s.cache.Contents().For(s.start.App)})
	return errors.Join(err, lease.Release(ctx))
}

// keepContents is how long contents of a build that failed are safe from
// eviction.
const keepContents = time.Hour
