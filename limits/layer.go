package limits

import (
	"archive/tar"
	"fmt"
	"io"
	"sync"
)

// A Layer charges the entries of one layer as they come, either by
// [Layer.Entry] or by the stream of [Layer.Reader]. It is used by one
// goroutine at a time. Close it also when it failed.
type Layer struct {
	ledger *Ledger
	number uint16
	source int

	mu     sync.Mutex // of all below
	delta  deltaWriter
	err    error // first failure, then of every call
	meters []*coroutine
}

// Entry charges an entry; call it before its content is written. Whiteouts,
// opaque directories and overwrites credit what they take away. The entry that
// crosses the limit fails with a *[SizeError], and everything after it, too.
// Other failures wrap [ErrEntry] or [ErrTooManyPaths].
func (y *Layer) Entry(h *tar.Header) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.err != nil {
		return y.err
	}
	o, counts, err := parse(h)
	if err == nil && counts {
		if err = y.delta.add(o); err == nil {
			err = y.charge(o)
		}
	}
	y.err = err
	return err
}

// charge applies o to the ledger.
func (y *Layer) charge(o op) error {
	l := y.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != y {
		return ErrClosed
	}
	err := l.tree.apply(o, y.number)
	l.account(y)
	if err == nil && l.max >= 0 && l.tree.bytes > l.max {
		return &SizeError{l.report("/" + o.path)}
	}
	return err
}

// Close ends the layer and returns its delta. It fails with what the layer
// failed with, and with [io.ErrUnexpectedEOF] if a stream was not read to its
// end: a layer that is not whole has no delta.
func (y *Layer) Close() (Delta, error) {
	whole := y.abandon()
	y.mu.Lock()
	defer y.mu.Unlock()
	err := y.err
	if err == nil && !whole {
		err = fmt.Errorf("layer stream: %w", io.ErrUnexpectedEOF)
	}
	y.err = ErrClosed
	if err != nil {
		return nil, err
	}
	return y.delta.finish(), nil
}

// abandon ends the layer and its meters. It reports whether those had come to
// their ends.
func (y *Layer) abandon() (whole bool) {
	y.ledger.mu.Lock()
	if y.ledger.open == y {
		y.ledger.open = nil
	}
	y.ledger.mu.Unlock()

	y.mu.Lock()
	meters := y.meters
	y.meters = nil
	y.mu.Unlock()
	whole = true
	for _, m := range meters {
		m.stop() // may call back
		whole = whole && m.ended
	}
	return whole
}
