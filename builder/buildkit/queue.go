package buildkit

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A Queue has the daemon's records of builds and says when each may run.
type Queue interface {
	// Do records a build of the call's, has it wait its turn and run, and
	// returns its result, which may be nil, when it has ended. It ends with ctx.
	// An error says that the build was not taken.
	Do(ctx context.Context, g builder.Guest) (*slipwayv1.Result, error)
}

// A place is where a build waits in the queue.
type place struct {
	mu   sync.Mutex
	at   int           // 0 before it has waited for a moment
	news chan struct{} // closed when that changes
}

func newPlace() *place { return &place{news: make(chan struct{})} }

func (p *place) set(at int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
	close(p.news)
	p.news = make(chan struct{})
}

func (p *place) get() (at int, news <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at, p.news
}

// tellPlace shows the build's place in the queue to a client that follows it,
// as a vertex with lines of its log, until BuildKit has the build. It says
// whether there was anything to show.
func (s *solve) tellPlace(ctx context.Context, stream controlapi.Control_StatusServer) (told bool, err error) {
	v := &controlapi.Vertex{Digest: digest.FromString("slipway queue " + s.req.Ref).String(), Name: "waiting for other builds of this daemon to end"}
	for {
		at, news := s.place.get()
		if at > 0 {
			now := timestamppb.Now()
			if v.Started == nil {
				v.Started = now
			}
			line := &controlapi.VertexLog{Vertex: v.Digest, Timestamp: now, Stream: 1, Msg: fmt.Appendf(nil, "place %d in the queue\n", at)}
			if err := stream.Send(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}, Logs: []*controlapi.VertexLog{line}}); err != nil {
				return true, err
			}
		}
		select {
		case <-news:
			continue
		case <-s.ready:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		if v.Started == nil {
			return false, nil
		}
		v.Completed = timestamppb.Now()
		return true, stream.Send(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}})
	}
}

// headed is a stream whose header has been sent.
type headed struct {
	controlapi.Control_StatusServer
}

// SendHeader sends nothing: the header says what the time was.
func (headed) SendHeader(metadata.MD) error { return nil }

// tell has what BuildKit tells of the build in the build's log. It returns when
// that is all, or when ctx, which is that of BuildKit's part, ends before there
// was anything.
func (s *solve) tell(ctx context.Context, b *build) {
	after := context.WithoutCancel(ctx)
	if !s.tenant.begun(ctx, s.req.Ref) && !s.tenant.recorded(after, s.req.Ref) {
		return
	}
	err := s.tenant.control.Status(&controlapi.StatusRequest{Ref: s.req.Ref}, &follower{ctx: after, take: b.events.status})
	if err != nil {
		s.tenant.engine.log.Warn("progress of a build", "build", b.job.ID, "err", err)
	}
}

// begun waits until BuildKit works on a build. It reports whether that came
// before ctx ended.
func (t *tenant) begun(ctx context.Context, ref string) bool {
	found := &finder{ctx: ctx, enough: io.EOF}
	_ = t.control.ListenBuildHistory(&controlapi.BuildHistoryRequest{Ref: ref, ActiveOnly: true}, found)
	return found.any
}

// A follower is a stream whose messages are taken here.
type follower struct {
	controlapi.Control_StatusServer
	ctx  context.Context
	take func(*client.SolveStatus)
}

// Context and the rest implement the stream.
func (f *follower) Context() context.Context { return f.ctx }

// SendHeader sends nothing.
func (*follower) SendHeader(metadata.MD) error { return nil }

// SendMsg takes a message.
func (f *follower) SendMsg(m any) error {
	if resp, ok := m.(*controlapi.StatusResponse); ok {
		f.take(client.NewSolveStatus(resp))
	}
	return nil
}

// idle is how long a build's client asks for nothing before the build's place
// goes to others.
const idle = 2 * time.Second

// A rest gives the place of a build to others while its client, which says what
// to do, lets it wait: for another build of the client's, as bake does with
// targets that are made of others. The zero value is of a build that never
// rests.
type rest struct {
	mu     sync.Mutex
	begin  func() (resume func()) // nil: not yet, or no more
	resume func()                 // while it rests
	calls  int                    // of the client under way
	timer  *time.Timer
}

// start says that the build runs, and what lets it rest.
func (r *rest) start(begin func() (resume func())) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin = begin
	r.watch()
}

// enter notes a call of the client's; leave must be called at its end.
func (r *rest) enter() (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.wake()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls--
		r.watch()
	}
}

// end says that the client has said all there is to do.
func (r *rest) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin = nil
	r.wake()
}

// watch lets the build rest when nobody calls for a while. The caller holds the
// lock.
func (r *rest) watch() {
	if r.begin == nil || r.calls > 0 {
		return
	}
	r.timer = time.AfterFunc(idle, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.begin != nil && r.calls == 0 && r.resume == nil {
			r.resume = r.begin()
		}
	})
}

// wake ends a rest, or what would begin one. The caller holds the lock.
func (r *rest) wake() {
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.resume != nil {
		r.resume()
		r.resume = nil
	}
}
