package shell_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clog "github.com/containerd/log"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/layercache"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// A runner has containers in which there are some programs: each prints its
// container's variables and what it reads, and ends with 3.
type runner struct {
	programs []string
	refuse   error // of containers
	write    int64 // bytes that a container writes to its upper directory at once

	mu   sync.Mutex
	open map[string]container
	most int
}

type container struct {
	sandbox.Process
	over chan struct{}
}

func (r *runner) Run(ctx context.Context, p sandbox.Process) (int, error) {
	if r.refuse != nil {
		return 0, r.refuse
	}
	if !p.Idle || p.Args != nil || p.Stdout != nil {
		return 0, errors.New("not an idle container")
	}
	r.mu.Lock()
	if r.open == nil {
		r.open = map[string]container{}
	}
	over := make(chan struct{})
	defer close(over)
	r.open[p.ID] = container{p, over}
	r.most = max(r.most, len(r.open))
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, p.ID)
	}()
	if r.write > 0 {
		if err := os.WriteFile(filepath.Join(p.Upper, "big"), make([]byte, r.write), 0o600); err != nil {
			return 0, err
		}
	}
	p.Started()
	if err := p.Watch(ctx); err != nil {
		return 0, err
	}
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

func (r *runner) Exec(ctx context.Context, c sandbox.Command) (int, error) {
	r.mu.Lock()
	p, ok := r.open[c.Container]
	r.mu.Unlock()
	if !ok {
		return 0, sandbox.ErrNotRunning
	}
	if !slices.Contains(r.programs, c.Args[0]) {
		return 0, &sandbox.StartError{Message: c.Args[0] + ": no such file"}
	}
	if len(c.Args) > 1 && c.Args[1] == "-c" {
		return 0, nil // it is there
	}
	fmt.Fprintln(c.Stdout, append(append(c.Args, p.Env...), c.Env...))
	if c.Stdin != nil {
		read := make(chan error, 1)
		go func() { _, err := io.Copy(c.Stdout, c.Stdin); read <- err }()
		select {
		case <-read:
		case <-p.over:
			c.Stdin.Close()
			<-read
			return 137, nil
		case <-ctx.Done():
			c.Stdin.Close()
			<-read
			return 0, context.Cause(ctx)
		}
	}
	return 3, nil
}

func (r *runner) running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// A world has a keeper of steps.
type world struct {
	t      *testing.T
	runner *runner
	cache  *layercache.Store
	keeper *shell.Keeper
	gone   []string
	mu     sync.Mutex
	left   int // of those who entered
	upper  string
}

func newWorld(t *testing.T, r *runner, o shell.Options) *world {
	t.Helper()
	cache, err := layercache.Open(t.Context(), layercache.Options{Root: t.TempDir(), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	o.Runner, o.Cache = r, cache
	w := &world{t: t, runner: r, cache: cache, keeper: shell.NewKeeper(o), upper: t.TempDir()}
	t.Cleanup(func() {
		w.keeper.Close(context.Background())
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) step(org, build string) shell.Step {
	return shell.Step{
		Org: org, App: "shop", Build: build, Name: "RUN make failed", Bytes: 10,
		Enter: func(context.Context, func(string)) (*sandbox.Process, func(), error) {
			return &sandbox.Process{Upper: w.upper, Env: []string{"BUILD=" + build}}, func() { w.left++ }, nil
		},
		Drop: func(context.Context) { w.mu.Lock(); defer w.mu.Unlock(); w.gone = append(w.gone, build) },
	}
}

func (w *world) dropped() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.gone)
}

func (w *world) keep(org, build string) {
	w.t.Helper()
	if !w.keeper.Keep(w.t.Context(), w.step(org, build)) {
		w.t.Fatalf("build %s is not kept", build)
	}
}

// shell opens one and returns what it prints, its notices and how it ended.
func (w *world) shell(org, build string, args ...string) (out string, notices []string, code int, err error) {
	var b bytes.Buffer
	code, err = w.keeper.Shell(w.t.Context(), org, build, args, builder.Console{
		Stdin: io.NopCloser(strings.NewReader("typed")), Stdout: &b, Stderr: &b,
		Notice: func(line string) { notices = append(notices, line) },
	})
	return b.String(), notices, code, err
}

func wantCode(t *testing.T, err error, code, says string) {
	t.Helper()
	e := failure.As(err)
	if err == nil || e.Code != code || !strings.Contains(e.Message+" "+e.Hint, says) {
		t.Errorf("error %v (hint %q), want %s that says %q", err, e.Hint, code, says)
	}
}

func TestShell(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh", "/bin/zsh", "/usr/bin/python", "/tool"}}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	for _, tc := range []struct {
		shell string
		args  []string
		want  string
	}{
		{"", nil, "[/bin/sh BUILD=two]\ntyped"},
		{"/bin/zsh", nil, "[/bin/zsh BUILD=two]\ntyped"},
		{"/usr/bin/python", nil, "[/bin/sh BUILD=two]\ntyped"},
		{"/bin/bash", []string{"/tool", "x y"}, "[/tool x y BUILD=two]\ntyped"},
	} {
		s := w.step("acme", "two")
		s.Shell, s.Secrets = tc.shell, true
		if !w.keeper.Keep(t.Context(), s) {
			t.Fatal("not kept")
		}
		out, notices, code, err := w.shell("acme", "two", tc.args...)
		if out != tc.want || code != 3 || err != nil {
			t.Errorf("%+v: printed %q, exit code %d, %v", tc, out, code, err)
		}
		if !slices.ContainsFunc(notices, func(l string) bool { return strings.Contains(l, "secrets") }) || notices[0] != "RUN make failed" {
			t.Errorf("told %q", notices)
		}
		if w.runner.running() != 0 || w.left == 0 {
			t.Errorf("%d containers after the last one left, who let go %d times", w.runner.running(), w.left)
		}
		if _, err := w.cache.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}); err != nil {
			t.Fatal(err)
		}
		w.keep("acme", "one")
	}
	if _, _, _, err := w.shell("acme", "one", "nope"); err == nil {
		t.Error("a program that is not there runs")
	} else {
		wantCode(t, err, failure.NotFound, "nope: no such file")
	}
}

