package rootfs

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WriteUpper writes what an overlay's upper directory changes as a layer to tw,
// which it does not close. Nobody may write to the directory meanwhile. Names
// come in order, so that equal directories give equal bytes: times are whole
// seconds, and users and groups are numbers. A directory comes before what it holds, a marker that it is opaque
// comes first in it. Of hard links, the first name has the content. Of
// extended attributes, capabilities and those of users are kept. Sockets are
// left out, and so is upper itself.
//
// Each, if it is not nil, is called with every header before it is written; its
// error ends the walk and is returned as it is. Errors about the directory
// itself wrap [ErrUpper].
func WriteUpper(ctx context.Context, tw *tar.Writer, upper string, each func(*tar.Header) error) error {
	if each == nil {
		each = func(*tar.Header) error { return nil }
	}
	w := &upperWriter{ctx: ctx, tw: tw, each: each, links: map[inode]string{}, buf: make([]byte, 256<<10)}
	return (&walker{ctx: ctx, visit: w.entry}).walk(upper)
}

type inode struct{ dev, ino uint64 }

type upperWriter struct {
	ctx   context.Context
	tw    *tar.Writer
	each  func(*tar.Header) error
	links map[inode]string // first name of what has several
	buf   []byte
}

func (w *upperWriter) entry(e *entry) error {
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFDIR:
		return w.directory(e)
	}
	if isWhiteout(&e.st) {
		return w.header(whiteout(e))
	}
	if first, ok := w.linked(e); ok {
		h := newHeader(e)
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return w.header(h)
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.file(e)
	case unix.S_IFLNK:
		return w.symlink(e)
	}
	h := newHeader(e)
	h.Devmajor, h.Devminor = int64(unix.Major(e.st.Rdev)), int64(unix.Minor(e.st.Rdev))
	return w.header(h)
}

// linked returns the name under which e's inode was written.
func (w *upperWriter) linked(e *entry) (string, bool) {
	if e.st.Nlink < 2 {
		return "", false
	}
	i := inode{e.st.Dev, e.st.Ino}
	first, ok := w.links[i]
	if !ok {
		w.links[i] = e.path
	}
	return first, ok
}

func (w *upperWriter) directory(e *entry) error {
	h := newHeader(e)
	h.Name += "/"
	overlay, err := addXattrs(h, e, e.dir)
	if err != nil {
		return err
	}
	if _, ok := overlay[xattrRedirect]; ok {
		return fmt.Errorf("%w: /%s was moved by an overlay with redirect_dir", ErrUpper, e.path)
	}
	if err := w.header(h); err != nil {
		return err
	}
	if overlay[xattrOpaque] != "y" {
		return nil
	}
	return w.header(opaque(h))
}

func (w *upperWriter) file(e *entry) error {
	f, err := e.open(0)
	if err != nil {
		return err
	}
	defer f.Close()
	h := newHeader(e)
	h.Size = e.st.Size
	overlay, err := addXattrs(h, e, f)
	if err != nil {
		return err
	}
	if _, ok := overlay[xattrMetacopy]; ok {
		return fmt.Errorf("%w: /%s has no content, it is of an overlay with metacopy", ErrUpper, e.path)
	}
	if err := w.header(h); err != nil {
		return err
	}
	if err := copyFile(w.ctx, w.tw, f, h.Size, w.buf); err != nil {
		return fmt.Errorf("/%s: %w", e.path, err)
	}
	return nil
}

func (w *upperWriter) symlink(e *entry) error {
	target, err := e.readlink()
	if err != nil {
		return err
	}
	h := newHeader(e)
	h.Linkname = target
	return w.header(h)
}

func (w *upperWriter) header(h *tar.Header) error {
	if err := w.each(h); err != nil {
		return err
	}
	if err := w.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("/%s: %w", h.Name, err)
	}
	return nil
}

// whiteout returns the header of a file that stands for nothing, as Docker
// writes it.
func whiteout(e *entry) *tar.Header {
	h := newHeader(e)
	h.Typeflag, h.Mode = tar.TypeReg, 0o600
	h.Name = path.Join(path.Dir(e.path), whiteoutPrefix+e.name)
	return h
}

// opaque returns the header of a directory's marker. It looks like the
// directory, but has no time.
func opaque(dir *tar.Header) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: path.Join(dir.Name, opaqueMarker),
		Mode: dir.Mode & 0o777, Uid: dir.Uid, Gid: dir.Gid, ModTime: time.Unix(0, 0),
	}
}

var typeflags = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg,
	unix.S_IFDIR: tar.TypeDir,
	unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar,
	unix.S_IFBLK: tar.TypeBlock,
	unix.S_IFIFO: tar.TypeFifo,
}

// newHeader returns a header with what all types of entries have.
func newHeader(e *entry) *tar.Header {
	return &tar.Header{
		Format:   tar.FormatPAX,
		Typeflag: typeflags[e.st.Mode&unix.S_IFMT],
		Name:     e.path,
		Mode:     int64(e.st.Mode & 0o7777),
		Uid:      int(e.st.Uid),
		Gid:      int(e.st.Gid),
		ModTime:  time.Unix(e.st.Mtim.Sec, 0),
	}
}

// addXattrs gives h the attributes of e that belong to a layer and returns those
// of the overlay. PAX cannot express a "=" in a name; such ones are left out.
func addXattrs(h *tar.Header, e *entry, f *os.File) (overlay map[string]string, err error) {
	image, overlay, err := e.xattrs(f)
	if err != nil {
		return nil, err
	}
	for name, value := range image {
		if strings.Contains(name, "=") {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return overlay, nil
}
