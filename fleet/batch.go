package fleet

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A batch is what a log's message holds: entries with consecutive numbers.
//
//	version  1 byte
//	flags    1 byte: 1 the log ends here
//	count    4 bytes
//	first    8 bytes, number of the first entry
//	entries  each with its length before it, as a uvarint
type batch struct {
	first uint64
	count uint32
	end   bool
	body  []byte
}

const (
	batchVersion = 1
	batchHeader  = 14
	batchEnd     = 1
)

var errBatch = errors.New("log message is corrupt")

// newBatch returns an empty message; seal makes it whole.
func newBatch(buf []byte) []byte { return append(buf[:0], make([]byte, batchHeader)...) }

func appendEntry(msg, payload []byte) []byte {
	msg = binary.AppendUvarint(msg, uint64(len(payload)))
	return append(msg, payload...)
}

func seal(msg []byte, first uint64, count uint32, end bool) {
	msg[0], msg[1] = batchVersion, 0
	if end {
		msg[1] = batchEnd
	}
	binary.BigEndian.PutUint32(msg[2:], count)
	binary.BigEndian.PutUint64(msg[6:], first)
}

func parseBatch(msg []byte) (batch, error) {
	if len(msg) < batchHeader {
		return batch{}, fmt.Errorf("%w: %d bytes", errBatch, len(msg))
	}
	if msg[0] != batchVersion {
		return batch{}, fmt.Errorf("%w: version %d", errBatch, msg[0])
	}
	b := batch{
		first: binary.BigEndian.Uint64(msg[6:]),
		count: binary.BigEndian.Uint32(msg[2:]),
		end:   msg[1]&batchEnd != 0,
		body:  msg[batchHeader:],
	}
	if b.first == 0 || b.first+uint64(b.count) < b.first {
		return batch{}, fmt.Errorf("%w: entry %d", errBatch, b.first)
	}
	return b, nil
}

// last returns the number of the last entry up to the end of the batch.
func (b batch) last() uint64 { return b.first + uint64(b.count) - 1 }

// entries calls yield for each entry until it returns false.
func (b batch) entries(yield func(Entry) bool) error {
	rest := b.body
	for i := range uint64(b.count) {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return fmt.Errorf("%w: entry %d", errBatch, b.first+i)
		}
		if !yield(Entry{Seq: b.first + i, Payload: rest[w : w+int(n) : w+int(n)]}) {
			return nil
		}
		rest = rest[w+int(n):]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: %d bytes after entry %d", errBatch, len(rest), b.last())
	}
	return nil
}
