package buildctx

import (
	"cmp"
	"slices"
	"strings"
)

// PathSize is a path and what it weighs.
type PathSize struct {
	Path  string
	Bytes int64
	Dir   bool
}

// Largest returns the n heaviest of all files and top-level directories, the
// heaviest first. It is meant for a warning, so things of no bytes are left
// out.
func (m *Manifest) Largest(n int) []PathSize {
	var all []PathSize
	dirs := map[string]int64{}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Size == 0 {
			continue
		}
		if top, _, nested := strings.Cut(e.Path, "/"); nested {
			dirs[top] += e.Size
		}
		all = insertLargest(all, PathSize{Path: e.Path, Bytes: e.Size}, n)
	}
	for path, bytes := range dirs {
		all = insertLargest(all, PathSize{Path: path, Bytes: bytes, Dir: true}, n)
	}
	return all
}

// insertLargest keeps list sorted and at most n long.
func insertLargest(list []PathSize, p PathSize, n int) []PathSize {
	at, _ := slices.BinarySearchFunc(list, p, func(a, b PathSize) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Path, b.Path))
	})
	if at >= n {
		return list
	}
	list = slices.Insert(list, at, p)
	return list[:min(len(list), n)]
}
