package limits

import "hash/maphash"

// A kind is what a node is, as far as its size is concerned.
type kind uint8

const (
	kindDir kind = iota
	kindFile
	kindSymlink
	kindChar
	kindBlock
	kindFifo
)

const (
	flagXattr  = 1 << iota // attributes take a block of their own
	flagLinked             // payload is an index of tree.inodes
)

// An id is a node's index. The root is 0; since the root is nobody's child, 0
// also stands for none.
type id = uint32

// A node is a path. There may be a million, so it has no pointers and no
// padding. Siblings form a list in the order of their making.
type node struct {
	payload                   uint64 // file: size; symlink: ref and length of the target; dir: names and blocks
	parent, next, prev, child id     // a freed node's next is the next freed one
	name                      nameRef
	layer                     uint16 // that wrote the node or something below it last
	nameLen                   uint8
	kind                      kind
	flags                     uint8
	attr                      attrRef // of a directory
}

// An inode is what hard links share.
type inode struct {
	payload uint64
	names   uint32
	flags   uint8
}

const (
	pageBits = 12
	pageSize = 1 << pageBits
)

// A tree is a directory tree in arenas: nodes in pages, names in names, and a
// hash table from parent and name to node. It keeps the sum of all bytes.
type tree struct {
	pages  []*[pageSize]node
	used   uint32 // nodes ever taken from pages
	freed  id     // list of freed nodes
	names  names
	table  []id // open addressing, linear probing; length is a power of two
	count  int  // of nodes in table
	seed   maphash.Seed
	inodes []inode
	attrs  attrs    // of directories
	spare  []uint32 // unused inodes
	bytes  int64
}

func newTree() *tree {
	t := &tree{seed: maphash.MakeSeed(), table: make([]id, 64)}
	t.pages = append(t.pages, new([pageSize]node))
	t.used = 1
	root := t.at(0)
	root.kind = kindDir
	root.payload = 1 // block
	t.bytes = blockSize
	return t
}

func (t *tree) at(i id) *node { return &t.pages[i>>pageBits][i&(pageSize-1)] }

func (t *tree) name(n *node) []byte { return t.names.at(n.name, int(n.nameLen)) }

// slot returns where name below parent is in the table, or where it would go.
func (t *tree) slot(parent id, name string) int {
	mask := len(t.table) - 1
	i := int(t.hash(parent, maphash.String(t.seed, name))) & mask
	for {
		k := t.table[i]
		if k == 0 {
			return i
		}
		if n := t.at(k); n.parent == parent && string(t.name(n)) == name {
			return i
		}
		i = (i + 1) & mask
	}
}

