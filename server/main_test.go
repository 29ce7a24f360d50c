package server_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clog "github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// A script is a pipeline whose steps a test writes.
type script struct {
	plan  func(ctx context.Context, job *builder.Job) error
	build func(ctx context.Context, job *builder.Job) (*builder.Image, error)
}

func (s *script) Plan(ctx context.Context, job *builder.Job) (builder.Plan, error) {
	if s.plan != nil {
		if err := s.plan(ctx, job); err != nil {
			return nil, err
		}
	}
	return &plan{s, job}, nil
}

type plan struct {
	*script
	job *builder.Job
}

func (*plan) Detail() string { return "a script" }

func (*plan) Writes() int64 { return 0 }

func (p *plan) Build(ctx context.Context) (*builder.Image, error) {
	if p.build == nil {
		return image(ctx, p.job, "hello")
	}
	return p.build(ctx, p.job)
}

// image makes an image of a layer for each text.
func image(ctx context.Context, job *builder.Job, texts ...string) (*builder.Image, error) {
	img := &builder.Image{Steps: len(texts)}
	img.Config.Platform = job.Platform
	ledger := limits.NewLedger(job.MaxSize)
	for _, text := range texts {
		l, err := job.Maker.Make(ctx, layer.Spec{
			Origin: limits.Source{Line: 1, Text: "COPY " + text}, CreatedBy: "COPY " + text, Ledger: ledger, Started: job.Layer,
			Write: func(_ context.Context, w *layer.Writer) error {
				return w.Entry(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(text))}, strings.NewReader(text))
			},
		})
		if err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, l)
	}
	img.RootFS = ledger.Total()
	return img, nil
}

// people are the tokens that a daemon knows, and whose apps are.
type people struct {
	known map[string]tokens.Principal

	mu   sync.Mutex
	apps map[string]string // owners
}

var errBroken = errors.New("open /var/lib/slipway/tokens.db: disk I/O error")

func (p *people) Authenticate(_ context.Context, value string) (tokens.Principal, error) {
	switch value {
	case "broken":
		return tokens.Principal{}, errBroken
	case "expired":
		return tokens.Principal{}, fmt.Errorf("%w 2 days ago", tokens.ErrExpired)
	}
	who, ok := p.known[value]
	if !ok {
		return who, tokens.ErrUnauthorized
	}
	return who, nil
}

func (*people) Enter(ctx context.Context, _ tokens.Principal) (context.Context, func()) {
	return ctx, func() {}
}

func (*people) Allow(_ context.Context, p tokens.Principal, action, app string) error {
	return tokens.Allow(p, action, app)
}

func (*people) AllowIn(_ context.Context, p tokens.Principal, action, app, env string) error {
	return tokens.AllowIn(p, action, app, env)
}

func (p *people) Claim(_ context.Context, by tokens.Principal, app string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.apps[app] == "" {
		p.apps[app] = by.Org
	}
	if p.apps[app] != by.Org {
		return fmt.Errorf("%w: app %q belongs to another organization", tokens.ErrDenied, app)
	}
	return nil
}

func (p *people) Owner(_ context.Context, app string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apps[app], nil
}

func everybody() *people {
	p := map[string]tokens.Principal{}
	for _, org := range []string{"acme", "globex"} {
		p[org] = tokens.Principal{Name: org, Org: org, Type: tokens.TypeOrg, Scopes: tokens.Scopes(tokens.TypeOrg)}
	}
	p["shop"] = tokens.Principal{Name: "ci", Org: "acme", App: "shop", Type: tokens.TypeDeploy, Scopes: tokens.Scopes(tokens.TypeDeploy)}
	p["reader"] = tokens.Principal{Name: "r", Org: "acme", Type: tokens.TypeReadOnly, Scopes: tokens.Scopes(tokens.TypeReadOnly)}
	return &people{known: p, apps: map[string]string{}}
}

type open struct{}