func TestNoShell(t *testing.T) {
	w := newWorld(t, &runner{}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	_, _, _, err := w.shell("acme", "one")
	wantCode(t, err, failure.NotFound, "-- CMD")
}

// What an org has, another one does not learn of.
func TestOrgsAreApart(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh"}}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	w.keep("globex", "one")
	w.keep("acme", "two")
	if h := w.keeper.Hint("globex", "two"); h != "" {
		t.Errorf("hint %q", h)
	}
	_, _, _, err := w.shell("globex", "two")
	wantCode(t, err, failure.NotFound, "nothing is kept of build two")
	if want := "slipway builds shell two   opens a shell where it failed (kept 1 hour)"; w.keeper.Hint("acme", "two") != want {
		t.Errorf("hint %q, want %q", w.keeper.Hint("acme", "two"), want)
	}
}

func TestOneStepOfABuild(t *testing.T) {
	w := newWorld(t, &runner{}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	if w.keeper.Keep(t.Context(), w.step("acme", "one")) {
		t.Error("a second step is kept")
	}
	var none *shell.Keeper
	if none.Keeps() || none.Keep(t.Context(), w.step("acme", "two")) || none.Hint("acme", "two") != "" {
		t.Error("no keeper keeps something")
	}
	none.Close(t.Context())
}

func TestTooManyAreKept(t *testing.T) {
	w := newWorld(t, &runner{}, shell.Options{For: time.Hour, Most: 2, MostBytes: 25})
	for _, build := range []string{"one", "two", "three"} {
		w.keep("acme", build)
	}
	if !slices.Equal(w.dropped(), []string{"one"}) {
		t.Errorf("dropped %q", w.dropped())
	}
	large := w.step("acme", "large")
	large.Bytes = 20
	if !w.keeper.Keep(t.Context(), large) || !slices.Equal(w.dropped(), []string{"one", "two", "three"}) {
		t.Errorf("dropped %q", w.dropped())
	}
	large.Build, large.Bytes = "larger", 26
	if w.keeper.Keep(t.Context(), large) {
		t.Error("more than all of them may have is kept")
	}
}

// A step's time is over when it is and nobody is inside; nobody is for ever.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &runner{programs: []string{"/bin/sh"}}, shell.Options{For: 15 * time.Minute, Longest: time.Hour})
		w.keep("acme", "idle")
		w.keep("acme", "busy")
		in, keys := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			_, err := w.keeper.Shell(t.Context(), "acme", "busy", nil, builder.Console{Stdin: in, Stdout: io.Discard, Stderr: io.Discard})
			ended <- err
		}()
		time.Sleep(14 * time.Minute)
		synctest.Wait()
		if len(w.dropped()) != 0 || w.runner.running() != 1 {
			t.Fatalf("dropped %q, %d containers after 14 minutes", w.dropped(), w.runner.running())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !slices.Equal(w.dropped(), []string{"idle"}) {
			t.Fatalf("dropped %q after 16 minutes", w.dropped())
		}
		_, _, _, err := w.shell("acme", "busy")
		wantCode(t, err, failure.NotFound, "nothing is kept")
		time.Sleep(50 * time.Minute)
		wantCode(t, <-ended, failure.Timeout, "1 hour")
		synctest.Wait()
		if !slices.Equal(w.dropped(), []string{"idle", "busy"}) || w.runner.running() != 0 {
			t.Errorf("dropped %q, %d containers in the end", w.dropped(), w.runner.running())
		}
		keys.Close()
	})
}

