package buildkit

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver/pb"
	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"
)

// links are a copy of a directory whose files are those of the original, under
// second names. The two are never the same file for anybody: an overlay copies
// what is changed.
type links struct {
	source string // the directory of the files that are copied from
	upper  string // the one that takes what the step writes

	from string // what is copied, in source
	to   string // where it comes to, in upper
}

// all is a pattern of all names in a directory.
var all = []string{"**"}

// choose finds out what is copied where. It reports false unless a directory
// comes to where nothing is.
func (l *links) choose(target snapshot.Mountable, action *pb.FileActionCopy) bool {
	l.from = strings.TrimPrefix(path.Clean("/"+action.Src), "/")
	fd, err := openBeneath(l.source, l.from)
	if err != nil {
		return false // a file, or there is a link on the way
	}
	_ = unix.Close(fd)
	mounter := snapshot.LocalMounter(target)
	dir, err := mounter.Mount()
	if err != nil {
		return false
	}
	defer func() { _ = mounter.Unmount() }()
	at, err := fs.RootPath(dir, path.Clean("/"+action.Dest))
	if err != nil {
		return false
	}
	if l.to, err = filepath.Rel(dir, at); err != nil {
		return false
	}
	empty, err := isEmpty(at)
	return errors.Is(err, os.ErrNotExist) || empty && err == nil
}

// isEmpty reports whether a directory is empty. It is an error if it is none.
func isEmpty(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// openBeneath opens a directory on whose way is no link.
func openBeneath(root, dir string) (int, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	if dir == "" {
		dir = "."
	}
	return unix.Openat2(top, dir, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// fill links what is copied into the directory that has been made for it, which
// nobody may have mounted. It reports false if that is not what it should be.
func (l *links) fill(ctx context.Context) (bool, error) {
	from, err := openBeneath(l.source, l.from)
	if err != nil {
		return false, err
	}
	defer unix.Close(from)
	to, err := openBeneath(l.upper, l.to)
	if err != nil {
		return false, nil // it was there before, and is none of this step's
	}
	defer unix.Close(to)
	place := filepath.Join(l.upper, l.to)
	if empty, err := isEmpty(place); err != nil || !empty {
		return false, err // with marks of what is gone
	}
	var made unix.Stat_t
	if err := unix.Fstat(to, &made); err != nil {
		return false, err
	}
	d := linkedDir{from: from, to: to, source: filepath.Join(l.source, l.from), target: place}
	return true, d.fill(ctx, &made)
}

// A linkedDir is one directory of a copy.
type linkedDir struct {
	from, to       int    // open
	source, target string // where they are
}

// fill fills the directory, and gives it the times of another one.
func (d *linkedDir) fill(ctx context.Context, like *unix.Stat_t) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.source)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.IsDir():
			err = d.enter(ctx, e.Name())
		case e.Type().IsRegular():
			err = d.link(ctx, e.Name())
		default:
			err = d.copy(ctx, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(d.to, "", []unix.Timespec{like.Atim, like.Mtim}, unix.AT_EMPTY_PATH)
}

// enter makes and fills a directory in this one.
func (d *linkedDir) enter(ctx context.Context, name string) error {
	if err := d.copy(ctx, name); err != nil {
		return err
	}
	below := linkedDir{source: filepath.Join(d.source, name), target: filepath.Join(d.target, name)}
	const how = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var err error
	if below.from, err = unix.Openat(d.from, name, how, 0); err != nil {
		return &os.PathError{Op: "open", Path: below.source, Err: err}
	}
	defer unix.Close(below.from)
	if below.to, err = unix.Openat(d.to, name, how, 0); err != nil {
		return &os.PathError{Op: "open", Path: below.target, Err: err}
	}
	defer unix.Close(below.to)
	var original unix.Stat_t
	if err := unix.Fstat(below.from, &original); err != nil {
		return err
	}
	return below.fill(ctx, &original)
}

// link gives a file its second name. One that has as many as it can have, or is
// on another file system, is copied.
func (d *linkedDir) link(ctx context.Context, name string) error {
	err := unix.Linkat(d.from, name, d.to, name, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EMLINK), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM):
		return d.copy(ctx, name)
	}
	return &os.LinkError{Op: "link", Old: filepath.Join(d.source, name), New: filepath.Join(d.target, name), Err: err}
}

// copy copies an entry as BuildKit does; of a directory, nothing that is in it.
func (d *linkedDir) copy(ctx context.Context, name string) error {
	return fscopy.Copy(ctx, d.source, name, d.target, name, fscopy.AllowXAttrErrors, func(i *fscopy.CopyInfo) { i.ExcludePatterns = all })
}
