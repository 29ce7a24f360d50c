package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/rescue"
)

// An Upper writes entries into an empty upper directory. It is much faster
// than [Apply] and asks for more: entries come as a walk has them, each
// directory before what is in it, no path twice, and the directories on the
// way to an entry are among them. Links are written, never followed. It is for
// one goroutine and must be closed.
type Upper struct {
	dirs    []*openDir // from the upper directory to the one being filled
	pending chan func(buf []byte)
	workers sync.WaitGroup
	files   sync.WaitGroup // that workers have to write
	copies  atomic.Int64   // of contents that might have been linked

	mu  sync.Mutex
	err error // the first one
}

// An openDir is a directory under way. Its times are set when it has been left
// and all is in it, since filling it changes them.
type openDir struct {
	u    *Upper
	path string // "" is the upper directory itself
	fd   int
	h    *tar.Header  // nil for the upper directory
	uses atomic.Int32 // files being written, and one until it is left
}

// OpenUpper opens an upper directory to write to.
func OpenUpper(dir string) (*Upper, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	u := &Upper{}
	u.push("", fd, nil)
	return u, nil
}

func (u *Upper) push(path string, fd int, h *tar.Header) {
	d := &openDir{u: u, path: path, fd: fd, h: h}
	d.uses.Store(1)
	u.dirs = append(u.dirs, d)
}

// Linker is content that may be had without a copy.
type Linker interface {
	// Linkable reports whether the content is of the kind that can be linked.
	Linkable() bool
	// Link reports whether the file name in the directory dir now has it.
	Link(dir int, name string) (bool, error)
}

// upperWorkers is how many files are written at a time.
const upperWorkers = 4

// File is Entry for a regular file, which is written in the background: open
// is called once, from another goroutine. What fails there is returned by a
// later call. Content that is a [Linker] is linked if it can be.
func (u *Upper) File(h *tar.Header, open func() (io.ReadCloser, error)) error {
	if err := u.failed(); err != nil {
		return err
	}
	dir, base, err := u.place(h)
	if err != nil {
		return err
	}
	if u.pending == nil {
		u.pending = make(chan func([]byte), upperWorkers)
		for range upperWorkers {
			u.workers.Go(u.work)
		}
	}
	dir.uses.Add(1)
	u.files.Add(1)
	u.pending <- func(buf []byte) {
		defer u.files.Done()
		defer dir.release()
		if u.failed() != nil {
			return
		}
		r, err := open()
		if err == nil {
			err = u.fail(h.Name, u.file(dir.fd, base, h, r, buf))
			r.Close()
		}
		u.note(err)
	}
	return nil
}

func (u *Upper) work() {
	buf := make([]byte, 256<<10)
	for write := range u.pending {
		u.note(rescue.Run(func() error { write(buf); return nil }))
	}
}

// place enters the directory that an entry is for and returns it with the
// entry's own name.
func (u *Upper) place(h *tar.Header) (*openDir, string, error) {
	dir, base := path.Split(strings.TrimSuffix(h.Name, "/"))
	if err := u.enter(strings.TrimSuffix(dir, "/")); err != nil {
		return nil, "", err
	}
	if base == "" || base == "." || base == ".." {
		return nil, "", fmt.Errorf("%w: name %q", ErrLayer, h.Name)
	}
	return u.top(), base, nil
}

func (u *Upper) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

func (u *Upper) note(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
}

// Entry writes one entry; r is a regular file's content and may be nil if it
// has none. Whiteouts and markers of opaque directories become what an overlay
// has for them.
func (u *Upper) Entry(h *tar.Header, r io.Reader) error {
	if err := u.failed(); err != nil {
		return err
	}
	d, base, err := u.place(h)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(h.Name, "/")
	if base == opaqueMarker {
		return u.fail(name, unix.Fsetxattr(d.fd, xattrOpaque, []byte("y"), 0))
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if err := unix.Mknodat(d.fd, hidden, unix.S_IFCHR, 0); err != nil {
			return u.fail(name, err)
		}
		return u.fail(name, unix.UtimesNanoAt(d.fd, hidden, times(h), unix.AT_SYMLINK_NOFOLLOW))
	}
	if h.Typeflag == tar.TypeDir {
		return u.fail(name, u.mkdir(name, base, h))
	}
	return u.fail(name, u.write(base, h, r))
}

