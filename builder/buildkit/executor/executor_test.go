package executor_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	bkexecutor "github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
)

func root(s bkexecutor.Mountable) bkexecutor.Mount { return bkexecutor.Mount{Src: s} }

// What the process wrote is all that its upper directory has, whatever is
// mounted.
func TestLayer(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir(), file{name: "old", data: "old"}, file{name: "home/", mode: 0o700}, file{name: "way", link: "/home"})
	src := fill(t, t.TempDir(), file{name: "f", data: "shown\n"}, file{name: "sub/g", data: "deep\n"})
	s := over(t, base)
	mounts := []bkexecutor.Mount{
		{Src: bindOf(src), Dest: "/new/place", Readonly: true},
		{Src: bindOf(src), Dest: "/way/in", Selector: "sub", Readonly: true},
		{Src: bindOf(src + "/f"), Dest: "/run/secrets/key"},
		{Src: &shown{mounts: []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1048576"}}}}, Dest: "/tmp/mem"},
		{Src: over(t, base), Dest: "/stage"},
	}
	want(t, e, root(s), mounts, "cat /new/place/f /home/in/g /run/secrets/key; touch /tmp/mem/x /stage/made; ls /stage; rm /old; echo new >/written",
		"shown", "deep", "shown", "bin", "home", "made", "old", "way")
	if got := names(t, s.upper()); got != "old written" {
		t.Errorf("the upper directory has %q", got)
	}
	if !isWhiteout(s.upper() + "/old") {
		t.Error("what was removed is not")
	}
	for _, m := range append(mounts, root(s)) {
		var from *shown
		switch src := m.Src.(type) {
		case *shown:
			from = src
		case *snapshot:
			from = src.shown
		}
		if from.open != 0 || from.released != 1 {
			t.Errorf("what is shown at %s is in use %d times, and was released %d times", m.Dest, from.open, from.released)
		}
	}
	if got := names(t, src); got != "f sub sub/g" {
		t.Errorf("the source has %q", got)
	}
}

// An environment that may have secrets is in memory alone; one that has none
// takes nothing of it.
func TestEnvironmentInMemory(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir())
	for name, tc := range map[string]struct {
		e      bkexecutor.Executor
		memory bool
	}{"secret": {e, true}, "open": {executor.Open{Executor: e}, false}} {
		t.Run(name, func(t *testing.T) {
			in, feed := io.Pipe()
			looked := false
			out := &sink{on: func(string) {
				looked = true
				feed.Close()
				mounts, err := os.ReadFile("/proc/self/mountinfo")
				if err != nil {
					t.Error(err)
				}
				memory := false
				for line := range strings.Lines(string(mounts)) {
					memory = memory || strings.Contains(line, shared.root) && strings.Contains(line, " - ramfs ")
				}
				if memory != tc.memory {
					t.Errorf("a file system in memory: %t, want %t", memory, tc.memory)
				}
			}}
			p := script("echo $WORD; read line; true")
			p.Meta.Env, p.Stdout, p.Stdin = []string{"WORD=said"}, out, in
			if _, err := tc.e.Run(t.Context(), "", root(over(t, base)), nil, p, nil); err != nil || out.String() != "said\n" || !looked {
				t.Errorf("%v, output %q", err, out.String())
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir())
	for _, tc := range []struct {
		script string
		valid  []int
		want   uint32
		ok     bool
	}{
		{"true", nil, 0, true},
		{"exit 7", nil, 7, false},
		{"exit 7", []int{3, 7}, 7, true},
		{"true", []int{3, 7}, 0, false},
		{"sh -c 'kill -9 $$'; exit $?", nil, 137, false},
	} {
		t.Run(tc.script, func(t *testing.T) {
			p := script(tc.script)
			p.Meta.ValidExitCodes = tc.valid
			_, err := try(t, e, root(over(t, base)), nil, p)
			if tc.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantExit(t, err, tc.want)
			if tc.want != 0 && !strings.HasPrefix(err.Error(), "exit code: ") {
				t.Errorf("told as %q", err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("user has left")
	p := script("trap '' TERM; echo up; while :; do sleep 1000; done")
	p.Stdout = &sink{on: func(string) { cancel(cause) }}
	started := make(chan struct{})
	_, err := e.Run(ctx, "", root(over(t, image(t, t.TempDir()))), nil, p, started)
	wantExit(t, err, 137)
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want %v in it", err, cause)
	}
	<-started
}
