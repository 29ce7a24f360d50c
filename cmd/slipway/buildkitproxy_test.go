//go:build !windows

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const secretToken = "sd_do_not_show_this"

// buildkitDaemon is a daemon that answers every method of BuildKit's.
func buildkitDaemon(t *testing.T, opts ...grpc.ServerOption) *daemon {
	t.Helper()
	var d *daemon
	ready := make(chan struct{})
	d = startDaemon(t, nil, append(opts, grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		<-ready
		if err := d.check(s.Context()); err != nil {
			return err
		}
		return s.SendMsg(&emptypb.Empty{})
	}))...)
	d.token = secretToken
	close(ready)
	return d
}

func proxyCLI(t *testing.T, d *daemon) *cli {
	t.Helper()
	c := newCLI(t, d)
	c.vars["SLIPWAY_API_TOKEN"] = secretToken
	c.vars["XDG_RUNTIME_DIR"] = shortDir(t)
	return c
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// background runs the command line until stop is called, which returns its
// exit code.
func (c *cli) background(args ...string) (stop func() int) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	c.ctx = ctx
	code := 0
	var running sync.WaitGroup
	running.Go(func() { code = c.run(args...) })
	stop = func() int { cancel(); running.Wait(); return code }
	c.t.Cleanup(func() { stop() })
	return stop
}

// ask calls a method, and waits for a server if there is none yet.
func ask(t *testing.T, target, method string) error {
	t.Helper()
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return cc.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
}

func TestBuildkitProxy(t *testing.T) {
	d := buildkitDaemon(t)
	c := proxyCLI(t, d)
	socket := filepath.Join(c.vars["XDG_RUNTIME_DIR"], "slipway", "buildkit.sock")
	stop := c.background("buildkit-proxy")
	for _, service := range buildkitServices {
		if err := ask(t, "unix://"+socket, "/"+service+"/Any"); err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
	before := len(d.tokens)
	if err := ask(t, "unix://"+socket, slipwayv1.SystemService_WhoAmI_FullMethodName); status.Code(err) != codes.Unimplemented || len(d.tokens) != before {
		t.Errorf("our own API through the proxy: %v, %d calls", err, len(d.tokens)-before)
	}
	for path, want := range map[string]fs.FileMode{socket: fs.ModeSocket | 0o600, filepath.Dir(socket): fs.ModeDir | 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s is %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
	second := proxyCLI(t, d)
	second.want(2, "buildkit-proxy", "--listen", "unix://"+socket)
	second.sees(&second.stderr, "--listen", socket, "in use")
	if code := stop(); code != 0 {
		t.Errorf("interrupted: exit code %d", code)
	}
	c.sees(&c.stdout, "BUILDKIT_HOST=unix://"+socket, "buildctl --addr unix://"+socket, "--driver remote unix://"+socket, "--buildkit-addr unix://"+socket, d.addr, "admin of acme")
	if all := c.stdout.String() + c.stderr.String(); strings.Contains(all, secretToken) {
		t.Errorf("the token is shown: %s", all)
	}
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestBuildkitProxyByTCP(t *testing.T) {
	cert, ca := certificate(t, time.Now().Add(time.Hour))
	d := buildkitDaemon(t, withTLS(cert))
	c := proxyCLI(t, d)
	address := make(chan string, 1)
	c.wrote = func(s string) {
		if _, after, ok := strings.Cut(s, "tcp://"); ok {
			address <- strings.TrimRight(strings.Fields(after)[0], ";")
		}
	}
	stop := c.background("buildkit-proxy", "--listen", "tcp://localhost:0", "--addr", "https://"+d.addr, "--tls-ca", ca, "--json")
	at := <-address
	if err := ask(t, at, "/moby.buildkit.v1.Control/Info"); err != nil {
		t.Error(err)
	}
	if code := stop(); code != 0 {
		t.Errorf("interrupted: exit code %d", code)
	}
	if v := value[proxied](c); v.BuildkitHost != "tcp://"+at || v.Address != "https://"+d.addr {
		t.Errorf("printed %+v", v)
	}
	c.sees(&c.stderr, "every user of this machine")
}

func TestBuildkitProxyRunsACommand(t *testing.T) {
	d := buildkitDaemon(t)
	c := proxyCLI(t, d)
	tmp := shortDir(t)
	t.Setenv("TMPDIR", tmp)
	for _, tc := range []struct {
		script string
		code   int
		stdout string
	}{
		{`test -S "${BUILDKIT_HOST#unix://}" && echo found`, 0, "found\n"},
		{`test -S "${BUILDKIT_HOST#unix://}" && exit 7`, 7, ""},
		{`kill -9 $$`, 137, ""},
	} {
		c.want(tc.code, "buildkit-proxy", "--", "sh", "-c", tc.script)
		if c.stdout.String() != tc.stdout || c.stderr.Len() > 0 {
			t.Errorf("%s: standard output %q, error %q", tc.script, c.stdout.String(), c.stderr.String())
		}
	}
	c.want(0, "buildkit-proxy", "--", "echo", "--json", "-t", "x") // flags of the command
	if c.stdout.String() != "--json -t x\n" {
		t.Errorf("standard output %q", c.stdout.String())
	}
	c.want(2, "buildkit-proxy", "--", "no-such-program")
	c.sees(&c.stderr, "no-such-program")

	// Interrupted, it lets the command end in its way.
	begun := filepath.Join(tmp, "begun")
	stop := c.background("buildkit-proxy", "--", "sh", "-c", `trap 'echo bye; exit 9' TERM; : > "$0"; while :; do sleep 0.02; done`, begun)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		if _, err := os.Stat(begun); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command does not begin")
		}
	}
	if code := stop(); code != 9 || c.stdout.String() != "bye\n" {
		t.Errorf("interrupted: exit code %d, standard output %q", code, c.stdout.String())
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "slipway-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestBuildkitProxyRefuses(t *testing.T) {
	d := buildkitDaemon(t)
	c := proxyCLI(t, d)
	file := filepath.Join(shortDir(t), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		code int
		says string
		args []string
	}{
		{2, "everybody", []string{"--listen", "tcp://0.0.0.0:0"}},
		{2, "everybody", []string{"--listen", "tcp://[::]:0"}},
		{2, "everybody", []string{"--listen", "tcp://:0"}},
		{2, "everybody", []string{"--listen", "tcp://192.0.2.1:0"}},
		{2, "everybody", []string{"--listen", "tcp://example.com:0"}},
		{2, "unix:///PATH", []string{"--listen", "tcp://127.0.0.1"}},
		{2, "unix:///PATH", []string{"--listen", "http://127.0.0.1:0"}},
		{2, "unix:///PATH", []string{"--listen", "/run/s"}},
		{2, "absolute", []string{"--listen", "unix://s"}},
		{2, "no socket", []string{"--listen", "unix://" + file}},
		{2, "after --", []string{"buildctl"}},
		{2, "after --", []string{"buildctl", "--", "build"}},
		{3, "token", []string{"-t", "wrong"}},
		{6, "no daemon", []string{"--addr", "127.0.0.1:1"}},
		{6, "no daemon", []string{"--addr", "127.0.0.1:1", "--", "true"}},
	} {
		c.want(tc.code, append([]string{"buildkit-proxy"}, tc.args...)...)
		c.sees(&c.stderr, tc.says)
	}
}
