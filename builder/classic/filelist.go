package classic

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/buildctx"
)

// A list of files is a manifest in little room: paths share what they begin
// with, and of a content's digest only the beginning is kept. It is enough to
// choose files by pattern and to tell which of them changed.

// shortDigest is how many bytes of a digest a list keeps.
const shortDigest = 6

// Bounds of a list of files.
const (
	maxListed    = 200_000
	maxListBytes = 64 << 20 // before compression
)

var errList = errors.New("list of files does not read back")

// encodeFiles returns the list of a manifest, empty if it has too many entries.
func encodeFiles(m *buildctx.Manifest) []byte {
	if len(m.Entries) > maxListed {
		return []byte{}
	}
	buf := make([]byte, 0, 32*len(m.Entries)+1)
	buf = append(buf, 1) // version
	last := ""
	for i := range m.Entries {
		e := &m.Entries[i]
		shared := sharedLen(last, e.Path)
		buf = binary.AppendUvarint(buf, uint64(shared))
		buf = appendText(buf, e.Path[shared:])
		buf = append(buf, byte(e.Type))
		buf = binary.BigEndian.AppendUint16(buf, uint16(e.Mode))
		switch e.Type {
		case buildctx.TypeFile:
			buf = append(buf, e.Digest[:shortDigest]...)
			buf = binary.AppendUvarint(buf, uint64(e.Size))
		case buildctx.TypeSymlink, buildctx.TypeHardlink:
			buf = appendText(buf, e.Link)
		}
		last = e.Path
	}
	if len(buf) > maxListBytes {
		return []byte{}
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		return []byte{}
	}
	return z.EncodeAll(buf, nil)
}

func sharedLen(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func appendText(buf []byte, s string) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(s))), s...)
}

// decodeFiles reads what encodeFiles wrote. The digests have only their first
// bytes.
func decodeFiles(packed []byte) (*buildctx.Manifest, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxListBytes), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data, err := z.DecodeAll(packed, nil)
	if err != nil || len(data) == 0 || data[0] != 1 {
		return nil, errList
	}
	m, r, last := &buildctx.Manifest{}, &listReader{rest: data[1:]}, ""
	for len(r.rest) > 0 {
		var e buildctx.Entry
		shared := r.number()
		suffix := r.text()
		if shared > uint64(len(last)) {
			return nil, errList
		}
		e.Path = last[:shared] + suffix
		fixed := r.take(3)
		if r.failed {
			return nil, errList
		}
		e.Type, e.Mode = buildctx.Type(fixed[0]), uint32(binary.BigEndian.Uint16(fixed[1:]))
		switch e.Type {
		case buildctx.TypeFile:
			copy(e.Digest[:], r.take(shortDigest))
			e.Size = int64(r.number())
		case buildctx.TypeSymlink, buildctx.TypeHardlink:
			e.Link = r.text()
		}
		if r.failed {
			return nil, errList
		}
		m.Entries = append(m.Entries, e)
		last = e.Path
	}
	return m, nil
}

// A listReader reads a list; once it has failed it returns nothing more.
type listReader struct {
	rest   []byte
	failed bool
}

func (r *listReader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.rest, r.failed = nil, true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *listReader) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.rest, r.failed = nil, true
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *listReader) text() string { return string(r.take(r.number())) }

// shorten returns a digest as a list has it.
func shorten(d [sha256.Size]byte) (out [sha256.Size]byte) {
	copy(out[:], d[:shortDigest])
	return out
}
