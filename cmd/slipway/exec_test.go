package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A processCall is a call of Shell or Exec.
type processCall struct {
	shell *slipwayv1.ShellStart
	exec  *slipwayv1.ExecStart
	ctx   context.Context
	recv  func() (*slipwayv1.ProcessInput, error)
	send  func(*slipwayv1.ProcessOutput) error
}

// runs sets the script of the next processes.
func (d *daemon) runs(script func(*processCall) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process = script
}

func (d *daemon) script() func(*processCall) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process
}

func (d *daemon) Shell(s grpc.BidiStreamingServer[slipwayv1.ShellRequest, slipwayv1.ShellResponse]) error {
	if err := d.check(s.Context()); err != nil {
		return err
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	return d.script()(&processCall{shell: m.GetStart(), ctx: s.Context(), recv: func() (*slipwayv1.ProcessInput, error) {
		m, err := s.Recv()
		return m.GetInput(), err
	}, send: func(out *slipwayv1.ProcessOutput) error { return s.Send(&slipwayv1.ShellResponse{Output: out}) }})
}

func (d *daemon) Exec(s grpc.BidiStreamingServer[slipwayv1.ExecRequest, slipwayv1.ExecResponse]) error {
	if err := d.check(s.Context()); err != nil {
		return err
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	return d.script()(&processCall{exec: m.GetStart(), ctx: s.Context(), recv: func() (*slipwayv1.ProcessInput, error) {
		m, err := s.Recv()
		return m.GetInput(), err
	}, send: func(out *slipwayv1.ProcessOutput) error { return s.Send(&slipwayv1.ExecResponse{Output: out}) }})
}

func (c *processCall) out(s string) error {
	return c.send(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Stdout{Stdout: []byte(s)}})
}

func (c *processCall) err(s string) error {
	return c.send(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Stderr{Stderr: []byte(s)}})
}

func (c *processCall) notice(s string) error {
	return c.send(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Notice{Notice: s}})
}

func (c *processCall) exit(code int32) error {
	return c.send(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Exit{Exit: &slipwayv1.ProcessExit{Code: code}}})
}

// read returns what the client sends until it says that this was all.
func (c *processCall) read() string {
	var b bytes.Buffer
	for {
		m, err := c.recv()
		if err != nil || m.GetEof() != nil {
			return b.String()
		}
		b.Write(m.GetStdin())
	}
}

func TestExecCommand(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	var got *slipwayv1.ExecStart
	d.runs(func(p *processCall) error {
		got = p.exec
		_ = p.out("out\n")
		_ = p.notice("a word")
		_ = p.err("err\n")
		return p.exit(42)
	})
	c.want(42, "exec", "-a", "blog", "--image", "@sha256:12", "--env", "production", "--time-limit", "1m30s", "--", "sh", "-c", "echo -a; exit 42", "--json")
	if c.stdout.String() != "out\n" || c.stderr.String() != "• a word\nerr\n" {
		t.Errorf("stdout %q, stderr %q", c.stdout.String(), c.stderr.String())
	}
	if got.App != "blog" || got.Image != "sha256:12" || got.Environment != "production" || got.TimeLimit.AsDuration().String() != "1m30s" ||
		strings.Join(got.Args, "|") != "sh|-c|echo -a; exit 42|--json" || got.Interactive || got.Terminal != nil {
		t.Errorf("asked for %v", got)
	}
	c.want(42, "exec", "-T", "--", "sh")
	if got.App != "shop" || got.TimeLimit.AsDuration().String() != "15m0s" || got.Terminal == nil || got.Interactive {
		t.Errorf("asked for %v", got)
	}
	d.runs(func(p *processCall) error {
		_ = p.out(p.read())
		return p.exit(0)
	})
	c.stdin = strings.Repeat("all of it\n", 20_000)
	c.want(0, "exec", "-i", "--", "cat")
	if c.stdout.String() != c.stdin {
		t.Errorf("%d bytes came back of %d", c.stdout.Len(), len(c.stdin))
	}
	for _, args := range [][]string{{"exec"}, {"exec", "ls"}, {"exec", "ls", "--", "ls"}, {"exec", "--"}, {"exec", "-T", "--json", "--", "ls"}} {
		c.want(2, args...)
		c.sees(&c.stderr, "error: invalid_argument (user)")
	}
	delete(c.vars, "SLIPWAY_APP")
	c.want(2, "exec", "--", "ls")
	c.sees(&c.stderr, "no app is named")
}

