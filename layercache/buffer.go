package layercache

import (
	"math/bits"
	"sync"
)

// copySize is what is copied at a time.
const copySize = 256 << 10

// buffers are pools of buffers of 4 KiB, 8 KiB and so on up to 4 MiB.
type buffers [11]sync.Pool

// get returns a buffer of at least size bytes.
func (b *buffers) get(size int) *[]byte {
	class := bufferClass(size)
	if buf, ok := b[class].Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, 4096<<class)
	return &buf
}

func (b *buffers) put(buf *[]byte) { b[bufferClass(len(*buf))].Put(buf) }

// bufferClass returns the smallest class that has size bytes.
func bufferClass(size int) int { return bits.Len(uint(max(size-1, 0) >> 12)) }
