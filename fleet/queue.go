package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// jobHeader holds what a message of the queue says of its job beside the payload.
const jobHeader = "Slipway-Job"

type jobMeta struct {
	ID  string `json:"id"`
	Org string `json:"org"`
	App string `json:"app"`
}

func formatJob(j Job) (*nats.Msg, error) {
	meta, err := json.Marshal(jobMeta{j.ID, j.Org, j.App})
	if err != nil {
		return nil, err
	}
	return &nats.Msg{
		Subject: queueSubject(j.Org, j.App),
		Header:  nats.Header{jobHeader: {string(meta)}},
		Data:    j.Payload,
	}, nil
}

func parseJob(h nats.Header, payload []byte) (Job, error) {
	var m jobMeta
	if err := json.Unmarshal([]byte(h.Get(jobHeader)), &m); err != nil {
		return Job{}, fmt.Errorf("header %s: %w", jobHeader, err)
	}
	j := Job{ID: m.ID, Org: m.Org, App: m.App, Payload: payload}
	return j, j.check()
}

// Submit implements [Engine]. The message comes first, then the record: workers
// look for a job when its record appears, and must find it.
func (e *JetStream) Submit(ctx context.Context, j Job) error {
	if err := j.check(); err != nil {
		return err
	}
	ctx, over, err := e.wait(ctx)
	if err != nil {
		return err
	}
	defer over()
	switch _, _, err := e.records.get(ctx, j.ID); {
	case err == nil:
		return fmt.Errorf("%w: %s", ErrExists, j.ID)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	msg, err := formatJob(j)
	if err != nil {
		return err
	}
	ack, err := e.js.PublishMsg(ctx, msg, jetstream.WithMsgID(j.ID))
	switch {
	case isFull(err):
		return fmt.Errorf("%w: %s has %d", ErrBacklog, j.App, e.opts.backlog())
	case err != nil:
		return fmt.Errorf("submit job %s: %w", j.ID, answer(ctx, err))
	case ack.Duplicate:
		return fmt.Errorf("%w: %s", ErrExists, j.ID)
	}
	return e.record(context.WithoutCancel(ctx), j, ack.Sequence)
}

// record makes the record of a job that is in the queue.
func (e *JetStream) record(ctx context.Context, j Job, seq uint64) error {
	r := record{Org: j.Org, App: j.App, Seq: seq, State: queued}
	e.board.expect(j.ID, j.Org, seq)
	rev, err := e.records.put(ctx, j.ID, r, 0)
	switch {
	case errors.Is(err, errStale): // a worker was quicker
		return nil
	case err != nil:
		e.board.forget(j.ID)
		return err
	}
	e.board.update(j.ID, r, rev)
	return nil
}

// Remove implements [Engine].
func (e *JetStream) Remove(ctx context.Context, id string) (bool, error) {
	if err := checkID(id); err != nil {
		return false, err
	}
	ctx, over, err := e.wait(ctx)
	if err != nil {
		return false, err
	}
	defer over()
	for {
		r, rev, err := e.records.get(ctx, id)
		if err != nil {
			return false, err
		}
		if r.State != queued {
			return false, nil
		}
		r.State = removed
		rev, err = e.records.put(ctx, id, r, rev)
		if errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			return false, err
		}
		e.board.update(id, r, rev)
		if err := e.drop(context.WithoutCancel(ctx), r.Seq); err != nil {
			e.log.Warn("removed job stays in the queue until its turn", "job", id, "err", err)
		}
		return true, nil
	}
}

// Positions implements [Engine].
func (e *JetStream) Positions(ctx context.Context, id string) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		if err := checkID(id); err != nil {
			yield(0, err)
			return
		}
		ctx, cancel := bind(ctx, e.closed)
		defer cancel()
		e.board.positions(ctx, id, func(ctx context.Context) (state, error) { return e.find(ctx, id) })(yield)
	}
}
