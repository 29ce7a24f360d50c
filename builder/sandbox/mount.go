package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Mount shows a process what is no part of its root file system: the first of
// Stack, Source, Data and Dial that is set, or else an empty file system in
// memory.
// Where the root file system has nothing at Target, what is made for the mount
// is in no layer.
type Mount struct {
	Target string

	// Source is a directory or file of the host. With Discard, what the process
	// changes there is thrown away.
	Source  string
	Discard bool

	// Stack is mounted, one over the other, in a directory of the process's own,
	// for as long as it runs, and is then the Source.
	Stack []mount.Mount

	// Select is the path of the directory or file in the Source that is shown.
	// Symbolic links do not lead out. Empty means all of it.
	Select string

	// Data, if not nil, is the content of a file, which reaches no disk.
	Data []byte

	// Dial opens the other end of each connection to a socket. It is called
	// from many goroutines, and its context ends with the process.
	Dial func(context.Context) (io.ReadWriteCloser, error)

	ReadOnly bool
	Size     int64  // of the file system in memory; 0 means the kernel's default
	Mode     uint32 // of the file of Data, or of the socket
	UID, GID int    // likewise
}

// isFile reports whether something other than a directory is shown.
func (m *Mount) isFile() (bool, error) {
	if m.Source == "" {
		return m.Data != nil || m.Dial != nil, nil
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return false, err
	}
	return !info.IsDir(), nil
}

