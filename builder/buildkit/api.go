package buildkit

import (
	"cmp"
	"context"
	"runtime/debug"
	"slices"
	"sync"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto" // the codec that BuildKit's messages are quick with
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
)

// A Caller is who speaks BuildKit's API.
type Caller struct {
	ID  string // never another one's
	Org string
	App string // the only one that it is for; empty means every app of Org
}

// An Action is what a call is for.
type Action int

// The actions, each of them on an app, or on all of an org.
const (
	Look     Action = iota // at builds: their progress, their records
	Build                  // and all that belongs to it
	SeeCache               // what is in it
	Prune                  // the cache
	Push                   // to a repository of the daemon's own registry, in the app's place
)

// APIOptions are the parts of the daemon that BuildKit's API goes with.
type APIOptions struct {
	Builder *builder.Builder
	Queue   Queue // of builds; nil runs each at once, and keeps no record of it

	// Caller returns who makes a call; the server has authenticated it.
	Caller func(ctx context.Context) Caller

	// Allow says whether the caller may do that to an app, or with "" to all
	// of them. The error is a *failure.Error.
	Allow func(ctx context.Context, a Action, app string) error

	// Repository returns the repository of the daemon's own registry that a
	// "host/path" names.
	Repository func(name string) (repository string, own bool)

	// Code says how the code of a failure is called in gRPC.
	Code func(string) (codes.Code, bool)
}

// An API is BuildKit's, with a BuildKit an org behind it: moby.buildkit.v1's
// Control and LLBBridge and containerd's Content, which stock clients speak.
// Callers see their org's builds, sessions, records and cache and no others.
type API struct {
	engine *Engine
	opts   APIOptions

	mu       sync.Mutex
	draining bool
	running  map[*solve]bool
	none     chan struct{} // closed when none runs and none will; nil before that is asked for
}

var _ controlapi.ControlServer = (*API)(nil)

// API returns BuildKit's API of the engine.
func (e *Engine) API(o APIOptions) *API {
	return &API{engine: e, opts: o, running: map[*solve]bool{}}
}

// Register puts BuildKit's services on a server, which must authenticate
// callers.
func (a *API) Register(g *grpc.Server) {
	controlapi.RegisterControlServer(g, a)
	forward(g, gateway.LLBBridge_ServiceDesc, a.throughBridge)
	forward(g, contentapi.Content_ServiceDesc, a.throughContent)
}

// Drain refuses new builds and waits for those under way.
func (a *API) Drain() {
	a.mu.Lock()
	a.draining = true
	if a.none == nil {
		a.none = make(chan struct{})
		a.settle()
	}
	a.mu.Unlock()
	<-a.none
}

// Stop ends the builds under way, for a daemon that must stop now.
func (a *API) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.running {
		s.hangUp(errStopped)
	}
}

var errStopped = &failure.Error{
	Code: failure.DaemonStopped, Blame: failure.Builder, Retryable: true,
	Message: "the daemon stopped while the build ran", Hint: "build again: finished steps stay cached",
}

var errDraining = &failure.Error{
	Code: failure.Unavailable, Phase: failure.Queue, Blame: failure.Builder, Retryable: true,
	Message: "the daemon is stopping", Hint: "build again in a moment",
}

// enter notes a build; leave must be called at its end.
func (a *API) enter(s *solve) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.draining {
		return errDraining
	}
	a.running[s] = true
	return nil
}

func (a *API) leave(s *solve) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, s)
	a.settle()
}

// settle tells who waits for the last build. The caller holds the lock.
func (a *API) settle() {
	if a.none == nil || len(a.running) > 0 {
		return
	}
	select {
	case <-a.none:
	default:
		close(a.none)
	}
}

// admit lets a call in that does something to an app, and returns the caller
// and its org's BuildKit.
func (a *API) admit(ctx context.Context, do Action, app string) (Caller, *tenant, error) {
	c := a.opts.Caller(ctx)
	if err := a.opts.Allow(ctx, do, app); err != nil {
		return c, nil, err
	}
	t, err := a.engine.tenant(ctx, c.Org)
	return c, t, err
}

// own is the app that a caller does something to that concerns none in
// particular.
func (a *API) own(ctx context.Context) string { return cmp.Or(a.opts.Caller(ctx).App, noApp) }

// Info implements BuildKit's Control.
func (a *API) Info(ctx context.Context, req *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	_, t, err := a.admit(ctx, Look, a.own(ctx))
	if err != nil {
		return nil, a.status(ctx, err)
	}
	info, err := t.control.Info(ctx, req)
	if err == nil {
		info.BuildkitVersion.Version = engineVersion()
	}
	return info, a.status(ctx, err)
}

