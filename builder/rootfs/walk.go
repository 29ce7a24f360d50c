package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path that can be opened by its name. Deeper trees can
// be made, but no layer unpacks to them, and each level costs a descriptor.
const maxPath = 4095

// An entry is what a walk has come to. It is valid during the visit.
type entry struct {
	path   string // below the root, without a slash at either end
	name   string
	st     unix.Stat_t
	parent *os.File
	dir    *os.File // of a directory
}

func (e *entry) isDir() bool { return e.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// A walker visits what is below a directory: names in order, directories
// before what they hold. It follows no link and never leaves the root, not
// even if someone moves things about.
type walker struct {
	ctx   context.Context // of this walk, which is one call
	visit func(*entry) error
}

func (w *walker) walk(root string) error {
	f, err := os.OpenFile(root, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.children(f, "")
}

func (w *walker) children(dir *os.File, path string) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		e := entry{path: name, name: name, parent: dir}
		if path != "" {
			e.path = path + "/" + name
		}
		if err := w.entry(&e); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(e *entry) error {
	if len(e.path) > maxPath {
		return fmt.Errorf("%w: path of more than %d bytes in /%s…", ErrUpper, maxPath, e.path[:60])
	}
	err := unix.Fstatat(int(e.parent.Fd()), e.name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return e.fail("stat", err)
	}
	if !e.isDir() {
		return w.visit(e)
	}
	e.dir, err = e.open(unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer e.dir.Close()
	if err := w.visit(e); err != nil {
		return err
	}
	return w.children(e.dir, e.path)
}

func (e *entry) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: "/" + e.path, Err: err}
}

// open opens a file or directory, and nothing that it may have become.
func (e *entry) open(flags int) (*os.File, error) {
	fd, err := unix.Openat(int(e.parent.Fd()), e.name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, e.fail("open", err)
	}
	return os.NewFile(uintptr(fd), e.path), nil
}

// readlink returns the target of a symbolic link.
func (e *entry) readlink() (string, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(int(e.parent.Fd()), e.name, buf)
	if err != nil {
		return "", e.fail("readlink", err)
	}
	return string(buf[:n]), nil
}

// xattrs returns the extended attributes of f which belong to a layer, and what
// the overlay keeps for itself.
func (e *entry) xattrs(f *os.File) (image, overlay map[string]string, err error) {
	names, err := listXattrs(int(f.Fd()))
	if err != nil {
		return nil, nil, e.fail("listxattr", err)
	}
	image, overlay = map[string]string{}, map[string]string{}
	for _, name := range names {
		to := image
		switch {
		case strings.HasPrefix(name, "trusted.overlay."):
			to = overlay
		case strings.HasPrefix(name, "user.overlay."):
			continue
		case name != "security.capability" && !strings.HasPrefix(name, "user."):
			continue // the host's: labels, integrity, access lists
		}
		if to[name], err = getXattr(int(f.Fd()), name); err != nil {
			return nil, nil, e.fail("getxattr", err)
		}
	}
	return image, overlay, nil
}

func listXattrs(fd int) ([]string, error) {
	b, err := sized(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil || len(b) == 0 {
		return nil, err
	}
	var names []string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		names = append(names, string(name))
	}
	return names, nil
}

func getXattr(fd int, name string) (string, error) {
	b, err := sized(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
	return string(b), err
}

// sized calls get with a buffer that is large enough. File systems without
// attributes have none.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		b := make([]byte, n)
		if n, err = get(b); !errors.Is(err, unix.ERANGE) { // else it has grown
			return b[:max(n, 0)], err
		}
	}
}

// copyFile copies exactly size bytes of f to w.
func copyFile(ctx context.Context, w io.Writer, f io.Reader, size int64, buf []byte) error {
	for size > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(f, buf[:min(size, int64(len(buf)))])
		if err != nil {
			return fmt.Errorf("file became shorter while it was read: %w", err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