// Close waits for what is being written and sets what is left to set. An Upper
// that failed must be closed too; the error is the first of all.
func (u *Upper) Close() error {
	if u.pending != nil {
		close(u.pending)
		u.workers.Wait()
	}
	for len(u.dirs) > 0 {
		u.leave()
	}
	return u.failed()
}

func (u *Upper) top() *openDir { return u.dirs[len(u.dirs)-1] }

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
		u.leave()
	}
	return nil
}

// leave ends the innermost directory.
func (u *Upper) leave() {
	d := u.top()
	u.dirs = u.dirs[:len(u.dirs)-1]
	d.release()
}

// release ends one use of a directory; the last one closes it.
func (d *openDir) release() {
	if d.uses.Add(-1) > 0 {
		return
	}
	var err error
	if d.h != nil {
		err = unix.UtimesNanoAt(d.fd, "", times(d.h), unix.AT_EMPTY_PATH)
	}
	d.u.note(d.u.fail(d.path, errors.Join(err, unix.Close(d.fd))))
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
	u.push(name, fd, h)
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
		return u.file(up, base, h, r, nil)
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
	u.files.Wait() // the first name may be on its way
	target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(u.dirs[0].fd, target, how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, "", up, base, unix.AT_EMPTY_PATH)
}

// file makes a regular file; buf, which may be nil, is for the copy.
func (u *Upper) file(dir int, base string, h *tar.Header, r io.Reader, buf []byte) error {
	l, ok := r.(Linker)
	if ok {
		linked, err := l.Link(dir, base)
		if err != nil {
			return err
		}
		if linked {
			return finish(dir, base, unix.O_RDONLY, h, func(fd int) error { return reset(fd, h) })
		}
	}
	err := finish(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, h, func(fd int) error {
		if r == nil {
			return nil
		}
		n, err := io.CopyBuffer(fdWriter(fd), struct{ io.Reader }{r}, buf)
		if err == nil && n != h.Size {
			err = fmt.Errorf("%w: content has %d bytes, the entry says %d", ErrLayer, n, h.Size)
		}
		return err
	})
	if err == nil && ok && l.Linkable() {
		err = u.alike(dir, base)
	}
	return err
}

// reset takes away what a linked file has from an earlier life.
func reset(fd int, h *tar.Header) error {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	for _, name := range strings.Split(string(names[:max(n, 0)]), "\x00") {
		if name == "" {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil {
			return err
		}
	}
	return unix.Fchown(fd, h.Uid, h.Gid)
}

// alike gives a copy a second name, beside the upper directory, as a linked
// file has one: what runs on the snapshot must not see by the number of links
// whether somebody had the content before.
func (u *Upper) alike(dir int, base string) error {
	how := unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	beside, err := unix.Openat(u.dirs[0].fd, "..", how, 0)
	if err != nil {
		return err
	}
	err = unix.Linkat(dir, base, beside, "copy-"+strconv.FormatInt(u.copies.Add(1), 10), 0)
	return errors.Join(err, unix.Close(beside))
}

// finish opens a file, fills it and sets what the header says.
func finish(dir int, base string, flags int, h *tar.Header, fill func(fd int) error) error {
	fd, err := unix.Openat(dir, base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err = fill(fd); err == nil {
		err = describe(fd, h)
	}
	if err == nil {
		err = unix.UtimesNanoAt(fd, "", times(h), unix.AT_EMPTY_PATH)
	}
	return errors.Join(err, unix.Close(fd))
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
