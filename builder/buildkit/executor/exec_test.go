package executor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"

	bkexecutor "github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
)

const hold = "echo up; while :; do sleep 1000; done"

// background runs a container until stop is called or the test ends, and
// returns after it has started.
func background(t *testing.T, e *executor.Executor, id string, r bkexecutor.Mount) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := e.Run(ctx, id, r, nil, script(hold), started)
		done <- err
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	<-started
	return stop
}

func TestExec(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	s, at := over(t, image(t, t.TempDir(), file{name: "etc/passwd", data: "app:x:7:8::/home/app:\n"})).pooled(t)
	stop := background(t, e, "gateway", root(s))
	for _, tc := range []struct {
		text string
		set  func(*bkexecutor.Meta)
		want string
		code uint32
	}{
		{"echo $A; pwd; id -u; hostname", func(*bkexecutor.Meta) {}, "/ 0 buildkitsandbox", 0},
		{"echo $A; pwd; id -u", func(m *bkexecutor.Meta) { m.Env, m.Cwd, m.User = []string{"A=1"}, "/bin", "app" }, "1 /bin 7", 0},
		{"exit 5", func(*bkexecutor.Meta) {}, "", 5},
		{"exit 5", func(m *bkexecutor.Meta) { m.ValidExitCodes = []int{5} }, "", 0},
		{"touch /written", func(*bkexecutor.Meta) {}, "", 0},
	} {
		p := script(tc.text)
		tc.set(&p.Meta)
		var out sink
		p.Stdout, p.Stderr = &out, &out
		err := e.Exec(t.Context(), "gateway", p)
		if got := strings.Join(strings.Fields(out.String()), " "); got != tc.want {
			t.Errorf("%s: printed %q, want %q", tc.text, got, tc.want)
		}
		if tc.code != 0 {
			wantExit(t, err, tc.code)
		} else if err != nil {
			t.Errorf("%s: %v", tc.text, err)
		}
	}
	if err := e.Exec(t.Context(), "other", script("true")); err == nil || err.Error() != "container other not found" {
		t.Errorf("error %v", err)
	}
	// The names of one are nothing to another.
	other := newExecutor(t, executor.Options{})
	if err := other.Exec(t.Context(), "gateway", script("true")); err == nil || err.Error() != "container gateway not found" {
		t.Errorf("error %v", err)
	}
	if _, err := other.Run(t.Context(), "gateway", root(over(t, image(t, t.TempDir()))), nil, script("true"), nil); err != nil {
		t.Errorf("a container of the same name: %v", err)
	}
	if _, err := e.Run(t.Context(), "gateway", root(s), nil, script("true"), nil); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("error %v", err)
	}
	for _, id := range []string{"../x", "a b", "x/y"} {
		if _, err := e.Run(t.Context(), id, root(s), nil, script("true"), nil); err == nil || !strings.Contains(err.Error(), "invalid container id") {
			t.Errorf("%s: error %v", id, err)
		}
	}
	wantExit(t, stop(), 137)
	if err := e.Exec(t.Context(), "gateway", script("true")); err == nil || err.Error() != "container gateway not found" {
		t.Errorf("error %v", err)
	}
	if got := names(t, at); got != "bin bin/busybox bin/sh etc etc/passwd written" {
		t.Errorf("it has %q", got)
	}
}

// Exec begins before the container does: BuildKit calls it as soon as it has
// called Run.
func TestExecWaits(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir())
	for _, tc := range []struct {
		set  func(*bkexecutor.ProcessInfo)
		want string
	}{
		{func(*bkexecutor.ProcessInfo) {}, ""},
		{func(p *bkexecutor.ProcessInfo) { p.Meta.Args = []string{"nope"} }, `container early has exited with error: `},
		{func(p *bkexecutor.ProcessInfo) { p.Meta.User = "ghost" }, "container early has exited with error: unable to find user ghost"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		s := &slow{shown: over(t, base).shown, reached: make(chan struct{}), goOn: make(chan struct{})}
		p := script(hold)
		tc.set(&p)
		done, result := make(chan struct{}), make(chan error, 1)
		go func() {
			defer close(done)
			_, _ = e.Run(ctx, "early", root(s), nil, p, nil)
		}()
		<-s.reached
		go func() { result <- e.Exec(ctx, "early", script("true")) }()
		close(s.goOn)
		switch err := <-result; {
		case tc.want == "" && err != nil:
			t.Error(err)
		case tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want) && !strings.Contains(err.Error(), "not found")):
			t.Errorf("error %v, want %s", err, tc.want)
		}
		cancel()
		<-done
	}
	// Who does not want to wait any more need not.
	s := &slow{shown: over(t, base).shown, reached: make(chan struct{}), goOn: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = e.Run(t.Context(), "early", root(s), nil, script("true"), nil)
	}()
	<-s.reached
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("user has left")
	cancel(cause)
	if err := e.Exec(ctx, "early", script("true")); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	close(s.goOn)
	<-done
}

