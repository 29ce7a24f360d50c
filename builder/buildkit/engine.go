package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/util/entitlements"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/layercache"
)

// Options tunes an [Engine].
type Options struct {
	Cache    *layercache.Store
	Root     string           // directory of BuildKit's databases; made if it is missing
	Executor executor.Options // how steps run; Watch is the engine's

	// Hosts says where an org's images come from, by the host in their name.
	Hosts func(org string) docker.RegistryHosts

	// Own says where to write what goes to "host/path" of the daemon's own
	// registry. Those who asked for it may push there. It returns nil for names
	// of others, and may be nil.
	Own func(name string) docker.RegistryHosts

	// Fetch gets what steps of Dockerfiles and clients name by URL. It guards
	// which addresses may be reached.
	Fetch http.RoundTripper

	Git *gitfetch.Fetcher // for Git repositories; nil refuses them

	// Apart is a command that calls [ReadApart], for Dockerfiles that must be
	// read without a network; without one they are refused.
	Apart []string
	Keep  *shell.Keeper // of what failed RUN steps of deploys leave; nil keeps nothing

	MaxSize int64 // of an unpacked layer of a base image, in bytes, as builder.Options has it

	Parallel int // steps of an org at once; 0 means one a core
	Log      *slog.Logger
}

// An Engine is BuildKit for all orgs of a daemon. It is safe for concurrent
// use.
type Engine struct {
	opts Options
	log  *slog.Logger

	mu      sync.Mutex
	tenants map[string]*opening
	closed  bool
}

// An opening is a tenant that is open, or about to be.
type opening struct {
	done   chan struct{}
	tenant *tenant
	err    error
}

// ErrClosed says that the engine was closed.
var ErrClosed = errors.New("BuildKit is closed")

// New returns an engine. It opens nothing yet: that is for the first build of
// each org.
func New(o Options) (*Engine, error) {
	if o.Parallel <= 0 {
		o.Parallel = runtime.NumCPU()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return nil, fmt.Errorf("buildkit: %w", err)
	}
	// Processes of a daemon that was killed may have had file systems in common.
	if err := mount.UnmountRecursive(o.Root, 0); err != nil {
		return nil, fmt.Errorf("buildkit: unmount what an earlier daemon left: %w", err)
	}
	return &Engine{opts: o, log: o.Log, tenants: map[string]*opening{}}, nil
}

// tenant returns an org's BuildKit, which it opens if need be.
func (e *Engine) tenant(ctx context.Context, org string) (*tenant, error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, ErrClosed
	}
	o, ok := e.tenants[org]
	if !ok {
		o = &opening{done: make(chan struct{})}
		e.tenants[org] = o
	}
	e.mu.Unlock()
	if ok {
		select {
		case <-o.done:
			return o.tenant, o.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	// The tenant outlives the build that asked for it first.
	o.tenant, o.err = openTenant(context.WithoutCancel(ctx), e, org)
	if o.err != nil {
		o.err = fmt.Errorf("open BuildKit of org %s: %w", org, o.err)
		e.mu.Lock()
		delete(e.tenants, org) // the next build tries again
		e.mu.Unlock()
	}
	close(o.done)
	return o.tenant, o.err
}

// Open opens BuildKit for an org that has used it before, "" means all of them,
// so that its records are counted and can be evicted: it is
// [layercache.Options].OpenLodgers.
func (e *Engine) Open(ctx context.Context, org string) error {
	dirs, err := os.ReadDir(e.opts.Root)
	if err != nil {
		return fmt.Errorf("buildkit: %w", err)
	}
	for _, d := range dirs {
		name, err := os.ReadFile(filepath.Join(e.opts.Root, d.Name(), orgFile))
		if errors.Is(err, os.ErrNotExist) {
			continue // it was never opened to the end
		}
		if err != nil {
			return fmt.Errorf("buildkit: %w", err)
		}
		if org != "" && org != string(name) {
			continue
		}
		if _, err := e.tenant(ctx, string(name)); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all tenants, and makes their databases durable: the store is not
// to be closed before. No build may be under way.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	all := e.tenants
	e.tenants = nil
	e.mu.Unlock()
	var errs []error
	for _, o := range all {
		<-o.done
		if o.tenant != nil {
			errs = append(errs, o.tenant.close())
		}
	}
	return errors.Join(append(errs, e.sync())...)
}

// sync makes all files of the databases durable, also those that a daemon which
// was killed has left.
func (e *Engine) sync() error {
	d, err := os.Open(e.opts.Root)
	if err != nil {
		return fmt.Errorf("buildkit: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("buildkit: make %s durable: %w", e.opts.Root, err)
	}
	return nil
}

// entitlements are what clients may let their builds have.
func (e *Engine) entitlements() []string {
	if e.opts.Executor.Network == sandbox.Host || e.opts.Executor.AllowHost {
		return []string{string(entitlements.EntitlementNetworkHost)}
	}
	return nil
}

func (e *Engine) dir(namespace string) string { return filepath.Join(e.opts.Root, namespace) }
