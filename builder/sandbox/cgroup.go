package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups are the places where the processes of a Runner are counted: one
// directory in the unified hierarchy, or one in each of version 1.
type cgroups struct {
	parent      string   // below which each container has its own
	hierarchies []string // mount points
	unified     bool     // version 2 only
	swap        bool     // swap can be limited
}

func findCgroups(parent string) (cgroups, error) {
	c := cgroups{parent: parent}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return c, err
	}
	for _, m := range mounts {
		c.hierarchies = append(c.hierarchies, m.Mountpoint)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return c, fmt.Errorf("no cgroups at %s: %w", cgroupRoot, err)
	}
	c.unified = st.Type == unix.CGROUP2_SUPER_MAGIC
	c.swap = c.unified || exists(filepath.Join(cgroupRoot, "memory/memory.memsw.limit_in_bytes"))
	return c, nil
}

// remove kills everything below the parent and removes it.
func (c *cgroups) remove(ctx context.Context) error { return c.removeTree(ctx, c.parent) }

func (c *cgroups) removeChild(ctx context.Context, id string) error {
	return c.removeTree(ctx, filepath.Join(c.parent, id))
}

func (c *cgroups) removeTree(ctx context.Context, path string) error {
	var errs []error
	for _, mnt := range c.hierarchies {
		errs = append(errs, removeCgroup(ctx, filepath.Join(mnt, path)))
	}
	return errors.Join(errs...)
}

// removeCgroup kills what is in dir and below and removes the directories, as
// soon as the kernel is done with the dead.
func removeCgroup(ctx context.Context, dir string) error {
	const patience = 5 * time.Second
	for deadline := time.Now().Add(patience); ; {
		err := killAndRemove(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func killAndRemove(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; err == nil && i >= 0; i-- {
		procs, _ := os.ReadFile(filepath.Join(dirs[i], "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(procs)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 1 {
				_ = unix.Kill(n, unix.SIGKILL)
			}
		}
		if rm := unix.Rmdir(dirs[i]); rm != nil && !errors.Is(rm, unix.ENOENT) {
			err = &os.PathError{Op: "rmdir", Path: dirs[i], Err: rm}
		}
	}
	return err
}

// outOfMemory reports whether the kernel has killed a process of a container
// for want of memory.
func (c *cgroups) outOfMemory(id string) bool {
	for _, mnt := range c.hierarchies {
		for _, name := range []string{"memory.events", "memory.oom_control"} { // of version 2 and 1
			data, err := os.ReadFile(filepath.Join(mnt, c.parent, id, name))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(data)) {
				f := strings.Fields(line)
				if len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
					return true
				}
			}
		}
	}
	return false
}
