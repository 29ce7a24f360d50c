package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A session is a build's line to its client. The front feeds it what the
// client says; the worker's build uses it as its [builder.Session].
type session struct {
	id     string
	start  *slipwayv1.Start
	cache  *layercache.Cache
	send   func(*slipwayv1.BuildResponse) error // to the client; fails when it has gone
	log    fleet.Log
	cancel context.CancelCauseFunc // ends the build
	ctx    context.Context         // of the build
	alert  func(error)             // is told of events that cannot be logged

	decoder  *buildctx.ManifestDecoder
	manifest chan struct{} // closed when it is complete, or never will be
	m        *buildctx.Manifest

	mu       sync.Mutex
	gone     error // why the client is not there any more
	lost     chan struct{}
	lastID   uint64
	asks     map[uint64]chan *slipwayv1.Answer
	wants    map[uint64]*want
	known    map[string]authn.AuthConfig // credentials by host
	progress slipwayv1.ContextProgress
	waiting  int           // Needs under way
	since    time.Time     // when waiting became positive
	spent    time.Duration // with waiting positive, and for the manifest
	told     bool          // the context phase has been reported as done
}

// A want is one request for contents under way.
type want struct {
	frames   chan *slipwayv1.ContentFrame
	receiver *buildctx.Receiver
	done     chan struct{} // closed when nobody takes frames any more
}

func newSession(id string, start *slipwayv1.Start, cache *layercache.Cache, log fleet.Log) *session {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &session{
		id: id, start: start, cache: cache, log: log, ctx: ctx, cancel: cancel,
		decoder: buildctx.NewManifestDecoder(nil), manifest: make(chan struct{}), lost: make(chan struct{}),
		asks: map[uint64]chan *slipwayv1.Answer{}, wants: map[uint64]*want{}, known: map[string]authn.AuthConfig{},
		since: time.Now(),
	}
}

var errClientLost = &failure.Error{
	Code: failure.ClientLost, Phase: failure.Context, Blame: failure.Net, Retryable: true,
	Message: "the connection to the client was lost while the build needed it",
	Hint:    "deploy again: contents that have arrived are kept, and finished steps stay cached",
}

// leave says that the client has gone; what waits for it fails.
func (s *session) leave(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone != nil {
		return
	}
	s.gone = cause
	close(s.lost)
}

func (s *session) lostCause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// Emit implements builder.Session.
func (s *session) Emit(e *slipwayv1.Event) {
	e.Time = timestamppb.Now()
	raw, err := proto.Marshal(e)
	if err == nil {
		_, err = s.log.Append(raw)
	}
	if err != nil && s.alert != nil {
		s.alert(err)
	}
}

// addManifest takes the next part of the manifest.
func (s *session) addManifest(part *slipwayv1.ManifestPart) error {
	if s.m != nil {
		return failure.Userf(failure.InvalidArgument, "", "the manifest was sent twice")
	}
	m, err := s.decoder.Add(part)
	if err != nil {
		return &failure.Error{Code: failure.ContextInvalid, Phase: failure.Context, Blame: failure.User, Message: err.Error(), Err: err,
			Hint: "update the client; a build context may have a million entries at most"}
	}
	if m == nil {
		return nil
	}
	s.m = m
	s.mu.Lock()
	s.progress.Files, s.progress.Bytes = uint64(m.Files()), uint64(m.Bytes())
	s.spent += time.Since(s.since)
	s.mu.Unlock()
	close(s.manifest)
	return nil
}

