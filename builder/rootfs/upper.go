package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// An Upper writes entries into an empty upper directory. It is much faster
// than [Apply] and asks for more: entries come as a walk has them, each
// directory before what is in it, no path twice, and the directories on the
// way to an entry are among them. Links are written, never followed. It is not
// safe for concurrent use and must be closed.
type Upper struct {
	dirs []openDir // from the upper directory to the one being filled
	buf  []byte
}

// An openDir is a directory under way. Its times are set when it is left,
// since filling it changes them.
type openDir struct {
	path string // "" is the upper directory itself
	fd   int
	h    *tar.Header // nil for the upper directory
}

// OpenUpper opens an upper directory to write to.
func OpenUpper(dir string) (*Upper, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Upper{dirs: []openDir{{fd: fd}}}, nil
}

// Entry writes one entry; r is a regular file's content and may be nil if it
// has none. Whiteouts and markers of opaque directories become what an overlay
// has for them.
func (u *Upper) Entry(h *tar.Header, r io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if err := u.enter(dir); err != nil {
		return err
	}
	if base == opaqueMarker {
		return u.fail(name, unix.Fsetxattr(u.top().fd, xattrOpaque, []byte("y"), 0))
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return u.fail(name, unix.Mknodat(u.top().fd, hidden, unix.S_IFCHR, 0))
	}
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("%w: name %q", ErrLayer, h.Name)
	}
	if h.Typeflag == tar.TypeDir {
		return u.fail(name, u.mkdir(name, base, h))
	}
	return u.fail(name, u.write(base, h, r))
}

// Close sets what is left to set. An Upper that failed must be closed too.
func (u *Upper) Close() error {
	var errs []error
	for len(u.dirs) > 0 {
		errs = append(errs, u.leave())
	}
	return errors.Join(errs...)
}

func (u *Upper) top() *openDir { return &u.dirs[len(u.dirs)-1] }

func (u *Upper) fail(name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "unpack", Path: name, Err: err}
}

// enter makes dir the directory being filled, which is one of those open.
func (u *Upper) enter(dir string) error {
	for u.top().path != dir {
		if len(u.dirs) == 1 {
			return fmt.Errorf("%w: no directory %q before what is in it", ErrLayer, dir)
		}
		if err := u.leave(); err != nil {
			return err
		}
	}
	return nil
}

// leave closes the innermost directory.
func (u *Upper) leave() error {
	d := *u.top()
	u.dirs = u.dirs[:len(u.dirs)-1]
	var err error
	if d.h != nil {
		err = unix.UtimesNanoAt(d.fd, "", times(d.h), unix.AT_EMPTY_PATH)
	}
	if closeErr := unix.Close(d.fd); err == nil {
		err = closeErr
	}
	return u.fail(d.path, err)
}

func times(h *tar.Header) []unix.Timespec {
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{t, t}
}

func (u *Upper) mkdir(name, base string, h *tar.Header) error {
	up := u.top().fd
	if err := unix.Mkdirat(up, base, uint32(h.Mode&0o777)); err != nil {
		return err
	}
	fd, err := unix.Openat(up, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, openDir{path: name, fd: fd, h: h})
	return describe(fd, h)
}

// describe sets owner, mode and attributes of an open file. The order matters:
// a change of owner takes setuid and capabilities away.
func describe(fd int, h *tar.Header) error {
	if h.Uid != 0 || h.Gid != 0 {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(v), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}

// write makes anything but a directory.
func (u *Upper) write(base string, h *tar.Header, r io.Reader) error {
	up := u.top().fd
	switch h.Typeflag {
	case tar.TypeReg:
		return u.writeFile(up, base, h, r)
	case tar.TypeLink:
		return u.hardLink(up, base, h)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, up, base); err != nil {
			return err
		}
	case tar.TypeFifo:
		return u.node(up, base, h, unix.S_IFIFO, 0)
	case tar.TypeChar:
		return u.node(up, base, h, unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	case tar.TypeBlock:
		return u.node(up, base, h, unix.S_IFBLK, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	default:
		return fmt.Errorf("%w: type %q", ErrLayer, h.Typeflag)
	}
	return u.own(up, base, h)
}

// own sets owner and times of what cannot be opened.
func (u *Upper) own(up int, base string, h *tar.Header) error {
	if err := unix.Fchownat(up, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(up, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *Upper) node(up int, base string, h *tar.Header, kind uint32, dev uint64) error {
	if err := unix.Mknodat(up, base, kind|uint32(h.Mode&0o777), int(dev)); err != nil {
		return err
	}
	if err := unix.Fchmodat(up, base, uint32(h.Mode&0o7777), 0); err != nil {
		return err
	}
	return u.own(up, base, h)
}

func (u *Upper) hardLink(up int, base string, h *tar.Header) error {
	target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(u.dirs[0].fd, target, how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, "", up, base, unix.AT_EMPTY_PATH)
}

func (u *Upper) writeFile(up int, base string, h *tar.Header, r io.Reader) error {
	fd, err := unix.Openat(up, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = u.fill(fd, h, r)
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	return err
}

func (u *Upper) fill(fd int, h *tar.Header, r io.Reader) error {
	if r != nil {
		if u.buf == nil {
			u.buf = make([]byte, 256<<10)
		}
		n, err := io.CopyBuffer(fdWriter(fd), struct{ io.Reader }{r}, u.buf)
		if err != nil {
			return err
		}
		if n != h.Size {
			return fmt.Errorf("%w: content has %d bytes, the entry says %d", ErrLayer, n, h.Size)
		}
	}
	if err := describe(fd, h); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", times(h), unix.AT_EMPTY_PATH)
}

// An fdWriter writes to a file descriptor.
type fdWriter int

func (f fdWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(int(f), p[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
