package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// hold is a script that says that it is up and waits to be stopped.
const hold = "echo up; while :; do sleep 1000; done"

// background runs p, once it runs, until stop is called or the test ends.
func background(t *testing.T, r *sandbox.Runner, p sandbox.Process) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	p.Started = sync.OnceFunc(func() { close(up) })
	go func() {
		_, err := r.Run(ctx, p)
		done <- err
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	select {
	case <-up:
	case err := <-done:
		done <- err
		t.Fatal("the container ended:", err)
	}
	return stop
}

// command returns a Command that runs a script.
func command(id, script string) sandbox.Command {
	return sandbox.Command{Container: id, Args: []string{"/bin/busybox", "sh", "-c", script}}
}

// execute runs c and returns its output, of both kinds, and exit code.
func execute(t *testing.T, r *sandbox.Runner, c sandbox.Command) (string, int) {
	t.Helper()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	code, err := r.Exec(t.Context(), c)
	if err != nil {
		t.Fatalf("Exec: %v\n%s", err, out.String())
	}
	return out.String(), code
}

func TestExec(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("OPERATOR"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t, sandbox.Options{Network: sandbox.None, BuildCA: ca})
	base := tree(t,
		file{name: "etc/passwd", data: "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"},
		file{name: "etc/group", data: "app:x:1001:\nwheel:x:10:app\n"}, file{name: "data/"})
	p := step(t, "echo mine >/data/file; "+hold, base)
	p.ID, p.Dir, p.Env, p.SecretEnv = "shared", "/data", []string{"A=1", "SSL_CERT_FILE=/own"}, []string{"TOKEN=x"}
	p.Mounts = []sandbox.Mount{{Target: "/shown", Data: []byte("shown\n")}}
	background(t, r, p)
	for _, tc := range []struct {
		name   string
		set    func(*sandbox.Command)
		script string
		want   string
		code   int
	}{
		{"as the first", func(*sandbox.Command) {}, "pwd; cat file /shown; echo $A $TOKEN $HOME $SSL_CERT_FILE; id -u; hostname", "/data mine shown 1 x /root /own 0 shared", 0},
		{"directory", func(c *sandbox.Command) { c.Dir = "/bin" }, "pwd", "/bin", 0},
		{"environment", func(c *sandbox.Command) { c.Env = []string{"B=2"} }, "echo $A$B$TOKEN $HOME $SSL_CERT_FILE $PATH", "2 /root /dev/slipway/ca.crt /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0},
		{"user", func(c *sandbox.Command) { c.User = "app" }, "echo $(id -u) $(id -g) $(grep Groups: /proc/self/status | cut -f2) $HOME", "1000 1001 10 1001 /home/app", 0},
		{"exit code", func(*sandbox.Command) {}, "exit 42", "", 42},
		{"signalled", func(*sandbox.Command) {}, "kill -9 $$", "", 137},
		{"rights", func(*sandbox.Command) {}, "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status | tr '\\t' ' '", "CapEff: 00000000a80425fb CapBnd: 00000000a80425fb Seccomp: 2", 0},
		{"namespaces", func(*sandbox.Command) {}, "[ $(readlink /proc/1/ns/pid) = $(readlink /proc/$$/ns/pid) ]; ls /sys/class/net", "lo", 0},
		{"no input", func(*sandbox.Command) {}, "read line || echo empty", "empty", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := command("shared", tc.script)
			tc.set(&c)
			if out, code := execute(t, r, c); strings.Join(strings.Fields(out), " ") != tc.want || code != tc.code {
				t.Errorf("exit code %d, printed %q, want %d, %q", code, out, tc.code, tc.want)
			}
		})
	}
}

func TestExecRefused(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, hold)
	p.ID = "refused"
	stop := background(t, r, p)
	for _, tc := range []struct {
		name string
		c    sandbox.Command
		want string
		is   error
	}{
		{"no such container", command("other", "true"), "container is not running: other", sandbox.ErrNotRunning},
		{"no command", sandbox.Command{Container: "refused"}, "no command", nil},
		{"no such program", sandbox.Command{Container: "refused", Args: []string{"nope"}}, `exec: "nope": executable file not found in $PATH`, nil},
		{"no such user", sandbox.Command{Container: "refused", Args: []string{"sh"}, User: "ghost"}, "unable to find user ghost", sandbox.ErrUser},
		{"no such directory", sandbox.Command{Container: "refused", Args: []string{"/bin/sh"}, Dir: "/nowhere"}, "no such file or directory", nil},
	} {
		var out bytes.Buffer
		tc.c.Stdout, tc.c.Stderr = &out, &out
		_, err := r.Exec(t.Context(), tc.c)
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
		if out.Len() > 0 {
			t.Errorf("%s: the runtime's words came as output: %s", tc.name, out.String())
		}
	}
	again := step(t, "true")
	again.ID = "refused"
	if _, err := r.Run(t.Context(), again); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("a second container of the same name: %v", err)
	}
	stop()
	if _, err := r.Exec(t.Context(), command("refused", "true")); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("error %v, want %v", err, sandbox.ErrNotRunning)
	}
}

