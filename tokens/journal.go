package tokens

import (
	"context"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// newID returns a fresh, sortable identifier with a prefix.
func newID(prefix string) string { return prefix + ulid.Make().String() }

// Allow is [Allow] as a decision that is recorded.
func (a *Authority) Allow(ctx context.Context, p Principal, action, app string) error {
	err := Allow(p, action, app)
	a.decided(ctx, p, action, resource("app", app), err)
	return err
}

// AllowIn is [AllowIn] as a decision that is recorded.
func (a *Authority) AllowIn(ctx context.Context, p Principal, action, app, env string) error {
	err := AllowIn(p, action, app, env)
	in := resource("environment", env)
	if name := resource("app", app); name != "" && in != "" {
		in = name + " in " + in
	} else {
		in = name + in
	}
	a.decided(ctx, p, action, in, err)
	return err
}

func resource(kind, name string) string {
	if name == "" {
		return ""
	}
	return kind + " " + name
}

// decided records a decision that changes nothing in the store.
func (a *Authority) decided(ctx context.Context, p Principal, action, resource string, err error) {
	d := decision(ctx, p, action, resource)
	if err != nil {
		d.Allowed, d.Reason = false, err.Error()
	}
	a.journal.add(d)
}

// decision returns the record of something allowed.
func decision(ctx context.Context, p Principal, action, resource string) Decision {
	return Decision{
		ID: newID(""), Time: time.Now(), Org: p.Org, Token: p.ID, Actor: p.Actor(), Action: action, Resource: resource,
		Addr: addr(ctx), Allowed: true, Count: 1,
	}
}

// A journal holds decisions until they are written. Those that differ in
// nothing but the moment, within a second, are one with a count.
type journal struct {
	mu      sync.Mutex
	waiting []Decision
	at      map[Decision]int // place in waiting of those that a second one may join
	dropped int64
}

// journalMost bounds the decisions that wait for a store that does not answer.
const journalMost = 100_000

func (j *journal) add(d Decision) {
	now := time.Now()
	key := d
	key.ID, key.Time, key.Count = "", now.Truncate(time.Second), 0
	j.mu.Lock()
	defer j.mu.Unlock()
	if i, ok := j.at[key]; ok {
		j.waiting[i].Count++
		return
	}
	if len(j.waiting) >= journalMost {
		j.dropped++
		return
	}
	if d.ID, d.Time, d.Count = newID(""), now, 1; j.at == nil {
		j.at = map[Decision]int{}
	}
	j.at[key] = len(j.waiting)
	j.waiting = append(j.waiting, d)
}

// take returns what waits, and how many had no room.
func (j *journal) take() ([]Decision, int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	ds, dropped := j.waiting, j.dropped
	j.waiting, j.at, j.dropped = nil, nil, 0
	return ds, dropped
}

// putBack is for decisions that could not be written.
func (j *journal) putBack(ds []Decision) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting, j.at = append(ds, j.waiting...), nil
}

func (a *Authority) flushJournal(ctx context.Context) error {
	ds, dropped := a.journal.take()
	if dropped > 0 {
		a.log.ErrorContext(ctx, "audit log: the database was away for too long", "lost", dropped)
	}
	if len(ds) == 0 {
		return nil
	}
	err := a.store.Record(ctx, ds)
	if err != nil {
		a.journal.putBack(ds)
	}
	return err
}

// uses are when and where from tokens were last used, until that is written.
type uses struct {
	mu   sync.Mutex
	last map[string]Use
}

func (u *uses) note(id, address string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		u.last = map[string]Use{}
	}
	u.last[id] = Use{ID: id, At: time.Now(), Addr: address}
}

// fill puts what is not yet written into a record.
func (u *uses) fill(t *Token) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if use, ok := u.last[t.ID]; ok && use.At.After(t.LastUsed) {
		t.LastUsed, t.LastAddr = use.At, use.Addr
	}
}

func (a *Authority) flushUses(ctx context.Context) error {
	a.uses.mu.Lock()
	last := a.uses.last
	a.uses.last = nil
	a.uses.mu.Unlock()
	if len(last) == 0 {
		return nil
	}
	list := make([]Use, 0, len(last))
	for _, use := range last {
		list = append(list, use)
	}
	err := a.store.TouchTokens(ctx, list)
	if err != nil {
		a.uses.putBack(last)
	}
	return err
}

func (u *uses) putBack(last map[string]Use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, use := range u.last {
		last[id] = use
	}
	u.last = last
}
