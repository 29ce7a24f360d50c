package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const buildID = "01JD9K6V3E0000000000000000"

// daemon is a Slipway daemon that follows a script. It keeps a build's events
// as a real one does, so that they can be watched again.
type daemon struct {
	slipwayv1.UnimplementedBuildServiceServer
	slipwayv1.UnimplementedCacheServiceServer
	slipwayv1.UnimplementedSystemServiceServer
	slipwayv1.UnimplementedShellServiceServer

	addr  string
	token string
	build func(*session) error // the script of Build
	lis   *breakable

	mu        sync.Mutex
	log       []*slipwayv1.Event
	more      chan struct{} // closed when the log grows
	builds    int           // Build calls
	started   *slipwayv1.Start
	tokens    []string // of all calls
	cancelled chan struct{}
	once      sync.Once
	prune     *slipwayv1.PruneRequest
	checks    []*slipwayv1.Check
	envs      deployments
	process   func(*processCall) error // the script of Shell and Exec
}

func startDaemon(t *testing.T, build func(*session) error, opts ...grpc.ServerOption) *daemon {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{addr: lis.Addr().String(), token: "good", build: build, more: make(chan struct{}), cancelled: make(chan struct{}), lis: &breakable{Listener: lis}}
	opts = append(opts, grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		if err := d.check(ctx); err != nil {
			return nil, err
		}
		return h(ctx, req)
	}))
	s := grpc.NewServer(opts...)
	slipwayv1.RegisterBuildServiceServer(s, d)
	slipwayv1.RegisterCacheServiceServer(s, d)
	slipwayv1.RegisterSystemServiceServer(s, d)
	slipwayv1.RegisterEnvironmentServiceServer(s, &d.envs)
	slipwayv1.RegisterShellServiceServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(d.lis) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return d
}

// breakable is a listener whose connections can be cut.
type breakable struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (b *breakable) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err == nil {
		b.mu.Lock()
		b.conns = append(b.conns, c)
		b.mu.Unlock()
	}
	return c, err
}

func (b *breakable) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Close()
	}
	b.conns = nil
}

func (d *daemon) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	auth := strings.Join(md.Get("authorization"), ",")
	d.mu.Lock()
	d.tokens = append(d.tokens, auth)
	d.mu.Unlock()
	if auth == "Bearer "+d.token {
		return nil
	}
	return refuse(codes.Unauthenticated, &slipwayv1.Error{Code: "unauthorized", Phase: "auth", Blame: slipwayv1.Blame_BLAME_USER, Message: "the token is not known"})
}

func refuse(code codes.Code, e *slipwayv1.Error) error {
	st, err := status.New(code, e.GetMessage()).WithDetails(e)
	if err != nil {
		return err
	}
	return st.Err()
}

func (d *daemon) WhoAmI(context.Context, *slipwayv1.WhoAmIRequest) (*slipwayv1.WhoAmIResponse, error) {
	return &slipwayv1.WhoAmIResponse{Name: "admin", Org: "acme", Type: "admin", Scopes: []string{"*"}}, nil
}

func (d *daemon) Info(context.Context, *slipwayv1.InfoRequest) (*slipwayv1.InfoResponse, error) {
	return &slipwayv1.InfoResponse{
		Version: "0.3.0", Started: timestamppb.New(time.Now().Add(-72*time.Hour - time.Minute)), Now: timestamppb.Now(), Protocol: 1, Checks: d.checks,
		Registry: "reg.test",
	}, nil
}

func (d *daemon) GetBuild(_ context.Context, r *slipwayv1.GetBuildRequest) (*slipwayv1.GetBuildResponse, error) {
	if r.GetId() != buildID {
		return nil, refuse(codes.NotFound, &slipwayv1.Error{Code: "not_found", Blame: slipwayv1.Blame_BLAME_USER, Message: "no build " + r.GetId()})
	}
	return &slipwayv1.GetBuildResponse{Build: &slipwayv1.Build{Id: buildID, App: "shop", Org: "acme", Status: slipwayv1.BuildStatus_BUILD_STATUS_RUNNING, Created: timestamppb.Now()}}, nil
}

func (d *daemon) ListBuilds(context.Context, *slipwayv1.ListBuildsRequest) (*slipwayv1.ListBuildsResponse, error) {
	return &slipwayv1.ListBuildsResponse{Builds: []*slipwayv1.Build{{
		Id: buildID, App: "shop", Status: slipwayv1.BuildStatus_BUILD_STATUS_FAILED, Created: timestamppb.Now(), Result: failed(stepFailed),
	}}}, nil
}

func (d *daemon) CancelBuild(_ context.Context, r *slipwayv1.CancelBuildRequest) (*slipwayv1.CancelBuildResponse, error) {
	d.once.Do(func() { close(d.cancelled) })
	return &slipwayv1.CancelBuildResponse{Build: &slipwayv1.Build{Id: r.GetId(), Status: slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED}}, nil
}