func (open) Authenticate(context.Context, string, string) (string, error) { return "anyone", nil }

func (open) Authorize(context.Context, string, string, ...string) error { return nil }

func (open) Allowed(_ context.Context, _, _ string, do ...string) ([]string, error) { return do, nil }

// A daemon is all parts but the pipeline and the port.
type daemon struct {
	t        *testing.T
	root     string
	log      *logBuffer
	script   *script
	cache    *layercache.Store
	registry *registry.Registry
	engine   fleet.Engine
	records  *records.Store
	srv      *server.Server
	grpc     *grpc.Server
	conn     *bufconn.Listener
	client   slipwayv1.BuildServiceClient
	cc       *grpc.ClientConn
	drain    func() // stops taking builds and waits
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start runs a daemon; workers is how many builds run at a time, 0 for none
// until work is called.
func start(t *testing.T, s *script, workers int, tune ...func(*server.Options, *fleet.Options)) *daemon {
	t.Helper()
	d := &daemon{t: t, root: t.TempDir(), log: &logBuffer{}, script: s}
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	d.cache, err = layercache.Open(ctx, layercache.Options{Root: filepath.Join(d.root, "cache"), MinFree: -1})
	check(t, err)
	t.Cleanup(func() { check(t, d.cache.Close()) })
	d.registry, err = registry.Open(ctx, registry.Options{Root: filepath.Join(d.root, "registry"), Access: open{}})
	check(t, err)
	t.Cleanup(func() { check(t, d.registry.Close()) })
	d.records, err = records.Open(ctx, filepath.Join(d.root, "records.db"))
	check(t, err)
	t.Cleanup(func() { check(t, d.records.Close()) })
	fo := &fleet.Options{}
	opts := server.Options{Version: "test", Auth: everybody(), Records: d.records, Cache: d.cache, Registry: "reg.test", Grace: time.Hour, Log: log}
	opts.Images = images{d}
	for _, f := range tune {
		f(&opts, fo)
	}
	d.engine = opts.Engine
	if d.engine == nil {
		d.engine = fleet.NewMemory(fo)
	}
	opts.Engine = d.engine
	opts.Builder = builder.New(builder.Options{
		Cache: d.cache, Engine: pushd.NewEngine(nil), Destination: d.destination, Observe: opts.Metrics, Log: log,
		Pipelines: map[slipwayv1.Pipeline]builder.Pipeline{slipwayv1.Pipeline_PIPELINE_CLASSIC: s}, MaxSize: opts.MaxSize,
	})
	d.srv = server.New(opts)
	d.serve()
	if workers > 0 {
		d.work(workers)
	}
	return d
}

func (d *daemon) destination(_ context.Context, p builder.Place) (builder.Remote, error) {
	name := p.Name
	if name == "" {
		name = "reg.test/" + p.App
	}
	repo, err := d.registry.Repository(strings.TrimPrefix(name, "reg.test/"))
	if err != nil {
		return builder.Remote{}, err
	}
	return builder.Remote{Target: pushd.NewLocal(name, repo, d.root), Name: name}, nil
}

func (d *daemon) serve() {
	d.grpc = grpc.NewServer(d.srv.ServerOptions()...)
	d.srv.Register(d.grpc)
	d.conn = bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.grpc.Serve(d.conn) })
	cc, err := grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.conn.DialContext(ctx) }))
	check(d.t, err)
	d.cc, d.client = cc, slipwayv1.NewBuildServiceClient(cc)
	d.t.Cleanup(func() {
		cc.Close()
		d.grpc.Stop()
		serving.Wait()
	})
}

