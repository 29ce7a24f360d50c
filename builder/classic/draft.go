package classic

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
)

// A draft is a layer before it is written: entries over the tree below. It
// holds what an overlay's upper directory would hold after the same work.
type draft struct {
	below   tree
	node    *node // that the layer is for
	now     time.Time
	entries map[string]*entry // by path
	abandon func()            // stops the contents that are on their way; may be nil
}

// An entry is one path of a draft.
type entry struct {
	file
	opaque bool      // hides what the tree below has under it
	copied time.Time // of a copied directory, its time there

	// Where a regular file's content is: at source of a tree, or here.
	from   sourceFS
	source string
	text   string
}

// open returns a regular file's content.
func (e *entry) open(ctx context.Context) (io.ReadCloser, error) {
	if e.from == nil {
		return io.NopCloser(strings.NewReader(e.text)), nil
	}
	f := e.file
	f.path = e.source
	r, err := e.from.open(ctx, &f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.path, err)
	}
	return r, nil
}

func newDraft(n *node, below tree) *draft {
	return &draft{below: below, node: n, now: time.Now().Truncate(time.Second), entries: map[string]*entry{}}
}

// lstat sees the draft merged with the tree below.
func (d *draft) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	if e, ok := d.entries[p]; ok {
		return &e.file, nil
	}
	for up := path.Dir(p); up != "/"; up = path.Dir(up) {
		if e, ok := d.entries[up]; ok && (e.opaque || !e.isDir()) {
			return nil, fs.ErrNotExist
		}
	}
	return d.below.lstat(p)
}

// mkdirAll makes the directories of p that are missing, and copies up those
// that exist. What is in the way and no directory is an error. A new one below
// a directory that hands its group on (setgid) does so too.
func (d *draft) mkdirAll(p string, uid, gid int) error {
	if p == "/" {
		return nil
	}
	if err := d.mkdirAll(path.Dir(p), uid, gid); err != nil {
		return err
	}
	f, err := d.lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		mode := int64(0o755)
		if up, err := d.lstat(path.Dir(p)); err == nil {
			mode |= up.mode & 0o2000
		}
		d.put(&entry{file: file{path: p, typ: tar.TypeDir, mode: mode, uid: uid, gid: gid, mtime: d.now}})
		return nil
	case err != nil:
		return err
	case !f.isDir():
		return &notDirError{p}
	}
	d.copyUp(f)
	return nil
}

type notDirError struct{ path string }

func (e *notDirError) Error() string { return e.path + " is not a directory" }

func (d *draft) copyUp(f *file) {
	if _, ok := d.entries[f.path]; !ok && f.path != "/" {
		e := &entry{file: *f}
		e.inode = ""
		d.entries[f.path] = e
	}
}

// put sets the entry at its path, whose parents the draft must have. What was
// there goes, unless both are directories; the parent's time becomes now.
func (d *draft) put(e *entry) {
	old, err := d.lstat(e.path)
	exists := err == nil
	if exists && e.isDir() && !old.isDir() {
		e.opaque = true
	}
	if exists && old.isDir() && !e.isDir() {
		d.remove(e.path)
	}
	if exists && old.isDir() && e.isDir() {
		if was, ok := d.entries[e.path]; ok {
			e.opaque = was.opaque
		}
	}
	d.entries[e.path] = e
	if exists && old.isDir() && e.isDir() {
		return
	}
	if up, ok := d.entries[path.Dir(e.path)]; ok {
		up.mtime = d.now
	}
}

// touch copies a directory up with the time of now.
func (d *draft) touch(p string) {
	if e, ok := d.entries[p]; ok {
		e.mtime = d.now
	}
}

func (d *draft) remove(dir string) {
	for p := range d.entries {
		if strings.HasPrefix(p, dir+"/") {
			delete(d.entries, p)
		}
	}
}

// write puts the entries out, parents first, siblings by name.
// Of files with one inode, the first has the content.
func (d *draft) write(ctx context.Context, put func(*tar.Header, io.Reader) error) error {
	return d.each(ctx, func(h *tar.Header, e *entry) error {
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			return put(h, nil)
		}
		r, err := e.open(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		return put(h, r)
	})
}

