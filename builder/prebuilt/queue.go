package prebuilt

import (
	"io"
	"sync"
)

// queueSize is how far a reader may lie behind.
const queueSize = 1 << 20

// A queue passes bytes from one goroutine to another and holds no more than
// queueSize of them.
type queue struct {
	mu   sync.Mutex
	wake sync.Cond
	buf  []byte // a ring, made with the first byte
	from int    // of what is held
	held int
	end  error // for the reader, once nothing is held
	gone error // for the writer: nobody reads any more
}

func newQueue() *queue {
	q := &queue{}
	q.wake.L = &q.mu
	return q
}

// Write waits for room. It fails with the cause for which the reader stopped.
func (q *queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.buf == nil {
		q.buf = make([]byte, queueSize)
	}
	done := 0
	for done < len(p) {
		for q.held == len(q.buf) && q.gone == nil && q.end == nil {
			q.wake.Wait()
		}
		if q.gone != nil {
			return done, q.gone
		}
		if q.end != nil {
			return done, q.end
		}
		at := (q.from + q.held) % len(q.buf)
		n := copy(q.buf[at:min(len(q.buf), at+len(q.buf)-q.held)], p[done:])
		done += n
		q.held += n
		q.wake.Broadcast()
	}
	return done, nil
}

// Read waits for bytes or for the end.
func (q *queue) Read(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.held == 0 && q.end == nil && q.gone == nil {
		q.wake.Wait()
	}
	switch {
	case q.gone != nil:
		return 0, q.gone
	case q.held == 0:
		return 0, q.end
	}
	n := copy(p, q.buf[q.from:min(len(q.buf), q.from+q.held)])
	q.from = (q.from + n) % len(q.buf)
	q.held -= n
	q.wake.Broadcast()
	return n, nil
}

// close ends the queue: what is held can still be read if cause is nil.
func (q *queue) close(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.end == nil {
		q.end = io.EOF
		if cause != nil {
			q.end, q.held = cause, 0
		}
	}
	q.wake.Broadcast()
}

// leave says that nobody reads any more, because of cause.
func (q *queue) leave(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone == nil {
		q.gone = cause
	}
	q.buf, q.held = nil, 0
	q.wake.Broadcast()
}
