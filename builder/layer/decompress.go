package layer

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/rescue"
)

// Decompress returns the tar inside a layer's blob, which is told by its first
// bytes: gzip, zstd or plain. It decompresses ahead of its reader, so that
// both sides have a core each. The caller must close what it returns, also
// after an error; that does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, err
		}
		return readAhead(zr, func() { _ = zr.Close() }), nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// Windows of more than 64 MiB are no layer's.
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return readAhead(zr, zr.Close), nil
	}
	return io.NopCloser(br), nil
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// An ahead reads a stream before it is asked to.
type ahead struct {
	full  chan chunk
	empty chan []byte
	stop  chan struct{}
	done  chan struct{}
	close sync.Once
	now   chunk
	rest  []byte
}

type chunk struct {
	buf []byte
	n   int
	err error
}

// readAhead starts to read r. Release is called when nobody reads r any more.
func readAhead(r io.Reader, release func()) *ahead {
	a := &ahead{
		full: make(chan chunk, aheadBuffers), empty: make(chan []byte, aheadBuffers),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go func() {
		defer close(a.done)
		defer release()
		a.run(r)
	}()
	return a
}

func (a *ahead) run(r io.Reader) {
	for {
		var buf []byte
		select {
		case buf = <-a.empty:
		case <-a.stop:
			return
		}
		n, err := readFull(r, buf)
		if errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
			// The decompressor's own short read shows as such next time.
			err = nil
		}
		select {
		case a.full <- chunk{buf, n, err}:
		case <-a.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// readFull is io.ReadFull of a decompressor, which may panic over what it is
// given.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	defer rescue.Into(&err)
	return io.ReadFull(r, buf)
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.buf != nil {
			a.empty <- a.now.buf
		}
		select {
		case a.now = <-a.full:
		case <-a.stop:
			return 0, fs.ErrClosed
		}
		a.rest = a.now.buf[:a.now.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the reading ahead and waits for it.
func (a *ahead) Close() error {
	a.close.Do(func() { close(a.stop) })
	<-a.done
	return nil
}