// Those who come while somebody is inside are in the same container.
func TestSideBySide(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh"}}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	var shells sync.WaitGroup
	var ins []*io.PipeWriter
	for range 5 {
		in, keys := io.Pipe()
		ins = append(ins, keys)
		out, printed := io.Pipe()
		shells.Go(func() {
			if code, err := w.keeper.Shell(t.Context(), "acme", "one", nil, builder.Console{Stdin: in, Stdout: printed, Stderr: printed}); code != 3 || err != nil {
				t.Errorf("exit code %d, %v", code, err)
			}
			printed.Close()
		})
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		shells.Go(func() { _, _ = io.Copy(io.Discard, out) })
	}
	if n := w.runner.running(); n != 1 {
		t.Errorf("%d containers", n)
	}
	for _, keys := range ins {
		keys.Close()
	}
	shells.Wait()
	if w.runner.most != 1 || w.runner.running() != 0 || w.left != 1 {
		t.Errorf("%d containers at once, %d now, let go %d times", w.runner.most, w.runner.running(), w.left)
	}
}

func TestTooManyShells(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh"}}, shell.Options{For: time.Hour, Shells: 1})
	w.keep("acme", "one")
	w.keep("globex", "two")
	in, keys := io.Pipe()
	out, printed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := w.keeper.Shell(t.Context(), "acme", "one", nil, builder.Console{Stdin: in, Stdout: printed, Stderr: printed})
		ended <- err
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_, _, _, err := w.shell("globex", "two")
	wantCode(t, err, failure.Busy, "1 shells are open")
	go func() { _, _ = io.Copy(io.Discard, out) }()
	keys.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := w.shell("globex", "two"); err != nil {
		t.Errorf("after the other one left: %v", err)
	}
}

func TestCloseEndsShells(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh"}}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	in, _ := io.Pipe()
	out, printed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := w.keeper.Shell(t.Context(), "acme", "one", nil, builder.Console{Stdin: in, Stdout: printed, Stderr: printed})
		ended <- err
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	w.keeper.Close(t.Context())
	if len(w.dropped()) != 1 || w.runner.running() != 0 {
		t.Errorf("dropped %q, %d containers", w.dropped(), w.runner.running())
	}
	wantCode(t, <-ended, failure.DaemonStopped, "stopping")
	if w.keeper.Keep(t.Context(), w.step("acme", "two")) {
		t.Error("kept after the end")
	}
}

// A container that cannot be made is no reason to wait.
func TestNoContainer(t *testing.T) {
	w := newWorld(t, &runner{refuse: sandbox.ErrNetwork}, shell.Options{For: time.Hour})
	w.keep("acme", "one")
	_, _, _, err := w.shell("acme", "one")
	wantCode(t, err, failure.Unavailable, "network")
	s := w.step("acme", "two")
	s.Enter = func(context.Context, func(string)) (*sandbox.Process, func(), error) {
		return nil, nil, errors.New("no mounts")
	}
	w.keeper.Keep(t.Context(), s)
	if _, _, _, err := w.shell("acme", "two"); err == nil || err.Error() != "no mounts" {
		t.Errorf("error %v", err)
	}
}

// Who writes more than an image may have is stopped.
func TestWriteLimit(t *testing.T) {
	w := newWorld(t, &runner{programs: []string{"/bin/sh"}, write: 1 << 20}, shell.Options{For: time.Hour, MaxSize: 1 << 19})
	w.keep("acme", "one")
	in, keys := io.Pipe()
	defer keys.Close()
	_, err := w.keeper.Shell(t.Context(), "acme", "one", nil, builder.Console{Stdin: in, Stdout: io.Discard, Stderr: io.Discard})
	wantCode(t, err, failure.TooLarge, "/big")
}
