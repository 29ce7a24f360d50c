package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/rescue"
)

// Dirs are the directories of an overlay mount that a layer is made for.
type Dirs struct {
	Upper   string
	Parents []string // lower directories, topmost first
}

// Apply unpacks an uncompressed layer into d.Upper, so that an overlay of it and
// d.Parents shows the image with that layer on top. The upper directory should
// be empty, and nobody else may use it meanwhile; its owner, mode and times
// stay. Directories that the layer needs and does not describe look like those
// of the parents. Whiteouts and markers of opaque directories take effect on
// the parents only, wherever in the layer they come. What the layer names lies
// in the upper directory: names and links are resolved as if that were the
// root. A hard link to a file of the parents copies that file up first.
//
// Apply needs the privileges to make devices and to set trusted attributes. It
// leaves what it has unpacked when it fails.
func Apply(ctx context.Context, r io.Reader, d Dirs) error {
	root, err := filepath.EvalSymlinks(d.Upper)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, root: root, parents: d.Parents}
	_, err = archive.Apply(ctx, root, r,
		archive.WithFilter(u.prepare),
		archive.WithConvertWhiteout(u.convert),
		archive.WithParents(d.Parents))
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// An unpacker adds to containerd's unpacking what overlays need beyond it.
type unpacker struct {
	ctx     context.Context // of one Apply
	root    string
	parents []string
	hidden  bool // the upper directory has whiteouts
}

// prepare is called for each header before anything is made for it. It makes
// way for parent directories that the same layer has hidden before.
func (u *unpacker) prepare(h *tar.Header) (bool, error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return false, nil
	case tar.TypeGNUSparse, tar.TypeCont:
		h.Typeflag = tar.TypeReg
	}
	name, ok := strings.CutPrefix(filepath.Base(h.Name), whiteoutPrefix)
	if ok && (name == "" || name == "." || name == "..") {
		return false, fmt.Errorf("%w: %q is a whiteout of nothing", ErrLayer, h.Name)
	}
	if !u.hidden {
		return true, nil
	}
	return true, u.revive(filepath.Dir(h.Name))
}

// revive makes empty directories of the whiteouts on the way to dir.
func (u *unpacker) revive(dir string) error {
	if dir == "." || dir == "/" {
		return nil
	}
	if err := u.revive(filepath.Dir(dir)); err != nil {
		return err
	}
	path, err := u.resolve(dir)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil || !hides(fi) {
		return nil // what is missing is made, and what is in the way refused, later
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return makeOpaque(path)
}

// resolve returns where name is, without following its last component.
func (u *unpacker) resolve(name string) (string, error) {
	return resolveIn(u.root, name)
}

func resolveIn(root, name string) (string, error) {
	name = filepath.Clean("/" + name)
	dir, err := fs.RootPath(root, filepath.Dir(name))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(name)), nil
}

// convert is called for each entry with its place in the upper directory, which
// exists up to the last component. It reports whether an entry is to be made.
func (u *unpacker) convert(h *tar.Header, path string) (bool, error) {
	dir, base := filepath.Split(path)
	dir = filepath.Clean(dir)
	switch name, ok := strings.CutPrefix(base, whiteoutPrefix); {
	case base == opaqueMarker:
		return false, u.hideAll(dir)
	case strings.HasPrefix(base, metaPrefix):
		return false, nil
	case ok:
		u.hidden = true
		return false, hideAs(filepath.Join(dir, name), h)
	case h.Typeflag == tar.TypeDir:
		return true, u.replace(path)
	case h.Typeflag == tar.TypeLink:
		return true, u.link(h.Linkname)
	}
	return true, nil
}

// replace makes way for a directory where the layer had something else. That
// hid what the parents have there, and so does the directory.
func (u *unpacker) replace(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.IsDir() {
		return nil // to be made, or to be kept
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return makeOpaque(path)
}

// hideAll hides what the parents have below dir. An overlay does not ask
// whether its root is opaque: there, each name is hidden.
func (u *unpacker) hideAll(dir string) error {
	if dir != u.root {
		return setOpaque(dir)
	}
	u.hidden = true
	for _, parent := range u.parents {
		entries, err := os.ReadDir(parent)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := hide(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// link makes sure that a hard link finds its target, as far as there is one.
func (u *unpacker) link(target string) error {
	path, err := u.resolve(target)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	for _, parent := range u.parents {
		lower, err := resolveIn(parent, target)
		if err != nil {
			return err
		}
		fi, err := os.Lstat(lower)
		switch {
		case errors.Is(err, iofs.ErrNotExist):
			continue
		case err != nil:
			return err
		case fi.IsDir() || hides(fi):
			return nil // which fails where the link is made
		}
		return u.copyUp(lower, target)
	}
	return nil
}

// copyUp gives the upper directory a copy of a parent's file.
func (u *unpacker) copyUp(lower, name string) error {
	pr, pw := io.Pipe()
	g, ctx := errgroup.WithContext(u.ctx)
	g.Go(func() error {
		err := rescue.Run(func() error { return writeFile(ctx, pw, lower, filepath.Clean("/" + name)[1:]) })
		return errors.Join(err, pw.CloseWithError(err))
	})
	g.Go(func() error {
		err := rescue.Run(func() error {
			_, err := archive.Apply(ctx, u.root, pr, archive.WithParents(u.parents))
			return err
		})
		return errors.Join(err, pr.CloseWithError(err))
	})
	return g.Wait()
}

// writeFile writes an archive of one file under another name.
func writeFile(ctx context.Context, w io.Writer, file, name string) error {
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	tw := tar.NewWriter(w)
	one := &upperWriter{ctx: ctx, tw: tw, each: func(*tar.Header) error { return nil }, buf: make([]byte, 256<<10)}
	e := &entry{path: name, name: filepath.Base(file), parent: dir}
	if err := (&walker{ctx: ctx, visit: func(e *entry) error {
		e.st.Nlink = 1
		return one.entry(e)
	}}).entry(e); err != nil {
		return err
	}
	return tw.Close()
}
