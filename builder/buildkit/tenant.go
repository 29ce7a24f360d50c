package buildkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/source/git"
	urls "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/source/local"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/db"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	buildkit "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/rescue"
)

// A tenant is BuildKit as one org has it.
type tenant struct {
	engine   *Engine
	org      string
	cache    *layercache.Cache
	steps    *executor.Executor // runs the org's steps; it is no other org's
	worker   *worker
	sessions *session.Manager
	control  *control.Controller

	// BuildKit's server and a client of it, in this process.
	server *grpc.Server
	pipe   *bufconn.Listener
	client *client.Client
	conn   *grpc.ClientConn
	served sync.WaitGroup

	builds  *builds
	owners  *owners
	solves  *solves
	weights weights
	results solver.CacheManager
	leave   func() // the store
	closed  context.CancelFunc
}

// openTenant opens the databases of an org and joins BuildKit's parts.
func openTenant(ctx context.Context, e *Engine, org string) (t *tenant, err error) {
	t = &tenant{engine: e, org: org, cache: e.opts.Cache.Org(org), builds: newBuilds(), owners: newOwners(), solves: newSolves()}
	store := t.cache.Containerd()
	dir := e.dir(store.Namespace)
	if err := settle(ctx, dir, org, e.opts.Cache.Generation(), store); err != nil {
		return nil, err
	}
	ctx, t.closed = context.WithCancel(ctx)
	o := opener{tenant: t, dir: dir, store: store}
	if err := o.open(ctx); err != nil {
		t.closed()
		return nil, errors.Join(err, o.close())
	}
	return t, nil
}

// Files beside an org's databases.
const (
	orgFile        = "org"        // its name
	generationFile = "generation" // that of the store which the databases are about
)

// settle makes the directory of an org's databases. Those that are about a store
// that is gone are thrown away, with all that they had it keep.
func settle(ctx context.Context, dir, org, generation string, store layercache.Containerd) error {
	known, err := os.ReadFile(filepath.Join(dir, generationFile))
	if err == nil && string(known) == generation {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := store.Forget(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, orgFile), []byte(org), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, generationFile), []byte(generation), 0o600)
}

// An opener puts a tenant together. What it has opened is the tenant's when
// it is done.
type opener struct {
	*tenant
	dir     string
	store   layercache.Containerd
	closers []func() error
}

func (o *opener) close() error {
	var errs []error
	for i := len(o.closers) - 1; i >= 0; i-- {
		errs = append(errs, o.closers[i]())
	}
	return errors.Join(errs...)
}

func (o *opener) open(ctx context.Context) error {
	if err := o.openWorker(ctx); err != nil {
		return err
	}
	var err error
	if o.sessions, err = session.NewManager(); err != nil {
		return err
	}
	if err := o.openControl(ctx); err != nil {
		return err
	}
	if err := o.serve(ctx); err != nil {
		return err
	}
	o.leave = o.cache.Lodge(&Lodger{
		Manager: o.worker.CacheManager(), Metadata: o.worker.MetadataStore, ReleaseUnreferenced: o.results.ReleaseUnreferenced,
	})
	return nil
}

func (o *opener) openWorker(ctx context.Context) error {
	opt, err := o.workerOpt()
	if err != nil {
		return err
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return err
	}
	stock, err := local.NewSource(local.Opt{CacheAccessor: w.CacheManager()})
	if err != nil {
		return err
	}
	w.SourceManager.Register(&contextSource{Source: stock, tenant: o.tenant})
	if w.HTTPSource, err = urls.NewSource(urls.Opt{CacheAccessor: w.CacheManager(), Transport: o.engine.opts.Fetch}); err != nil {
		return err
	}
	w.SourceManager.Register(w.HTTPSource)
	repositories, err := git.NewSource(git.Opt{CacheAccessor: w.CacheManager()})
	if err != nil {
		return err
	}
	w.SourceManager.Register(&gitSource{Source: repositories, tenant: o.tenant})
	w.GitSource = nil // nobody may ask it
	o.worker = &worker{Worker: w, tenant: o.tenant}
	return nil
}

// workerOpt is what BuildKit's worker stands on: the org's part of the store.
func (o *opener) workerOpt() (base.WorkerOpt, error) {
	records, err := metadata.NewStore(filepath.Join(o.dir, "metadata_v2.db"))
	if err != nil {
		return base.WorkerOpt{}, err
	}
	o.closers = append(o.closers, records.Close)
	if err := relax(records.DB()); err != nil {
		return base.WorkerOpt{}, err
	}
	steps := o.engine.opts.Executor
	steps.Watch = watch
	o.steps = executor.New(steps)
	id, err := base.ID(o.dir)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	blobs := containerdsnapshot.NewContentStore(adopter{Store: o.store.Content, tenant: o.tenant}, o.store.Namespace)
	return base.WorkerOpt{
		ID: id, Root: o.dir, MetadataStore: records, Executor: o.steps,
		Labels:       map[string]string{label.Executor: "slipway", label.Snapshotter: o.store.Snapshotter},
		Platforms:    supported(),
		Snapshotter:  containerdsnapshot.NewSnapshotter(o.store.Snapshotter, o.store.Snapshots, o.store.Namespace, nil),
		ContentStore: blobs, Applier: &applier{blobs: blobs, cache: o.cache, most: o.engine.opts.MaxSize}, Differ: walking.NewWalkingDiff(blobs),
		LeaseManager:   leaseutil.WithNamespace(o.store.Leases, o.store.Namespace),
		GarbageCollect: o.store.Collect, ParallelismSem: semaphore.NewWeighted(int64(o.engine.opts.Parallel)),
		MountPoolRoot: filepath.Join(o.dir, "mounts"), RegistryHosts: o.engine.opts.Hosts(o.org),
	}, nil
}