// exposeMounts makes the source of each mount of p one directory or file.
func (s *bundle) exposeMounts(ctx context.Context, p *Process) error {
	p.Mounts = slices.Clone(p.Mounts)
	for i := range p.Mounts {
		m := &p.Mounts[i]
		dir := filepath.Join(s.dir, "source"+strconv.Itoa(i))
		if len(m.Stack) > 0 {
			m.Source = filepath.Join(dir, "all")
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return err
			}
			if err := s.mountStack(m.Stack, m.Source); err != nil {
				return fmt.Errorf("mount what is shown at %s: %w", m.Target, err)
			}
		}
		if at := path.Clean("/" + m.Select); at != "/" && m.Source != "" {
			if err := s.choose(m, at, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountStack mounts one over the other until the bundle is closed.
func (s *bundle) mountStack(stack []mount.Mount, target string) error {
	for i := range stack {
		if err := stack[i].Mount(target); err != nil {
			return err
		}
		s.undo = append(s.undo, func(ctx context.Context) error { return unmount(ctx, target) })
		if err := unix.Mount("", target, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return &os.PathError{Op: "make private", Path: target, Err: err}
		}
	}
	return nil
}

// choose makes what is at the clean path at in the source of m its source. It is
// held by a mount: others may rename what leads there.
func (s *bundle) choose(m *Mount, at, dir string) error {
	f, err := openBelow(m.Source, at, unix.O_PATH)
	if err != nil {
		return cannotMount(m.Target, fmt.Errorf("%s in what is to be shown: %w", at, errors.Unwrap(err)))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	part := filepath.Join(dir, "part")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(part, 0o755)
	} else {
		err = os.WriteFile(part, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := s.bind(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), part); err != nil {
		return err
	}
	m.Source = part
	return nil
}

// A point is the place of a mount in a root file system.
type point struct {
	*Mount
	path   string // symbolic links resolved
	inside bool   // another mount: the runtime makes it there
}

// points finds the places of a process's mounts.
func points(rootfs string, p *Process) ([]point, error) {
	volumes, err := volumePaths(p.Volumes)
	if err != nil {
		return nil, err
	}
	var list []point
	for i := range p.Mounts {
		m := &p.Mounts[i]
		at := path.Clean("/" + m.Target)
		// What it leads to below another mount is for that to say.
		if !slices.ContainsFunc(p.Mounts, func(o Mount) bool { return below(at, path.Clean("/"+o.Target)) }) {
			if at, err = resolve(rootfs, at); err != nil {
				return nil, err
			}
		}
		if at == "/" {
			return nil, &StartError{Message: fmt.Sprintf("invalid mount target %q", m.Target)}
		}
		list = append(list, point{Mount: m, path: at})
	}
	for i := range list {
		at := &list[i]
		within := func(dir string) bool { return below(at.path, dir) }
		at.inside = slices.ContainsFunc(append(volumes, "/dev", "/proc", "/sys"), within) ||
			slices.ContainsFunc(list, func(o point) bool { return within(o.path) })
	}
	return list, nil
}

// below reports whether a clean path is below another one.
func below(p, dir string) bool {
	return p != dir && strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// resolve follows the symbolic links in a path of a root file system.
func resolve(rootfs, at string) (string, error) {
	host, err := fs.RootPath(rootfs, at)
	if err != nil {
		return "", cannotMount(at, err)
	}
	return path.Join("/", strings.TrimPrefix(host, rootfs)), nil
}

// cannotMount says so without the host's paths.
func cannotMount(at string, err error) error {
	if inner, ok := errors.AsType[*os.PathError](err); ok {
		err = inner.Err
	}
	return &StartError{Message: fmt.Sprintf("cannot mount at %s: %v", at, err)}
}

// makeStubs makes the mount points that rootfs lacks in dir, which then goes
// between the image's layers and the upper directory: so no layer gets them.
// It reports whether there are any.
func makeStubs(dir, rootfs string, list []point) (bool, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return false, err
	}
	like := map[string]bool{} // directories of the image that get something
	for _, p := range list {
		if p.inside {
			continue
		}
		if err := makeStub(dir, rootfs, p, like); err != nil {
			return false, err
		}
	}
	for name := range like {
		if err := copyAttributes(filepath.Join(dir, name), filepath.Join(rootfs, name)); err != nil {
			return false, err
		}
	}
	made, err := os.ReadDir(dir)
	return len(made) > 0, err
}

func makeStub(dir, rootfs string, p point, like map[string]bool) error {
	_, err := os.Lstat(filepath.Join(rootfs, p.path))
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return cannotMount(p.Target, err)
	}
	for up := path.Dir(p.path); up != "/"; up = path.Dir(up) {
		if info, err := os.Lstat(filepath.Join(rootfs, up)); err == nil {
			if !info.IsDir() {
				return cannotMount(p.Target, unix.ENOTDIR)
			}
			like[up] = true
		}
	}
	at := filepath.Join(dir, p.path)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	file, err := p.isFile()
	if err != nil {
		return err
	}
	if file {
		f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		return f.Close()
	}
	mode := uint32(0o755)
	if p.Source == "" {
		mode = 0o1777 // the runtime gives it to what it mounts there
	}
	if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return unix.Chmod(at, mode)
}

// prepareMounts makes what the mounts show, and adds them to the configuration.
func (s *bundle) prepareMounts(ctx context.Context, list []point) error {
	if err := checkInner(list); err != nil {
		return err
	}
	for i, p := range list {
		m, err := s.prepareMount(ctx, filepath.Join(s.dir, "mount"+strconv.Itoa(i)), p)
		if err != nil {
			return err
		}
		m.Destination = p.path
		s.spec.mounted = append(s.spec.mounted, m)
	}
	return nil
}

// checkInner refuses a mount in another one that lacks its mount point and
// cannot get it. The runtime's words for that say nothing.
func checkInner(list []point) error {
	for _, p := range list {
		outer := nextOuter(list, p)
		if outer == nil || !outer.ReadOnly || outer.Source == "" {
			continue
		}
		host, err := fs.RootPath(outer.Source, strings.TrimPrefix(p.path, outer.path))
		if err == nil {
			_, err = os.Lstat(host)
		}
		if err != nil {
			return &StartError{Message: fmt.Sprintf("cannot mount at %s: %s is read-only and has no such file or directory", p.path, outer.path)}
		}
	}
	return nil
}

// nextOuter returns the mount that p is in, nil if it is in none.
func nextOuter(list []point, p point) *point {
	var next *point
	for i := range list {
		if o := &list[i]; below(p.path, o.path) && (next == nil || len(o.path) >= len(next.path)) {
			next = o
		}
	}
	return next
}

func (s *bundle) prepareMount(ctx context.Context, dir string, p point) (specs.Mount, error) {
	bind := specs.Mount{Type: "bind", Options: []string{"rbind", "rprivate"}}
	if p.ReadOnly {
		bind.Options = append(bind.Options, "ro")
	}
	var err error
	switch {
	case p.Source != "" && p.Discard:
		bind.Source, err = s.discarding(dir, p.Source)
	case p.Source != "":
		bind.Source = p.Source
	case p.Data != nil:
		bind.Source, err = s.remember(filepath.Base(dir), p.Mount)
		bind.Options = append(bind.Options, "nosuid", "nodev")
		if p.Mode&0o111 == 0 {
			bind.Options = append(bind.Options, "noexec")
		}
	case p.Dial != nil:
		bind.Source, err = s.listen(ctx, dir, p.Mount)
	default:
		return memoryFS(p.Mount), nil
	}
	return bind, err
}

func memoryFS(m *Mount) specs.Mount {
	out := specs.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}}
	if m.ReadOnly {
		out.Options = append(out.Options, "ro")
	}
	if m.Size > 0 {
		out.Options = append(out.Options, fmt.Sprintf("size=%d", m.Size))
	}
	return out
}

// discarding returns where source can be changed without being so. Of a file it
// is the directory that is covered: an overlay has no other lower.
func (s *bundle) discarding(dir, source string) (string, error) {
	info, err := os.Stat(source)
	if err != nil {
		return "", err
	}
	lower := source
	if !info.IsDir() {
		lower = filepath.Dir(source)
	}
	o, target, err := mountThrowaway(dir, lower)
	if err != nil {
		return "", err
	}
	s.mounted(o, target)
	if !info.IsDir() {
		target = filepath.Join(target, filepath.Base(source))
	}
	return target, nil
}

// memory returns a directory that is on no disk and is never swapped.
func (s *bundle) memory() (string, error) {
	dir := filepath.Join(s.dir, "memory")
	if s.inMemory {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if err := unix.Mount("ramfs", dir, "ramfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return "", &os.PathError{Op: "mount ramfs", Path: dir, Err: err}
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return unmount(ctx, dir) })
	s.inMemory = true
	return dir, nil
}

// remember writes the file of m to memory.
func (s *bundle) remember(name string, m *Mount) (string, error) {
	dir, err := s.memory()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, m.Data, 0o600); err != nil {
		return "", err
	}
	return file, own(file, m)
}

// own gives what was made for m its owner and mode.
func own(file string, m *Mount) error {
	if err := os.Lchown(file, m.UID, m.GID); err != nil {
		return err
	}
	return unix.Chmod(file, m.Mode&0o7777)
}
