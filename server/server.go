// Package server is the daemon's gRPC surface and the loop behind it.
//
// The front ([Front]) authenticates callers, records and queues builds, relays
// what a client sends to its build and streams the build's log back. A worker
// ([Worker]) takes builds from the queue and runs them. They meet in a hub of
// sessions, and in the log of each build. Builds that come another way than by
// a deploy join them in the queue ([Front.Do]). Errors of the packages below become
// gRPC statuses here, in status.go, and nowhere else. Read front.go and
// worker.go first.
package server

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// Protocol is the version of package slipway.v1 that this daemon speaks.
const Protocol = 1

// maxMessage bounds a message in either direction: a want of a million
// entries, a frame of content.
const maxMessage = 16 << 20

// Checks reports what the daemon finds about its surroundings.
type Checks func(ctx context.Context) []*slipwayv1.Check

// Options are the parts that a Server joins.
type Options struct {
	Version  string
	Auth     Guard
	Tokens   *tokens.Authority // behind TokenService and OrgService; nil: they are not served
	Engine   fleet.Engine
	Records  *records.Store
	Cache    *layercache.Store
	Builder  *builder.Builder
	Registry string // host of the embedded registry, as image names use it

	// Repository returns the repository of the embedded registry that an
	// image reference names, own if it names one at all; mirrored if the
	// registry stands for the one that is named. Nil: none is.
	Repository func(image string) (name string, own, mirrored bool)

	Images   Images   // of the embedded registry; nil: nothing is released but by builds
	Issuer   Issuer   // of tokens of environments; nil: they are made without
	Pulls    *PullLog // nil: only what is in Records is known of pulls
	Shells   Shells   // nil: failed steps are not kept
	Commands Commands // nil: no commands run in images
	Releases Releases // nil: those on record

	MaxSize int64
	Checks  Checks
	Grace   time.Duration // how long a build goes on unwatched; 0 means a minute
	Metrics *Metrics
	Log     *slog.Logger
}

// A Server is a front and its workers in one process.
type Server struct {
	*Front
	*Worker
	health *health.Server
}

// New joins the parts.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := newHub(o.Grace)
	f := &Front{opts: o, hub: h, started: time.Now()}
	h.abandon = f.abandon
	return &Server{Front: f, Worker: &Worker{opts: o, hub: h}, health: health.NewServer()}
}

// Register puts the services on s, which must have been made with
// [Server.ServerOptions].
func (s *Server) Register(g *grpc.Server) {
	slipwayv1.RegisterBuildServiceServer(g, s.Front)
	slipwayv1.RegisterCacheServiceServer(g, &cacheService{opts: s.Front.opts})
	slipwayv1.RegisterSystemServiceServer(g, &systemService{front: s.Front})
	slipwayv1.RegisterEnvironmentServiceServer(g, &environmentService{opts: s.Front.opts})
	slipwayv1.RegisterShellServiceServer(g, &shellService{front: s.Front})
	healthpb.RegisterHealthServer(g, s.health)
	if t := s.Front.opts.Tokens; t != nil {
		slipwayv1.RegisterTokenServiceServer(g, &tokenService{authority: t, opts: s.Front.opts})
		slipwayv1.RegisterOrgServiceServer(g, &orgService{authority: t})
	}
	reflection.Register(g)
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
}

// Drain makes health checks say that the server is about to stop, and new
// builds be refused.
func (s *Server) Drain() {
	s.draining.Store(true)
	s.health.Shutdown()
}

// ServerOptions are what a gRPC server needs for these services.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		// Clients ping through long silent steps.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.InitialWindowSize(4 << 20),
		grpc.InitialConnWindowSize(8 << 20),
		grpc.ChainUnaryInterceptor(s.recoverUnary, s.unary),
		grpc.ChainStreamInterceptor(s.recoverStream, s.stream),
	}
}