// relax has a database write without waiting for the disk, which a step would
// do some twenty times. What is written survives the end of the process. The
// end of the machine ends the store's generation, and [settle] throws away what
// was about that one; [Engine.Close] makes durable what stays.
func relax(t db.Transactor) error {
	b, ok := t.(*bolt.DB)
	if !ok {
		return fmt.Errorf("BuildKit's database is a %T", t)
	}
	b.NoSync, b.NoGrowSync = true, true
	return nil
}

// supported are the platforms of this machine: its own, and those that it can
// emulate.
func supported() []ocispec.Platform {
	own := platforms.Normalize(platforms.DefaultSpec())
	all := []ocispec.Platform{own}
	for _, p := range archutil.SupportedPlatforms(true) {
		if p = platforms.Normalize(p); !platforms.Only(own).Match(p) {
			all = append(all, p)
		}
	}
	return all
}

func (o *opener) openControl(ctx context.Context) error {
	results, err := bboltcachestorage.NewStore(filepath.Join(o.dir, "cache.db"))
	if err != nil {
		return err
	}
	o.closers = append(o.closers, results.Close)
	history, err := boltutil.SafeOpen(filepath.Join(o.dir, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	o.closers = append(o.closers, history.Close)
	if err := relax(history); err != nil {
		return err
	}
	workers := &buildkit.Controller{}
	if err := workers.Add(o.worker); err != nil {
		return err
	}
	images, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return err
	}
	hosts := o.engine.opts.Hosts(o.org)
	o.results = solver.NewCacheManager(ctx, "local", results, buildkit.NewCacheResultStorage(workers))
	o.control, err = control.NewController(control.Opt{
		SessionManager:   o.sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": &marker{Frontend: newDockerfiles(workers.Infos(), o.engine.opts.Apart), tenant: o.tenant},
			"gateway.v0":    &marker{Frontend: images, tenant: o.tenant},
		},
		CacheManager: o.results,
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"registry": o.exportCache(registrycache.ResolveCacheExporterFunc(o.sessions, hosts)),
			"local":    localcache.ResolveCacheExporterFunc(o.sessions),
			"inline":   inlinecache.ResolveCacheExporterFunc(),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registrycache.ResolveCacheImporterFunc(o.sessions, o.worker.ContentStore(), hosts),
			"local":    localcache.ResolveCacheImporterFunc(o.sessions),
		},
		Entitlements: o.engine.entitlements(),
		HistoryDB:    history, CacheStore: results,
		LeaseManager: o.worker.LeaseManager(), ContentStore: o.worker.ContentStore(),
		GarbageCollect: o.worker.GarbageCollect, GracefulStop: ctx.Done(),
	})
	return err
}

// exportCache exports to the daemon's own registry without a login, and to
// others by stock. Who may push has been asked by then.
func (o *opener) exportCache(stock remotecache.ResolveCacheExporterFunc) remotecache.ResolveCacheExporterFunc {
	return func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Exporter, error) {
		name, ok := cacheName(attrs)
		if !ok || o.engine.opts.Own == nil {
			return stock(ctx, g, attrs)
		}
		hosts := o.engine.opts.Own(name)
		if hosts == nil {
			return stock(ctx, g, attrs)
		}
		attrs = maps.Clone(attrs)
		delete(attrs, attrInsecure) // with it BuildKit has places of its own
		return registrycache.ResolveCacheExporterFunc(o.sessions, hosts)(ctx, g, attrs)
	}
}

// Messages reach BuildKit's and containerd's services as clients made them,
// which may lack what these take for granted. A call that panics fails alone.

func rescueUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer rescue.Into(&err)
	return next(ctx, req)
}

func rescueStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer rescue.Into(&err)
	return next(srv, ss)
}

// serve answers the tenant's API in this process.
func (o *opener) serve(ctx context.Context) error {
	o.server = grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, rescueUnary), grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, rescueStream),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	o.control.Register(o.server)
	o.pipe = bufconn.Listen(1 << 20)
	o.served.Go(func() { _ = o.server.Serve(o.pipe) })
	o.closers = append(o.closers, func() error { o.server.Stop(); o.served.Wait(); return nil })
	var err error
	o.client, err = client.New(ctx, "passthrough:///"+o.org,
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return o.pipe.DialContext(ctx) }),
		client.WithSessionDialer(o.session))
	if err != nil {
		return err
	}
	o.conn, err = grpc.NewClient("passthrough:///"+o.org, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return o.pipe.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	return err
}

// session joins a session of this process to the tenant.
func (t *tenant) session(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
	here, there := net.Pipe()
	t.served.Go(func() { _ = t.sessions.HandleConn(ctx, there, meta) })
	return here, nil
}

// over says that a build has ended. After the last one, nothing is kept that
// only the next step of one would need.
func (t *tenant) over(b *build) {
	if t.builds.remove(b) {
		t.weights.drop()
	}
}

func (t *tenant) close() error {
	t.leave()
	t.closed()
	err := errors.Join(t.client.Close(), t.conn.Close())
	t.server.Stop()
	t.served.Wait()
	return errors.Join(err, t.control.Close())
}
