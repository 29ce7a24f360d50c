package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/tokens"
)

// A ground is what runs processes for a test: each says what it was asked for,
// reads its input to the end, and exits with 7.
type ground struct {
	mu    sync.Mutex
	asked []string
	ended chan error // of those that were not left to end
}

func (g *ground) Shell(ctx context.Context, org, build string, args []string, c builder.Console) (int, error) {
	return g.run(ctx, fmt.Sprintf("shell %s %s %q", org, strings.Repeat("x", min(1, len(build))), args), c)
}

func (g *ground) Exec(ctx context.Context, cmd builder.Command, c builder.Console) (int, error) {
	return g.run(ctx, fmt.Sprintf("exec %s %s %s %q", cmd.Org, cmd.App, cmd.Image, cmd.Args), c)
}

func (g *ground) run(ctx context.Context, what string, c builder.Console) (int, error) {
	g.mu.Lock()
	g.asked = append(g.asked, what)
	g.mu.Unlock()
	c.Tell("begins")
	if c.Terminal != nil {
		fmt.Fprintf(c.Stdout, "%s %v\n", c.Terminal.Name, c.Terminal.Size)
	}
	read := make(chan string, 1)
	switch {
	case strings.Contains(what, "wait"):
	case c.Stdin == nil:
		read <- "no input"
	default:
		go func() {
			all, err := io.ReadAll(c.Stdin)
			if err == nil {
				read <- string(all)
			}
		}()
	}
	var sizes <-chan builder.WindowSize
	if c.Terminal != nil {
		sizes = c.Terminal.Resize
	}
	for {
		select {
		case s := <-sizes:
			fmt.Fprintf(c.Stdout, "now %v\n", s)
		case sig := <-c.Signals:
			fmt.Fprintf(c.Stderr, "%v\n", sig)
		case all := <-read:
			fmt.Fprintf(c.Stdout, "read %q\n", all)
			return 7, nil
		case <-ctx.Done():
			g.ended <- context.Cause(ctx)
			return 0, context.Cause(ctx)
		}
	}
}

func (g *ground) last() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.asked) == 0 {
		return ""
	}
	return g.asked[len(g.asked)-1]
}

// withShells starts a daemon that runs processes, with everybody who may.
func withShells(t *testing.T) (*daemon, *ground) {
	t.Helper()
	g := &ground{ended: make(chan error, 10)}
	who := everybody()
	for token, p := range map[string]tokens.Principal{
		"ssh":     {Org: "acme", App: "shop", Type: tokens.TypeSSH},
		"machine": {Org: "acme", App: "shop", Type: tokens.TypeMachineExec, Command: []string{"./migrate", "up", "a b"}},
		"nothing": {Org: "acme", App: "shop", Type: tokens.TypeMachineExec},
		"staging": {Org: "acme", Type: tokens.TypeOrg, Env: "staging"},
	} {
		p.Name, p.Scopes = token, tokens.Scopes(p.Type)
		who.known[token] = p
	}
	each := &script{build: func(ctx context.Context, job *builder.Job) (*builder.Image, error) { return image(ctx, job, job.ID) }}
	d := start(t, each, 1, func(o *server.Options, _ *fleet.Options) { o.Auth, o.Shells, o.Commands = who, g, g })
	return d, g
}

// A heard process is what a client got of one.
type heard struct {
	stdout, stderr, notices string
	code                    int
	exited                  bool
	err                     error
}

func (h *heard) take(m *slipwayv1.ProcessOutput) {
	h.stdout += string(m.GetStdout())
	h.stderr += string(m.GetStderr())
	h.notices += m.GetNotice()
	if e := m.GetExit(); e != nil {
		h.code, h.exited = int(e.Code), true
	}
}

func stdin(s string) *slipwayv1.ProcessInput {
	return &slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Stdin{Stdin: []byte(s)}}
}

