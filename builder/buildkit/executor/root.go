package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// addRoot makes root the root file system of p.
func (r *resources) addRoot(ctx context.Context, p *sandbox.Process, root executor.Mount) error {
	list, err := r.mounts(ctx, root.Src, false)
	if err != nil {
		return err
	}
	if root.Selector != "" && filepath.Clean("/"+root.Selector) != "/" {
		return errors.New("a part of a file system cannot be a root file system")
	}
	p.ReadOnlyRoot = p.ReadOnlyRoot || root.Readonly
	if len(list) != 1 {
		return fmt.Errorf("made of %d mounts, want one: use a snapshotter of overlayfs", len(list))
	}
	switch m := list[0]; m.Type {
	case "overlay":
		return overlayRoot(p, m.Options)
	case "bind", "rbind":
		return r.bindRoot(p, m)
	default:
		return fmt.Errorf("a mount of type %s, want overlay or bind: use a snapshotter of overlayfs", m.Type)
	}
}

// overlayRoot hands the directories of an overlay to the sandbox, which mounts
// it in its own way.
func overlayRoot(p *sandbox.Process, options []string) error {
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "lowerdir":
			p.Lowers = append(p.Lowers, splitDirs(value)...)
		case "upperdir":
			p.Upper = value
		case "workdir":
			p.Work = value
		case "ro":
			p.ReadOnlyRoot = true
		case "rw", "index", "volatile", "xino", "uuid", "nfs_export":
		case "metacopy", "redirect_dir":
			if value == "off" || value == "nofollow" {
				continue
			}
			fallthrough
		default:
			return fmt.Errorf("overlay option %s is not supported: layers must be whole", o)
		}
	}
	if p.Upper == "" {
		p.ReadOnlyRoot = true
	}
	return nil
}

// splitDirs splits the value of lowerdir, where a backslash takes the meaning
// from the character after it.
func splitDirs(value string) []string {
	var dirs []string
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && i+1 < len(value):
			i++
			b.WriteByte(value[i])
		case c == ':':
			dirs = append(dirs, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(dirs, b.String())
}

// bindRoot uses a directory: as a layer where it stays as it is, as the upper
// directory where it is a snapshot's own, and else as it is.
func (r *resources) bindRoot(p *sandbox.Process, m mount.Mount) error {
	if p.ReadOnlyRoot || slices.Contains(m.Options, "ro") {
		p.ReadOnlyRoot, p.Lowers = true, []string{m.Source}
		return nil
	}
	own, err := canBeUpper(m.Source)
	if err != nil {
		return err
	}
	if !own {
		p.Root = m.Source
		return nil
	}
	p.Upper = m.Source
	p.Work, err = r.workBeside(m.Source)
	return err
}

// canBeUpper reports whether overlayfs takes a directory as its upper one, with
// a working directory beside it.
func canBeUpper(dir string) (bool, error) {
	mounted, err := mountinfo.Mounted(dir)
	if err != nil || mounted {
		return false, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return fs.Type != unix.OVERLAYFS_SUPER_MAGIC, nil
}

// workBeside returns a working directory for overlayfs: the one that the
// snapshot has, or one that is removed again.
func (r *resources) workBeside(upper string) (string, error) {
	beside := filepath.Dir(upper)
	if work := filepath.Join(beside, "work"); filepath.Base(upper) == "fs" && isDir(work) {
		return work, nil
	}
	work, err := os.MkdirTemp(beside, "work-")
	if err != nil {
		return "", err
	}
	r.add(func() error { return os.RemoveAll(work) })
	return work, nil
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// watched returns what Watch gets to know of the root file system of p.
func watched(p *sandbox.Process) Root {
	if p.ReadOnlyRoot {
		return Root{Lowers: p.Lowers}
	}
	if p.Root == "" {
		return Root{Upper: p.Upper, Lowers: p.Lowers}
	}
	// Of a mounted overlay the kernel tells. All else is looked at as it is.
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(p.Root))
	if err == nil && len(mounts) > 0 && mounts[len(mounts)-1].FSType == "overlay" {
		for o := range strings.SplitSeq(mounts[len(mounts)-1].VFSOptions, ",") {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok && isDir(dir) {
				return Root{Upper: dir}
			}
		}
	}
	return Root{Upper: p.Root}
}
