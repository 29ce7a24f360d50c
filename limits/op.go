package limits

import (
	"archive/tar"
	"strings"
)

// An action is what an entry does to the tree. The values are those of a
// [Delta].
type action uint8

const (
	actDir action = iota + 1
	actFile
	actSymlink
	actLink // hard
	actChar
	actBlock
	actFifo
	actWhiteout // path is what it hides
	actOpaque   // path is the directory
	actEnd      // one past the last
)

// An op is an entry as far as the ledger is concerned.
type op struct {
	act   action
	xattr bool   // attributes take a block
	path  string // clean
	size  int64  // of a file
	link  string // target of a link; clean for a hard link
	attr  attr   // of a directory
}

// typeflags has the tar type of each kind.
var typeflags = [...]byte{
	kindDir:     tar.TypeDir,
	kindFile:    tar.TypeReg,
	kindSymlink: tar.TypeSymlink,
	kindChar:    tar.TypeChar,
	kindBlock:   tar.TypeBlock,
	kindFifo:    tar.TypeFifo,
}

const (
	whiteout = ".wh."
	meta     = ".wh..wh." // reserved names of AUFS, and:
	opaque   = ".wh..wh..opq"
)

// parse returns what h does. It reports false for entries that do nothing: the
// root, global headers, AUFS's own files.
func parse(h *tar.Header) (op, bool, error) {
	o := op{path: clean(h.Name)}
	if h.Typeflag == tar.TypeXGlobalHeader || o.path == "" {
		return o, false, nil
	}
	if len(o.path) > maxPath {
		return o, false, entryError(o.path, "path is longer than %d bytes", maxPath)
	}
	dir, base := split(o.path)
	if strings.HasPrefix(base, whiteout) {
		return parseWhiteout(o, dir, base)
	}
	if len(base) > maxName {
		return o, false, entryError(base, "name is longer than %d bytes", maxName)
	}
	o.xattr = len(h.PAXRecords) > 0 && xattrBlock(h)
	return o, true, o.setType(h)
}

func parseWhiteout(o op, dir, base string) (op, bool, error) {
	if base == opaque {
		o.act, o.path = actOpaque, dir
		return o, true, nil
	}
	if strings.HasPrefix(base, meta) {
		return o, false, nil
	}
	name := base[len(whiteout):]
	if name == "" || name == "." || name == ".." {
		return o, false, entryError(o.path, "whiteout of nothing")
	}
	o.act, o.path = actWhiteout, name
	if dir != "" {
		o.path = dir + "/" + name
	}
	return o, true, nil
}

func (o *op) setType(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		o.act, o.attr = actDir, attrOf(h)
	case tar.TypeSymlink:
		o.act, o.link = actSymlink, h.Linkname
	case tar.TypeLink:
		o.act, o.link = actLink, clean(h.Linkname)
	case tar.TypeChar:
		o.act = actChar
	case tar.TypeBlock:
		o.act = actBlock
	case tar.TypeFifo:
		o.act = actFifo
	default: // rare ones have content, too
		o.act, o.size = actFile, max(h.Size, 0)
	}
	if len(o.link) > maxPath {
		return entryError(o.path, "link target is longer than %d bytes", maxPath)
	}
	return nil
}

// apply does o to the tree on behalf of a layer.
func (t *tree) apply(o op, layer uint16) error {
	if o.act == actOpaque {
		dir, err := t.make(o.path, layer)
		if err == nil {
			t.purge(dir, layer)
		}
		return err
	}
	dir, base := split(o.path)
	parent, err := t.make(dir, layer)
	if err != nil {
		return err
	}
	if o.act == actWhiteout {
		t.hide(t.find(parent, base), layer)
		return nil
	}
	k := t.find(parent, base)
	if k == 0 {
		if k, err = t.mkdir(parent, base, layer); err != nil {
			return err
		}
	}
	t.at(k).layer = layer
	return t.replace(k, o)
}

// hide removes k as far as lower layers wrote it: a whiteout says nothing
// about its own layer.
func (t *tree) hide(k id, layer uint16) {
	switch {
	case k == 0:
	case t.at(k).layer != layer:
		t.remove(k)
	case t.at(k).kind == kindDir:
		t.purge(k, layer)
	}
}

// replace makes k what o says. Only a directory that meets a directory keeps
// what is below it.
func (t *tree) replace(k id, o op) error {
	if o.act == actDir {
		if t.at(k).kind != kindDir {
			t.set(k, kindDir, 1, 0)
		}
		n := t.at(k)
		n.attr = t.attrs.put(n.attr, o.attr)
		if o.xattr {
			t.addXattrBlock(k)
		}
		return nil
	}
	t.empty(k)
	var flags uint8
	if o.xattr {
		flags = flagXattr
	}
	switch o.act {
	case actFile:
		t.set(k, kindFile, uint64(o.size), flags)
	case actSymlink:
		ref, err := t.names.add(o.link)
		if err != nil {
			return err
		}
		t.set(k, kindSymlink, uint64(ref)<<32|uint64(len(o.link)), flags)
	case actLink:
		t.relink(k, o)
	case actChar:
		t.set(k, kindChar, 0, flags)
	case actBlock:
		t.set(k, kindBlock, 0, flags)
	case actFifo:
		t.set(k, kindFifo, 0, flags)
	}
	return nil
}

// relink makes k a hard link. One that points nowhere is an empty file: no
// unpacker gets past it.
func (t *tree) relink(k id, o op) {
	target, ok := t.lookup(o.link)
	if !ok || target == k || t.at(target).kind == kindDir {
		t.set(k, kindFile, 0, 0)
		return
	}
	t.link(k, target)
	if o.xattr {
		t.addXattrBlock(k)
	}
}
