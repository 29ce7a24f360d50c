package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"golang.org/x/sys/unix"
)

// running calls do once the process of p printed its first line.
func running(p *sandbox.Process, do func()) {
	done := false
	p.Stdout = writerFunc(func(b []byte) (int, error) {
		if !done {
			done = true
			do()
		}
		return len(b), nil
	})
}

// Processes that ignore signals and leave their session end at once.
const stubborn = "trap '' TERM INT HUP; (setsid sleep 1000 &) ; sleep 1000 & echo up; while :; do sleep 1000; done"

func TestCancel(t *testing.T) {
	r := newRunner(t, sandbox.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("user has left")
	p := step(t, stubborn)
	var begin time.Time
	running(&p, func() { begin = time.Now(); cancel(cause) })
	_, err := r.Run(ctx, p)
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
	if d := time.Since(begin); d > 30*time.Second { // not for as long as they sleep
		t.Errorf("took %v to stop", d)
	}
	if _, err := r.Run(ctx, p); !errors.Is(err, cause) {
		t.Errorf("error %v of a process that was not to begin, want %v", err, cause)
	}
}

// However early it comes.
func TestCancelWhileStarting(t *testing.T) {
	r := newRunner(t, sandbox.Options{})
	for _, d := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 25 * time.Millisecond, 30 * time.Millisecond, 40 * time.Millisecond, 60 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		begin := time.Now()
		_, err := r.Run(ctx, step(t, stubborn))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: error %v, want %v", d, err, context.DeadlineExceeded)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("after %v: took %v to stop", d, took)
		}
	}
}

func TestWatch(t *testing.T) {
	r := sharedRunner(t)
	over := errors.New("too large")
	p := step(t, stubborn)
	up := make(chan struct{})
	running(&p, func() { close(up) })
	p.Watch = func(context.Context) error { <-up; return over }
	if _, err := r.Run(t.Context(), p); !errors.Is(err, over) {
		t.Errorf("error %v, want %v", err, over)
	}

	// It is told when the process has ended, and waited for.
	p = step(t, "exit 3")
	told := false
	p.Watch = func(ctx context.Context) error { <-ctx.Done(); told = true; return ctx.Err() }
	if code, err := r.Run(t.Context(), p); code != 3 || err != nil || !told {
		t.Errorf("exit code %d, error %v, told %v; want 3, none, true", code, err, told)
	}

	// What it says last counts too.
	p.Watch = func(ctx context.Context) error { <-ctx.Done(); return over }
	if _, err := r.Run(t.Context(), p); !errors.Is(err, over) {
		t.Errorf("error %v, want %v", err, over)
	}
}

func TestClose(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	r, err := sandbox.New(t.Context(), sandbox.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.New(t.Context(), sandbox.Options{Root: root}); !errors.Is(err, sandbox.ErrInUse) {
		t.Errorf("second Runner of a root: %v, want %v", err, sandbox.ErrInUse)
	}
	p := step(t, stubborn)
	closed := make(chan error, 1)
	running(&p, func() { go func() { closed <- r.Close(context.Background()) }() })
	if _, err := r.Run(t.Context(), p); !errors.Is(err, sandbox.ErrClosed) {
		t.Errorf("Run: %v, want %v", err, sandbox.ErrClosed)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := r.Run(t.Context(), p); !errors.Is(err, sandbox.ErrClosed) {
		t.Errorf("Run: %v, want %v", err, sandbox.ErrClosed)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
	wantNothingLeft(t, root)
	wantNoNetwork(t, root)
}

const victimRoot = "SLIPWAY_TEST_VICTIM"

// victim is a daemon that is killed while a process runs.
func victim(root string) {
	r, err := sandbox.New(context.Background(), sandbox.Options{Root: filepath.Join(root, "state")})
	if err != nil {
		panic(err)
	}
	_, err = r.Run(context.Background(), sandbox.Process{
		ID:      "victim",
		Lowers:  []string{filepath.Join(root, "lower")},
		Upper:   filepath.Join(root, "upper"),
		Work:    filepath.Join(root, "work"),
		Args:    []string{"/bin/sh", "-c", strings.ReplaceAll(stubborn, "1000", "4321")},
		Volumes: []string{"/data"},
		Mounts: []sandbox.Mount{
			{Target: "/new/secret", Data: []byte("x")},
			{Target: "/new/data", Source: filepath.Join(root, "lower/data"), Discard: true},
			{Target: "/new/stack", Stack: []mount.Mount{{Type: "bind", Source: filepath.Join(root, "lower"), Options: []string{"rbind"}}}, Select: "data"},
			{Target: "/new/agent", Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, io.EOF }},
		},
		Started: func() { // it is up when one more process is
			go func() {
				_, err := r.Exec(context.Background(), sandbox.Command{Container: "victim", Env: []string{"TOKEN=x"},
					Args: []string{"/bin/busybox", "sh", "-c", "echo up; sleep 4322"}, Stdout: os.Stdout})
				panic(err)
			}()
		},
	})
	panic(err)
}

func TestSweep(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	addFiles(t, root, []file{{name: "upper/"}, {name: "work/"}, {name: "state/"}})
	if err := os.Rename(tree(t, file{name: "data/precious"}), filepath.Join(root, "lower")); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(root, "state")
	t.Cleanup(func() { // should the test end early
		if r, err := sandbox.New(context.Background(), sandbox.Options{Root: state, Network: sandbox.None}); err == nil {
			_ = r.Close(context.Background())
		}
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := iotest.OneByteReader(out).Read(make([]byte, 1)); err != nil {
		t.Fatal("daemon did not come up:", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); !strings.Contains(string(mounts), state) {
		t.Fatal("the killed daemon left no mount: this test shows nothing")
	}
	for begin := time.Now(); !processes(t, "4321") || !processes(t, "4322"); { // between fork and exec, at first
		if time.Since(begin) > 60*time.Second {
			t.Fatal("the killed daemon left no process: this test shows nothing")
		}
	}
	killRuntime(t, state)

	r, err := sandbox.New(t.Context(), sandbox.Options{Root: state, Network: sandbox.None})
	if err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, state)
	wantNoNetwork(t, state)
	if processes(t, "4321") || processes(t, "4322") {
		t.Error("a process of the killed daemon still runs")
	}
	if got := layer(t, filepath.Join(root, "lower")); !strings.Contains(strings.Join(got, " "), "data/precious") {
		t.Errorf("sweeping removed what was mounted: %q", got)
	}
	p := step(t, "echo again")
	p.ID = "victim"
	want(t, r, p, "again")
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, state)
}

// killRuntime kills the runtime that waits for the victim, as a service manager
// would, so that it cannot clean up.
func killRuntime(t *testing.T, state string) {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + firstProcess(t, state, "victim") + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	var self, parent int
	var name, status string
	if _, err := fmt.Sscan(string(stat), &self, &name, &status, &parent); err != nil || parent <= 1 {
		t.Fatal(parent, err)
	}
	if err := unix.Kill(parent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// processes reports whether a process sleeps for that many seconds.
func processes(t *testing.T, seconds string) bool {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if data, err := os.ReadFile(l); err == nil && strings.HasSuffix(string(data), "sleep\x00"+seconds+"\x00") {
			return true
		}
	}
	return false
}

// A root may be reached through a link.
func TestLinkedRoot(t *testing.T) {
	needRoot(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	r, err := sandbox.New(t.Context(), sandbox.Options{Root: filepath.Join(link, "sandbox"), Network: sandbox.None})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.WithoutCancel(t.Context()))
	want(t, r, step(t, "echo up"), "up")
}
