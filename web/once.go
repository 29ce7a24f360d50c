package web

import (
	"crypto/rand"
	"sync"
	"time"
)

// A once keeps values that are shown one time: between the form that made a
// token and the page that has it. Nothing of it is written anywhere.
type once struct {
	now  func() time.Time
	mu   sync.Mutex
	kept map[string]keepsake
}

type keepsake struct {
	owner string // ID of the session that may see it
	until time.Time
	value any
}

// How much is kept, and how long it waits for its page.
const (
	maxKept  = 1000
	keptLife = 2 * time.Minute
)

func newOnce(now func() time.Time) *once { return &once{now: now, kept: map[string]keepsake{}} }

// put keeps a value for a session and returns its key. If too much is kept,
// it returns "".
func (o *once) put(owner string, value any) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	for key, k := range o.kept {
		if !now.Before(k.until) {
			delete(o.kept, key)
		}
	}
	if len(o.kept) >= maxKept {
		return ""
	}
	key := rand.Text()
	o.kept[key] = keepsake{owner, now.Add(keptLife), value}
	return key
}

// take returns a value and forgets it; nil if it is another session's, or gone.
func (o *once) take(owner, key string) any {
	o.mu.Lock()
	defer o.mu.Unlock()
	k, ok := o.kept[key]
	if !ok || k.owner != owner {
		return nil
	}
	delete(o.kept, key)
	if !o.now().Before(k.until) {
		return nil
	}
	return k.value
}
