package limits

import (
	"archive/tar"
	"time"
)

// An attr is what a ledger remembers of a directory beside its size, so that
// what is copied into it can be described without unpacking the image.
type attr struct {
	mtime    [2]uint32 // seconds since 1970, the lower half first: 20 bytes, not 24
	uid, gid uint32
	mode     uint16 // octal 7777
}

// bare are the attributes of a directory that no entry describes.
var bare = attr{mode: 0o755}

func attrOf(h *tar.Header) attr {
	a := attr{mode: uint16(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid)}
	if !h.ModTime.IsZero() {
		a.setTime(h.ModTime.Unix())
	}
	return a
}

func (a *attr) setTime(unix int64) { a.mtime = [2]uint32{uint32(unix), uint32(unix >> 32)} }

func (a *attr) time() int64 { return int64(a.mtime[1])<<32 | int64(a.mtime[0]) }

// attrs holds what is remembered of directories. An attrRef is kept by the
// node; 0 stands for bare.
type attrs struct {
	pages []*[attrPage]attr
	used  uint32
	spare []attrRef
}

type attrRef uint32

const attrPage = 1 << 10

func (s *attrs) at(r attrRef) *attr { return &s.pages[(r-1)/attrPage][(r-1)%attrPage] }

// put remembers a under r, or under a new ref if that is 0.
func (s *attrs) put(r attrRef, a attr) attrRef {
	if last := len(s.spare) - 1; r == 0 && last >= 0 {
		r, s.spare = s.spare[last], s.spare[:last]
	}
	if r == 0 {
		if int(s.used) == len(s.pages)*attrPage {
			s.pages = append(s.pages, new([attrPage]attr))
		}
		s.used++
		r = attrRef(s.used)
	}
	*s.at(r) = a
	return r
}

// drop forgets what is under r.
func (s *attrs) drop(r attrRef) {
	if r != 0 {
		s.spare = append(s.spare, r)
	}
}

// describe fills in what is remembered of n.
func (t *tree) describe(n *node, out *Node) {
	a := &bare
	if n.attr != 0 {
		a = t.attrs.at(n.attr)
	}
	out.Mode, out.UID, out.GID, out.ModTime = int64(a.mode), int(a.uid), int(a.gid), time.Unix(a.time(), 0)
}
