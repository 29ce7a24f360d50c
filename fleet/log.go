package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"
)

// Log implements [Engine].
func (e *JetStream) Log(ctx context.Context, id string) (Log, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	ctx, over, err := e.wait(ctx)
	if err != nil {
		return nil, err
	}
	defer over()
	for {
		w, err := e.join(ctx, id, nil)
		if w == nil && err == nil {
			if w, err = e.newWriter(ctx, id); err == nil {
				w, err = e.join(ctx, id, w)
			}
		}
		if err != nil {
			return nil, err
		}
		if w != nil {
			return &handle{w: w}, nil
		}
	}
}

// newWriter returns a writer that goes on where the log stands.
func (e *JetStream) newWriter(ctx context.Context, id string) (*writer, error) {
	b, seq, err := e.lastBatch(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		b.first = 1
	case err != nil:
		return nil, err
	case b.end:
		return nil, fmt.Errorf("%w: %s", ErrEnded, id)
	}
	return &writer{
		e: e, id: id, last: seq,
		kick:   make(chan struct{}, 1),
		over:   make(chan struct{}),
		msg:    newBatch(nil),
		next:   b.last() + 1,
		stored: b.last(),
		moved:  make(chan struct{}),
	}, nil
}

// join returns the open writer of a log with one more user. When there is none it
// starts fresh, or returns nil; when there is one on its way out it waits for
// that, and returns nil.
func (e *JetStream) join(ctx context.Context, id string, fresh *writer) (*writer, error) {
	e.mu.Lock()
	w := e.writers[id]
	switch {
	case e.closing:
		e.mu.Unlock()
		return nil, ErrClosed
	case w == nil && fresh == nil:
		e.mu.Unlock()
		return nil, nil
	case w == nil:
		w = fresh
		e.writers[id] = w
		e.work.Go(w.run)
	case w.refs == 0:
		e.mu.Unlock()
		select {
		case <-w.over:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	w.refs++
	e.mu.Unlock()
	return w, nil
}

// part lets go of a writer and reports whether the caller was its last user, which
// makes it leave.
func (e *JetStream) part(w *writer) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.refs--
	if w.refs == 0 {
		w.leave()
	}
	return w.refs == 0
}

// retire takes a writer that has ended from the open ones.
func (e *JetStream) retire(w *writer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.writers, w.id)
}

// lastBatch returns the last message of a log and its sequence. It fails with
// [ErrNotFound].
func (e *JetStream) lastBatch(ctx context.Context, id string) (batch, uint64, error) {
	m, err := e.logs.GetLastMsgForSubject(ctx, logSubject(id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return batch{}, 0, fmt.Errorf("%w: no log of %s", ErrNotFound, id)
	}
	if err != nil {
		return batch{}, 0, fmt.Errorf("read log of job %s: %w", id, answer(ctx, err))
	}
	b, err := parseBatch(m.Data)
	if err != nil {
		return batch{}, 0, fmt.Errorf("read log of job %s: %w", id, err)
	}
	return b, m.Sequence, nil
}

// A handle is one use of a writer.
type handle struct {
	w      *writer
	closed atomic.Bool
}

func (h *handle) Append(payload []byte) (uint64, error) {
	if h.closed.Load() {
		return 0, h.w.errClosed()
	}
	return h.w.append(payload)
}

func (h *handle) Flush(ctx context.Context) error { return h.w.flush(ctx) }

func (h *handle) End(ctx context.Context) error {
	if h.closed.Load() {
		return h.w.errClosed()
	}
	return h.w.end(ctx)
}

func (h *handle) Close(ctx context.Context) error {
	if h.closed.Swap(true) {
		return nil
	}
	if last := h.w.e.part(h.w); last {
		return h.w.wait(ctx)
	}
	return h.w.flush(ctx)
}
