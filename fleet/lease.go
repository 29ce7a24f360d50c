package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A lease keeps a job ours. While it is held the server hears from us often
// enough not to hand the job to somebody else.
type lease struct {
	e     *JetStream
	id    string
	over  func()          // ends it
	ended <-chan struct{} // closed by over

	mu     sync.Mutex
	record record // of this attempt
	rev    uint64
	msg    jetstream.Msg // acknowledged at the end
}

// hold keeps the lease until it ends or the engine closes.
func (e *JetStream) hold(l *lease) {
	e.mu.Lock()
	e.tasks[l.id] = l
	e.work.Add(1) // Next has not returned, so Close still waits
	e.mu.Unlock()
	go func() {
		defer e.work.Done()
		defer l.over()
		tick := time.NewTicker(e.opts.lease() / 6)
		defer tick.Stop()
		for {
			select {
			case <-e.closed:
				return
			case <-l.ended:
				return
			case <-tick.C:
				if err := l.message().InProgress(); err != nil {
					e.log.Warn("cannot keep a running job", "job", l.id, "err", err)
				}
			}
		}
	}()
}

// renew gives a lease a new message. The server hands a job out again when it
// has not heard from us, which happens when the machine was suspended: the worker
// is still there, and must not get a second task.
func (e *JetStream) renew(id string, msg jetstream.Msg) bool {
	e.mu.Lock()
	l := e.tasks[id]
	e.mu.Unlock()
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.msg = msg
	return true
}

func (l *lease) message() jetstream.Msg {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.msg
}

// end implements [Task.Done]. Once the record says that the job is done the rest
// may fail: whoever gets the message then drops it.
func (l *lease) end(ctx context.Context) error {
	e := l.e
	ctx, over, err := e.wait(ctx)
	if err != nil {
		return err
	}
	defer over()
	select {
	case <-l.ended:
		return fmt.Errorf("%w: %s", ErrLost, l.id)
	default:
	}
	r := l.record
	r.State = done
	rev, err := e.records.put(ctx, l.id, r, l.rev)
	if errors.Is(err, errStale) {
		err = l.lost(ctx, r)
	}
	if err == nil || errors.Is(err, ErrLost) {
		l.release()
	}
	if err != nil {
		return err
	}
	e.board.update(l.id, r, rev)
	if err := l.message().DoubleAck(ctx); err != nil {
		e.log.Warn("done job stays in the queue until its turn", "job", l.id, "err", err)
	}
	return nil
}

// lost says why the record is not the one that this attempt wrote: nil when an
// earlier call wrote r without hearing of it.
func (l *lease) lost(ctx context.Context, r record) error {
	now, _, err := l.e.records.get(ctx, l.id)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case now == r:
		return nil
	}
	return fmt.Errorf("%w: %s", ErrLost, l.id)
}

func (l *lease) release() {
	l.e.mu.Lock()
	if l.e.tasks[l.id] == l {
		delete(l.e.tasks, l.id)
	}
	l.e.mu.Unlock()
	l.over()
}
