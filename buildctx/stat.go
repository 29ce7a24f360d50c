package buildctx

import (
	"io/fs"
	"time"
)

// stamp is what tells two states of a file apart without reading it. Its
// change time is set by the system alone: who sets a modification time back
// moves it forward.
type stamp struct {
	size   int64
	mtime  int64
	ctime  int64
	inode  uint64
	device uint64
	links  uint64
	known  bool // ctime, inode and device are meant
}

// newStamp fills what every system knows.
func newStamp(fi fs.FileInfo) stamp {
	return stamp{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
}

// sameFile reports whether two stamps can be of one file.
func (s stamp) sameFile(t stamp) bool {
	return !s.known || !t.known || s.inode == t.inode && s.device == t.device
}

// sameState reports whether nobody wrote to a file between two stamps.
func (s stamp) sameState(t stamp) bool {
	return s.size == t.size && s.mtime == t.mtime && s.ctime == t.ctime
}

// racyAge is how old a change must be to be told from the next one: no file
// system in use has coarser times.
const racyAge = 2 * time.Second

// settled reports whether a change after now would show in the stamp.
func (s stamp) settled(now time.Time) bool {
	return s.known && s.ctime <= now.Add(-racyAge).UnixNano()
}

// modeBits turns a file mode into octal 7777.
func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}
