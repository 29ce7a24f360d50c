package limits

import (
	"archive/tar"
	"time"
)

// An attr is what a ledger remembers of a directory beside its size, so that
// what is copied into it can be described without unpacking the image.
type attr struct {
	mode     uint16 // octal 7777
	uid, gid uint32
	mtime    int64 // seconds since 1970
}

// bare are the attributes of a directory that no entry describes.
var bare = attr{mode: 0o755}

func attrOf(h *tar.Header) attr {
	a := attr{mode: uint16(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid)}
	if !h.ModTime.IsZero() {
		a.mtime = h.ModTime.Unix()
	}
	return a
}

// describe fills in what is remembered of k.
func (t *tree) describe(k id, n *Node) {
	a, ok := t.attrs[k]
	if !ok {
		a = bare
	}
	n.Mode, n.UID, n.GID, n.ModTime = int64(a.mode), int(a.uid), int(a.gid), time.Unix(a.mtime, 0)
}
