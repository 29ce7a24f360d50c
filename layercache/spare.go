package layercache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// SpareOptions describes a [Spare].
type SpareOptions struct {
	App   string
	What  string // names it for people, in the log of evictions; no secrets
	Bytes int64  // on the disk that nothing else counts

	// Drop gives back what the spare stands for. It is called once, under no
	// lock of the store but the turn to evict, and must not wait for anybody
	// who asks for room or usage, or prunes.
	Drop func(context.Context)
}

// A Spare is something of an org that is kept for as long as there is room for
// it: the file system of a step that failed. It is counted with the cache, and
// goes before all else that is evicted. The store knows it as long as the
// process lives. Its methods may be called concurrently.
type Spare struct {
	c    *Cache
	opts SpareOptions

	mu     sync.Mutex
	bytes  int64
	held   int
	ending bool // it goes when nobody holds it any more
	gone   bool
	used   time.Time
}

// Spare makes a spare, which lives until [Spare.Drop] or an eviction.
func (c *Cache) Spare(o SpareOptions) *Spare {
	x := &Spare{c: c, opts: o, bytes: o.Bytes, used: time.Now()}
	c.s.spares.add(x)
	c.s.used.bytes.Add(o.Bytes)
	c.s.relieveSoon()
	return x
}

// Hold keeps a spare from being evicted until release is called. It reports
// false if the spare is gone, or is going when those release it that have it.
func (x *Spare) Hold() (release func(context.Context), ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.gone || x.ending {
		return nil, false
	}
	x.held++
	x.used = time.Now()
	var once sync.Once
	return func(ctx context.Context) { once.Do(func() { x.let(ctx) }) }, true
}

func (x *Spare) let(ctx context.Context) {
	x.mu.Lock()
	x.held--
	x.used = time.Now()
	end := x.ending
	x.mu.Unlock()
	x.c.s.used.futile.Store(0)
	if end {
		x.drop(ctx)
	}
}

// Weigh notes another size.
func (x *Spare) Weigh(bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.gone {
		x.c.s.used.bytes.Add(bytes - x.bytes)
		x.bytes = bytes
	}
}

// Drop gives the spare up: now, or when the last who holds it releases it.
// What is gone stays so.
func (x *Spare) Drop(ctx context.Context) {
	x.mu.Lock()
	x.ending = true
	x.mu.Unlock()
	x.drop(ctx)
}

// drop reports whether the spare went, and how large it was.
func (x *Spare) drop(ctx context.Context) (bytes int64, ok bool) {
	x.mu.Lock()
	if x.gone || x.held > 0 {
		x.mu.Unlock()
		return 0, false
	}
	x.gone = true
	bytes = x.bytes
	x.mu.Unlock()
	x.c.s.spares.remove(x)
	x.c.s.used.bytes.Add(-bytes)
	x.opts.Drop(context.WithoutCancel(ctx))
	return bytes, true
}

func (x *Spare) state() (bytes int64, used time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.bytes, x.used
}

// spares are those that are not gone.
type spares struct {
	mu  sync.Mutex
	all []*Spare // oldest first
}

func (h *spares) add(x *Spare) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, x)
}

func (h *spares) remove(x *Spare) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = slices.DeleteFunc(h.all, func(o *Spare) bool { return o == x })
}

// of returns those of an org, "" means all, oldest first.
func (h *spares) of(org string) []*Spare {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.all), func(x *Spare) bool { return org != "" && x.c.org != org })
}

func (h *spares) bytes() (total int64) {
	for _, x := range h.of("") {
		bytes, _ := x.state()
		total += bytes
	}
	return total
}

func (x *Spare) item() *item {
	it := &item{id: recordID{org: x.c.org, kind: spareKind}, apps: withApp(nil, x.opts.App), count: 1}
	it.bytes, it.used = x.state()
	return it
}

// dropSpares drops those that nobody holds and allowed says may go, oldest first,
// until enough bytes are free; all of them if need is negative. The caller has no
// lock but evicting.
func (s *Store) dropSpares(ctx context.Context, org string, need int64, allowed func(*item) bool, reason string) (Pruned, error) {
	var p Pruned
	var evs []Eviction
	for _, x := range s.spares.of(org) {
		if need >= 0 && p.Bytes >= need {
			break
		}
		if it := x.item(); !allowed(it) {
			continue
		}
		bytes, ok := x.drop(ctx)
		if !ok {
			continue
		}
		p.Bytes += bytes
		p.Records++
		evs = append(evs, Eviction{Time: time.Now(), Org: x.c.org, App: x.opts.App, What: x.opts.What, Bytes: bytes, Reason: reason})
	}
	if len(evs) == 0 {
		return p, nil
	}
	s.tell(evs...)
	if err := s.meta.Update(func(tx *bolt.Tx) error { return s.recordEvictions(tx, evs...) }); err != nil {
		return p, fmt.Errorf("record evictions: %w", err)
	}
	return p, nil
}
