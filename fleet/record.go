package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// A record says how far a job has come. It changes by compare-and-set only: a
// queued job becomes running or removed, never both, and a worker whose job was
// given to another one cannot end it.
type record struct {
	Org     string `json:"org"`
	App     string `json:"app"`
	Seq     uint64 `json:"seq"` // of the message in the queue
	State   state  `json:"state"`
	Attempt int    `json:"attempt,omitempty"`
	Owner   string `json:"owner,omitempty"` // the engine that runs it
}

func (r record) ended() bool { return r.State == done || r.State == removed }

// started returns the record of the attempt that owner begins.
func (r record) started(owner string) record {
	r.State, r.Owner, r.Attempt = running, owner, r.Attempt+1
	return r
}

// errStale: the record has changed since it was read.
var errStale = errors.New("record has changed")

// records keeps a record for each job, a key each.
type records struct{ kv jetstream.KeyValue }

// get fails with [ErrNotFound].
func (s records) get(ctx context.Context, id string) (record, uint64, error) {
	e, err := s.kv.Get(ctx, id)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return record{}, 0, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return record{}, 0, fmt.Errorf("read record of job %s: %w", id, answer(ctx, err))
	}
	var r record
	if err := json.Unmarshal(e.Value(), &r); err != nil {
		return record{}, 0, fmt.Errorf("read record of job %s: %w", id, err)
	}
	return r, e.Revision(), nil
}

// put writes r if the record is at revision rev, 0 meaning that there is none,
// and returns its new revision; otherwise it fails with errStale.
func (s records) put(ctx context.Context, id string, r record, rev uint64) (uint64, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if rev == 0 {
		rev, err = s.kv.Create(ctx, id, b)
	} else {
		rev, err = s.kv.Update(ctx, id, b, rev)
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return 0, errStale
	case err != nil:
		return 0, fmt.Errorf("write record of job %s: %w", id, answer(ctx, err))
	}
	return rev, nil
}