func (d *daemon) Usage(context.Context, *slipwayv1.UsageRequest) (*slipwayv1.UsageResponse, error) {
	return &slipwayv1.UsageResponse{Bytes: 41_000_000_000, Limit: 50_000_000_000, DiskFree: 9_000_000_000, Apps: []*slipwayv1.AppUsage{{App: "shop", Bytes: 1_234_567, Records: 12}}}, nil
}

func (d *daemon) Prune(_ context.Context, r *slipwayv1.PruneRequest) (*slipwayv1.PruneResponse, error) {
	d.prune = r
	return &slipwayv1.PruneResponse{FreedBytes: 5_000_000, Records: 3}, nil
}

// record appends an event to the build's log.
func (d *daemon) record(ev *slipwayv1.Event) *slipwayv1.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	ev.Seq, ev.Time = uint64(len(d.log)+1), timestamppb.New(time.Unix(1_700_000_000, 0))
	d.log = append(d.log, ev)
	close(d.more)
	d.more = make(chan struct{})
	return ev
}

func (d *daemon) WatchBuild(r *slipwayv1.WatchBuildRequest, s grpc.ServerStreamingServer[slipwayv1.WatchBuildResponse]) error {
	if err := d.check(s.Context()); err != nil {
		return err
	}
	for at := int(max(r.GetFromSeq(), 1)) - 1; ; {
		d.mu.Lock()
		log, more := d.log[min(at, len(d.log)):], d.more
		d.mu.Unlock()
		for _, ev := range log {
			if err := s.Send(&slipwayv1.WatchBuildResponse{Event: ev}); err != nil || ev.GetResult() != nil {
				return err
			}
		}
		at += len(log)
		if r.GetReplayOnly() {
			return nil
		}
		select {
		case <-more:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (d *daemon) Build(stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse]) error {
	if err := d.check(stream.Context()); err != nil {
		return err
	}
	d.mu.Lock()
	d.builds++
	d.mu.Unlock()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &session{d: d, stream: stream, start: first.GetStart()}
	d.mu.Lock()
	d.started = s.start
	d.mu.Unlock()
	return d.build(s)
}

// session is one Build call as a script sees it.
type session struct {
	d      *daemon
	stream grpc.BidiStreamingServer[slipwayv1.BuildRequest, slipwayv1.BuildResponse]
	start  *slipwayv1.Start
}

// manifest receives the manifest.
func (s *session) manifest() ([]*slipwayv1.ManifestEntry, error) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	var all slipwayv1.ManifestEntries
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return nil, err
		}
		raw, err := dec.DecodeAll(m.GetManifest().GetEntries(), nil)
		if err != nil {
			return nil, err
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(raw, &all); err != nil {
			return nil, err
		}
		if m.GetManifest().GetLast() {
			return all.GetEntries(), nil
		}
	}
}

func (s *session) accept() error {
	return s.stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Accepted{Accepted: &slipwayv1.Accepted{BuildId: buildID}}})
}

// say records and sends events.
func (s *session) say(evs ...*slipwayv1.Event) error {
	for _, ev := range evs {
		if err := s.stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Event{Event: s.d.record(ev)}}); err != nil {
			return err
		}
	}
	return nil
}

// content asks for entries, as two wants at once, and returns what came.
func (s *session) content(wants ...[]uint32) (map[uint64][]byte, error) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	for i, w := range wants {
		if err := s.stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Want{Want: &slipwayv1.Want{Id: uint64(i + 1), Entries: w}}}); err != nil {
			return nil, err
		}
	}
	got := map[uint64][]byte{}
	for open := len(wants); open > 0; {
		m, err := s.stream.Recv()
		if err != nil {
			return nil, err
		}
		f := m.GetContent()
		if f.GetError() != nil {
			return nil, refuse(codes.Aborted, &slipwayv1.Error{Code: "context_changed", Phase: "context", Blame: slipwayv1.Blame_BLAME_USER, Message: f.GetError().GetMessage()})
		}
		data := f.GetData()
		if f.GetCodec() == slipwayv1.Codec_CODEC_ZSTD {
			if data, err = dec.DecodeAll(data, nil); err != nil {
				return nil, err
			}
		}
		got[f.GetWantId()] = append(got[f.GetWantId()], data...)
		if f.GetLast() {
			open--
		}
	}
	return got, nil
}

// ask asks one question and returns the answer.
func (s *session) ask(q *slipwayv1.Ask) (*slipwayv1.Answer, error) {
	if err := s.stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Ask{Ask: q}}); err != nil {
		return nil, err
	}
	m, err := s.stream.Recv()
	return m.GetAnswer(), err
}

// heard returns when the client has got all that was said before.
func (s *session) heard() error {
	if _, err := s.ask(&slipwayv1.Ask{Id: 99, Question: &slipwayv1.Ask_Secret{Secret: "?"}}); err != nil {
		return err
	}
	return nil
}

