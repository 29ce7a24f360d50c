package buildctx

import (
	"context"
	"io"
	"sync/atomic"
)

// An inbound frame is shared by the worker that decodes it and the streams
// that read from it. The last one to drop it releases its memory.
type inbound struct {
	size    int
	weight  int64
	packed  []byte
	data    []byte
	buf     *[]byte // data's, if it came from a pool
	whole   []part  // contents that are complete in this frame
	decoded chan struct{}
	err     error // of decoding; final when decoded is closed
	holders atomic.Int32
	release func(*inbound)
}

func (f *inbound) drop() {
	if f.holders.Add(-1) == 0 {
		f.release(f)
	}
}

// A part is the bytes [from, to) of a frame, which belong to one content.
type part struct {
	frame    *inbound
	entry    *Entry
	from, to int
}

// A stream reads one content from the frames it spans.
type stream struct {
	ctx   context.Context // of the one Add that reads it
	parts chan part
	err   error // why parts was closed; set before, nil at the end
	cur   part
	rest  []byte
}

func newStream(ctx context.Context) *stream {
	return &stream{ctx: ctx, parts: make(chan part, largePending)}
}

// end says that no more parts come, because all have come or for a reason.
func (s *stream) end(err error) {
	s.err = err
	close(s.parts)
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// next waits for a part and for its frame to be decoded.
func (s *stream) next() error {
	s.dropCurrent()
	select {
	case p, more := <-s.parts:
		if !more {
			if s.err != nil {
				return s.err
			}
			return io.EOF
		}
		s.cur = p
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	select {
	case <-s.cur.frame.decoded:
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	if s.cur.frame.err != nil {
		return s.cur.frame.err
	}
	s.rest = s.cur.frame.data[s.cur.from:s.cur.to]
	return nil
}

func (s *stream) dropCurrent() {
	if s.cur.frame != nil {
		s.cur.frame.drop()
		s.cur.frame = nil
	}
}

// drain lets go of what was not read, until the end.
func (s *stream) drain() {
	s.dropCurrent()
	for p := range s.parts {
		p.frame.drop()
	}
}
