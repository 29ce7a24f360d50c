// Package registry is the OCI registry that lives inside the daemon.
//
// It is distribution/distribution as a library: its HTTP handler, its manifest
// validation, its layout on disk. The package adds three things. Every request
// is put to an [Access] that the caller brings, so that a revoked token dies
// at once. A finished layer that lies on the same file system enters a
// repository as a hard link ([Repository.Link]): no byte is copied and none
// goes through HTTP. And an observer hears of each manifest that a client
// fetches or stores ([Options.OnManifest]).
//
// Start reading at [Open], then link.go.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sort"
	"sync"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"
)

// Options says where a registry lives and whom it lets in.
type Options struct {
	Root   string // directory of the registry, made when absent; one process at a time
	Access Access // decides on every HTTP request; required

	// Host is the HOST[:PORT] by which the registry is known. Bearer tokens are
	// made for it, and good nowhere else; empty means "slipway".
	Host string

	// Proxied says that requests come through a proxy which sets
	// X-Forwarded-For and X-Forwarded-Proto, and may set X-Forwarded-Host, so
	// that they can be believed.
	Proxied bool

	// OnManifest hears of every manifest that a client fetched, checked or
	// stored over HTTP. It runs before the answer is complete, with the
	// context of the request, possibly many times at once: it must be quick.
	// Nil means nobody listens.
	OnManifest func(context.Context, Event)

	Log *slog.Logger // nil means none
}

func (o *Options) host() string {
	if o.Host == "" {
		return "slipway"
	}
	return o.Host
}

func (o *Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// A Registry serves the repositories under one root. It is safe for
// concurrent use.
type Registry struct {
	layout  layout
	pending pending                // directories that a power loss could still undo
	images  distribution.Namespace // the same tree as app's, without HTTP
	app     *handlers.App
	handler http.Handler
	log     *slog.Logger
	entry   *logrus.Entry // log, as distribution wants it
	stop    func()
}

// Open opens the registry under o.Root. Whatever was acknowledged before, by
// HTTP or by [Repository.PutManifest], is there again. The context only
// bounds the opening; Close ends the registry.
func Open(ctx context.Context, o Options) (*Registry, error) {
	if o.Root == "" || o.Access == nil {
		return nil, errors.New("open registry: Root and Access are required")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open registry: %w", context.Cause(ctx))
	}
	r := &Registry{layout: layout{o.Root}, log: o.log(), entry: newEntry(o.log())}
	secret, err := r.layout.prepare()
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	key, err := r.layout.signingKey()
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	mint, err := newMint(key, o.host())
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	gate := &gate{access: o.Access, mint: mint, proxied: o.Proxied, log: r.log}
	if r.app, err = newApp(withLog(context.WithoutCancel(ctx), r.entry), o.Root, secret, gate); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	disk := filesystem.New(filesystem.DriverParameters{RootDirectory: o.Root, MaxThreads: 100})
	if r.images, err = storage.NewRegistry(ctx, disk, storage.EnableValidateImageIndexImagesExist); err != nil {
		return nil, errors.Join(fmt.Errorf("open registry: %w", err), r.app.Shutdown())
	}
	r.handler = r.wrap(gate, o.OnManifest)
	r.start()
	return r, nil
}

// start removes abandoned uploads in the background until Close.
func (r *Registry) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.purgeUploads(ctx) })
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// newApp makes distribution's application, which reports a bad configuration
// by panicking.
func newApp(ctx context.Context, root, secret string, g *gate) (app *handlers.App, err error) {
	if err := registerGate(); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			app, err = nil, fmt.Errorf("distribution: %v", p)
		}
	}()
	return handlers.NewApp(ctx, &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem":  {"rootdirectory": root},
			"delete":      {"enabled": true},
			"redirect":    {"disable": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}}, // purgeUploads does it, and stops with Close
		},
		Auth:    configuration.Auth{gateName: {"gate": g}},
		HTTP:    configuration.HTTP{Secret: secret, RelativeURLs: true},
		Catalog: configuration.Catalog{MaxEntries: 1000},
		Tags:    configuration.Tags{MaxTags: 1000},
	}), nil
}

// Handler returns the handler of /v2/.
func (r *Registry) Handler() http.Handler { return r.handler }

// wrap returns the handler of everything: what distribution does not do, or
// not as we want it, does not get there.
func (r *Registry) wrap(g *gate, observe func(context.Context, Event)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == tokenPath {
			g.serveToken(w, req)
			return
		}
		c, req := g.meet(w, req)
		if req.URL.Path == catalogPath {
			r.serveCatalog(g, c, req)
			return
		}
		req = unforwarded(g.unmounted(req, c))
		req = req.WithContext(withLog(req.Context(), r.entry))
		w = c.answer
		if observe != nil {
			w = observed(w, req, c.id, observe)
		}
		defer c.leave()
		r.app.ServeHTTP(w, req)
		if c.leave() {
			panic(http.ErrAbortHandler) // or somebody else's next request would meet the deadlines
		}
	})
}

// Close ends the registry's background work. Stop serving its handler first.
// Closing twice is fine.
func (r *Registry) Close() error {
	r.stop()
	return r.app.Shutdown()
}

// Repository returns the repository of that name, which need not exist yet.
// The error wraps [ErrInvalid] if there can be no such repository.
func (r *Registry) Repository(name string) (*Repository, error) {
	named, err := reference.WithName(name)
	if err != nil || !repositoryName.MatchString(name) {
		return nil, fmt.Errorf("repository name %q: %w", name, ErrInvalid)
	}
	return &Repository{registry: r, name: named}, nil
}

// Repositories returns the names of all repositories that hold a manifest, in
// order. It walks the disk: not for the path of a request that is in a hurry.
func (r *Registry) Repositories(ctx context.Context) ([]string, error) {
	all, ok := r.images.(distribution.RepositoryEnumerator)
	if !ok {
		return nil, errors.New("list repositories: not supported by the storage")
	}
	var names []string
	err := all.Enumerate(withLog(ctx, r.entry), func(name string) error {
		names = append(names, name)
		return ctx.Err()
	})
	if err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	sort.Strings(names)
	return names, nil
}
