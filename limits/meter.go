package limits

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"iter"
)

// Reader returns r with the entries of its tar stream charged to y before the
// caller sees them. Bytes pass unchanged and uncopied. Read fails with what
// [Layer.Entry] says of an entry, and with a tar error for a stream that is
// not a whole archive. What follows the end of the archive passes uncharged,
// as tar readers ignore it. Only [Layer.Close] frees what the reader holds.
func (y *Layer) Reader(r io.Reader) io.Reader {
	m := &meter{r: r, c: newCoroutine(y)}
	y.mu.Lock()
	y.meters = append(y.meters, m.c)
	y.mu.Unlock()
	return m
}

// A meter shows a coroutine what it reads.
type meter struct {
	r   io.Reader
	c   *coroutine
	err error
}

func (m *meter) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.r.Read(p)
	over := m.c.feed(p[:n])
	if over == nil && errors.Is(err, io.EOF) {
		over = m.c.finish()
	}
	if over != nil {
		m.err = over
		return 0, over
	}
	return n, err
}

// A coroutine is a tar reader that runs only while there is something to read.
// It hands each header to the layer and seeks over contents, so that those
// cost nothing.
type coroutine struct {
	layer  *Layer
	resume func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool

	chunk []byte // not yet parsed
	skip  int64  // bytes after chunk that need no parsing
	pos   int64
	eof   bool
	ended bool // the archive, without an error
	err   error
}

var errStopped = errors.New("stopped")

func newCoroutine(y *Layer) *coroutine {
	c := &coroutine{layer: y}
	c.resume, c.stop = iter.Pull(c.run)
	return c
}

// run charges the archive's entries. It is suspended in Read.
func (c *coroutine) run(yield func(struct{}) bool) {
	c.yield = yield
	r := tar.NewReader(c)
	for c.err == nil {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			c.ended = true
			return
		case errors.Is(err, errStopped):
			return
		case err != nil && !errors.Is(err, tar.ErrInsecurePath): // names are confined anyway
			c.err = fmt.Errorf("layer stream: %w", err)
		default:
			c.err = c.layer.Entry(h)
		}
	}
}

// feed parses p as far as it goes.
func (c *coroutine) feed(p []byte) error {
	n := min(c.skip, int64(len(p)))
	c.skip -= n
	if p = p[n:]; len(p) > 0 {
		c.chunk = p
		c.resume()
		c.chunk = nil // the caller's
	}
	return c.err
}

// finish says that nothing follows.
func (c *coroutine) finish() error {
	c.eof = true
	c.resume()
	return c.err
}

// Read gives the tar reader what there is, and else waits for more.
func (c *coroutine) Read(p []byte) (int, error) {
	for len(c.chunk) == 0 {
		if c.eof {
			return 0, io.EOF
		}
		if !c.yield(struct{}{}) {
			return 0, errStopped
		}
	}
	n := copy(p, c.chunk)
	c.chunk = c.chunk[n:]
	c.pos += int64(n)
	return n, nil
}

// Seek skips forward from where the tar reader is, the only way it goes.
func (c *coroutine) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errors.ErrUnsupported
	}
	c.pos += n
	have := min(n, int64(len(c.chunk)))
	c.chunk = c.chunk[have:]
	c.skip = n - have
	return c.pos, nil
}
