package classic

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"strconv"

	mode "github.com/tonistiigi/dchapes-mode"
)

// A modeSet is what --chmod says: a mode, or changes to the one that a file
// has. nil changes nothing.
type modeSet struct {
	octal   int64
	text    string // of changes; "" if octal counts
	changes mode.Set
}

func parseMode(s string) (*modeSet, error) {
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return nil, fmt.Errorf("larger than 07777")
		}
		return &modeSet{octal: int64(n)}, nil
	}
	changes, err := mode.ParseWithUmask(s, 0)
	if _, number := strconv.ParseFloat(s, 64); err != nil || number == nil {
		return nil, fmt.Errorf("not a mode")
	}
	return &modeSet{text: s, changes: changes}, nil
}

func (m *modeSet) String() string {
	if m.text != "" {
		return m.text
	}
	return strconv.FormatInt(m.octal, 8)
}

// apply returns the mode that f gets. A link has none to change.
func (m *modeSet) apply(f *file) int64 {
	switch {
	case m == nil || f.typ == tar.TypeSymlink:
		return f.mode
	case m.text == "":
		return m.octal
	}
	return modeBits(m.changes.Apply(goMode(f)))
}

// special pairs the bits of octal modes with those of package fs.
var special = []struct {
	octal int64
	mode  fs.FileMode
}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}}

func goMode(f *file) fs.FileMode {
	m := fs.FileMode(f.mode & 0o777)
	for _, s := range special {
		if f.mode&s.octal != 0 {
			m |= s.mode
		}
	}
	if f.isDir() {
		m |= fs.ModeDir
	}
	return m
}

func modeBits(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for _, s := range special {
		if m&s.mode != 0 {
			bits |= s.octal
		}
	}
	return bits
}
