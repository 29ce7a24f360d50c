package sandbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/containerd/continuity/fs"
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
// links do not leave rootfs. Nothing may run in rootfs meanwhile. A file that is
// missing is none; anything but a regular file is an error, for the runtime
// would read from it, and might wait for ever.
func openIn(rootfs, path string) (optional, error) {
	path, err := fs.RootPath(rootfs, path)
	if err != nil {
		return optional{}, nil // a loop of links, or a file for a directory
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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
