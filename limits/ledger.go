package limits

import (
	"archive/tar"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Ledger follows the root file system of one image while its layers are
// unpacked in order, and refuses what passes the limit. All methods are safe
// for concurrent use; layers are charged one after the other.
type Ledger struct {
	max   int64 // negative: none
	total atomic.Int64

	mu       sync.Mutex
	tree     *tree
	peak     int64
	sources  []SourceSize
	sourceOf []int32 // by a layer's number; there is no layer 0
	layers   uint16
	open     *Layer
}

// NewLedger returns the ledger of an empty image. A max of 0 means
// [DefaultMax]; a negative one means no limit.
func NewLedger(max int64) *Ledger {
	if max == 0 {
		max = DefaultMax
	}
	return &Ledger{max: max, tree: newTree(), sourceOf: make([]int32, 1)}
}

// Begin starts the next layer. It ends a layer that is still open, as far as
// that one has come. The root directory itself is charged to the first layer.
func (l *Ledger) Begin(src Source) *Layer {
	l.mu.Lock()
	prev := l.open
	y := &Layer{ledger: l}
	l.begin(y, src)
	l.mu.Unlock()
	if prev != nil {
		prev.abandon()
	}
	return y
}

// begin numbers y and opens an account for its source. Numbers that ran out
// start again: only neighbours must differ.
func (l *Ledger) begin(y *Layer, src Source) {
	if l.layers++; l.layers == 0 {
		l.layers = 1
	}
	y.number = l.layers
	y.source = slices.IndexFunc(l.sources, func(s SourceSize) bool { return s.Source == src })
	if y.source < 0 {
		y.source = len(l.sources)
		l.sources = append(l.sources, SourceSize{Source: src})
	}
	if int(y.number) == len(l.sourceOf) {
		l.sourceOf = append(l.sourceOf, 0)
	}
	l.sourceOf[y.number] = int32(y.source)
	l.open = y
	l.account(y)
}

// account books what the tree gained or lost since the last call to y's
// source.
func (l *Ledger) account(y *Layer) {
	now := l.tree.bytes
	l.sources[y.source].Bytes += now - l.total.Load()
	l.total.Store(now)
	l.peak = max(l.peak, now)
}

// Replay charges a layer that was made earlier, by the delta that its first
// charging gave. A delta that is not one is an error that wraps [ErrDelta] and
// charges nothing.
func (l *Ledger) Replay(src Source, d Delta) error {
	if err := d.check(); err != nil {
		return err
	}
	y := l.Begin(src)
	defer y.abandon()
	return d.each(y.charge)
}

// Total returns what the root file system takes now.
func (l *Ledger) Total() int64 { return l.total.Load() }

// Peak returns the most that Total has ever been.
func (l *Ledger) Peak() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peak
}

// Allow returns a *[SizeError] if extra bytes, found at path, do not fit. It
// charges nothing: it is for a step that is still writing. The report counts
// the bytes in its total, but to no source.
func (l *Ledger) Allow(extra int64, path string) error {
	if l.max < 0 || l.total.Load() <= l.max-extra {
		return nil
	}
	r := l.Report()
	r.Total += extra
	r.Path = path
	return &SizeError{r}
}

// A Node is what a path is in the image.
type Node struct {
	Type byte   // as in package tar: TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock or TypeFifo
	Size int64  // of a regular file
	Link string // where a symbolic link points to

	// Of a directory, as the layer that described it last has it.
	Mode     int64 // octal 7777
	UID, GID int
	ModTime  time.Time
}

// Stat returns what name is, without following it if it is a link. Links on
// the way to it are followed within the image. The root is always a directory.
func (l *Ledger) Stat(name string) (Node, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.tree.lookup(clean(name))
	if !ok {
		return Node{}, false
	}
	n := l.tree.at(k)
	payload, _ := l.tree.inode(n)
	switch n.kind {
	case kindFile:
		return Node{Type: tar.TypeReg, Size: int64(payload)}, true
	case kindSymlink:
		return Node{Type: tar.TypeSymlink, Link: l.tree.target(n)}, true
	}
	out := Node{Type: typeflags[n.kind]}
	if n.kind == kindDir {
		l.tree.describe(n, &out)
	}
	return out, true
}

// Held returns what would be freed if name were replaced: the bytes of the
// path itself, and those of everything at or below it. A file with other names
// frees nothing. Links on the way to name are not followed.
func (l *Ledger) Held(name string) (own, tree int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tree
	var top id
	for rest := clean(name); rest != ""; {
		var first string
		if first, rest = cut(rest); t.at(top).kind != kindDir {
			return 0, 0
		}
		if top = t.find(top, first); top == 0 {
			return 0, 0
		}
	}
	for k := top; ; {
		tree += t.frees(k)
		next := t.at(k).child
		if next == 0 {
			next = t.after(k, top)
		}
		if next == 0 {
			return t.frees(top), tree
		}
		k = next
	}
}

// frees returns what the removal of k alone would free.
func (t *tree) frees(k id) int64 {
	n := t.at(k)
	if n.flags&flagLinked != 0 && t.inodes[n.payload].names == 1 {
		in := t.inodes[n.payload]
		return nodeBytes(n.kind, in.payload, in.flags)
	}
	return n.own()
}

// lookup finds a clean path in the finished image.
func (t *tree) lookup(name string) (id, bool) {
	if name == "" {
		return 0, true
	}
	dir, base := split(name)
	parent, ok := t.walk(dir)
	if !ok {
		return 0, false
	}
	k := t.find(parent, base)
	return k, k != 0
}

// clean returns name as a path below the root, without a slash at either end.
// The root is the empty string.
func clean(name string) string {
	name = strings.TrimSuffix(name, "/")
	if tidy(name) {
		return name
	}
	return path.Clean("/" + name)[1:]
}

// tidy reports whether name surely is clean. Most names are.
func tidy(name string) bool {
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if i == start || name[start] == '.' && (i-start == 1 || i-start == 2 && name[start+1] == '.') {
			return false
		}
		start = i + 1
	}
	return true
}

// split cuts a clean path into its directory and its last component.
func split(name string) (dir, base string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// cut cuts a clean path after its first component.
func cut(name string) (first, rest string) {
	for i := range len(name) {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}