// What fails before the command does is told apart from how the command ends.
func TestExecFails(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	d.runs(func(*processCall) error {
		return refuse(codes.PermissionDenied, &slipwayv1.Error{Code: "permission_denied", Phase: "auth", Blame: slipwayv1.Blame_BLAME_USER, Message: "this token may run `ls` and nothing else"})
	})
	c.want(3, "exec", "--", "rm")
	c.sees(&c.stderr, "error: permission_denied (user): this token may run `ls`", "exit code 3")
	c.want(3, "exec", "--json", "--", "rm")
	if r := c.result(); r["exit_code"] != nil || r["error"].(map[string]any)["code"] != "permission_denied" {
		t.Errorf("result %v", r)
	}
	d.runs(func(p *processCall) error { return p.exit(3) })
	c.want(3, "exec", "--", "false")
	if c.stderr.String() != "" {
		t.Errorf("stderr %q", c.stderr.String())
	}
	d.runs(func(p *processCall) error {
		_ = p.out("begun")
		d.lis.cut()
		<-p.ctx.Done()
		return nil
	})
	c.want(7, "exec", "--", "sleep")
	c.sees(&c.stderr, "error: connection_lost (network)")
	ctx, cancel := context.WithCancel(t.Context())
	c.ctx = ctx
	ended := make(chan struct{})
	d.runs(func(p *processCall) error {
		cancel()
		<-p.ctx.Done()
		close(ended)
		return nil
	})
	c.want(130, "exec", "--", "sleep")
	<-ended
}

func TestExecJSON(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	d.runs(func(p *processCall) error {
		_ = p.out("gr\xc3")
		_ = p.err("e\n")
		_ = p.out("\xbcn <&>")
		_ = p.out("\xff")
		_ = p.notice("a word")
		_ = p.err("\xe2\x82") // and no more
		return p.exit(1)
	})
	c.want(1, "exec", "--json", "--", "x")
	want := `{"type":"output","stream":"stdout","data":"gr"}
{"type":"output","stream":"stderr","data":"e\n"}
{"type":"output","stream":"stdout","data":"ün <&>"}
{"type":"output","stream":"stdout","data_base64":"/w=="}
{"type":"notice","message":"a word"}
{"type":"output","stream":"stderr","data_base64":"4oI="}
{"type":"result","exit_code":1,"error":null}
`
	if c.stdout.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", c.stdout.String(), want)
	}
}

func TestBuildsShell(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	var got *slipwayv1.ShellStart
	d.runs(func(p *processCall) error {
		got = p.shell
		_ = p.out(p.read())
		return p.exit(5)
	})
	c.stdin = "ls\n"
	c.want(5, "builds", "shell", buildID)
	if c.stdout.String() != "ls\n" || got.BuildId != buildID || len(got.Args) != 0 || got.Terminal != nil {
		t.Errorf("asked for %v, printed %q", got, c.stdout.String())
	}
	c.want(5, "builds", "shell", buildID, "--", "cat", "-n")
	if strings.Join(got.Args, "|") != "cat|-n" {
		t.Errorf("asked for %v", got)
	}
	for _, args := range [][]string{{"builds", "shell"}, {"builds", "shell", "--", "ls"}, {"builds", "shell", "a", "b"}} {
		c.want(2, args...)
	}
	c.vars["SLIPWAY_API_TOKEN"] = "bad"
	c.want(3, "builds", "shell", buildID)
	c.sees(&c.stderr, "SLIPWAY_API_TOKEN")
}