// A container that is being made is waited for, also when it comes to nothing.
func TestExecWaits(t *testing.T) {
	// Who opens it waits for who writes to it.
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := unix.Mkfifo(ca, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t, sandbox.Options{Network: sandbox.None, BuildCA: ca})
	for i, tc := range []struct {
		name string
		set  func(*sandbox.Process)
		ok   bool
	}{
		{"runs", func(*sandbox.Process) {}, true},
		{"cannot start", func(p *sandbox.Process) { p.Args = []string{"nope"} }, false},
		{"cannot be made", func(p *sandbox.Process) { p.ExtraHosts = []string{"x"} }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := step(t, hold)
			p.ID = fmt.Sprint("awaited", i) // what the one before used is removed in its own time
			tc.set(&p)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() {
				_, err := r.Run(ctx, p)
				// Nobody waits for a reader that has not come.
				if late, openErr := os.OpenFile(ca, os.O_RDONLY|unix.O_NONBLOCK, 0); openErr == nil {
					late.Close()
				}
				if err == nil {
					t.Error("the process ended by itself")
				}
			})
			making, err := os.OpenFile(ca, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 1)
			running.Go(func() {
				_, err := r.Exec(ctx, command(p.ID, "true"))
				result <- err
			})
			if err := making.Close(); err != nil {
				t.Error(err)
			}
			err = <-result
			if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, sandbox.ErrNotRunning) {
				t.Errorf("error %v", err)
			}
			cancel()
			running.Wait()
		})
	}
}

// The end of the container is that of all in it, and a cancelled Command is
// none of the container's concern.
func TestExecEnds(t *testing.T) {
	r := newRunner(t, sandbox.Options{Network: sandbox.None})
	p := step(t, hold)
	p.ID = "ending"
	stop := background(t, r, p)

	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("user has left")
	c := command("ending", "trap '' TERM; (setsid sleep 5432 &); sh -c 'sleep 5433; true' & echo up; wait")
	c.Stdout = writerFunc(func(b []byte) (int, error) { cancel(cause); return len(b), nil })
	begin := time.Now()
	if _, err := r.Exec(ctx, c); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %v to stop", d)
	}
	for begin := time.Now(); processes(t, "5433"); { // they were sent a signal
		if time.Since(begin) > 30*time.Second {
			t.Fatal("a child of the stopped process still runs")
		}
	}
	if out, code := execute(t, r, command("ending", "echo alive")); out != "alive\n" || code != 0 {
		t.Errorf("afterwards: %q, %d", out, code)
	}

	c = command("ending", hold)
	c.Stdout = writerFunc(func(b []byte) (int, error) { go stop(); return len(b), nil })
	if code, err := r.Exec(t.Context(), c); code != 137 || err != nil {
		t.Errorf("exit code %d, %v of a process whose container was stopped, want 137", code, err)
	}
	stop()
	if processes(t, "5432") {
		t.Error("a process of the container still runs")
	}
}

// A panic of whoever is called does not take others along.
func TestExecPanic(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, hold)
	p.ID = "panic"
	background(t, r, p)
	c := command("panic", hold)
	c.Stdin = readerFunc(func([]byte) (int, error) { panic("at the disco") })
	if _, err := r.Exec(t.Context(), c); err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("error %v", err)
	}
	c.Stdin, c.Stdout = nil, writerFunc(func([]byte) (int, error) { panic("at the bar") })
	if _, err := r.Exec(t.Context(), c); err == nil || !strings.Contains(err.Error(), "at the bar") {
		t.Errorf("error %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
func (f readerFunc) Close() error               { return nil }

// A secret reaches no disk, whoever is given it.
func TestExecSecret(t *testing.T) {
	const secret = "correct horse battery staple"
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root, Network: sandbox.None})
	p := step(t, hold)
	p.ID = "secretive"
	background(t, r, p)
	flag := t.TempDir()
	in, feed := io.Pipe()
	c := command("secretive", "echo $TOKEN; read line")
	c.Env, c.Stdin = []string{"TOKEN=" + secret}, in
	var out bytes.Buffer
	c.Stdout = writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		if seen := grep(t, root, secret) + grep(t, filepath.Dir(p.Upper), secret); seen > 0 {
			t.Errorf("%d files on the disk have the secret", seen)
		}
		signal(t, flag)
		return len(b), feed.Close()
	})
	if _, err := r.Exec(t.Context(), c); err != nil || out.String() != secret+"\n" {
		t.Errorf("%v, output %q", err, out.String())
	}
	if _, err := os.Stat(filepath.Join(flag, "go")); err != nil {
		t.Error("nothing was looked at:", err)
	}
}

func TestSignals(t *testing.T) {
	r := sharedRunner(t)
	const trap = "trap 'echo term; exit 9' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done"
	try := func(t *testing.T, run func(io.Writer, <-chan syscall.Signal) (int, error)) {
		t.Helper()
		signals := make(chan syscall.Signal, 2)
		var out bytes.Buffer
		code, err := run(writerFunc(func(b []byte) (int, error) {
			out.Write(b)
			switch string(b) {
			case "up\n":
				signals <- syscall.SIGHUP
			case "hup\n":
				signals <- syscall.SIGTERM
				close(signals)
			}
			return len(b), nil
		}), signals)
		if out.String() != "up\nhup\nterm\n" || code != 9 || err != nil {
			t.Errorf("exit code %d, %v, output %q", code, err, out.String())
		}
	}
	t.Run("first process", func(t *testing.T) {
		try(t, func(w io.Writer, signals <-chan syscall.Signal) (int, error) {
			p := step(t, trap)
			p.Stdout, p.Signals = w, signals
			return r.Run(t.Context(), p)
		})
	})
	p := step(t, hold)
	p.ID = "signalled"
	background(t, r, p)
	t.Run("another", func(t *testing.T) {
		try(t, func(w io.Writer, signals <-chan syscall.Signal) (int, error) {
			c := command("signalled", trap)
			c.Stdout, c.Signals = w, signals
			return r.Exec(t.Context(), c)
		})
	})
	t.Run("killed before it runs", func(t *testing.T) {
		c := command("signalled", hold)
		signals := make(chan syscall.Signal, 1)
		signals <- syscall.SIGKILL
		c.Signals = signals
		if code, err := r.Exec(t.Context(), c); code != 137 || err != nil {
			t.Errorf("exit code %d, %v, want 137", code, err)
		}
	})
}