func (d *daemon) work(n int) {
	ctx, cancel := context.WithCancel(context.Background())
	var workers sync.WaitGroup
	workers.Go(func() { d.srv.Run(ctx, n) })
	d.drain = func() { cancel(); workers.Wait() }
	d.t.Cleanup(func() { d.srv.Stop(); d.drain() })
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as returns a context of a call with a token.
func as(t testing.TB, token string) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// A call is one Build call of a client that says what a test wants.
type call struct {
	t      testing.TB
	stream slipwayv1.BuildService_BuildClient
	cancel context.CancelFunc
	id     string
	joined bool
	events []*slipwayv1.Event
	wants  []*slipwayv1.Want
	asks   []*slipwayv1.Ask
}

func (d *daemon) call(token string, s *slipwayv1.Start) *call {
	d.t.Helper()
	c := d.open(token)
	c.start(s)
	c.accepted()
	return c
}

func (d *daemon) open(token string) *call {
	d.t.Helper()
	ctx, cancel := context.WithCancel(as(d.t, token))
	stream, err := d.client.Build(ctx)
	check(d.t, err)
	d.t.Cleanup(cancel)
	return &call{t: d.t, stream: stream, cancel: cancel}
}

func (c *call) start(s *slipwayv1.Start) {
	c.t.Helper()
	check(c.t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Start{Start: s}}))
}

func (c *call) accepted() {
	c.t.Helper()
	m, err := c.stream.Recv()
	check(c.t, err)
	if m.GetAccepted() == nil {
		c.t.Fatalf("first message is %v", m)
	}
	c.id, c.joined = m.GetAccepted().BuildId, m.GetAccepted().Joined
}

// recv takes messages until stop says so or the stream ends.
func (c *call) recv(stop func(*slipwayv1.BuildResponse) bool) error {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.GetEvent() != nil:
			c.events = append(c.events, m.GetEvent())
		case m.GetWant() != nil:
			c.wants = append(c.wants, m.GetWant())
		case m.GetAsk() != nil:
			c.asks = append(c.asks, m.GetAsk())
		}
		if stop(m) {
			return nil
		}
	}
}

// result takes messages to the end of the stream and returns the result.
func (c *call) result() *slipwayv1.Result {
	c.t.Helper()
	if err := c.recv(func(*slipwayv1.BuildResponse) bool { return false }); err != io.EOF {
		c.t.Fatalf("stream ended with %v", err)
	}
	var res *slipwayv1.Result
	for _, e := range c.events {
		if e.GetResult() != nil {
			if res != nil {
				c.t.Error("more than one result")
			}
			res = e.GetResult()
		}
	}
	if res == nil {
		c.t.Fatal("no result")
	}
	return res
}

func wantMsg(m *slipwayv1.BuildResponse) bool { return m.GetWant() != nil }

func askMsg(m *slipwayv1.BuildResponse) bool { return m.GetAsk() != nil }

// A source is a scanned context and what sends it.
type source struct {
	*buildctx.Dir
	*buildctx.Sender
}

// scan makes a context of files and returns it.
func scan(t testing.TB, files map[string]string) *source {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	c, err := buildctx.Scan(context.Background(), dir, nil)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return &source{c, buildctx.NewSender(c.Manifest, c, nil)}
}

func (c *call) manifest(src *source) {
	c.t.Helper()
	check(c.t, src.ToProto(func(p *slipwayv1.ManifestPart) error {
		return c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Manifest{Manifest: p}})
	}))
}

func (c *call) serveWant(src *source, w *slipwayv1.Want) {
	c.t.Helper()
	check(c.t, src.Send(context.Background(), w, func(f *slipwayv1.ContentFrame) error {
		return c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Content{Content: f}})
	}))
}

func shop() *slipwayv1.Start { return &slipwayv1.Start{App: "shop", Push: true} }

func withContext(s *slipwayv1.Start) *slipwayv1.Start {
	s.Context = &slipwayv1.ContextInfo{}
	return s
}

func wantCode(t testing.TB, res *slipwayv1.Result, code string) {
	t.Helper()
	if got := res.GetError().GetCode(); got != code {
		t.Errorf("result %v %q (%s), want %q", res.Status, got, res.GetError().GetMessage(), code)
	}
}
