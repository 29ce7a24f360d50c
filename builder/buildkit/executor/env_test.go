package executor_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	bkexecutor "github.com/moby/buildkit/executor"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

const busybox = "/bin/busybox"

var shared = struct {
	sync.Mutex
	runner *sandbox.Runner
	root   string
}{}

// sharedRunner returns a Runner without a network that is found empty in the end.
func sharedRunner(t testing.TB) *sandbox.Runner {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc:", err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs busybox-static for a root file system:", err)
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.runner == nil {
		root, err := os.MkdirTemp("", "executor-test-")
		if err != nil {
			t.Fatal(err)
		}
		r, err := sandbox.New(context.Background(), sandbox.Options{Root: root, Network: sandbox.None})
		if err != nil {
			t.Fatal(err)
		}
		shared.runner, shared.root = r, root
	}
	return shared.runner
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.runner != nil {
		err := shared.runner.Close(context.Background())
		if left := leftOver(shared.root); left != "" {
			err = errors.Join(err, errors.New("left: "+left))
		}
		if err := errors.Join(err, os.RemoveAll(shared.root)); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

// leftOver returns what a Runner that was closed has left.
func leftOver(root string) string {
	var left []string
	for _, dir := range []string{"run", "runc"} {
		list, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			left = append(left, err.Error())
		}
		for _, e := range list {
			left = append(left, e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		left = append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, root) {
			left = append(left, line)
		}
	}
	return strings.Join(left, " ")
}

func newExecutor(t testing.TB, o executor.Options) *executor.Executor {
	t.Helper()
	if o.Runner == nil {
		o.Runner = sharedRunner(t)
	}
	if o.Network == "" {
		o.Network = sandbox.None
	}
	return executor.New(o)
}

// A shown is what BuildKit's references and mounts of a kind come to.
type shown struct {
	mounts []mount.Mount
	err    error

	mu             sync.Mutex
	open, released int
}

func (s *shown) Mount(context.Context, bool) (bkexecutor.MountableRef, error) {
	return &shownRef{s}, nil
}

type shownRef struct{ s *shown }

func (r *shownRef) Mount() ([]mount.Mount, func() error, error) {
	if r.s.err != nil {
		return nil, nil, r.s.err
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.open++
	return r.s.mounts, func() error {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		r.s.open--
		r.s.released++
		return nil
	}, nil
}

func (r *shownRef) IdentityMapping() *user.IdentityMapping { return nil }

func bindOf(dir string, options ...string) *shown {
	return &shown{mounts: []mount.Mount{{Type: "bind", Source: dir, Options: append(options, "rbind")}}}
}

// A file is one entry of a tree: a directory if the name ends in a slash, a
// symbolic link if link is set.
type file struct {
	name, data, link string
	mode             fs.FileMode
}

func fill(t testing.TB, dir string, files ...file) string {
	t.Helper()
	for _, f := range files {
		at := filepath.Join(dir, f.name)
		mode := f.mode
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case err != nil:
		case f.link != "":
			err = os.Symlink(f.link, at)
		case strings.HasSuffix(f.name, "/"):
			if mode == 0 {
				mode = 0o755
			}
			err = errors.Join(os.MkdirAll(at, 0o755), os.Chmod(at, mode))
		default:
			if mode == 0 {
				mode = 0o644
			}
			err = errors.Join(os.WriteFile(at, []byte(f.data), 0o600), os.Chmod(at, mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// image fills dir with busybox and files.
func image(t testing.TB, dir string, files ...file) string {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	return fill(t, dir, append([]file{{name: "bin/busybox", data: string(program), mode: 0o755}, {name: "bin/sh", link: "busybox"}}, files...)...)
}

// A snapshot is an active one as containerd's snapshotter of overlayfs has it.
type snapshot struct {
	*shown
	dir    string
	lowers []string
}

func (s *snapshot) upper() string { return filepath.Join(s.dir, "fs") }

// over returns a snapshot over layers, topmost first.
func over(t testing.TB, lowers ...string) *snapshot {
	t.Helper()
	s := &snapshot{dir: fill(t, t.TempDir(), file{name: "fs/"}, file{name: "work/"}), lowers: lowers}
	s.shown = &shown{mounts: []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"workdir=" + filepath.Join(s.dir, "work"), "upperdir=" + s.upper(), "lowerdir=" + strings.Join(lowers, ":"), "index=off",
	}}}}
	if len(lowers) == 0 {
		s.shown = bindOf(s.upper(), "rw")
	}
	return s
}

// pooled mounts s as BuildKit does for what may be mounted more than once.
func (s *snapshot) pooled(t testing.TB) (*shown, string) {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(s.mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return bindOf(dir), dir
}

// names returns all that is in a directory.
func names(t testing.TB, dir string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			rel, _ := filepath.Rel(dir, path)
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

// A sink is a standard output.
type sink struct {
	mu sync.Mutex
	b  bytes.Buffer
	on func(all string)
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
	if s.on != nil {
		s.on(s.b.String())
	}
	return len(p), nil
}

func (s *sink) Close() error { return nil }

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func script(text string) bkexecutor.ProcessInfo {
	return bkexecutor.ProcessInfo{Meta: bkexecutor.Meta{Args: []string{"/bin/busybox", "sh", "-c", text}, Cwd: "/"}}
}

// try runs a process and returns its output, of both kinds, and error.
func try(t testing.TB, e *executor.Executor, root bkexecutor.Mount, mounts []bkexecutor.Mount, p bkexecutor.ProcessInfo) (string, error) {
	t.Helper()
	var out sink
	p.Stdout, p.Stderr = &out, &out
	_, err := e.Run(t.Context(), "", root, mounts, p, nil)
	return out.String(), err
}

// want runs a script and fails the test unless it prints exactly lines and ends
// well.
func want(t testing.TB, e *executor.Executor, root bkexecutor.Mount, mounts []bkexecutor.Mount, text string, lines ...string) {
	t.Helper()
	out, err := try(t, e, root, mounts, script(text))
	if got, want := strings.TrimSpace(out), strings.Join(lines, "\n"); got != want || err != nil {
		t.Errorf("error %v, output:\n%s\nwant:\n%s", err, got, want)
	}
}

func wantExit(t testing.TB, err error, code uint32) {
	t.Helper()
	exit, ok := errors.AsType[*gatewaypb.ExitError](err)
	if !ok || exit.ExitCode != code {
		t.Errorf("error %T %v, want the exit code %d", err, err, code)
	}
}

var _ io.WriteCloser = (*sink)(nil)

func isWhiteout(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
