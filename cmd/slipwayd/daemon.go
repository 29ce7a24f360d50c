package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/buildkit"
	"github.com/slipwayhq/slipway/builder/classic"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/prebuilt"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/compress"
	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/unixsocket"
)

// A daemon is all parts of slipwayd, started.
type daemon struct {
	config    *config
	log       *slog.Logger
	closers   []func() error
	metrics   *prometheus.Registry
	counts    *server.Metrics
	uploads   *pushd.JournalDir
	db        *sqldb.DB // of records and tokens
	authority *tokens.Authority
	cache     *layercache.Store
	registry  *registry.Registry
	engine    fleet.Engine
	records   *records.Store
	pulls     *server.PullLog
	keeper    *shell.Keeper
	commands  *shell.Commands
	runner    *sandbox.Runner
	git       *gitfetch.Fetcher
	buildkit  *buildkit.Engine
	api       *buildkit.API
	tls       *tls.Config
	clients   *x509.CertPool // that sign certificates of clients; nil for none
	grpcAddr  net.Listener
	grpcUnix  net.Listener // nil without --grpc-unix
	httpAddr  net.Listener
	server    *server.Server
	host      string // of the embedded registry
}

// start opens every part, in the order in which they need each other. What
// was opened is closed again when one fails.
func start(ctx context.Context, c *config, log *slog.Logger) (*daemon, error) {
	d := &daemon{config: c, log: log, metrics: prometheus.NewRegistry()}
	for _, open := range []func(context.Context) error{
		d.openRoot, d.listen, d.openDatabase, d.openTokens, d.openMetrics, d.openCache, d.openRegistry,
		d.openPush, d.openFleet, d.openRecords, d.openApps, d.openPulls, d.openSandbox, d.openKeeper, d.openGit, d.openBuildKit, d.openServer,
	} {
		if err := open(ctx); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// closing notes what must be closed; the last opened goes first.
func (d *daemon) closing(f func() error) { d.closers = append(d.closers, f) }

func (d *daemon) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *daemon) dir(name string) string { return filepath.Join(d.config.root, name) }

// openRoot makes the directories, and takes away what a killed daemon left in
// them. Whoever makes temporary files, libraries too, makes them in tmp.
func (d *daemon) openRoot(context.Context) error {
	for _, name := range []string{"views", "tmp"} {
		if err := os.MkdirAll(d.dir(name), 0o700); err != nil {
			return err
		}
		if err := d.sweep(name); err != nil {
			return fmt.Errorf("remove what an earlier daemon left: %w", err)
		}
	}
	return os.Setenv("TMPDIR", d.dir("tmp"))
}

// sweep empties a directory that may have mounts in it, and files behind them
// that are not ours.
func (d *daemon) sweep(name string) error {
	dir, err := filepath.EvalSymlinks(d.dir(name)) // as the kernel names it
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	slices.Reverse(mounts) // the last one lies on top
	for _, m := range mounts {
		if err := mount.Unmount(m.Mountpoint, 0); err != nil {
			return err
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) listen(ctx context.Context) error {
	if d.config.tlsCert != "" {
		cert, err := tls.LoadX509KeyPair(d.config.tlsCert, d.config.tlsKey)
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		d.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if err := d.readClientCA(); err != nil {
		return err
	}
	var lc net.ListenConfig
	var err error
	if d.grpcAddr, err = lc.Listen(ctx, "tcp", d.config.grpc); err != nil {
		return fmt.Errorf("--grpc: %w", err)
	}
	d.closing(ignoreClosed(d.grpcAddr.Close))
	if err := d.listenUnix(ctx); err != nil {
		return fmt.Errorf("--grpc-unix: %w", err)
	}
	if d.httpAddr, err = lc.Listen(ctx, "tcp", d.config.http); err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	d.closing(ignoreClosed(d.httpAddr.Close))
	d.host = d.registryHost()
	return nil
}

func (d *daemon) readClientCA() error {
	if d.config.tlsClientCA == "" {
		return nil
	}
	pem, err := os.ReadFile(d.config.tlsClientCA)
	if err != nil {
		return fmt.Errorf("--tls-client-ca: %w", err)
	}
	d.clients = x509.NewCertPool()
	if !d.clients.AppendCertsFromPEM(pem) {
		return fmt.Errorf("--tls-client-ca: %s holds no PEM certificate", d.config.tlsClientCA)
	}
	return nil
}

// listenUnix opens the socket for this machine's clients. Until it belongs to
// the group only its owner gets in.
func (d *daemon) listenUnix(ctx context.Context) error {
	path := d.config.grpcUnix
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	l, err := unixsocket.Listen(ctx, path, 0o600)
	if err != nil {
		return err
	}
	d.grpcUnix = l
	d.closing(ignoreClosed(l.Close))
	if d.config.grpcGID < 0 {
		return nil
	}
	if err := os.Chown(path, -1, d.config.grpcGID); err != nil {
		return err
	}
	return os.Chmod(path, 0o660)
}

// registryHost is by which host images are named: as the operator says, else
// as --http does, with the port that was free if that was left to the system.
func (d *daemon) registryHost() string {
	if d.config.registryHost != "" {
		return d.config.registryHost
	}
	own := d.httpAddr.Addr().String()
	host, _, err := net.SplitHostPort(d.config.http)
	_, port, portErr := net.SplitHostPort(own)
	if err != nil || portErr != nil || host == "localhost" {
		return own
	}
	return net.JoinHostPort(host, port)
}

func ignoreClosed(f func() error) func() error {
	return func() error {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

func (d *daemon) openDatabase(ctx context.Context) (err error) {
	url := d.config.database
	if url == "" {
		url = d.dir("records.db")
	}
	if d.db, err = sqldb.Open(ctx, url); err != nil {
		return err
	}
	d.closing(d.db.Close)
	return nil
}

func (d *daemon) openMetrics(context.Context) error {
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	d.counts = server.NewMetrics(d.metrics)
	return nil
}

func (d *daemon) openCache(ctx context.Context) (err error) {
	d.cache, err = layercache.Open(ctx, layercache.Options{
		Root: d.dir("cache"), MaxBytes: d.config.cacheBytes, MinFree: d.config.cacheFreeBytes,
		Log: d.log.With("part", "cache"), OnEvict: d.counts.Evicted, OpenLodgers: d.openLodgers,
	})
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	d.closing(d.cache.Close)
	d.counts.WatchCache(d.metrics, func() float64 {
		u, err := d.cache.Usage(context.Background(), "", "")
		if err != nil {
			return 0
		}
		return float64(u.Bytes)
	})
	return nil
}

func (d *daemon) openRegistry(ctx context.Context) (err error) {
	d.registry, err = registry.Open(ctx, registry.Options{
		Root: d.dir("registry"), Host: d.host, Proxied: d.config.behindProxy, Log: d.log.With("part", "registry"),
		Access: registryAccess{principals: d.authority, owner: owner(d.authority)}, OnManifest: d.pulled,
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	d.closing(d.registry.Close)
	return nil
}

// openPush finds the uploads that an earlier daemon did not finish.
func (d *daemon) openPush(context.Context) (err error) {
	d.uploads, err = pushd.OpenJournal(d.dir("push"))
	return err
}

func (d *daemon) openFleet(ctx context.Context) (err error) {
	d.engine, err = fleet.Open(ctx, d.dir("fleet"), &fleet.Options{Log: d.log.With("part", "fleet")})
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	d.closing(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return d.engine.Close(ctx)
	})
	return nil
}

func (d *daemon) openRecords(ctx context.Context) (err error) {
	d.records, err = records.New(ctx, d.db)
	return err
}

// openPulls starts to note what environments pull.
func (d *daemon) openPulls(context.Context) error {
	d.pulls = server.StartPullLog(d.records, registryImages{d.registry}, d.log.With("part", "pulls"))
	d.closing(d.pulls.Close)
	return nil
}

func (d *daemon) openSandbox(ctx context.Context) (err error) {
	d.runner, err = sandbox.New(ctx, sandbox.Options{
		Root: d.dir("sandbox"), Runc: d.config.runc, Network: d.config.networkMode, BuildCA: d.config.buildCA,
		AllowEgress: d.config.egress, Log: d.log.With("part", "sandbox"),
	})
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	d.closing(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return d.runner.Close(ctx)
	})
	return nil
}

func (d *daemon) openGit(context.Context) (err error) {
	_, dial := d.outward()
	d.git, err = gitfetch.New(gitfetch.Options{Root: d.dir("git"), Dial: dial, CA: d.config.buildCA})
	return err
}

func (d *daemon) openServer(ctx context.Context) error {
	fetch, _ := d.outward()
	bases := base.NewResolver(base.Options{
		Mirrors: d.config.mirrorURLs, Insecure: d.config.insecureRegs, Log: d.log,
		IsLocal: d.isLocal, Local: d.localBase, Denied: func(err error) bool { return errors.Is(err, registry.ErrNotFound) },
	})
	unpacker := &layer.Unpacker{}
	pipeline := classic.New(classic.Options{
		Bases:    bases,
		Unpacker: unpacker, Keep: d.keeper, Runner: d.runner, Network: d.config.networkMode, Fetch: fetch, Git: d.git,
		Limits:  d.stepLimits(),
		Scratch: d.dir("views"), Observe: d.counts, Log: d.log,
	})
	b := builder.New(builder.Options{
		Cache: d.cache, Engine: pushd.NewEngine(&pushd.Options{Log: d.log.With("part", "push")}), Destination: d.destination(),
		Pipelines: map[slipwayv1.Pipeline]builder.Pipeline{
			slipwayv1.Pipeline_PIPELINE_CLASSIC:  pipeline,
			slipwayv1.Pipeline_PIPELINE_BUILDKIT: d.buildkit,
			slipwayv1.Pipeline_PIPELINE_PREBUILT: prebuilt.New(prebuilt.Options{Bases: bases, Log: d.log}),
		},
		MaxSize: d.config.maxRootFSBytes, Timeout: d.config.buildTimeout, Observe: d.counts, History: server.History(d.records), Log: d.log,
	})
	d.openCommands(bases, unpacker)
	d.server = server.New(server.Options{
		Version: version, Auth: d.authority, Tokens: d.authority, Issuer: d.authority, Engine: d.engine, Records: d.records, Cache: d.cache, Builder: b,
		Shells: d.keeper, Commands: d.commands,
		Registry: d.host, Repository: d.ownRepository, Images: registryImages{d.registry}, Pulls: d.pulls, MaxSize: d.config.maxRootFSBytes, Checks: d.checks, Metrics: d.counts, Log: d.log,
		Grace: max(d.config.clientGrace, time.Nanosecond),
	})
	d.openAPI(b)
	return d.server.Recover(ctx)
}

// isLocal reports whether a host is this daemon's own registry.
func (d *daemon) isLocal(host string) bool {
	if host == d.host || host == d.httpAddr.Addr().String() {
		return true
	}
	name, port, err := net.SplitHostPort(host)
	_, own, _ := net.SplitHostPort(d.httpAddr.Addr().String())
	return err == nil && port == own && name == "localhost"
}

// localBase opens a repository of the embedded registry for builds of an org.
func (d *daemon) localBase(org, name string) base.Repository {
	repo, err := d.registry.Repository(name)
	if err != nil {
		return invalidRepository{err}
	}
	return readable{repo, func(ctx context.Context) error { return d.mayRead(ctx, org, name) }}
}

// mayRead returns an error that wraps registry.ErrNotFound if a repository
// belongs to another org: its builds are not told that it is there.
func (d *daemon) mayRead(ctx context.Context, org, repository string) error {
	owner, err := d.authority.Owner(ctx, repository)
	if err == nil && owner != "" && owner != org {
		err = fmt.Errorf("%w: repository %s", registry.ErrNotFound, repository)
	}
	return err
}

// destination opens the repositories that images go to.
func (d *daemon) destination() builder.Destination {
	transport, hosts := pushd.NewTransport(), pushd.NewHosts()
	return func(_ context.Context, p builder.Place) (builder.Remote, error) {
		name := p.Name
		if name == "" {
			name = d.host + "/" + p.App
		}
		if host, path, ok := cutHost(name); ok && d.isLocal(host) {
			repo, err := d.registry.Repository(path)
			if err != nil {
				return builder.Remote{}, err
			}
			return builder.Remote{Target: pushd.NewLocal(name, repo, d.dir("tmp")), Name: name}, nil
		}
		t, err := pushd.NewHTTP(name, &pushd.HTTPOptions{
			Auth: p.Auth, Transport: transport, Insecure: p.Insecure || d.mayBePlain(name), Hosts: hosts, Journal: d.uploads,
		})
		if err != nil {
			return builder.Remote{}, err
		}
		return builder.Remote{Target: t, Name: t.Name()}, nil
	}
}

func (d *daemon) mayBePlain(name string) bool {
	host, _, _ := cutHost(name)
	for _, h := range d.config.insecureRegs {
		if h == host {
			return true
		}
	}
	return false
}

// serve answers clients and runs builds until ctx ends, then drains.
func (d *daemon) serve(ctx context.Context) error {
	g := grpc.NewServer(append(d.server.ServerOptions(), grpc.Creds(d.credentials()))...)
	d.server.Register(g)
	d.api.Register(g)
	pages, closePages, err := d.openPages(g)
	if err != nil {
		return err
	}
	defer closePages()
	web := &http.Server{Handler: d.handler(pages), ReadHeaderTimeout: 30 * time.Second, TLSConfig: d.tls}

	var running sync.WaitGroup
	failed := make(chan error, 3)
	running.Go(func() { failed <- g.Serve(d.grpcAddr) })
	if d.grpcUnix != nil {
		running.Go(func() { failed <- g.Serve(d.grpcUnix) })
		d.log.Info("clients on this machine are served", "socket", d.config.grpcUnix)
	}
	running.Go(func() { failed <- d.serveHTTP(web) })
	work, stopWork := context.WithCancel(context.Background())
	defer stopWork()
	var workers sync.WaitGroup
	workers.Go(func() { d.server.Run(work, d.config.maxBuilds) })
	workers.Go(func() {
		if err := d.cache.Collect(work); err != nil && work.Err() == nil {
			d.log.Warn("collect", "err", err)
		}
	})
	d.log.Info("slipwayd is ready", "version", version, "grpc", d.grpcAddr.Addr().String(), "http", d.httpAddr.Addr().String(), "registry", d.host, "root", d.config.root, "database", d.db.String(), "gzip", compress.GzipMaker)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	d.log.Info("draining", "at_most", d.config.drainTimeout)
	d.drain(g, stopWork, &workers)
	shut, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = errors.Join(err, web.Shutdown(shut))
	running.Wait()
	return err
}

// credentials are those of the gRPC server, which alone asks for certificates
// of clients.
func (d *daemon) credentials() credentials.TransportCredentials {
	if d.tls == nil {
		return server.Credentials(nil)
	}
	config := d.tls.Clone()
	config.ClientCAs = d.clients
	return server.Credentials(config)
}

// drain refuses new builds and lets those under way end, up to the limit.
func (d *daemon) drain(g *grpc.Server, stopWork context.CancelFunc, workers *sync.WaitGroup) {
	d.server.Drain()
	stopWork()
	hard := time.AfterFunc(d.config.drainTimeout, func() { d.server.Stop(); d.api.Stop() })
	defer hard.Stop()
	d.api.Drain()
	workers.Wait()
	d.commands.Close()
	d.keeper.Close(context.Background())
	ended := make(chan struct{})
	go func() { g.GracefulStop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		g.Stop()
		<-ended
	}
}

func (d *daemon) serveHTTP(web *http.Server) error {
	var err error
	if d.tls != nil {
		err = web.ServeTLS(d.httpAddr, "", "")
	} else {
		err = web.Serve(d.httpAddr)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