func (t *tree) hash(parent id, name uint64) uint64 {
	h := (name ^ uint64(parent)) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

func (t *tree) home(k id) int {
	n := t.at(k)
	return int(t.hash(n.parent, maphash.Bytes(t.seed, t.name(n)))) & (len(t.table) - 1)
}

// find returns the child of that name, or 0.
func (t *tree) find(parent id, name string) id { return t.table[t.slot(parent, name)] }

// grow doubles the table before it is more than 7/8 full.
func (t *tree) grow() {
	if (t.count+1)*8 <= len(t.table)*7 {
		return
	}
	old := t.table
	t.table = make([]id, 2*len(old))
	mask := len(t.table) - 1
	for _, k := range old {
		if k == 0 {
			continue
		}
		i := t.home(k)
		for t.table[i] != 0 {
			i = (i + 1) & mask
		}
		t.table[i] = k
	}
}

// add makes a directory without names below parent; the caller turns it into
// something else with set. The name must be new and at most 255 bytes.
func (t *tree) add(parent id, name string, layer uint16) (id, error) {
	if t.count >= MaxPaths {
		return 0, ErrTooManyPaths
	}
	ref, err := t.names.add(name)
	if err != nil {
		return 0, err
	}
	t.grow()
	k := t.take()
	*t.at(k) = node{parent: parent, name: ref, nameLen: uint8(len(name)), layer: layer, kind: kindDir, payload: 1}
	t.table[t.slot(parent, name)] = k
	t.count++
	p, n := t.at(parent), t.at(k)
	if n.next = p.child; n.next != 0 {
		t.at(n.next).prev = k
	}
	p.child = k
	t.bytes += blockSize
	t.rename(p, nameBytes(len(name)))
	return k, nil
}

func (t *tree) take() id {
	if k := t.freed; k != 0 {
		t.freed = t.at(k).next
		return k
	}
	k := t.used
	if int(k>>pageBits) == len(t.pages) {
		t.pages = append(t.pages, new([pageSize]node))
	}
	t.used++
	return k
}

// rename charges directory p for names that came or went. A directory never
// gives a block back.
func (t *tree) rename(p *node, delta int64) {
	live, blocks := int64(p.payload>>32)*4+delta, int64(uint32(p.payload))
	if b := dirBlocks(live); b > blocks {
		t.bytes += (b - blocks) * blockSize
		blocks = b
	}
	p.payload = uint64(live/4)<<32 | uint64(blocks)
}

// own returns what n takes by itself, which is nothing for a hard link.
func (n *node) own() int64 {
	if n.flags&flagLinked != 0 {
		return 0
	}
	return nodeBytes(n.kind, n.payload, n.flags)
}

func nodeBytes(k kind, payload uint64, flags uint8) int64 {
	var b int64
	switch k {
	case kindDir:
		b = int64(uint32(payload)) * blockSize
	case kindFile:
		b = fileBytes(int64(payload))
	case kindSymlink:
		b = linkBytes(int(uint32(payload)))
	}
	if flags&flagXattr != 0 {
		b += blockSize
	}
	return b
}

// inode returns what n is: its own payload and flags, or those that it shares.
func (t *tree) inode(n *node) (payload uint64, flags uint8) {
	if n.flags&flagLinked == 0 {
		return n.payload, n.flags
	}
	in := t.inodes[n.payload]
	return in.payload, in.flags
}

// set makes k, which has no children, something other than a directory.
func (t *tree) set(k id, as kind, payload uint64, flags uint8) {
	t.release(k)
	n := t.at(k)
	n.kind, n.payload, n.flags = as, payload, flags
	t.bytes += n.own()
}

// release takes back what k was charged.
func (t *tree) release(k id) {
	n := t.at(k)
	t.bytes -= n.own()
	if n.kind == kindDir {
		t.attrs.drop(n.attr)
		n.attr = 0
	}
	if n.flags&flagLinked == 0 {
		return
	}
	in := &t.inodes[n.payload]
	if in.names--; in.names == 0 {
		t.bytes -= nodeBytes(n.kind, in.payload, in.flags)
		t.spare = append(t.spare, uint32(n.payload))
	}
}

// link makes k, which has no children, another name of target.
func (t *tree) link(k, target id) {
	shared := t.share(target)
	t.release(k)
	n, to := t.at(k), t.at(target)
	n.kind, n.payload, n.flags = to.kind, shared, flagLinked
	t.inodes[shared].names++
}

// share moves what k is to an inode, unless it is in one, and returns its index.
func (t *tree) share(k id) uint64 {
	n := t.at(k)
	if n.flags&flagLinked != 0 {
		return n.payload
	}
	in := inode{payload: n.payload, names: 1, flags: n.flags}
	var i uint64
	if last := len(t.spare) - 1; last >= 0 {
		i, t.spare = uint64(t.spare[last]), t.spare[:last]
		t.inodes[i] = in
	} else {
		i = uint64(len(t.inodes))
		t.inodes = append(t.inodes, in)
	}
	n.payload, n.flags = i, flagLinked
	return i
}

// addXattrBlock charges k for attributes, once.
func (t *tree) addXattrBlock(k id) {
	n := t.at(k)
	flags := &n.flags
	if n.flags&flagLinked != 0 {
		flags = &t.inodes[n.payload].flags
	}
	if *flags&flagXattr == 0 {
		*flags |= flagXattr
		t.bytes += blockSize
	}
}

// remove drops k and everything below it. The root stays.
func (t *tree) remove(k id) {
	if k == 0 {
		return
	}
	t.empty(k)
	t.drop(k)
}

// empty drops everything below k.
func (t *tree) empty(k id) {
	for at := k; ; {
		n := t.at(at)
		if n.kind == kindDir && n.child != 0 {
			at = n.child
			continue
		}
		if at == k {
			return
		}
		up := n.parent
		t.drop(at)
		at = up
	}
}

// drop removes the childless k from its parent and the table.
func (t *tree) drop(k id) {
	t.release(k)
	t.unhash(k)
	n := t.at(k)
	p := t.at(n.parent)
	if n.prev != 0 {
		t.at(n.prev).next = n.next
	} else {
		p.child = n.next
	}
	if n.next != 0 {
		t.at(n.next).prev = n.prev
	}
	t.rename(p, -nameBytes(int(n.nameLen)))
	*n = node{next: t.freed}
	t.freed = k
	t.count--
}

// unhash takes k out of the table and moves those up that it had pushed down.
func (t *tree) unhash(k id) {
	mask := len(t.table) - 1
	hole := t.home(k)
	for t.table[hole] != k {
		hole = (hole + 1) & mask
	}
	for i := (hole + 1) & mask; t.table[i] != 0; i = (i + 1) & mask {
		if home := t.home(t.table[i]); (i-home)&mask >= (i-hole)&mask {
			t.table[hole] = t.table[i]
			hole = i
		}
	}
	t.table[hole] = 0
}

// purge drops what lies below k and was not written by layer. A node that was
// stays, with its parents.
func (t *tree) purge(k id, layer uint16) {
	at := t.at(k).child
	for at != 0 {
		n := t.at(at)
		if n.layer == layer && n.kind == kindDir && n.child != 0 {
			at = n.child
			continue
		}
		next := t.after(at, k)
		if n.layer != layer {
			t.remove(at)
		}
		at = next
	}
}

// after returns the node that follows k and all below it in the walk of top,
// or 0 at its end.
func (t *tree) after(k, top id) id {
	for k != top {
		n := t.at(k)
		if n.next != 0 {
			return n.next
		}
		k = n.parent
	}
	return 0
}

// path returns k's path, which begins with a slash.
func (t *tree) path(k id) string {
	if k == 0 {
		return "/"
	}
	var parts [][]byte
	for ; k != 0; k = t.at(k).parent {
		parts = append(parts, t.name(t.at(k)))
	}
	var b []byte
	for i := len(parts) - 1; i >= 0; i-- {
		b = append(append(b, '/'), parts[i]...)
	}
	return string(b)
}
