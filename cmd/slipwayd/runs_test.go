package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// runPrefix begins the names of the directories that hold all files of a run.
const runPrefix = "slipwayd-test-"

// newRun makes the directory of a run below tmp. It is locked until done
// removes it, or the process ends.
func newRun(tmp string) (dir string, done func(), err error) {
	if dir, err = os.MkdirTemp(tmp, runPrefix); err != nil {
		return "", nil, err
	}
	lock, err := lockRun(dir)
	if err != nil {
		return "", nil, err
	}
	return dir, func() {
		os.RemoveAll(dir)
		lock.Close()
	}, nil
}

func lockRun(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	return f, nil
}

// sweepRuns removes what runs left below tmp that were killed, unless a process
// uses it: a daemon outlives its test for as long as it drains.
func sweepRuns(tmp string) error {
	dirs, err := filepath.Glob(filepath.Join(tmp, runPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if err := sweepRun(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove what a killed run left: %w", err))
		}
	}
	return errors.Join(errs...)
}

func sweepRun(dir string) error {
	lock, err := lockRun(dir)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if inUse(dir) {
		return nil
	}
	// Nothing below a mount is ours to remove.
	for _, m := range slices.Backward(mountsBelow(dir)) {
		if err := unix.Unmount(m, 0); err != nil {
			return &os.PathError{Op: "unmount", Path: m, Err: err}
		}
	}
	return os.RemoveAll(dir)
}

// inUse reports whether another process runs a program below dir, lives or
// works there, or has a file open.
func inUse(dir string) bool {
	links := []string{}
	for _, what := range []string{"exe", "root", "cwd", "fd/*"} {
		found, _ := filepath.Glob("/proc/[0-9]*/" + what)
		links = append(links, found...)
	}
	own := fmt.Sprintf("/proc/%d/", os.Getpid())
	return slices.ContainsFunc(links, func(link string) bool {
		to, err := os.Readlink(link)
		return err == nil && !strings.HasPrefix(link, own) && (to == dir || strings.HasPrefix(to, dir+"/"))
	})
}

func TestSweepRuns(t *testing.T) {
	tmp := t.TempDir()
	exists := func(dir string) bool { _, err := os.Stat(dir); return err == nil }
	left := func(name string) string {
		dir := filepath.Join(tmp, name)
		if err := os.MkdirAll(filepath.Join(dir, "root", "cache"), 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	sweep := func() {
		t.Helper()
		if err := sweepRuns(tmp); err != nil {
			t.Error(err)
		}
	}
	live, done, err := newRun(tmp)
	if err != nil {
		t.Fatal(err)
	}
	dead, used, other := left(runPrefix+"1"), left(runPrefix+"2"), left("slipwayd-other")
	process := exec.Command("sleep", "60")
	process.Dir = filepath.Join(used, "root")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	sweep()
	if exists(dead) || !exists(live) || !exists(filepath.Join(used, "root", "cache")) || !exists(other) {
		t.Errorf("dead run %v, live run %v, one in use %v, somebody else's %v; want only the first gone", exists(dead), exists(live), exists(used), exists(other))
	}
	_ = process.Process.Kill()
	_ = process.Wait()
	done()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", filepath.Join(used, "root"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if exists(used) || exists(live) {
		t.Errorf("after their ends there are %v, %v", exists(used), exists(live))
	}
}