// Events.

func done(name slipwayv1.PhaseName, ms int64, detail string) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_Phase{Phase: &slipwayv1.Phase{Name: name, Done: true, DurationMs: ms, Detail: detail}}}
}

func plan(sources ...string) *slipwayv1.Event {
	p := &slipwayv1.Plan{Stages: 1}
	for i, s := range sources {
		p.Steps = append(p.Steps, &slipwayv1.PlannedStep{Step: uint32(i + 1), Number: uint32(i + 1), Total: uint32(len(sources)), Source: s, Line: uint32(i + 1)})
	}
	return &slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: p}}
}

func output(step uint32, text string) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{Step: step, Stream: slipwayv1.LogStream_LOG_STREAM_STDOUT, Data: []byte(text)}}}
}

func stepDone(d *slipwayv1.StepDone) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: d}}
}

func end(r *slipwayv1.Result) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_Result{Result: r}}
}

func succeeded() *slipwayv1.Result {
	return &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, BuildId: buildID, App: "shop", Image: "127.0.0.1:7071/shop:deployment-1", Digest: "sha256:5c1e",
		Pipeline: "classic", Timings: &slipwayv1.Timings{Total: 38900},
		Layers: []*slipwayv1.Layer{{Digest: "sha256:aa", DiffId: "sha256:bb", Size: 12, Pushed: slipwayv1.PushOutcome_PUSH_OUTCOME_LINKED}},
	}
}

var stepFailed = &slipwayv1.Error{Code: "step_failed", Phase: "build", Blame: slipwayv1.Blame_BLAME_USER, Line: 2, ExitCode: 7, Message: "RUN false returned exit code 7"}

func failed(e *slipwayv1.Error) *slipwayv1.Result {
	return &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, BuildId: buildID, App: "shop", Error: proto.Clone(e).(*slipwayv1.Error)}
}

// cli runs the program in this process.
type cli struct {
	t      *testing.T
	vars   map[string]string
	stdin  string
	env    environment
	ctx    context.Context
	stdout bytes.Buffer
	stderr bytes.Buffer
	wrote  func(line string) // hears standard error
}

func newCLI(t *testing.T, d *daemon) *cli {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	c := &cli{t: t, vars: map[string]string{"SLIPWAY_API_TOKEN": "good", "SLIPWAY_APP": "shop"}, ctx: t.Context()}
	if d != nil {
		c.vars["SLIPWAY_ADDR"] = d.addr
	}
	c.env.loginFile = filepath.Join(t.TempDir(), "config", "login.json")
	return c
}

// Write lets the cli stand in for standard error.
func (c *cli) Write(p []byte) (int, error) {
	if c.wrote != nil {
		c.wrote(string(p))
	}
	return c.stderr.Write(p)
}

func (c *cli) run(args ...string) int {
	c.t.Helper()
	c.stdout.Reset()
	c.stderr.Reset()
	env := c.env
	env.stdin, env.stdout, env.stderr = strings.NewReader(c.stdin), &c.stdout, c
	env.getenv = func(name string) string { return c.vars[name] }
	env.version = "test"
	return run(c.ctx, &env, args)
}

// lines parses standard output as JSON lines: every one has to be.
func (c *cli) lines() []map[string]any {
	c.t.Helper()
	var all []map[string]any
	for _, line := range strings.SplitAfter(c.stdout.String(), "\n") {
		if line == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || !strings.HasSuffix(line, "\n") {
			c.t.Fatalf("line %q on standard output: %v", line, err)
		}
		all = append(all, m)
	}
	return all
}

// result checks that the last line and no other is the result.
func (c *cli) result() map[string]any {
	c.t.Helper()
	all := c.lines()
	if len(all) == 0 {
		c.t.Fatalf("nothing on standard output; standard error:\n%s", c.stderr.String())
	}
	for i, m := range all {
		if is, want := m["type"] == "result", i == len(all)-1; is != want {
			c.t.Fatalf("line %d of %d is of type %v", i+1, len(all), m["type"])
		}
	}
	return all[len(all)-1]
}

func (c *cli) want(code int, args ...string) {
	c.t.Helper()
	if got := c.run(args...); got != code {
		c.t.Fatalf("slipway %s: exit code %d, want %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), got, code, c.stdout.String(), c.stderr.String())
	}
}

func (c *cli) sees(where *bytes.Buffer, parts ...string) {
	c.t.Helper()
	for _, part := range parts {
		if !strings.Contains(where.String(), part) {
			c.t.Errorf("no %q in\n%s", part, where.String())
		}
	}
}

// tree writes files by path and content.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range files {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func withTLS(cert tls.Certificate) grpc.ServerOption {
	return grpc.Creds(credentials.NewServerTLSFromCert(&cert))
}
