package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	options     []string // of those mounts: they name the controllers of version 1
	unified     bool     // version 2 only
	swap        bool     // swap can be limited
}

// vacated is the cgroup that gets the processes of a root that must have none.
const vacated = "slipway-init"

func findCgroups(parent string) (cgroups, error) {
	c := cgroups{parent: parent}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return c, err
	}
	for _, m := range mounts {
		c.hierarchies = append(c.hierarchies, m.Mountpoint)
		c.options = append(c.options, strings.Split(m.VFSOptions, ",")...)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return c, fmt.Errorf("no cgroups at %s: %w", cgroupRoot, err)
	}
	c.unified = st.Type == unix.CGROUP2_SUPER_MAGIC
	c.swap = c.unified || exists(filepath.Join(cgroupRoot, "memory/memory.memsw.limit_in_bytes"))
	return c, nil
}

// probe finds out whether swap can be limited. In version 2 only a group that
// is counted shows it: the parent is made for that, and removed.
func (c *cgroups) probe() error {
	if !c.unified {
		return nil
	}
	dir := cgroupRoot
	for name := range strings.SplitSeq(strings.Trim(c.parent, "/"), "/") {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			return err
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	c.swap = limitsSwap(dir)
	return os.Remove(dir)
}

// limitsSwap reports whether dir, a group of version 2, can limit swap. Kernels
// built without swap cannot, and runc fails when it is told to.
func limitsSwap(dir string) bool {
	return exists(filepath.Join(dir, "memory.swap.max")) || !exists(filepath.Join(dir, "memory.max"))
}

// missing returns the controllers of limits that the machine lacks.
func (c *cgroups) missing() []string {
	have := c.options
	if c.unified {
		names, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		have = strings.Fields(string(names))
	}
	return slices.DeleteFunc([]string{"cpu", "memory", "pids"}, func(name string) bool {
		return slices.Contains(have, name)
	})
}

// occupants returns the processes that keep the kernel from counting what is
// below the root: in version 2, a group whose children are counted has no
// processes of its own. The root of the machine is exempt and has no type; that
// of a container is a group like others.
func (c *cgroups) occupants() []string {
	if !c.unified || !exists(filepath.Join(cgroupRoot, "cgroup.type")) {
		return nil
	}
	procs, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.procs"))
	return strings.Fields(string(procs))
}

// vacate moves the occupants out of the root, as often as others were forked
// meanwhile.
func (c *cgroups) vacate() error {
	const rounds = 100
	dir := filepath.Join(cgroupRoot, vacated)
	for range rounds {
		procs := c.occupants()
		if len(procs) == 0 {
			return nil
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		for _, pid := range procs {
			err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %s out of the root: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("processes keep coming to %s", cgroupRoot)
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
