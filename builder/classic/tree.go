package classic

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
)

// A tree is a root file system as instructions see it before they change it.
type tree interface {
	// lstat returns what is at a clean absolute path, or fs.ErrNotExist.
	// The path's parents must not be links.
	lstat(path string) (*file, error)
}

// A file is an entry of a tree.
type file struct {
	path   string // absolute and clean
	typ    byte   // tar type flag
	mode   int64  // octal 7777
	uid    int
	gid    int
	size   int64
	link   string
	mtime  time.Time
	xattrs map[string]string
	major  int64
	minor  int64
	inode  string // equal for names of one file; "" if it has one name
	entry  int    // index in the context's manifest
}

func (f *file) isDir() bool { return f.typ == tar.TypeDir }

// root is what a tree has at "/".
var root = file{path: "/", typ: tar.TypeDir, mode: 0o755}

// maxLinks is how many symbolic links a path may cross.
const maxLinks = 255

// follow resolves the links in p, scoped to the tree: ".." and absolute
// targets stay inside. With last, a link at the end is followed too. What
// does not exist stays as it is spelt.
func follow(t tree, p string, last bool) (string, error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+p), "/"), "/")
	at := "/"
	for crossed := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, name)
		f, err := t.lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || f.typ != tar.TypeSymlink || (len(rest) == 0 && !last) {
			at = next
			continue
		}
		if crossed++; crossed > maxLinks {
			return "", failure.Userf(failure.FileNotFound, "mend the links", "too many links in %s", p)
		}
		if strings.HasPrefix(f.link, "/") {
			at = "/"
		}
		rest = append(strings.Split(f.link, "/"), rest...)
	}
	return at, nil
}

// ledgerTree is the tree that a ledger has counted.
type ledgerTree struct{ *limits.Ledger }

func (l ledgerTree) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	n, ok := l.Stat(p)
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &file{
		path: p, typ: n.Type, size: n.Size, link: n.Link,
		mode: n.Mode, uid: n.UID, gid: n.GID, mtime: n.ModTime,
	}, nil
}

// layersTree is the merged view of overlay directories, topmost first.
type layersTree []string

func (l layersTree) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	for _, dir := range l {
		f, hides, err := lowerStat(dir, p)
		if err != nil {
			return nil, err
		}
		if f != nil {
			return f, nil
		}
		if hides {
			break
		}
	}
	return nil, fs.ErrNotExist
}

// lowerStat looks p up in one overlay directory. hides says that the
// directory covers what lower ones have there.
func lowerStat(dir, p string) (f *file, hides bool, err error) {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	at := dir
	for i, name := range parts {
		below := filepath.Join(at, name)
		info, err := os.Lstat(below)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, hides, nil
		}
		if err != nil {
			return nil, false, err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			return nil, true, nil // a whiteout
		}
		if i == len(parts)-1 {
			f, err := statFile(below, p, st)
			return f, false, err
		}
		if !info.IsDir() {
			return nil, true, nil
		}
		at = below
		hides = hides || opaque(at) // all below it, however deep
	}
	return nil, false, nil
}

func opaque(dir string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// statFile describes the file at a path of the host as p of its tree.
func statFile(host, p string, st *syscall.Stat_t) (*file, error) {
	f := &file{
		path: p, mode: int64(st.Mode & 0o7777), uid: int(st.Uid), gid: int(st.Gid),
		mtime: time.Unix(st.Mtim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f.typ = tar.TypeDir
	case unix.S_IFLNK:
		f.typ = tar.TypeSymlink
		link, err := os.Readlink(host)
		if err != nil {
			return nil, err
		}
		f.link = link
	case unix.S_IFREG:
		f.typ, f.size = tar.TypeReg, st.Size
		if st.Nlink > 1 {
			f.inode = inodeName(st)
		}
	case unix.S_IFIFO:
		f.typ = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		f.typ = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			f.typ = tar.TypeBlock
		}
		f.major, f.minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		f.typ = 0 // a socket: nothing copies it
	}
	return f, nil
}
