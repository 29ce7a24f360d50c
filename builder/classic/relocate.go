package classic

import (
	"archive/tar"
	"io"
	"path"
	"strings"

	"github.com/slipwayhq/slipway/builder/layer"
)

// A relocation puts an archive's entries below a directory of an image, as if
// that directory were the root while they are unpacked: names do not lead out
// of it, nor do the links that entries are reached through. Its own entry of
// the archive is left out, so that the directory keeps its attributes.
type relocation struct {
	image tree
	seen  *draft // the archive's entries so far, over the image
	marks marks
}

// marks are the headers of entries that hide others, by path. In the layer they
// look as they did in the archive.
type marks map[string]*tar.Header

// relocateInto returns how to write an archive's entries below dest, which has
// no links in it and exists.
func relocateInto(image tree, m marks) func(w io.Writer, r *tar.Reader, dest string) error {
	return func(w io.Writer, r *tar.Reader, dest string) error {
		one := relocation{image: image, seen: newDraft(nil, chroot{image, "/" + dest}), marks: m}
		return one.copy(w, r, dest)
	}
}

// chroot is the part of a tree below a directory.
type chroot struct {
	tree
	dir string
}

func (c chroot) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	return c.tree.lstat(path.Join(c.dir, p))
}

func (l *relocation) copy(w io.Writer, r *tar.Reader, dest string) error {
	tw := tar.NewWriter(w)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader || path.Clean("/"+h.Name) == "/" {
			continue
		}
		mark, err := l.move(h, dest)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, r); err != nil {
			return err
		}
		if mark == nil {
			continue
		}
		if err := tw.WriteHeader(mark); err != nil {
			return err
		}
	}
}

// move gives an entry its place below dest. A directory in the place of
// something else comes with a mark.
func (l *relocation) move(h *tar.Header, dest string) (mark *tar.Header, err error) {
	at, err := follow(l.seen, h.Name, false)
	if err != nil {
		return nil, err
	}
	e := &entry{file: file{path: at, typ: typeOf(h), link: h.Linkname, mode: h.Mode, uid: h.Uid, gid: h.Gid}}
	l.seen.put(e)
	h.Name = below(dest, at)
	if strings.HasPrefix(path.Base(at), ".wh.") {
		mark := *h
		l.marks[h.Name] = &mark
	}
	switch h.Typeflag {
	case tar.TypeLink:
		target, err := follow(l.seen, h.Linkname, false)
		if err != nil {
			return nil, err
		}
		h.Linkname = below(dest, target)
	case tar.TypeDir:
		h.Name += "/"
		if e.opaque {
			placed := *e
			placed.path = path.Clean(h.Name)
			mark = placed.opaqueMarker()
		}
	}
	h.Format = tar.FormatPAX
	return mark, nil
}

// typeOf is an entry's type as far as it matters to what is unpacked later.
func typeOf(h *tar.Header) byte {
	if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeSymlink {
		return h.Typeflag
	}
	return tar.TypeReg
}

// below returns where a name of an archive is, which is never outside dest.
func below(dest, name string) string {
	return strings.TrimPrefix(path.Join("/", dest, path.Clean("/"+name)), "/")
}

// charge wraps a layer's charge so that marks look as in their archive.
func (m marks) charge(w *layer.Writer) func(*tar.Header) error {
	return func(h *tar.Header) error {
		if mark, ok := m[h.Name]; ok && h.Typeflag == tar.TypeReg {
			h.Mode, h.Uid, h.Gid, h.ModTime = mark.Mode&0o7777, mark.Uid, mark.Gid, mark.ModTime
		}
		return w.Charge(h)
	}
}
