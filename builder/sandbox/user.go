package sandbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// maxDatabase is how much of a file of the image is read at most.
const maxDatabase = 16 << 20

// lookupUser resolves spec, "user", "uid", or either with ":group" or ":gid",
// by the passwd and group files of rootfs. Empty means root.
func lookupUser(rootfs, spec string) (*user.ExecUser, error) {
	passwd, err := openIn(rootfs, "/etc/passwd")
	if err != nil {
		return nil, err
	}
	defer passwd.Close()
	group, err := openIn(rootfs, "/etc/group")
	if err != nil {
		return nil, err
	}
	defer group.Close()

	u, err := user.GetExecUser(spec, nil, passwd.reader(), group.reader())
	if err != nil {
		return nil, userError{err}
	}
	for _, id := range append([]int{u.Uid, u.Gid}, u.Sgids...) {
		if id < 0 || id >= math.MaxUint32 {
			return nil, userError{fmt.Errorf("unable to find user %s: id %d is out of range", spec, id)}
		}
	}
	return u, nil
}

// An optional is a file that need not exist.
type optional struct{ f *os.File }

// reader returns nil, and not an interface that holds nil, when there is no file.
func (o optional) reader() io.Reader {
	if o.f == nil {
		return nil
	}
	return io.LimitReader(o.f, maxDatabase)
}

func (o optional) Close() error {
	if o.f == nil {
		return nil
	}
	return o.f.Close()
}

// openIn opens the regular file at path as a process in rootfs would: symbolic
// links do not leave rootfs, also if somebody changes them meanwhile. A file
// that is missing is none; anything but a regular file is an error, for the
// runtime would read from it, and might wait for ever.
func openIn(rootfs, path string) (optional, error) {
	f, err := openBelow(rootfs, path, unix.O_RDONLY|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTDIR):
		return optional{}, nil
	case err != nil:
		return optional{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = userError{fmt.Errorf("%s is not a regular file", path)}
	}
	if err != nil {
		return optional{}, errors.Join(err, f.Close())
	}
	return optional{f}, nil
}

// openBelow opens path as a process would whose root directory is dir.
func openBelow(dir, path string, flags int) (*os.File, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(root, path, how)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		// The kernel could not be sure while somebody renamed something.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