// exec runs a command to its end.
func (d *daemon) exec(token string, start *slipwayv1.ExecStart, input ...*slipwayv1.ProcessInput) heard {
	d.t.Helper()
	s, err := slipwayv1.NewShellServiceClient(d.cc).Exec(as(d.t, token))
	check(d.t, err)
	_ = s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Start{Start: start}}) // Recv says why not
	for _, in := range input {
		_ = s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Input{Input: in}}) // Recv says why not
	}
	_ = s.CloseSend()
	var h heard
	for {
		m, err := s.Recv()
		if err != nil {
			if err != io.EOF {
				h.err = err
			}
			return h
		}
		h.take(m.GetOutput())
	}
}

// shell opens a shell and half-closes it.
func (d *daemon) shell(token, id string, input ...*slipwayv1.ProcessInput) heard {
	d.t.Helper()
	s, err := slipwayv1.NewShellServiceClient(d.cc).Shell(as(d.t, token))
	check(d.t, err)
	start := &slipwayv1.ShellStart{BuildId: id, Args: []string{"ls"}}
	_ = s.Send(&slipwayv1.ShellRequest{Message: &slipwayv1.ShellRequest_Start{Start: start}}) // Recv says why not
	for _, in := range input {
		_ = s.Send(&slipwayv1.ShellRequest{Message: &slipwayv1.ShellRequest_Input{Input: in}}) // Recv says why not
	}
	_ = s.CloseSend()
	var h heard
	for {
		m, err := s.Recv()
		if err != nil {
			if err != io.EOF {
				h.err = err
			}
			return h
		}
		h.take(m.GetOutput())
	}
}

// refused checks that a call was refused with a code and words, and ran nothing.
func refused(t *testing.T, g *ground, h heard, code, says string) {
	t.Helper()
	var e *slipwayv1.Error
	for _, d := range status.Convert(h.err).Details() {
		e, _ = d.(*slipwayv1.Error)
	}
	if h.err == nil || h.exited || e.GetCode() != code || !strings.Contains(e.GetMessage()+" "+e.GetHint(), says) {
		t.Errorf("%+v, %v; want %s that says %q", h, e, code, says)
	}
	if asked := g.last(); asked != "" {
		t.Errorf("ran %s", asked)
	}
}

func TestShellCall(t *testing.T) {
	d, g := withShells(t)
	c := d.call("acme", shop())
	c.result()
	for _, token := range []string{"acme", "ssh"} {
		h := d.shell(token, c.id, stdin("one "), stdin("two"), &slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Signal{Signal: "HUP"}})
		if h.err != nil || h.code != 7 || !strings.HasSuffix(h.stdout, `read "one two"`+"\n") || h.notices != "begins" {
			t.Errorf("%s: %+v", token, h)
		}
		if want := `shell acme x ["ls"]`; g.last() != want {
			t.Errorf("%s: ran %s, want %s", token, g.last(), want)
		}
	}
	g.asked = nil
	// Who is of another organisation cannot even tell whether there is such a build.
	refused(t, g, d.shell("globex", c.id), failure.NotFound, "there is no build")
	refused(t, g, d.shell("acme", "01JD9K00000000000000000000"), failure.NotFound, "there is no build")
	refused(t, g, d.shell("shop", c.id), failure.PermissionDenied, "lacks the scope ssh")
	refused(t, g, d.shell("reader", c.id), failure.PermissionDenied, "ssh token")
	refused(t, g, d.shell("machine", c.id), failure.PermissionDenied, "ssh token")
}

// toRelease is a deploy that is released.
func toRelease() *slipwayv1.Start {
	s := shop()
	s.Release = true
	return s
}

