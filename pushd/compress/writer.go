package compress

import (
	"errors"
	"io"
	"sync"

	"github.com/slipwayhq/slipway/rescue"
)

var errClosed = errors.New("compress: writer is closed")

// A Writer compresses what is written to it. Its methods must not be called
// concurrently.
type Writer struct {
	w          io.Writer
	newEncoder func() encoder // nil: bytes pass as they are
	parallel   int
	members    Members // may be nil
	salt       []byte  // of keys

	cur      *member
	buffered int  // buffers made so far
	begun    bool // a member was handed out
	closed   bool
	large    bool  // the unit under way is a large one
	known    known // what is written next

	written int64    // to w
	made    []Member // in the order of the stream

	free  chan *member // buffers to use again
	work  chan *member // to the compressing goroutines
	order chan *member // the same members, to the writing goroutine
	done  sync.WaitGroup

	mu  sync.Mutex
	err error // the first error of w
}

// A member is one independently compressed piece on its way through.
type member struct {
	in, out []byte
	parts   []part        // of in; none if nobody asks for the key
	key     Key           // of in, valid with out
	ready   chan struct{} // gets a value when out is complete
}

// Write compresses p. It waits for w when all buffers are full. After an
// error of w every call returns that error.
func (w *Writer) Write(p []byte) (int, error) {
	if w.closed {
		return 0, errClosed
	}
	if w.newEncoder == nil {
		return w.pass(p)
	}
	n := 0
	for len(p) > 0 {
		m := w.current()
		take := min(memberSize-len(m.in), len(p))
		if w.members != nil {
			take = w.note(m, take)
		}
		m.in = append(m.in, p[:take]...)
		p, n = p[take:], n+take
		if len(m.in) == memberSize {
			w.dispatch()
			if err := w.failed(); err != nil {
				return n, err
			}
		}
	}
	return n, w.failed()
}

// Close compresses what is left, waits until all was written to w and frees
// everything. It returns the first error of w. Closing again has no effect.
func (w *Writer) Close() error {
	if w.closed {
		return w.failed()
	}
	w.closed = true
	switch {
	case w.newEncoder == nil:
	case !w.begun:
		w.closeSmall()
	default:
		if w.cur != nil && len(w.cur.in) > 0 {
			w.dispatch()
		}
		close(w.work)
		close(w.order)
		w.done.Wait()
	}
	w.cur, w.free = nil, nil
	return w.failed()
}

// closeSmall writes a stream of one member without goroutines.
func (w *Writer) closeSmall() {
	var in []byte
	if w.cur != nil {
		in = w.cur.in
	}
	_, err := w.w.Write(w.newEncoder().encode(nil, in))
	w.fail(err)
}

func (w *Writer) pass(p []byte) (int, error) {
	if err := w.failed(); err != nil {
		return 0, err
	}
	n, err := w.w.Write(p)
	w.fail(err)
	return n, err
}

// current returns the member being filled. It makes buffers until there are
// enough to keep every goroutine busy, then waits for one to come back.
func (w *Writer) current() *member {
	if w.cur != nil {
		return w.cur
	}
	select {
	case w.cur = <-w.free:
		return w.cur
	default:
	}
	if w.buffered < w.buffers() {
		w.buffered++
		w.cur = &member{ready: make(chan struct{}, 1)}
		return w.cur
	}
	w.cur = <-w.free
	return w.cur
}

// buffers is how many members are under way at most: one a goroutine that
// compresses, half as many waiting to be written, one being filled.
func (w *Writer) buffers() int { return w.parallel + (w.parallel+1)/2 + 1 }

// dispatch hands the current member to the goroutines.
func (w *Writer) dispatch() {
	if !w.begun {
		w.start()
	}
	m := w.cur
	w.cur = nil
	w.order <- m
	w.work <- m
}

func (w *Writer) start() {
	w.begun = true
	w.free = make(chan *member, w.buffers())
	w.work = make(chan *member, w.buffers())
	w.order = make(chan *member, w.buffers())
	for range w.parallel {
		w.done.Go(func() {
			e := w.newEncoder()
			for m := range w.work {
				w.fail(rescue.Run(func() error { w.fill(e, m); return nil }))
				m.ready <- struct{}{}
			}
		})
	}
	w.done.Go(func() {
		for m := range w.order {
			<-m.ready
			if w.failed() == nil {
				w.fail(rescue.Run(func() error { w.deliver(m); return nil }))
			}
			m.in, m.parts = m.in[:0], m.parts[:0]
			w.free <- m
		}
	})
}

func (w *Writer) fail(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
