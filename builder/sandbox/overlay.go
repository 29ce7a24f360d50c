package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// An overlay describes a mount of overlayfs.
type overlay struct {
	lowers      stack
	upper, work string
	volatile    bool
}

// Options that decide what overlayfs may write into an upper directory: plain
// copies only, nothing that needs the lower directories to be understood.
var overlayOptions = [][2]string{{"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "nofollow"}}

// mount mounts o at target. The number of lower directories is limited by the
// kernel (500) but not by the length of their names.
func (o *overlay) mount(target string) error {
	err := o.mountFS(target)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL) {
		if old := o.mountOptions(target); old == nil {
			return nil
		} else if errors.Is(err, errors.ErrUnsupported) {
			err = old
		}
	}
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers at %s: %w", len(o.lowers), target, err)
	}
	return nil
}

// mountFS uses the mount API that takes one lower directory at a time and does
// not parse their names (Linux 6.7).
func (o *overlay) mountFS(target string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)

	set := [][2]string{{"source", "overlay"}}
	for _, dir := range o.lowers {
		set = append(set, [2]string{"lowerdir+", dir})
	}
	set = append(set, [2]string{"upperdir", o.upper}, [2]string{"workdir", o.work})
	set = append(set, overlayOptions...)
	for _, kv := range set {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return fmt.Errorf("%s=%s: %w", kv[0], kv[1], fsError(fs, err))
		}
	}
	if o.volatile {
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return fmt.Errorf("volatile: %w", fsError(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fsError(fs, err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fsError(fs, err)
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// fsError adds what the kernel logged on the file system context to err.
func fsError(fs int, err error) error {
	buf := make([]byte, 1024)
	n, readErr := unix.Read(fs, buf)
	if readErr != nil || n <= 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(buf[:n])))
}

// mountOptions uses the mount API of older kernels, where all names share one
// page; containerd shortens them when they do not fit.
func (o *overlay) mountOptions(target string) error {
	for _, dir := range append([]string{o.upper, o.work}, o.lowers...) {
		if strings.ContainsAny(dir, `\:,`) {
			return fmt.Errorf("directory %q: name has a character that this kernel's overlayfs reserves", dir)
		}
	}
	options := []string{
		"lowerdir=" + strings.Join(o.lowers, ":"),
		"upperdir=" + o.upper,
		"workdir=" + o.work,
	}
	for _, kv := range overlayOptions {
		if kv[0] == "redirect_dir" || kernelKnows(kv[0]) {
			options = append(options, kv[0]+"="+kv[1])
		}
	}
	if o.volatile {
		options = append(options, "volatile")
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: options}
	return m.Mount(target)
}

func kernelKnows(option string) bool {
	_, err := os.Stat("/sys/module/overlay/parameters/" + option)
	return err == nil
}

// unmount takes the overlay away from target, with all it keeps in the working
// directory that would stand in the way of the next mount.
func (o *overlay) unmount(ctx context.Context, target string) error {
	if err := unmount(ctx, target); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(o.work, "work"))
}

// unmount unmounts target. Something busy there is waited for, and after a
// second detached.
func unmount(ctx context.Context, target string) error {
	for deadline := time.Now().Add(time.Second); ; {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) && time.Now().After(deadline) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY):
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
