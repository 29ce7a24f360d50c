package fleet

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// A memoryLog is a log of [Memory].
type memoryLog struct {
	m  *Memory
	id string

	mu      sync.Mutex
	entries []Entry
	ended   bool
	moved   chan struct{} // closed when the others change
}

// log returns the log of a job, which it makes if it must.
func (m *Memory) log(id string) *memoryLog {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.logs[id]
	if l == nil {
		l = &memoryLog{m: m, id: id, moved: make(chan struct{})}
		m.logs[id] = l
	}
	return l
}

// Log implements [Engine].
func (m *Memory) Log(_ context.Context, id string) (Log, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if m.isClosed() {
		return nil, ErrClosed
	}
	l := m.log(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil, fmt.Errorf("%w: %s", ErrEnded, id)
	}
	return &memoryHandle{l: l}, nil
}

// Tail implements [Engine].
func (m *Memory) Tail(_ context.Context, id string) (Tail, error) {
	if err := checkID(id); err != nil {
		return Tail{}, err
	}
	if m.isClosed() {
		return Tail{}, ErrClosed
	}
	l := m.log(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == 0 && !l.ended {
		return Tail{}, fmt.Errorf("%w: no log of %s", ErrNotFound, id)
	}
	return Tail{Seq: uint64(len(l.entries)), Ended: l.ended}, nil
}

// Watch implements [Engine].
func (m *Memory) Watch(ctx context.Context, id string, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := checkID(id); err != nil {
			yield(Entry{}, err)
			return
		}
		ctx, cancel := bind(ctx, m.closed)
		defer cancel()
		l := m.log(id)
		for next := max(from, 1); ; {
			if ctx.Err() != nil {
				yield(Entry{}, context.Cause(ctx))
				return
			}
			entries, ended, moved := l.after(next)
			for _, en := range entries {
				if !yield(en, nil) {
					return
				}
				next = en.Seq + 1
			}
			if ended {
				return
			}
			select {
			case <-moved:
			case <-ctx.Done():
			}
		}
	}
}

// after returns the entries from number next on, whether they are the last, and a
// channel that closes when there are more.
func (l *memoryLog) after(next uint64) ([]Entry, bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := min(next-1, uint64(len(l.entries)))
	return l.entries[i:], l.ended, l.moved
}

// change calls f under mu and wakes the watchers.
func (l *memoryLog) change(f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return fmt.Errorf("%w: %s", ErrEnded, l.id)
	case l.m.isClosed():
		return ErrClosed
	}
	f()
	close(l.moved)
	l.moved = make(chan struct{})
	return nil
}

// A memoryHandle is one use of a memoryLog.
type memoryHandle struct {
	l      *memoryLog
	closed atomic.Bool
}

func (h *memoryHandle) Append(payload []byte) (seq uint64, err error) {
	if h.closed.Load() {
		return 0, ErrClosed
	}
	if err := checkPayload(payload); err != nil {
		return 0, err
	}
	err = h.l.change(func() {
		seq = uint64(len(h.l.entries)) + 1
		h.l.entries = append(h.l.entries, Entry{Seq: seq, Payload: slices.Clone(payload)})
	})
	return seq, err
}

func (h *memoryHandle) Flush(context.Context) error { return nil }

func (h *memoryHandle) End(context.Context) error {
	if h.closed.Load() {
		return ErrClosed
	}
	return h.l.change(func() { h.l.ended = true })
}

func (h *memoryHandle) Close(context.Context) error {
	h.closed.Store(true)
	return nil
}
