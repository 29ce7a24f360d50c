package buildctx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/patternmatcher"
)

// A walker lists one directory tree, once.
type walker struct {
	ctx    context.Context // of the one call of walk
	dir    string
	ignore *ignore
	known  *hashCursor
	tick   *ticker

	entries []Entry
	stamps  []stamp // beside entries
	stale   []int   // files whose digest is not known
	pending []found // directories that appear only if something in them does
	inodes  map[fileID]int
	refused UnsupportedError
}

type fileID struct{ device, inode uint64 }

// found is an entry that the walk came across.
type found struct {
	entry Entry
	stamp stamp
}

// maxRefused is how many refused files an error lists.
const maxRefused = 10

// walk lists what is below root.
func (w *walker) walk(root *os.Root) error {
	w.inodes = map[fileID]int{}
	if err := w.list(root, "", patternmatcher.MatchInfo{}); err != nil {
		return err
	}
	if len(w.refused.Files) > 0 {
		return &w.refused
	}
	w.tick.now.Stale = len(w.stale)
	for _, i := range w.stale {
		w.tick.now.StaleBytes += w.entries[i].Size
	}
	w.tick.done()
	return nil
}

// list walks one directory; prefix is its path with a slash behind, parent
// how the ignore file sees it.
func (w *walker) list(dir *os.Root, prefix string, parent patternmatcher.MatchInfo) error {
	names, err := readDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.visit(dir, prefix, name, parent); err != nil {
			return err
		}
	}
	return nil
}

// readDir lists a directory by the bytes of its names.
func readDir(dir *os.Root) ([]fs.DirEntry, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.ReadDir(-1)
	slices.SortFunc(names, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return names, err
}

func (w *walker) visit(dir *os.Root, prefix string, name fs.DirEntry, parent patternmatcher.MatchInfo) error {
	path := prefix + name.Name()
	out, match, err := w.ignore.match(path, parent)
	if err != nil {
		return &IgnoreError{File: w.ignore.file, Err: err}
	}
	if !name.IsDir() {
		if out {
			return nil
		}
		return w.file(dir, path, name)
	}
	if out && !w.ignore.mayInclude(path) {
		return nil
	}
	return w.directory(dir, path, name, match, out)
}

// directory lists a directory and what is below it. If it is left out itself
// it appears as the parent of what is not.
func (w *walker) directory(dir *os.Root, path string, name fs.DirEntry, match patternmatcher.MatchInfo, out bool) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	fi, err := name.Info()
	if err != nil {
		return w.failed(path, err)
	}
	f := found{entry: Entry{Path: path, Type: TypeDirectory, Mode: entryMode(fi), ModTime: fi.ModTime().UnixNano()}}
	depth := len(w.pending)
	w.pending = append(w.pending, f)
	if !out {
		w.flush()
		depth = 0
	}
	sub, err := dir.OpenRoot(name.Name())
	if err == nil {
		err = w.list(sub, path+"/", match)
		sub.Close()
	}
	if out && errors.Is(err, fs.ErrPermission) && len(w.pending) > depth {
		err = nil // nothing in there was asked for by name
	}
	w.pending = w.pending[:min(depth, len(w.pending))]
	return w.failed(path, err)
}

// file lists what is no directory.
func (w *walker) file(dir *os.Root, path string, name fs.DirEntry) error {
	fi, err := name.Info()
	if err != nil {
		return w.failed(path, err)
	}
	f := found{entry: Entry{Path: path, Mode: entryMode(fi), ModTime: fi.ModTime().UnixNano()}}
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		f.entry.Type, f.entry.Size = TypeFile, fi.Size()
		f.stamp = statStamp(dir, name.Name(), fi)
		if f.entry.Mode&0o111 != 0 { // capabilities mean nothing elsewhere, and asking costs as much as the rest
			if f.entry.Xattrs, err = readXattrs(w.dir, path); err != nil {
				return w.failed(path, err)
			}
		}
	case mode&fs.ModeSymlink != 0:
		link, err := dir.Readlink(name.Name())
		if err != nil {
			return w.failed(path, err)
		}
		f.entry.Type, f.entry.Mode, f.entry.Link = TypeSymlink, 0o777, filepath.ToSlash(link)
	case mode&fs.ModeNamedPipe != 0:
		f.entry.Type = TypeFIFO
	case mode&fs.ModeSocket != 0:
		w.refuse(path, "socket")
		return nil
	case mode&fs.ModeDevice != 0:
		w.refuse(path, "device")
		return nil
	default:
		w.refuse(path, "special file")
		return nil
	}
	w.flush()
	w.add(f)
	return nil
}

func (w *walker) refuse(path, kind string) {
	if len(w.refused.Files) == maxRefused {
		w.refused.More++
		return
	}
	w.refused.Files = append(w.refused.Files, UnsupportedFile{Path: path, Kind: kind})
}

// flush lists the directories that turned out to be needed.
func (w *walker) flush() {
	for _, f := range w.pending {
		w.add(f)
	}
	w.pending = w.pending[:0]
}

func (w *walker) add(f found) {
	i := len(w.entries)
	if f.entry.Type == TypeFile {
		w.identify(&f, i)
	}
	w.entries = append(w.entries, f.entry)
	w.stamps = append(w.stamps, f.stamp)
	w.tick.now.Entries++
	if i%256 == 0 {
		w.tick.maybe()
	}
}

// identify turns a further name of a file into a hard link, and finds the
// digest of a file that has not changed.
func (w *walker) identify(f *found, i int) {
	e := &f.entry
	if f.stamp.links > 1 {
		id := fileID{f.stamp.device, f.stamp.inode}
		if first, again := w.inodes[id]; again {
			*f = found{entry: Entry{
				Path: e.Path, Type: TypeHardlink, Mode: e.Mode, ModTime: e.ModTime, Link: w.entries[first].Path,
			}}
			return
		}
		w.inodes[id] = i
	}
	var known bool
	if e.Digest, known = w.known.lookup(e.Path, f.stamp); !known {
		w.stale = append(w.stale, i)
	}
	w.tick.now.Files++
	w.tick.now.Bytes += e.Size
}

// failed names the path that an error is about, once.
func (w *walker) failed(path string, err error) error {
	var known *walkError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known), errors.Is(err, ErrIgnore), errors.Is(err, ErrChanged), w.ctx.Err() != nil:
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &ChangedError{Path: path, Reason: "it is gone"}
	}
	return &walkError{path, err}
}

type walkError struct {
	path string
	err  error
}

func (e *walkError) Error() string {
	var inner *fs.PathError
	if errors.As(e.err, &inner) {
		return fmt.Sprintf("read %s: %v", Quote(e.path), inner.Err)
	}
	return fmt.Sprintf("read %s: %v", Quote(e.path), e.err)
}

func (e *walkError) Unwrap() error { return e.err }
