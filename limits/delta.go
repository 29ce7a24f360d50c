package limits

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// A Delta is what a layer does to a tree, whatever the tree is: its entries
// without content. It is made by [Layer.Close] and used by [Ledger.Replay].
// The same entries give the same bytes. It is a version, a sequence of ops and
// a checksum; an op has its action, its path without the prefix that it shares
// with the path before, and what belongs to the action.
type Delta []byte

const (
	deltaVersion = 1
	deltaXattr   = 0x80    // beside the action
	maxDelta     = 1 << 30 // bytes; MaxPaths entries of the usual length fit well
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// A deltaWriter encodes ops. It keeps chunks, so that growing costs nothing.
type deltaWriter struct {
	chunks [][]byte
	size   int
	ops    int
	path   string // of the last op
	buf    []byte
}

const deltaChunk = 64 << 10

func (w *deltaWriter) add(o op) error {
	if w.ops++; w.ops > MaxPaths || w.size > maxDelta {
		return ErrTooManyPaths
	}
	b := w.buf[:0]
	act := byte(o.act)
	if o.xattr {
		act |= deltaXattr
	}
	b = append(b, act)
	b = appendShared(b, w.path, o.path)
	switch o.act {
	case actDir:
		b = binary.AppendUvarint(b, uint64(o.attr.mode))
		b = binary.AppendUvarint(b, uint64(o.attr.uid))
		b = binary.AppendUvarint(b, uint64(o.attr.gid))
		b = binary.AppendVarint(b, o.attr.time())
	case actFile:
		b = binary.AppendUvarint(b, uint64(o.size))
	case actSymlink:
		b = appendShared(b, "", o.link)
	case actLink:
		b = appendShared(b, o.path, o.link)
	}
	w.path, w.buf = o.path, b
	w.write(b)
	return nil
}

func (w *deltaWriter) write(b []byte) {
	last := len(w.chunks) - 1
	if last < 0 || len(w.chunks[last])+len(b) > cap(w.chunks[last]) {
		w.chunks = append(w.chunks, make([]byte, 0, max(deltaChunk, len(b))))
		last++
	}
	w.chunks[last] = append(w.chunks[last], b...)
	w.size += len(b)
}

// finish returns the delta of all ops so far and forgets them.
func (w *deltaWriter) finish() Delta {
	d := append(make(Delta, 0, 1+w.size+4), deltaVersion)
	for _, c := range w.chunks {
		d = append(d, c...)
	}
	*w = deltaWriter{}
	return binary.LittleEndian.AppendUint32(d, crc32.Checksum(d, castagnoli()))
}

// appendShared appends s as the length that it shares with prev and the rest.
func appendShared(b []byte, prev, s string) []byte {
	n := 0
	for n < len(prev) && n < len(s) && prev[n] == s[n] {
		n++
	}
	b = binary.AppendUvarint(b, uint64(n))
	b = binary.AppendUvarint(b, uint64(len(s)-n))
	return append(b, s[n:]...)
}

// check reports what is wrong with d, if anything.
func (d Delta) check() error {
	if len(d) < 5 {
		return fmt.Errorf("%w: %d bytes", ErrDelta, len(d))
	}
	if d[0] != deltaVersion {
		return fmt.Errorf("%w: version %d", ErrDelta, d[0])
	}
	body, sum := d[:len(d)-4], d[len(d)-4:]
	if crc32.Checksum(body, castagnoli()) != binary.LittleEndian.Uint32(sum) {
		return fmt.Errorf("%w: checksum", ErrDelta)
	}
	return d.each(func(op) error { return nil })
}

// each calls f with d's ops until one fails. The checksum must be right.
func (d Delta) each(f func(op) error) error {
	r := deltaReader{rest: d[1 : len(d)-4]}
	var o op
	for len(r.rest) > 0 {
		if o = r.next(o.path); r.bad {
			return fmt.Errorf("%w: %d bytes before its end", ErrDelta, len(r.rest))
		}
		if err := f(o); err != nil {
			return err
		}
	}
	return nil
}

// A deltaReader decodes ops. After a failure, bad stays set.
type deltaReader struct {
	rest []byte
	bad  bool
}

func (r *deltaReader) next(prev string) op {
	act := r.rest[0]
	r.rest = r.rest[1:]
	o := op{act: action(act &^ deltaXattr), xattr: act&deltaXattr != 0, path: r.shared(prev)}
	switch o.act {
	case actDir:
		o.attr = attr{mode: uint16(r.upTo(0o7777)), uid: uint32(r.upTo(math.MaxUint32)), gid: uint32(r.upTo(math.MaxUint32))}
		o.attr.setTime(r.varint())
	case actFile:
		size := r.uvarint()
		r.bad = r.bad || size > math.MaxInt64
		o.size = int64(size)
	case actSymlink:
		o.link = r.shared("")
	case actLink:
		o.link = r.shared(o.path)
		r.bad = r.bad || clean(o.link) != o.link
	}
	r.bad = r.bad || o.act == 0 || o.act >= actEnd || !o.valid()
	return o
}

// valid reports whether o's path is one that parse gives.
func (o op) valid() bool {
	if o.path == "" {
		return o.act == actOpaque
	}
	return tidy(o.path)
}

func (r *deltaReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// upTo reads a number of at most limit.
func (r *deltaReader) upTo(limit uint64) uint64 {
	v := r.uvarint()
	r.bad = r.bad || v > limit
	return v
}

func (r *deltaReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *deltaReader) shared(prev string) string {
	n, more := r.uvarint(), r.uvarint()
	if r.bad || n > uint64(len(prev)) || more > uint64(len(r.rest)) || n+more > maxPath {
		r.bad = true
		return ""
	}
	s := prev[:n] + string(r.rest[:more])
	r.rest = r.rest[more:]
	return s
}
