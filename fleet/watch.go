package fleet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// watchMessages may wait for a watcher in memory; most have at most batchBytes.
const watchMessages = 32

// Tail implements [Engine].
func (e *JetStream) Tail(ctx context.Context, id string) (Tail, error) {
	if err := checkID(id); err != nil {
		return Tail{}, err
	}
	ctx, over, err := e.wait(ctx)
	if err != nil {
		return Tail{}, err
	}
	defer over()
	b, _, err := e.lastBatch(ctx, id)
	if err != nil {
		return Tail{}, err
	}
	return Tail{Seq: b.last(), Ended: b.end}, nil
}

// Watch implements [Engine].
func (e *JetStream) Watch(ctx context.Context, id string, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := checkID(id); err != nil {
			yield(Entry{}, err)
			return
		}
		ctx, cancel := bind(ctx, e.closed)
		defer cancel()
		err := e.follow(ctx, id, max(from, 1), func(en Entry) bool { return yield(en, nil) })
		switch {
		case err == nil || errors.Is(err, errStop):
			// The log has ended, or the watcher has: it must not be called again.
		case ctx.Err() != nil:
			yield(Entry{}, context.Cause(ctx))
		default:
			yield(Entry{}, fmt.Errorf("watch log of job %s: %w", id, err))
		}
	}
}

// errStop: the watcher has had enough.
var errStop = errors.New("stop")

// follow yields entries from number next on until the log ends.
func (e *JetStream) follow(ctx context.Context, id string, next uint64, yield func(Entry) bool) error {
	c, err := e.js.OrderedConsumer(ctx, logStream, jetstream.OrderedConsumerConfig{
		FilterSubjects:    []string{logSubject(id)},
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	msgs, err := c.Messages(jetstream.PullMaxMessages(watchMessages))
	if err != nil {
		return err
	}
	defer e.unwatch(ctx, c)
	defer msgs.Stop()
	for {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		b, err := parseBatch(m.Data())
		if err != nil {
			return err
		}
		if next, err = b.from(next, yield); err != nil || b.end {
			return err
		}
	}
}

// from yields the entries from number next on, and returns the next one.
func (b batch) from(next uint64, yield func(Entry) bool) (uint64, error) {
	if b.last() < next {
		return next, nil
	}
	more := true
	err := b.entries(func(en Entry) bool {
		more = en.Seq < next || yield(en)
		return more
	})
	if err == nil && !more {
		err = errStop
	}
	return b.last() + 1, err
}

// unwatch saves the server from keeping a consumer until it counts as inactive.
func (e *JetStream) unwatch(ctx context.Context, c jetstream.Consumer) {
	if e.begin() != nil {
		return
	}
	defer e.work.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if info := c.CachedInfo(); info != nil {
		if err := e.logs.DeleteConsumer(ctx, info.Name); err != nil {
			e.log.Debug("consumer of a watcher stays for a while", "err", err)
		}
	}
}