func TestExecCall(t *testing.T) {
	d, g := withShells(t)
	command := &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}}
	refused(t, g, d.exec("acme", command), failure.NotFound, "slipway deploy -a shop")
	first := d.call("acme", toRelease()).result()
	last := d.call("acme", toRelease()).result()
	d.call("acme", &slipwayv1.Start{App: "shop"}).result() // which is pushed nowhere
	elsewhere := d.call("acme", &slipwayv1.Start{App: "shop", Push: true, Targets: []string{"reg.test/elsewhere:1"}}).result()
	if first.Digest == "" || last.Digest == first.Digest || elsewhere.Digest == last.Digest || elsewhere.Error != nil {
		t.Fatalf("%v %v %v", first, last, elsewhere)
	}
	for _, tc := range []struct {
		image, want string
	}{
		{"", "reg.test/shop@" + last.Digest},
		{"v1", "reg.test/shop:v1"},
		{first.Digest, "reg.test/shop@" + first.Digest},
	} {
		h := d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env", "a b"}, Image: tc.image})
		if h.err != nil || h.code != 7 || h.stdout != `read "no input"`+"\n" {
			t.Errorf("%+v", h)
		}
		if want := "exec acme shop " + tc.want + ` ["env" "a b"]`; g.last() != want {
			t.Errorf("ran %s, want %s", g.last(), want)
		}
	}
	h := d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"sh"}, Interactive: true, Terminal: &slipwayv1.Terminal{
		Term: "vt220", Size: &slipwayv1.WindowSize{Rows: 24, Columns: 1 << 20},
	}}, stdin("typed"))
	if h.err != nil || h.code != 7 || h.stdout != "vt220 {24 65535}\nread \"typed\"\n" {
		t.Errorf("on a terminal: %+v", h)
	}
	g.asked = nil
	for _, tc := range []struct {
		token string
		start *slipwayv1.ExecStart
		code  string
		says  string
	}{
		{"globex", command, failure.NotFound, "nothing was released"},
		{"globex", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Image: "v1"}, failure.NotFound, "nothing was released"},
		{"globex", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Image: first.Digest}, failure.NotFound, "nothing was released"},
		{"shop", command, failure.PermissionDenied, "lacks the scope exec"},
		{"ssh", command, failure.PermissionDenied, "machine-exec token"},
		{"staging", command, failure.NotFound, "to staging"}, // where its token is for
		{"staging", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Environment: "production"}, failure.PermissionDenied, "staging"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Environment: "production"}, failure.NotFound, "to production"},
		{"acme", &slipwayv1.ExecStart{App: "shop"}, failure.InvalidArgument, "after --"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{""}}, failure.InvalidArgument, "no program"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"a\x00b"}}, failure.InvalidArgument, "zero byte"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{strings.Repeat("a", 1<<20)}}, failure.InvalidArgument, "131072"},
		{"acme", &slipwayv1.ExecStart{App: "Shop", Args: []string{"env"}}, failure.InvalidArgument, "-a"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Image: "../blog:v1"}, failure.InvalidArgument, "names no image"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Image: "sha256:12"}, failure.InvalidArgument, "names no image"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, TimeLimit: durationpb.New(-1)}, failure.InvalidArgument, "time limit"},
		{"acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, TimeLimit: durationpb.New(25 * time.Hour)}, failure.InvalidArgument, "24h"},
		{"acme", &slipwayv1.ExecStart{}, failure.InvalidArgument, "-a"},
	} {
		refused(t, g, d.exec(tc.token, tc.start), tc.code, tc.says)
	}
}

// A machine-exec token runs its own command: every word, and no word more.
func TestMachineExec(t *testing.T) {
	d, g := withShells(t)
	d.call("acme", toRelease()).result()
	own := []string{"./migrate", "up", "a b"}
	if h := d.exec("machine", &slipwayv1.ExecStart{App: "shop", Args: own}); h.err != nil || h.code != 7 {
		t.Fatalf("its own command: %+v", h)
	}
	g.asked = nil
	for _, args := range [][]string{
		{"./migrate"}, {"./migrate", "up"}, {"./migrate", "up", "a", "b"}, {"./migrate", "up", "a b", ""}, {"./migrate", "up", "a b", "--force"},
		{"./migrate up a b"}, {"sh", "-c", "./migrate up 'a b'"}, {"./Migrate", "up", "a b"}, {"./migrate", "up", "a b "}, {"/bin/sh"},
	} {
		refused(t, g, d.exec("machine", &slipwayv1.ExecStart{App: "shop", Args: args}), failure.PermissionDenied, "may run `./migrate up \"a b\"` and nothing else")
	}
	for says, start := range map[string]*slipwayv1.ExecStart{
		"without input":      {App: "shop", Args: own, Interactive: true},
		"without a terminal": {App: "shop", Args: own, Terminal: &slipwayv1.Terminal{}},
		"in no other":        {App: "shop", Args: own, Image: "v1"},
		"blog":               {App: "blog", Args: own},
	} {
		refused(t, g, d.exec("machine", start), failure.PermissionDenied, says)
	}
	refused(t, g, d.exec("nothing", &slipwayv1.ExecStart{App: "shop", Args: own}), failure.PermissionDenied, "no command")
	// Input is refused also when the command has begun.
	if h := d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"wait"}}, stdin("drop table")); status.Code(h.err) != codes.InvalidArgument {
		t.Errorf("input: %+v", h)
	}
}