// A slow one takes its time to be mounted.
type slow struct {
	*shown
	reached, goOn chan struct{}
}

func (s *slow) Mount(ctx context.Context, readOnly bool) (bkexecutor.MountableRef, error) {
	close(s.reached)
	<-s.goOn
	return s.shown.Mount(ctx, readOnly)
}

// Terminals, sizes, input and signals get through, in Run and Exec alike.
func TestInteractive(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir())
	background(t, e, "shell", root(over(t, base)))
	for name, run := range map[string]func(bkexecutor.ProcessInfo) error{
		"run": func(p bkexecutor.ProcessInfo) error {
			_, err := e.Run(t.Context(), "", root(over(t, base)), nil, p, nil)
			return err
		},
		"exec": func(p bkexecutor.ProcessInfo) error { return e.Exec(t.Context(), "shell", p) },
	} {
		t.Run(name, func(t *testing.T) {
			in, feed := io.Pipe()
			sizes, signals := make(chan bkexecutor.WinSize), make(chan syscall.Signal)
			p := script(`trap 'echo size $(stty size)' WINCH; trap 'echo hup; exit 4' HUP; read line; echo got $line; while :; do sleep 0.05; done`)
			p.Meta.Tty, p.Meta.Env = true, []string{"TERM=vt100"}
			p.Stdin, p.Resize, p.Signal = in, sizes, signals
			stage := 0
			out := &sink{}
			out.on = func(all string) {
				switch {
				case stage == 0 && strings.Contains(all, "got typed"):
					stage++
					go func() { sizes <- bkexecutor.WinSize{Rows: 33, Cols: 99} }()
				case stage == 1 && strings.Contains(all, "size 33 99"):
					stage++
					go func() { signals <- syscall.SIGHUP; close(signals); close(sizes) }()
				}
			}
			p.Stdout = out
			go func() { _, _ = io.WriteString(feed, "typed\n") }()
			err := run(p)
			wantExit(t, err, 4)
			if got := out.String(); !strings.HasSuffix(got, "got typed\r\nsize 33 99\r\nhup\r\n") {
				t.Errorf("output %q", got)
			}
			if _, err := feed.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the input is still open: %v", err)
			}
		})
	}
	in, feed := io.Pipe()
	p := script("cat; exit 3")
	p.Stdin = in
	var out sink
	p.Stdout = &out
	go func() { _, _ = io.WriteString(feed, "piped\n"); feed.Close() }()
	wantExit(t, e.Exec(t.Context(), "shell", p), 3)
	if out.String() != "piped\n" {
		t.Errorf("output %q", out.String())
	}
}

// Many at once, of one container and of many.
func TestSideBySide(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir())
	background(t, e, "many", root(over(t, base)))
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			var out sink
			p := script(fmt.Sprintf("echo %d; exit %d", i, i+1))
			p.Stdout = &out
			err := e.Exec(t.Context(), "many", p)
			wantExit(t, err, uint32(i+1))
			if out.String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("output %q", out.String())
			}
		})
		all.Go(func() {
			var out sink
			p := script(fmt.Sprintf("echo %d >/f; cat /f; exit %d", i, i+1))
			p.Stdout = &out
			_, err := e.Run(t.Context(), fmt.Sprintf("of%d", i), root(over(t, base)), nil, p, nil)
			wantExit(t, err, uint32(i+1))
			if out.String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("output %q", out.String())
			}
		})
	}
	all.Wait()
}