// each visits the headers that make the layer, with the entry that each is of.
func (d *draft) each(ctx context.Context, visit func(*tar.Header, *entry) error) error {
	order := slices.SortedFunc(maps.Keys(d.entries), comparePaths)
	first := map[string]string{}
	for _, p := range order {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e := d.entries[p]
		h := e.header()
		if at, ok := first[e.inode]; ok && e.inode != "" {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, strings.TrimPrefix(at, "/"), 0, nil
		} else if e.inode != "" {
			first[e.inode] = p
		}
		if err := visit(h, e); err != nil {
			return err
		}
		if !e.opaque {
			continue
		}
		if err := visit(e.opaqueMarker(), e); err != nil {
			return err
		}
	}
	return nil
}

// comparePaths orders as a walk does: "/a/b" before "/a-b".
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		default:
			return cmp.Compare(a[i], b[i])
		}
	}
	return cmp.Compare(len(a), len(b))
}

// create writes the draft into an empty upper directory.
func (d *draft) create(ctx context.Context, upper string) error {
	u, err := rootfs.OpenUpper(upper)
	if err != nil {
		return err
	}
	err = d.each(ctx, func(h *tar.Header, e *entry) error {
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			return u.Entry(h, nil)
		}
		return u.File(h, func() (io.ReadCloser, error) { return e.open(ctx) })
	})
	return cmp.Or(err, u.Close())
}

// unpack writes the draft into an overlay's upper directory, which may have
// entries already.
func (d *draft) unpack(ctx context.Context, dirs rootfs.Dirs) error {
	return piped(func(w io.Writer) error {
		tw := tar.NewWriter(w)
		err := d.write(ctx, func(h *tar.Header, content io.Reader) error {
			err := tw.WriteHeader(h)
			if err == nil && content != nil {
				_, err = io.Copy(tw, content)
			}
			return err
		})
		if err != nil {
			return err
		}
		return tw.Close()
	}, func(r io.Reader) error { return rootfs.Apply(ctx, r, dirs) })
}

// opaqueMarker is the header that hides what is below the directory.
func (e *entry) opaqueMarker() *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(e.path, "/") + "/.wh..wh..opq", Mode: e.mode & 0o777,
		Uid: e.uid, Gid: e.gid, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
}

func (e *entry) header() *tar.Header {
	h := &tar.Header{
		Typeflag: e.typ, Name: strings.TrimPrefix(e.path, "/"), Mode: e.mode, Uid: e.uid, Gid: e.gid,
		ModTime: time.Unix(max(0, e.mtime.Unix()), 0), Format: tar.FormatPAX,
	}
	switch e.typ {
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeReg:
		h.Size = e.size
	case tar.TypeSymlink:
		h.Linkname = e.link
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = e.major, e.minor
	}
	if len(e.xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for k, v := range e.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
	}
	return h
}

// volumes refuses volumes that the image has files in the place of. It changes
// nothing.
func (d *draft) volumes(paths []string) error {
	for _, p := range paths {
		at, err := follow(d, p, true)
		if err != nil {
			return err
		}
		if f, err := d.lstat(at); err == nil && !f.isDir() {
			return failure.Userf(failure.DockerfileInvalid, "name a directory", "cannot mount volume over existing file, file exists %s", at)
		}
	}
	return nil
}

// everywhere are directories that containers have, whatever the image has.
var everywhere = map[string]bool{"/dev": true, "/dev/pts": true, "/dev/shm": true, "/etc": true, "/proc": true, "/sys": true}

// workdir makes a directory as WORKDIR does.
func (d *draft) workdir(p string) error {
	at, err := follow(d, p, true)
	if err != nil {
		return err
	}
	f, err := d.lstat(at)
	switch {
	case err == nil && f.isDir(), err != nil && everywhere[at]:
		return nil
	case err == nil:
		return failure.Userf(failure.DockerfileInvalid, "name another directory", "Cannot mkdir: %s is not a directory", p)
	}
	var blocked *notDirError
	if err = d.mkdirAll(at, 0, 0); errors.As(err, &blocked) {
		return failure.Userf(failure.DockerfileInvalid, "name another directory", "mkdir %s: not a directory", blocked.path)
	}
	return err
}
