package rootfs

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The two ways to say that something is gone. In layers, files with such names
// (https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts):
const (
	whiteoutPrefix = ".wh."         // a file below is hidden
	metaPrefix     = ".wh..wh."     // reserved for AUFS, except:
	opaqueMarker   = ".wh..wh..opq" // all in the directory below is hidden
)

// In overlay directories, a character device 0:0 hides a file, and an attribute
// of a directory hides what is below it.
const (
	xattrOpaque   = "trusted.overlay.opaque"
	xattrRedirect = "trusted.overlay.redirect"
	xattrMetacopy = "trusted.overlay.metacopy"
)

// isWhiteout reports whether st is an overlay whiteout.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// hides reports whether fi is an overlay whiteout.
func hides(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func setOpaque(dir string) error {
	if err := unix.Lsetxattr(dir, xattrOpaque, []byte{'y'}, 0); err != nil {
		return &fs.PathError{Op: "setxattr", Path: dir, Err: err}
	}
	return nil
}

// makeOpaque makes a directory that hides what layers below have there.
func makeOpaque(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return err
	}
	return setOpaque(dir)
}

// hideAs hides path by a whiteout with the times of h, which a layer of the
// directory has too.
func hideAs(path string, h *tar.Header) error {
	if err := hide(path); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil || !hides(fi) {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimes", Path: path, Err: err}
	}
	return nil
}

// hide hides path of the layers below. What the upper directory has there
// stays: a whiteout says nothing about its own layer.
func hide(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
			return &fs.PathError{Op: "mknod", Path: path, Err: err}
		}
		return nil
	case err != nil:
		return err
	case fi.IsDir():
		return setOpaque(path)
	}
	return nil
}
