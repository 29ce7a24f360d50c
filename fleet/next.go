package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	firstLook = 2 * time.Millisecond // until a job that is on the board but not in its lane is looked for again
	lastLook  = time.Second          // the same, at most; and between looks for jobs of dead engines
)

// Next implements [Engine]. One Next at a time looks for a job: two would both
// choose the same org.
func (e *JetStream) Next(ctx context.Context) (*Task, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.work.Done()
	ctx, cancel := bind(ctx, e.closed)
	defer cancel()
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-e.turn }()
	pause := firstLook
	for ctx.Err() == nil {
		orgs, changed := e.board.candidates()
		if t := e.search(ctx, orgs); t != nil {
			return t, nil
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
			pause = firstLook
		case <-t.C:
			pause = min(2*pause, lastLook)
		}
		t.Stop()
	}
	return nil, context.Cause(ctx)
}

// search starts the next job of the first org that has one.
func (e *JetStream) search(ctx context.Context, orgs []string) *Task {
	if !e.solo && time.Since(e.scanned) >= lastLook {
		orgs = append(orgs, e.board.foreign()...) // what the server takes from a silent worker appears in its lane unannounced
		e.scanned = time.Now()
	}
	for _, org := range orgs {
		t, err := e.take(ctx, org)
		if err != nil {
			delete(e.lanes, org)
			if ctx.Err() == nil {
				e.log.Warn("no job from the queue, trying again", "org", org, "err", err)
			}
		}
		if t != nil {
			return t
		}
	}
	return nil
}

// take starts the next job of an org. It returns nil when there is none.
func (e *JetStream) take(ctx context.Context, org string) (*Task, error) {
	lane, err := e.lane(ctx, org)
	if err != nil {
		return nil, err
	}
	for {
		batch, err := lane.FetchNoWait(1)
		if err != nil {
			return nil, err
		}
		msg, ok := <-batch.Messages()
		if !ok {
			return nil, batch.Error()
		}
		t, err := e.start(context.WithoutCancel(ctx), msg)
		if err != nil {
			return nil, errors.Join(err, msg.Nak())
		}
		if t != nil {
			return t, nil
		}
	}
}

// lane returns the consumer of an org's jobs. The server forgets it when nobody
// has asked for long, and makes it anew.
func (e *JetStream) lane(ctx context.Context, org string) (jetstream.Consumer, error) {
	if c := e.lanes[org]; c != nil {
		return c, nil
	}
	c, err := e.queue.CreateOrUpdateConsumer(ctx, e.opts.lane(org, e.solo))
	if err != nil {
		return nil, fmt.Errorf("lane of %q: %w", org, err)
	}
	e.lanes[org] = c
	return c, nil
}

// start makes a message of the queue a task. It returns nil when there is nothing
// to start: the job was removed, is done, or is ours already.
func (e *JetStream) start(ctx context.Context, msg jetstream.Msg) (*Task, error) {
	j, err := parseJob(msg.Headers(), msg.Data())
	if err != nil {
		e.log.Error("drop a job that cannot be read", "err", err)
		return nil, msg.TermWithReason("cannot be read")
	}
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	if e.renew(j.ID, msg) {
		return nil, nil
	}
	ends, over := context.WithCancel(context.Background())
	signals, err := e.listen(ends, j.ID)
	if err != nil {
		over()
		return nil, err
	}
	r, rev, err := e.claim(ctx, j, meta.Sequence.Stream)
	if err != nil {
		over()
		return nil, err
	}
	if r.ended() {
		over()
		return nil, msg.DoubleAck(ctx)
	}
	l := &lease{e: e, id: j.ID, record: r, rev: rev, msg: msg, over: over, ended: ends.Done()}
	e.hold(l)
	return &Task{Job: j, Attempt: r.Attempt, signals: signals, done: l.end}, nil
}

// claim writes down that the job runs here and returns its record, or the one that
// says that it has ended.
func (e *JetStream) claim(ctx context.Context, j Job, seq uint64) (record, uint64, error) {
	e.board.expect(j.ID, j.Org, seq)
	for {
		r, rev, err := e.records.get(ctx, j.ID)
		switch {
		case errors.Is(err, ErrNotFound): // Submit has not written it yet
			r = record{Org: j.Org, App: j.App, Seq: seq}
		case err != nil:
			e.board.forget(j.ID)
			return record{}, 0, err
		case r.ended():
			e.board.forget(j.ID)
			return r, rev, nil
		}
		r = r.started(e.owner)
		rev, err = e.records.put(ctx, j.ID, r, rev)
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			e.board.forget(j.ID)
			return record{}, 0, err
		}
		e.board.update(j.ID, r, rev)
		return r, rev, nil
	}
}
