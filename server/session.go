package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/sshagent"
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
	guest  *builder.Guest          // what runs in the builder's place; nil for a deploy
	over   chan struct{}           // closed when the build has its result on record

	decoder  *buildctx.ManifestDecoder
	manifest chan struct{} // closed when it is complete
	m        *buildctx.Manifest

	mu       sync.Mutex
	gone     error // why the client is not there any more
	lost     chan struct{}
	lastID   uint64
	asks     map[uint64]chan *slipwayv1.Answer
	wants    map[uint64]*want
	known    map[string]*credentials     // by host
	secrets  map[string]*secret          // by id
	flights  map[[sha256.Size]byte]*want // by the content on its way
	landed   uint64                      // wants that have ended
	fault    error                       // of the context; no more is asked for
	progress slipwayv1.ContextProgress
	waiting  int           // Needs under way
	since    time.Time     // when waiting became positive
	spent    time.Duration // with waiting positive, and for the manifest
	told     bool          // the context phase has been reported as done

	agents  *sshagent.Conns
	serving sync.WaitGroup // what serves agents
}

// credentials are what the client said about a registry. They stay in memory:
// no event, no log and no error holds them.
type credentials struct {
	known chan struct{} // closed when the rest is set
	cfg   authn.AuthConfig
	err   error
}

func newSession(id string, start *slipwayv1.Start, cache *layercache.Cache, log fleet.Log) *session {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &session{
		id: id, start: start, cache: cache, log: log, ctx: ctx, cancel: cancel, over: make(chan struct{}),
		decoder: buildctx.NewManifestDecoder(nil), manifest: make(chan struct{}), lost: make(chan struct{}),
		asks: map[uint64]chan *slipwayv1.Answer{}, wants: map[uint64]*want{}, flights: map[[sha256.Size]byte]*want{},
		known: map[string]*credentials{}, secrets: map[string]*secret{}, since: time.Now(),
	}
	s.agents = sshagent.NewConns(func(f *slipwayv1.AgentFrame) error {
		return s.send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Agent{Agent: f}})
	}, nil)
	return s
}

// lane is under which name the queue counts the build of an app. Guests are as
// many as their clients wait for: each of them is counted alone.
func (s *session) lane(app string) string {
	if s.guest != nil {
		return s.id
	}
	return app
}

// place tells a guest where it waits.
func (s *session) place(n int) {
	if s.guest != nil && s.guest.Place != nil {
		s.guest.Place(n)
	}
}

// end drops what only the build needed of its client.
func (s *session) end() {
	s.agents.Close(errEnded)
	s.serving.Wait()
	s.forget()
}

var errEnded = errors.New("the build has ended")

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
	s.agents.Close(cause)
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
	if err != nil && !errors.Is(err, fleet.ErrEnded) && s.alert != nil {
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
	err := s.await(ctx, s.manifest)
	if err != nil {
		return nil, err
	}
	return s.m, nil
}

// await waits for the client to bring something about. What is there counts
// also after the client has gone.
func (s *session) await(ctx context.Context, there <-chan struct{}) (err error) {
	select {
	case <-there:
		return nil
	case <-s.lost:
		err = s.lostCause()
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	select {
	case <-there:
		return nil
	default:
		return err
	}
}

// Credentials implements builder.Session. The client is asked once for a
// host, however many want to know.
func (s *session) Credentials(ctx context.Context, host string) (authn.AuthConfig, error) {
	s.mu.Lock()
	c, asked := s.known[host]
	if !asked {
		c = &credentials{known: make(chan struct{})}
		s.known[host] = c
	}
	s.mu.Unlock()
	if asked {
		select {
		case <-c.known:
		case <-ctx.Done():
			return authn.AuthConfig{}, context.Cause(ctx)
		}
		if c.err == nil || context.Cause(ctx) != nil || s.lostCause() != nil {
			return c.cfg, c.err
		}
		return s.Credentials(ctx, host) // whoever asked gave up
	}
	c.cfg, c.err = s.credentials(ctx, host)
	if c.err != nil {
		s.mu.Lock()
		delete(s.known, host)
		s.mu.Unlock()
	}
	close(c.known)
	return c.cfg, c.err
}

func (s *session) credentials(ctx context.Context, host string) (authn.AuthConfig, error) {
	a, err := s.ask(ctx, &slipwayv1.Ask{Question: &slipwayv1.Ask_Registry{Registry: host}})
	if err != nil {
		return authn.AuthConfig{}, err
	}
	c := a.GetCredentials()
	return authn.AuthConfig{
		Username: c.GetUsername(), Password: c.GetPassword(), IdentityToken: c.GetIdentityToken(), RegistryToken: c.GetRegistryToken(),
	}, nil
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
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case a := <-reply: // its last word
		return a, nil
	default:
		return nil, s.lostCause()
	}
}

// answer hands an answer to whoever asked.
func (s *session) answer(a *slipwayv1.Answer) {
	s.mu.Lock()
	reply := s.asks[a.GetAskId()]
	delete(s.asks, a.GetAskId())
	s.mu.Unlock()
	if reply != nil {
		reply <- a
	}
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
	first := s.waiting == 0
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

// createdAt is the time that a build's id was made.
func createdAt(id string) time.Time {
	u, err := ulid.ParseStrict(id)
	if err != nil {
		return time.Now()
	}
	return ulid.Time(u.Time())
}
