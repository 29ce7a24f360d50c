package compress

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"runtime/debug"
	"strings"
	"sync"
)

// A Key stands for what a member holds and for how it is compressed: members
// of one key have the same bytes.
type Key [sha256.Size]byte

// A Member is a compressed member in a finished stream.
type Member struct {
	Key    Key
	Offset int64 // in the stream
	Size   int
	Sum    uint32 // CRC-32C of its bytes
}

// Members has members that were made before.
type Members interface {
	// Member appends the member of a key to dst and reports true, or returns
	// dst and false. It is called concurrently.
	Member(k Key, dst []byte) ([]byte, bool)
}

// smallest is the input of a member that is worth remembering.
const smallest = 32 << 10

// Cut rules: from these sizes on a member ends before a unit whose name is one
// of few, then one of many. Names decide, so that a unit more or less moves the
// next cut, not all that follow.
const (
	cutFew  = memberSize / 8
	cutMany = memberSize / 2
	few     = 64 // one name in as many
	many    = 8
)

// Due reports whether the member under way should end before the next unit,
// which has a name and a size; pending bytes of the units before are still to
// be written. It is to be asked once for each unit. Units of a member's size or
// more begin members of their own.
func (w *Writer) Due(name string, size int64, pending int) bool {
	if w.newEncoder == nil {
		return false
	}
	have := pending
	if w.cur != nil {
		have += len(w.cur.in)
	}
	afterLarge := w.large
	w.large = size >= memberSize
	h := fnv.New64a()
	h.Write([]byte(name))
	mixed := h.Sum64() * 0x9e3779b97f4a7c15 >> 32
	switch {
	case w.large || afterLarge:
		return have >= memberSize/16
	case have >= cutMany:
		return mixed%many == 0
	default:
		return have >= cutFew && mixed%few == 0
	}
}

// End ends the member under way.
func (w *Writer) End() {
	if w.cur != nil && len(w.cur.in) > 0 {
		w.dispatch()
	}
}

// Known says that the next n bytes to be written are the content with the
// SHA-256 sum, so that it need not be taken again.
func (w *Writer) Known(sum [sha256.Size]byte, n int64) {
	w.known = known{sum: sum, left: n}
}

// Made lists the members that are worth remembering, after a Close without
// error.
func (w *Writer) Made() []Member { return w.made }

// known is a content under way whose digest is known.
type known struct {
	sum        [sha256.Size]byte
	from, left int64
}

// A part is a run of a member's input: bytes as they are, or bytes of a known
// content.
type part struct {
	n     int
	known bool
	sum   [sha256.Size]byte
	from  int64 // of the content
}

// note adds up to n bytes to the parts of m and returns how many are of one
// kind.
func (w *Writer) note(m *member, n int) int {
	k := &w.known
	last := len(m.parts) - 1
	if k.left == 0 {
		if last >= 0 && !m.parts[last].known {
			m.parts[last].n += n
		} else {
			m.parts = append(m.parts, part{n: n})
		}
		return n
	}
	n = int(min(int64(n), k.left))
	if last >= 0 && m.parts[last].known && m.parts[last].sum == k.sum && m.parts[last].from+int64(m.parts[last].n) == k.from {
		m.parts[last].n += n
	} else {
		m.parts = append(m.parts, part{n: n, known: true, sum: k.sum, from: k.from})
	}
	k.from += int64(n)
	k.left -= int64(n)
	return n
}

// fill makes a member's output, or finds it.
func (w *Writer) fill(e encoder, m *member) {
	if w.members == nil || len(m.in) < smallest {
		m.out = e.encode(m.out[:0], m.in)
		return
	}
	m.key = w.key(m)
	var found bool
	if m.out, found = w.members.Member(m.key, m.out[:0]); !found {
		m.out = e.encode(m.out[:0], m.in)
	}
}

// key identifies what m holds. Lengths come first, so that no two members read
// alike.
func (w *Writer) key(m *member) Key {
	h := sha256.New()
	h.Write(w.salt)
	in := m.in
	var head [1 + 8 + 8]byte
	for _, p := range m.parts {
		head[0] = 0
		binary.BigEndian.PutUint64(head[1:], uint64(p.n))
		binary.BigEndian.PutUint64(head[9:], uint64(p.from))
		if p.known {
			head[0] = 1
		}
		h.Write(head[:])
		if p.known {
			h.Write(p.sum[:])
		} else {
			h.Write(in[:p.n])
		}
		in = in[p.n:]
	}
	return Key(h.Sum(nil))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// deliver writes a finished member.
func (w *Writer) deliver(m *member) {
	n, err := w.w.Write(m.out)
	w.fail(err)
	if w.members != nil && len(m.in) >= smallest {
		w.made = append(w.made, Member{Key: m.key, Offset: w.written, Size: len(m.out), Sum: crc32.Checksum(m.out, castagnoli)})
	}
	w.written += int64(n)
}

// salt is what a key depends on beside the input: how members are made.
func (o Options) salt() []byte {
	return fmt.Appendf(nil, "member/v1 %s %d %s %s\n", o.Type, o.Level, GzipMaker, encoders())
}

// encoders names the version of the compressors: another may make other bytes.
var encoders = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, d := range info.Deps {
		if strings.HasSuffix(d.Path, "klauspost/compress") {
			return d.Version + " " + d.Sum
		}
	}
	return ""
})
