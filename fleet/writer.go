package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Entries that come while a message is on its way go into the next one. It leaves
// at once when the last one left batchPause ago, or when it has this much in it.
const (
	batchPause   = 10 * time.Millisecond
	batchEntries = 50
	batchBytes   = 16 << 10

	// writerBytes may wait for a message before Append waits too. With one more
	// payload, a message stays below the server's limit of 1 MiB.
	writerBytes = 256 << 10
)

// A writer appends to a log for all who have it open in this engine. One message
// at a time is on its way, and says which one must be the last before it: so a
// writer that does not know of another one's entries fails.
type writer struct {
	e    *JetStream
	id   string
	refs int           // under e.mu
	kick chan struct{} // has a token when run must look again
	over chan struct{} // closed when run has ended

	// Only run uses these.
	last uint64 // stream sequence of the log's last message
	idle []byte // a buffer to use again

	mu      sync.Mutex
	msg     []byte        // what comes next
	count   uint32        // entries in msg
	next    uint64        // number of the next entry
	stored  uint64        // number of the last entry on disk
	hurry   bool          // somebody waits for msg
	leaving bool          // run ends when all is stored
	ending  bool          // End was called
	ended   bool          // the end is on disk
	err     error         // why nothing more is stored
	moved   chan struct{} // closed when stored, ended or err changes
}

func (w *writer) append(payload []byte) (uint64, error) {
	if err := checkPayload(payload); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && len(w.msg) > writerBytes {
		moved := w.moved
		w.mu.Unlock()
		<-moved
		w.mu.Lock()
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case w.ending:
		return 0, fmt.Errorf("%w: %s", ErrEnded, w.id)
	case w.leaving:
		return 0, w.errClosed()
	}
	before := w.full()
	w.msg = appendEntry(w.msg, payload)
	w.count++
	if w.count == 1 || w.full() != before {
		w.wake()
	}
	w.next++
	return w.next - 1, nil
}

func (w *writer) errClosed() error { return fmt.Errorf("log of job %s: %w", w.id, ErrClosed) }

func (w *writer) full() bool { return w.count >= batchEntries || len(w.msg) >= batchBytes }

func (w *writer) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// leave makes run end when all is stored.
func (w *writer) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving = true
	w.wake()
}

// wait returns when run has ended.
func (w *writer) wait(ctx context.Context) error {
	select {
	case <-w.over:
	case <-ctx.Done():
		return fmt.Errorf("log of job %s: %w", w.id, context.Cause(ctx))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *writer) flush(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	goal := w.next - 1
	return w.await(ctx, func() bool { return w.stored >= goal })
}

func (w *writer) end(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending {
		return fmt.Errorf("%w: %s", ErrEnded, w.id)
	}
	if w.leaving {
		return w.errClosed()
	}
	w.ending = true
	return w.await(ctx, func() bool { return w.ended })
}

// await hurries run until ok. It is called under mu, and lets go of it to wait.
func (w *writer) await(ctx context.Context, ok func() bool) error {
	for !ok() {
		if w.err != nil {
			return w.err
		}
		w.hurry = true
		w.wake()
		moved := w.moved
		w.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		w.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// run sends messages until it may leave or one fails.
func (w *writer) run() {
	defer close(w.over)
	defer w.e.retire(w)
	var sent time.Time
	for {
		msg, first, count, end := w.due(sent)
		if msg == nil {
			return
		}
		seal(msg, first, count, end)
		if err := w.send(msg); err != nil {
			w.fail(err)
			return
		}
		sent, w.idle = time.Now(), msg
		w.done(first+uint64(count)-1, end)
	}
}

// due waits for the next message. It returns nil when there will be none.
func (w *writer) due(sent time.Time) (msg []byte, first uint64, count uint32, end bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		pending := w.count > 0 || w.ending && !w.ended
		pause := batchPause - time.Since(sent)
		switch {
		case w.err != nil, !pending && w.leaving:
			return nil, 0, 0, false
		case pending && (w.hurry || w.leaving || w.ending || w.full() || pause <= 0):
			msg, count, end = w.msg, w.count, w.ending
			w.msg, w.count, w.hurry = newBatch(w.idle), 0, false
			return msg, w.next - uint64(count), count, end
		}
		w.mu.Unlock()
		if pending {
			w.rest(pause)
		} else {
			<-w.kick
		}
		w.mu.Lock()
	}
}

func (w *writer) rest(pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-w.kick:
	case <-t.C:
	}
}

func (w *writer) done(last uint64, end bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stored, w.ended = last, end
	w.move()
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.move()
		w.wake()
	}
}

func (w *writer) move() {
	close(w.moved)
	w.moved = make(chan struct{})
}

// send stores a message. An attempt whose outcome is unknown is made again: if it
// had succeeded, the log's last message is this one.
func (w *writer) send(msg []byte) error {
	ctx, cancel := bind(context.Background(), w.e.closed)
	defer cancel()
	ctx, stop := context.WithTimeoutCause(ctx, w.e.patience(), ErrUnavailable)
	defer stop()
	for {
		ack, err := w.try(ctx, msg)
		switch {
		case err == nil:
			w.last = ack.Sequence
			return nil
		case isStale(err):
			again, err := w.reconcile(ctx, msg)
			if err != nil || !again {
				return err
			}
		case ctx.Err() != nil:
			return fmt.Errorf("write log of job %s: %w", w.id, context.Cause(ctx))
		case !isSilence(err):
			return fmt.Errorf("write log of job %s: %w", w.id, err)
		}
	}
}

func (w *writer) try(ctx context.Context, msg []byte) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return w.e.js.Publish(ctx, logSubject(w.id), msg, jetstream.WithExpectLastSequencePerSubject(w.last))
}

// reconcile finds out why the log's last message is not the one that this writer
// wrote last: because msg has been stored, or, which is worth another try, because
// the log's entries are no longer kept.
func (w *writer) reconcile(ctx context.Context, msg []byte) (again bool, err error) {
	m, err := w.e.logs.GetLastMsgForSubject(ctx, logSubject(w.id))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) && w.last != 0:
		w.last = 0
		return true, nil
	case err != nil:
		return false, fmt.Errorf("write log of job %s: %w", w.id, err)
	case m.Sequence > w.last && bytes.Equal(m.Data, msg):
		w.last = m.Sequence
		return false, nil
	}
	return false, fmt.Errorf("%w: %s", ErrFenced, w.id)
}