// A process ends with its call, and with its time.
func TestProcessEnds(t *testing.T) {
	d, g := withShells(t)
	d.call("acme", toRelease()).result()
	begin := func(limit time.Duration) (slipwayv1.ShellService_ExecClient, context.CancelFunc) {
		ctx, cancel := context.WithCancel(as(t, "acme"))
		s, err := slipwayv1.NewShellServiceClient(d.cc).Exec(ctx)
		check(t, err)
		check(t, s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Start{Start: &slipwayv1.ExecStart{
			App: "shop", Args: []string{"sleep"}, Interactive: true, TimeLimit: durationpb.New(limit),
		}}}))
		if m, err := s.Recv(); err != nil || m.GetOutput().GetNotice() == "" {
			t.Fatalf("%v, %v", m, err)
		}
		return s, cancel
	}
	s, cancel := begin(time.Hour)
	check(t, s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Input{Input: &slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Signal{Signal: "TERM"}}}}))
	if m, err := s.Recv(); err != nil || string(m.GetOutput().GetStderr()) != "terminated\n" {
		t.Errorf("a signal: %v, %v", m, err)
	}
	cancel()
	if err := <-g.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("without its client it ended with %v", err)
	}
	s, cancel = begin(time.Millisecond)
	defer cancel()
	_, err := s.Recv()
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(status.Convert(err).Message(), "after 1ms") {
		t.Errorf("after its time: %v", err)
	}
	s, cancel = begin(time.Hour)
	defer cancel()
	check(t, s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Input{Input: &slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Signal{Signal: "KILL"}}}}))
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a signal that is not to be sent: %v", err)
	}
}

func TestNoShellsHere(t *testing.T) {
	d := start(t, &script{}, 1)
	c := d.call("acme", shop())
	c.result()
	for _, h := range []heard{d.shell("acme", c.id), d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}})} {
		refused(t, &ground{}, h, failure.NotSupported, "this daemon")
	}
}

// released says what was released.
type released map[string]string

func (r released) Released(_ context.Context, org, app, env string) (ref, digest string, err error) {
	digest, ok := r[org+"/"+app+"/"+env]
	if !ok {
		return "", "", errors.New("select: no rows")
	}
	return "reg.test/" + app, digest, nil
}

func TestExecOfARelease(t *testing.T) {
	g := &ground{}
	d := start(t, &script{}, 1, func(o *server.Options, _ *fleet.Options) {
		o.Commands, o.Releases = g, released{"acme/shop/production": "sha256:1"}
	})
	d.call("acme", shop()).result()
	if h := d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}, Environment: "production"}); h.err != nil {
		t.Fatal(h.err)
	}
	if want := `exec acme shop reg.test/shop@sha256:1 ["env"]`; g.last() != want {
		t.Errorf("ran %s, want %s", g.last(), want)
	}
	if h := d.exec("acme", &slipwayv1.ExecStart{App: "shop", Args: []string{"env"}}); status.Code(h.err) != codes.Internal || strings.Contains(h.err.Error(), "select") {
		t.Errorf("%+v", h)
	}
}
