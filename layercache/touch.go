package layercache

import (
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// touches are times of last use that are not in the database yet. They are
// written along with other changes: a crash loses at most the order of a few
// seconds.
type touches struct {
	mu      sync.Mutex
	pending map[recordID]time.Time
	flushed time.Time
}

// touchEvery is how long a time of last use may wait for a transaction.
const touchEvery = 5 * time.Second

func (t *touches) add(ids ...recordID) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending == nil {
		t.pending = make(map[recordID]time.Time)
	}
	for _, id := range ids {
		t.pending[id] = now
	}
}

func (t *touches) flushIfDue(tx *bolt.Tx) error {
	t.mu.Lock()
	due := len(t.pending) > 0 && time.Since(t.flushed) >= touchEvery
	t.mu.Unlock()
	if !due {
		return nil
	}
	return t.flush(tx)
}

// flush writes all pending times. If tx fails they are lost, which does no
// harm.
func (t *touches) flush(tx *bolt.Tx) error {
	t.mu.Lock()
	pending := t.pending
	t.pending, t.flushed = nil, time.Now()
	t.mu.Unlock()
	for id, at := range pending {
		// Not makeBucket: a use does not bring a removed org back.
		c := &Cache{org: id.org}
		rec := c.bucket(tx, id.kind.bucket())
		if rec == nil || rec.Get([]byte(id.key)) == nil {
			continue
		}
		b, err := c.makeBucket(tx, usedBucket)
		if err != nil {
			return err
		}
		if err := b.Put(id.usedKey(), encodeTime(at)); err != nil {
			return err
		}
	}
	return nil
}

// overlay brings times of last use up to date with what is not written yet.
func (t *touches) overlay(used map[recordID]time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range used {
		if at, ok := t.pending[id]; ok {
			used[id] = at
		}
	}
}

// apply brings items up to date with what is not written yet.
func (t *touches) apply(items []*item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, it := range items {
		if at, ok := t.pending[it.id]; ok {
			it.used = at
		}
	}
}