// Manifest implements builder.Session.
func (s *session) Manifest(ctx context.Context) (*buildctx.Manifest, error) {
	select {
	case <-s.manifest:
		return s.m, nil
	default:
	}
	select {
	case <-s.manifest:
		return s.m, nil
	case <-s.lost:
		return nil, s.lostCause()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Credentials implements builder.Session.
func (s *session) Credentials(ctx context.Context, host string) (authn.AuthConfig, error) {
	s.mu.Lock()
	cfg, ok := s.known[host]
	s.mu.Unlock()
	if ok {
		return cfg, nil
	}
	a, err := s.ask(ctx, &slipwayv1.Ask{Question: &slipwayv1.Ask_Registry{Registry: host}})
	if err != nil {
		return cfg, err
	}
	if c := a.GetCredentials(); c != nil {
		cfg = authn.AuthConfig{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	}
	s.mu.Lock()
	s.known[host] = cfg
	s.mu.Unlock()
	return cfg, nil
}

// ask puts a question to the client and waits for the answer.
func (s *session) ask(ctx context.Context, q *slipwayv1.Ask) (*slipwayv1.Answer, error) {
	reply := make(chan *slipwayv1.Answer, 1)
	s.mu.Lock()
	s.lastID++
	q.Id = s.lastID
	s.asks[q.Id] = reply
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.asks, q.Id)
		s.mu.Unlock()
	}()
	if err := s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Ask{Ask: q}}); err != nil {
		return nil, errClientLost
	}
	select {
	case a := <-reply:
		return a, nil
	case <-s.lost:
		return nil, s.lostCause()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answer hands an answer to whoever asked.
func (s *session) answer(a *slipwayv1.Answer) {
	s.mu.Lock()
	reply := s.asks[a.AskId]
	delete(s.asks, a.AskId)
	s.mu.Unlock()
	if reply != nil {
		reply <- a
	}
}

// Need implements builder.Session.
func (s *session) Need(ctx context.Context, entries []int) error {
	if len(entries) == 0 {
		return nil
	}
	m, err := s.Manifest(ctx)
	if err != nil {
		return err
	}
	s.enter()
	defer s.exit()
	store := &contents{Contents: s.cache.Contents().For(s.start.App)}
	missing, err := buildctx.Needs(ctx, m, entries, store)
	if err != nil || len(missing) == 0 {
		return err
	}
	return s.fetch(ctx, m, missing, store)
}

// fetch has the client send the contents of entries and stores them. What
// another Need fetches at the same time is fetched twice at worst; the store
// keeps it once.
func (s *session) fetch(ctx context.Context, m *buildctx.Manifest, entries []uint32, store *contents) error {
	s.mu.Lock()
	s.lastID++
	ask := &slipwayv1.Want{Id: s.lastID, Entries: entries}
	s.mu.Unlock()
	receiver, err := buildctx.NewReceiver(m, ask, store, nil)
	if err != nil {
		return err
	}
	w := &want{frames: make(chan *slipwayv1.ContentFrame), receiver: receiver, done: make(chan struct{})}
	s.open(m, ask, w)
	defer s.close(ask.Id, w)
	if err := s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Want{Want: ask}}); err != nil {
		return errClientLost
	}
	store.writer = store.Writer(ctx)
	stop := s.report(w)
	err = receiver.Receive(ctx, func(ctx context.Context) (*slipwayv1.ContentFrame, error) {
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
	case errors.Is(err, buildctx.ErrSource):
		return &failure.Error{Code: failure.ContextChanged, Phase: failure.Context, Blame: failure.User, Retryable: true, Message: err.Error(), Err: err,
			Hint: "deploy again when nothing writes to the context, or add the file to .dockerignore"}
	case errors.Is(err, buildctx.ErrProtocol), errors.Is(err, buildctx.ErrDigest), errors.Is(err, layercache.ErrDigest):
		return &failure.Error{Code: failure.ContextInvalid, Phase: failure.Context, Blame: failure.User, Retryable: true, Message: err.Error(), Err: err,
			Hint: "update the client and deploy again"}
	}
	return err
}

func (s *session) open(m *buildctx.Manifest, ask *slipwayv1.Want, w *want) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wants[ask.Id] = w
	for _, i := range ask.Entries {
		s.progress.WantedFiles++
		s.progress.WantedBytes += uint64(m.Entries[i].Size)
	}
}

func (s *session) close(id uint64, w *want) {
	close(w.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wants, id)
	p := w.receiver.Progress()
	s.progress.SentFiles += uint64(p.Files)
	s.progress.SentBytes += uint64(p.Bytes)
	s.progress.WireBytes += uint64(p.Wire)
}

// frame hands a frame to its want and waits until there is room for it.
func (s *session) frame(ctx context.Context, f *slipwayv1.ContentFrame) {
	s.mu.Lock()
	w := s.wants[f.WantId]
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
func (s *session) report(w *want) (stop func()) {
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
		now := w.receiver.Progress()
		p.SentFiles += uint64(now.Files)
		p.SentBytes += uint64(now.Bytes)
		p.WireBytes += uint64(now.Wire)
	}
	return p
}

func (s *session) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting++; s.waiting == 1 {
		s.since = time.Now()
	}
}

// exit tells, after the first need is served, that the context is there.
func (s *session) exit() {
	s.mu.Lock()
	if s.waiting--; s.waiting == 0 {
		s.spent += time.Since(s.since)
	}
	first := s.waiting == 0 && !s.start.Detach
	s.mu.Unlock()
	if first {
		s.contextDone()
	}
}

// contextDone reports the end of the context phase, once, and returns how
// long it took.
func (s *session) contextDone() time.Duration {
	s.mu.Lock()
	told, spent := s.told, s.spent
	s.told = true
	s.mu.Unlock()
	if !told {
		s.emitContext(s.Context())
		s.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Phase{Phase: &slipwayv1.Phase{
			Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT, Done: true, DurationMs: spent.Milliseconds(),
		}}})
	}
	return spent
}

// detachedNeeds has the client of a detached build send all that the store
// lacks at once, so that it may leave.
func (s *session) detachedNeeds() {
	if !s.start.Detach || s.start.GetContext() == nil {
		return
	}
	m, err := s.Manifest(s.ctx)
	if err == nil {
		all := make([]int, len(m.Entries))
		for i := range all {
			all[i] = i
		}
		err = s.Need(s.ctx, all)
	}
	if err != nil {
		s.cancel(err)
		return
	}
	s.contextDone()
}

// createdAt is the time that a build's id was made.
func createdAt(id string) time.Time {
	u, err := ulid.ParseStrict(id)
	if err != nil {
		return time.Now()
	}
	return ulid.Time(u.Time())
}
