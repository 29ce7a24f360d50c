package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	cfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// checkRoot checks what the root file system is to be made of, and reduces a
// Root that does not change to a layer below.
func (p *Process) checkRoot() error {
	switch {
	case p.Root != "" && (len(p.Lowers) > 0 || p.Upper != "" || p.Work != ""):
		return errors.New("both a root file system and layers of one")
	case p.Root != "" && p.ReadOnlyRoot:
		p.Lowers, p.Root = []string{p.Root}, ""
	case p.Root != "":
		return nil
	}
	if p.ReadOnlyRoot && p.Upper == "" && p.Work == "" {
		return nil
	}
	if p.Upper == "" || p.Work == "" {
		return errors.New("no upper or work directory")
	}
	return nil
}

// upper makes the upper directory of a process that has none, and sees to it
// that one without layers below does not hide what was never in an image.
func (s *bundle) upper(p *Process) error {
	if p.Upper == "" {
		p.Upper, p.Work = filepath.Join(s.dir, "upper"), filepath.Join(s.dir, "work")
		return errors.Join(os.Mkdir(p.Upper, 0o755), os.Mkdir(p.Work, 0o755))
	}
	if len(p.Lowers) == 0 {
		s.undo = append(s.undo, func(context.Context) error { return removeWhiteouts(p.Upper) })
	}
	return nil
}

// removeWhiteouts removes the traces of files of an init directory that a
// process removed, from an upper directory that nothing else is below.
func removeWhiteouts(upper string) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range append([]string{"etc/mtab"}, initFiles...) {
		info, err := root.Lstat(name)
		if err != nil || info.Mode().Type() != fs.ModeDevice|fs.ModeCharDevice || info.Sys().(*syscall.Stat_t).Rdev != 0 {
			continue
		}
		if err := removeKeepingTimes(root, name); err != nil {
			return err
		}
	}
	return nil
}

// bindRoot shows the root file system that p brings at rootfs, and makes the
// mount points that it lacks. Both is undone in the end.
func (s *bundle) bindRoot(p *Process, rootfs string) ([]point, error) {
	if err := s.bind(p.Root, rootfs); err != nil {
		return nil, err
	}
	list, err := points(rootfs, p)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, err
	}
	made := &mountPoints{root: root, path: rootfs}
	s.undo = append(s.undo, func(context.Context) error { return errors.Join(made.remove(), root.Close()) })
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := made.add(dir, false); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"} {
		if err := made.add(name, true); err != nil {
			return nil, err
		}
	}
	for _, at := range list {
		if at.inside {
			continue
		}
		file, err := at.isFile()
		if err == nil {
			err = made.add(at.path, file)
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// bind shows a directory or file of the host at target, which no mount or
// unmount below changes for others, until the bundle is closed.
func (s *bundle) bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "bind mount", Path: source, Err: err}
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return unmount(ctx, target) })
	if err := unix.Mount("", target, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "make private", Path: target, Err: err}
	}
	return nil
}

// mountPoints are those that a root file system lacked.
type mountPoints struct {
	root *os.Root
	path string   // of root
	made []string // parents first
}

// add makes name, and the directories above it, unless it is there.
func (m *mountPoints) add(name string, file bool) error {
	host, err := cfs.RootPath(m.path, name)
	if err != nil {
		return cannotMount(name, err)
	}
	at := strings.TrimPrefix(strings.TrimPrefix(host, m.path), "/")
	if at == "" {
		return cannotMount(name, unix.EBUSY)
	}
	var missing []string
	for ; at != "."; at = path.Dir(at) {
		_, err := m.root.Lstat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return cannotMount(name, err)
		}
		missing = append(missing, at)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		err := keepTimes(m.root, path.Dir(missing[i]), func() error {
			if file && i == 0 {
				return m.root.WriteFile(missing[0], nil, 0o755)
			}
			return m.root.Mkdir(missing[i], 0o755)
		})
		if err != nil {
			return cannotMount(name, err)
		}
		m.made = append(m.made, missing[i])
	}
	return nil
}

// remove removes what add made and nobody has put anything into.
func (m *mountPoints) remove() error {
	var errs []error
	for i := len(m.made) - 1; i >= 0; i-- {
		info, err := m.root.Lstat(m.made[i])
		if err != nil || !info.IsDir() && (!info.Mode().IsRegular() || info.Size() > 0) {
			continue // the process has replaced it
		}
		if err := removeKeepingTimes(m.root, m.made[i]); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeKeepingTimes(root *os.Root, name string) error {
	return keepTimes(root, path.Dir(name), func() error { return root.Remove(name) })
}

// keepTimes calls change and gives the directory its times back.
func keepTimes(root *os.Root, dir string, change func() error) error {
	info, err := root.Stat(dir)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	atime, err := cfs.Atime(info)
	if err != nil {
		return err
	}
	return root.Chtimes(dir, atime, info.ModTime())
}
