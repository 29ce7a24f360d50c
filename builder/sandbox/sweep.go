package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// sweep removes what an earlier Runner of this root left: first processes, then
// what they used.
func (r *Runner) sweep(ctx context.Context) error {
	containers, err := os.ReadDir(r.runcDir)
	if err != nil {
		return err
	}
	for _, c := range containers {
		r.log.Info("remove left container", "container", c.Name())
		if err := r.discard(ctx, c.Name()); err != nil {
			return fmt.Errorf("remove left container %s: %w", c.Name(), err)
		}
	}
	if err := r.cgroups.remove(ctx); err != nil {
		return err
	}
	if err := r.sweepRuns(); err != nil {
		return err
	}
	return r.network.sweep()
}

// sweepRuns unmounts everything below the directory of runs and empties it.
func (r *Runner) sweepRuns() error {
	dir, err := filepath.EvalSymlinks(r.runDir) // as mountinfo shows it
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		rel, err := filepath.Rel(dir, m.Mountpoint)
		return err != nil || rel == "." || !filepath.IsLocal(rel), false
	})
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		r.log.Info("unmount left mount", "path", mounts[i].Mountpoint)
		if err := unix.Unmount(mounts[i].Mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			errs = append(errs, &os.PathError{Op: "unmount", Path: mounts[i].Mountpoint, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // nothing may be removed through a mount
	}
	runs, err := os.ReadDir(r.runDir)
	if err != nil {
		return err
	}
	for _, run := range runs {
		if err := os.RemoveAll(filepath.Join(r.runDir, run.Name())); err != nil {
			return err
		}
	}
	return nil
}
