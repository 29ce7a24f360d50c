package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The entries of an init directory, parents first.
var (
	initDirs  = []string{"etc", "dev", "dev/pts", "dev/shm", "proc", "sys"}
	imageDirs = []string{"etc", "dev", "proc", "sys"} // to look as in the image
	initFiles = []string{".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console"}
)

// makeInit fills dir with what every container needs to find in its root file
// system and no layer may contain. It lies between the image's layers and the
// upper directory: mount points are found there, so that none is made in the
// upper directory. Directories look as they do in the image, but that files were
// just made in etc; whatever else the image has in their place is hidden.
func makeInit(dir string, image stack) error {
	for _, name := range initDirs {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range initFiles {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := os.Symlink("/proc/mounts", filepath.Join(dir, "etc/mtab")); err != nil {
		return err
	}
	for _, name := range imageDirs {
		if like, ok := image.dir(name); ok {
			if err := copyAttributes(filepath.Join(dir, name), like); err != nil {
				return err
			}
		}
	}
	now := time.Now()
	return os.Chtimes(filepath.Join(dir, "etc"), now, now)
}

// copyAttributes gives the directory dst owner, mode, extended attributes and
// times of the directory src.
func copyAttributes(dst, src string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "stat", Path: src, Err: err}
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dst, Err: err}
	}
	if err := copyXattrs(dst, src); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimes", Path: dst, Err: err}
	}
	return nil
}

// copyXattrs copies extended attributes but those that mean something to
// overlayfs. Attributes that the file system of dst refuses are left out.
func copyXattrs(dst, src string) error {
	names := make([]byte, 64<<10) // the kernel's limit on a list
	n, err := unix.Llistxattr(src, names)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: src, Err: err}
	}
	value := make([]byte, 64<<10) // the kernel's limit on a value
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(src, name, value)
		if err != nil {
			continue // gone, or not ours to read
		}
		err = unix.Lsetxattr(dst, name, value[:n], 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "setxattr " + name, Path: dst, Err: err}
		}
	}
	return nil
}