// engineVersion is BuildKit's, as this program was built with it.
func engineVersion() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	i := slices.IndexFunc(info.Deps, func(m *debug.Module) bool { return m.Path == "github.com/moby/buildkit" })
	if i < 0 {
		return ""
	}
	return info.Deps[i].Version
}

// ListWorkers implements BuildKit's Control.
func (a *API) ListWorkers(ctx context.Context, req *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	_, t, err := a.admit(ctx, Look, a.own(ctx))
	if err != nil {
		return nil, a.status(ctx, err)
	}
	resp, err := t.control.ListWorkers(ctx, req)
	return resp, a.status(ctx, err)
}

// DiskUsage implements BuildKit's Control.
func (a *API) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	_, t, err := a.admit(ctx, SeeCache, "")
	if err != nil {
		return nil, a.status(ctx, err)
	}
	resp, err := t.control.DiskUsage(ctx, req)
	return resp, a.status(ctx, err)
}

// Prune implements BuildKit's Control.
func (a *API) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	ctx := stream.Context()
	_, t, err := a.admit(ctx, Prune, "")
	if err != nil {
		return a.status(ctx, err)
	}
	return a.status(ctx, t.control.Prune(req, stream))
}

// recordsOf is what a caller is asked for who wants records of a build, or of
// all: those say nothing of apps, so who may see one app's must know its ref.
func (a *API) recordsOf(ctx context.Context, ref string) string {
	if ref == "" {
		return ""
	}
	return a.own(ctx)
}

// ListenBuildHistory implements BuildKit's Control.
func (a *API) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	ctx := stream.Context()
	_, t, err := a.admit(ctx, Look, a.recordsOf(ctx, req.Ref))
	if err != nil {
		return a.status(ctx, err)
	}
	return a.status(ctx, t.control.ListenBuildHistory(req, stream))
}

// UpdateBuildHistory implements BuildKit's Control.
func (a *API) UpdateBuildHistory(ctx context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	_, t, err := a.admit(ctx, Build, a.recordsOf(ctx, req.Ref))
	if err != nil {
		return nil, a.status(ctx, err)
	}
	resp, err := t.control.UpdateBuildHistory(ctx, req)
	return resp, a.status(ctx, err)
}

// Status implements BuildKit's Control. Clients ask while they ask for the
// build.
func (a *API) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	ctx := stream.Context()
	_, t, err := a.admit(ctx, Look, a.recordsOf(ctx, req.Ref))
	if err != nil {
		return a.status(ctx, err)
	}
	if t.recorded(ctx, req.Ref) {
		return a.status(ctx, t.control.Status(req, stream))
	}
	s, over := t.solves.wait(ctx, req.Ref, registration)
	switch {
	case over != nil:
		return nil // the build's own call says why
	case s == nil:
		return a.status(ctx, errdefs.NewUnknownJobError(req.Ref))
	}
	return a.status(ctx, a.follow(s, stream))
}

// recorded reports whether BuildKit has a record of a build, which may still be
// under way.
func (t *tenant) recorded(ctx context.Context, ref string) bool {
	found := &finder{ctx: ctx}
	err := t.control.ListenBuildHistory(&controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true}, found)
	return err == nil && found.any
}

// A finder is a stream that takes note of what is sent.
type finder struct {
	controlapi.Control_ListenBuildHistoryServer
	ctx    context.Context
	enough error // what ends the stream when something was sent; nil for nothing
	any    bool
}

// Context and the rest implement the stream.
func (f *finder) Context() context.Context { return f.ctx }

// SendHeader sends nothing.
func (*finder) SendHeader(metadata.MD) error { return nil }

// Send takes note.
func (f *finder) Send(*controlapi.BuildHistoryEvent) error {
	f.any = true
	return f.enough
}

// follow tells how a build goes, also one that waits for its turn or its
// preflight.
func (a *API) follow(s *solve, stream controlapi.Control_StatusServer) error {
	ctx := stream.Context()
	if err := a.opts.Allow(ctx, Look, s.app); err != nil {
		return err
	}
	told, err := s.tellPlace(ctx, stream)
	if err != nil {
		return err
	}
	if told {
		stream = headed{stream}
	}
	if err := s.underWay(ctx); err != nil {
		return nil //nolint:nilerr // the build's own call says why
	}
	return s.tenant.control.Status(&controlapi.StatusRequest{Ref: s.req.Ref}, stream)
}
