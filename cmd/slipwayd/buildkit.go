package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/buildkit"
	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/classic"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/tokens"
)

// openBuildKit prepares BuildKit, which opens with the first build that wants
// it.
func (d *daemon) openBuildKit(context.Context) (err error) {
	fetch, _ := d.outward()
	within := d.inside()
	images := &buildkit.Registries{
		Mirrors: d.config.mirrorURLs, Insecure: d.config.insecureRegs, Direct: pushd.NewTransport(), Redirect: fetch,
		LocalScheme: "http", IsLocal: d.isLocal,
		LocalWrite: func(repository string) http.RoundTripper { return insider{within, insidePush + repository} },
	}
	if d.tls != nil {
		images.LocalScheme = "https"
	}
	d.buildkit, err = buildkit.New(buildkit.Options{
		Cache: d.cache, Root: d.dir("buildkit"), MaxSize: d.config.maxRootFSBytes, Fetch: fetch, Git: d.git, Keep: d.keeper,
		Apart: []string{"/proc/self/exe", readApart},
		Executor: executor.Options{Runner: d.runner, Network: d.config.networkMode, Log: d.log.With("part", "buildkit"),
			Limits: d.stepLimits()},
		Hosts: func(org string) docker.RegistryHosts { return images.For(insider{within, insidePull + org}).Hosts }, Own: images.Own,
		Log: d.log.With("part", "buildkit"),
	})
	if err != nil {
		return err
	}
	d.closing(d.buildkit.Close)
	return nil
}

// openAPI joins BuildKit's own API to the rest: the same tokens, the same
// queue, the same push.
func (d *daemon) openAPI(b *builder.Builder) {
	d.api = d.buildkit.API(buildkit.APIOptions{
		Builder: b,
		Caller: func(ctx context.Context) buildkit.Caller {
			p := server.Caller(ctx)
			return buildkit.Caller{ID: p.ID, Org: p.Org, App: p.App}
		},
		Allow: func(ctx context.Context, do buildkit.Action, app string) error {
			if do == buildkit.Push {
				return server.Push(ctx, app)
			}
			return server.Allow(ctx, actions[do], app)
		},
		Repository: func(name string) (string, bool) {
			host, path, _ := cutHost(name)
			return path, d.isLocal(host)
		},
		Code:  server.StatusCode,
		Queue: d.server,
	})
}

// actions says which scope an action of BuildKit's API needs.
var actions = map[buildkit.Action]string{
	buildkit.Look: tokens.ScopeBuildRead, buildkit.Build: tokens.ScopeBuildWrite, buildkit.SeeCache: tokens.ScopeCacheRead,
	buildkit.Prune: tokens.ScopeCacheWrite, buildkit.Push: tokens.ScopeRegistryPush,
}

// openLodgers opens what of BuildKit keeps things of an org in the cache.
func (d *daemon) openLodgers(ctx context.Context, org string) error {
	if d.buildkit == nil {
		return nil // the daemon is starting: nobody can have asked yet but for room
	}
	return d.buildkit.Open(ctx, org)
}

// outward is how the daemon reaches what builds name: by the rules that bind
// their steps.
func (d *daemon) outward() (http.RoundTripper, classic.Dial) {
	if d.config.networkMode == sandbox.Host {
		return http.DefaultTransport, new(net.Dialer).DialContext
	}
	return classic.NewFetch(d.config.egress), classic.NewDial(d.config.egress)
}

// inside marks requests that come from this process.
type inside struct{}

// inside returns a way to the daemon's own registry that leaves no process and
// needs no token, for an [insider].
func (d *daemon) inside() http.RoundTripper {
	pipe := bufconn.Listen(1 << 20)
	s := &http.Server{
		Handler: d.registry.Handler(), ReadHeaderTimeout: 30 * time.Second,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return context.WithValue(ctx, inside{}, true) },
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(pipe) })
	d.closing(func() error { err := s.Close(); serving.Wait(); return err })
	return &http.Transport{
		DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return pipe.DialContext(ctx) },
		MaxIdleConns: 8, IdleConnTimeout: time.Minute,
	}
}

// What passwords of insiders begin with: before the org for whose builds they
// read, and before the repository that they write to.
const (
	insidePull = "pull "
	insidePush = "push "
)

// An insider's requests come with a password, since a registry does not ask who
// sends none. It says what they may do, and would not do elsewhere.
type insider struct {
	http.RoundTripper
	password string
}

// RoundTrip implements http.RoundTripper.
func (i insider) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth("inside", i.password)
	return i.RoundTripper.RoundTrip(r)
}
