package layercache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Lodger keeps records of its own in an org's part of the store, which it uses
// as [Containerd]: its snapshots and blobs are held by its leases. They are
// counted and evicted with Slipway's own, see [Cache.Lodge].
//
// Its methods may be called concurrently, and under no lock of the store but the
// turn to evict: they may call [Containerd] and [Store.Collect], and must not
// wait for anybody who asks for room or usage, or prunes.
type Lodger interface {
	// Records lists what it keeps.
	Records(ctx context.Context) ([]LodgerRecord, error)

	// Evict removes those of the records that are not in use, each after those
	// that stand on it, and returns the ids of those that went, also with an
	// error.
	Evict(ctx context.Context, ids []string) ([]string, error)
}

// A LodgerRecord is what a [Lodger] may evict at once.
type LodgerRecord struct {
	ID      string // among the lodger's
	What    string // names it for people, in the log of evictions; no secrets
	Apps    []string
	Bytes   int64     // on the disk
	Loose   int64     // of Bytes: those in snapshots that are not committed, which nothing else counts
	Used    time.Time // last
	Parents []string  // ids of what it stands on: that goes only after it, and is of its apps too
	InUse   bool      // not to be evicted
	Pinned  bool      // the last build of an app needs it, and what it stands on: it goes last

	// Leases by which the record holds snapshots and blobs. What others of the
	// lodger's leases hold is in use.
	Leases []string
}

// Lodge has a lodger counted and evicted under the store's ceiling, from now on
// until leave: least recently used first among its records and the store's own, what
// last builds need after the rest, and nothing that is in use. An org has one at a time. One that fails is logged and
// left out. Leave waits for calls of the lodger that are under way.
//
// What a lodger keeps that is not open, is counted as far as the disk tells and
// cannot be evicted. [Options.OpenLodgers] is asked to open it before an eviction,
// before a prune, and before the usage of its org.
func (c *Cache) Lodge(l Lodger) (leave func()) {
	g := &lodging{c: c, l: l}
	c.s.lodgers.add(g)
	return sync.OnceFunc(func() {
		c.s.lodgers.remove(g)
		g.calls.Wait()
	})
}

// A lodging is a lodger that is open.
type lodging struct {
	c     *Cache
	l     Lodger
	n     int // tells it apart
	calls sync.WaitGroup
	told  []LodgerRecord // the last time it was asked; guarded by lodgers.mu
}

type lodgers struct {
	mu    sync.Mutex
	open  []*lodging
	count int
	asked time.Time // when all were asked last
}

func (h *lodgers) add(g *lodging) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) == 0 {
		h.asked = time.Now() // what is noted of before is good enough for that long
	}
	h.count++
	g.n = h.count
	h.open = append(h.open, g)
}

func (h *lodgers) remove(g *lodging) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = slices.DeleteFunc(h.open, func(o *lodging) bool { return o == g })
}

// of returns the lodgings of an org, "" means all.
func (h *lodgers) of(org string) []*lodging {
	h.mu.Lock()
	defer h.mu.Unlock()
	var of []*lodging
	for _, g := range h.open {
		if org == "" || g.c.org == org {
			of = append(of, g)
		}
	}
	return of
}

// enter reports whether a lodger is still open. If so the caller may call it,
// and then calls g.calls.Done.
func (h *lodgers) enter(g *lodging) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	open := slices.Contains(h.open, g)
	if open {
		g.calls.Add(1)
	}
	return open
}

func (h *lodgers) note(g *lodging, told []LodgerRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g.told = told
}

// known returns what all lodgers keep, as they told when they were last asked.
func (h *lodgers) known() []*guest {
	h.mu.Lock()
	defer h.mu.Unlock()
	var guests []*guest
	for _, g := range h.open {
		guests = append(guests, g.guests(g.told)...)
	}
	return guests
}

// due reports whether it is time to ask all again.
func (h *lodgers) due() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) == 0 || time.Since(h.asked) < askEvery {
		return false
	}
	h.asked = time.Now()
	return true
}

// askEvery is how long what lodgers told is good enough while they write.
const askEvery = time.Minute

// A guest is a lodger's record.
type guest struct {
	of  *lodging
	rec LodgerRecord
}

func (g *lodging) guests(recs []LodgerRecord) []*guest {
	guests := make([]*guest, len(recs))
	for i, rec := range recs {
		guests[i] = &guest{g, rec}
	}
	return guests
}

func (g *lodging) recordID(id string) recordID {
	return recordID{g.c.org, lodgedKind, fmt.Sprintf("%d/%s", g.n, id)}
}

func (g *guest) item() *item {
	it := &item{
		id: g.of.recordID(g.rec.ID), bytes: g.rec.Bytes, count: 1, used: g.rec.Used,
		guest: g, pinned: g.rec.Pinned,
	}
	for _, app := range g.rec.Apps {
		it.apps = withApp(it.apps, app)
	}
	for _, p := range g.rec.Parents {
		it.parents = append(it.parents, g.of.recordID(p))
	}
	return it
}

// openLodgers has the lodgers of an org opened, "" means all. The caller has no
// lock.
func (s *Store) openLodgers(ctx context.Context, org string) {
	if s.opts.OpenLodgers == nil {
		return
	}
	if err := s.opts.OpenLodgers(ctx, org); err != nil {
		s.log.Warn("cannot open all that is kept in the cache", "org", org, "err", err)
	}
}

// askLodgersIfDue keeps the size of the cache right while lodgers fill snapshots
// that are not committed.
func (s *Store) askLodgersIfDue(ctx context.Context) {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	if s.lodgers.due() {
		s.askLodgers(ctx, "")
	}
}

// askLodgers asks the lodgers of an org, "" means all, what they keep. The caller
// has no lock but evicting.
func (s *Store) askLodgers(ctx context.Context, org string) []*guest {
	var guests []*guest
	loose := make(map[string]int64)
	for _, g := range s.lodgers.of(org) {
		if !s.lodgers.enter(g) {
			continue
		}
		recs, err := g.l.Records(ctx)
		g.calls.Done()
		if err != nil {
			s.log.Warn("cannot count what is kept in the cache", "org", g.c.org, "err", err)
			continue
		}
		s.lodgers.note(g, recs)
		guests = append(guests, g.guests(recs)...)
		loose[g.c.org] += 0 // also where there are none any more
		for _, rec := range recs {
			loose[g.c.org] += rec.Loose
		}
	}
	for org, bytes := range loose {
		if err := s.Org(org).noteLoose(bytes); err != nil {
			s.log.Warn("cannot note what is kept in the cache", "org", org, "err", err)
		}
	}
	return guests
}

// joinLodged adds what lodgers keep to the items of the store. A blob that
// one of those has too, counts there.
func (s *Store) joinLodged(ctx context.Context, own []*item, guests []*guest) ([]*item, error) {
	if len(guests) == 0 {
		return own, nil
	}
	counted := make(map[resource]bool)
	for _, it := range own {
		for _, r := range it.resources {
			counted[r] = r.kind == contentKind
		}
	}
	items, byID := own, make(map[recordID]*item)
	for _, g := range guests {
		it := g.item()
		items, byID[it.id] = append(items, it), it
	}
	for _, it := range items[len(own):] {
		passApps(byID, it)
	}
	return items, s.meta.View(func(tx *bolt.Tx) error {
		for _, it := range items[len(own):] {
			if err := it.guest.share(ctx, tx, it, counted); err != nil {
				return err
			}
		}
		return nil
	})
}

// passApps gives the apps of an item to all that it stands on.
func passApps(byID map[recordID]*item, it *item) {
	for _, id := range it.parents {
		p := byID[id]
		if p == nil {
			continue
		}
		had := len(p.apps)
		for _, app := range it.apps {
			p.apps = withApp(p.apps, app)
		}
		if len(p.apps) > had {
			passApps(byID, p)
		}
	}
}

// share takes the blobs off that are counted elsewhere.
func (g *guest) share(ctx context.Context, tx *bolt.Tx, it *item, counted map[resource]bool) error {
	c := g.of.c
	in := c.within(ctx, tx)
	for _, id := range g.rec.Leases {
		rs, err := c.s.leases.ListResources(in, leases.Lease{ID: id})
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range rs {
			if !counted[resource{c.ns, r.Type, r.ID}] {
				continue
			}
			if info, err := c.s.content.Info(in, digest.Digest(r.ID)); err == nil {
				it.bytes = max(0, it.bytes-info.Size)
			}
		}
	}
	return nil
}

// idleLeases are the leases of records that are not in use.
func idleLeases(guests []*guest) map[leaseID]bool {
	idle := make(map[leaseID]bool)
	for _, g := range guests {
		for _, id := range g.rec.Leases {
			if !g.rec.InUse {
				idle[leaseID{g.of.c.ns, id}] = true
			}
		}
	}
	return idle
}

// evictLodged has lodgers remove items, which are in an order that each allows.
// What became used meanwhile stays. The caller has no lock but evicting.
func (s *Store) evictLodged(ctx context.Context, items []*item, reason string) ([]Eviction, error) {
	leaving := make(map[*lodging][]*item)
	ids := make(map[*lodging][]string)
	for _, it := range items {
		g := it.guest.of
		leaving[g] = append(leaving[g], it)
		ids[g] = append(ids[g], it.guest.rec.ID)
	}
	var evs []Eviction
	for g, of := range leaving {
		if !s.lodgers.enter(g) {
			continue
		}
		gone, err := g.l.Evict(ctx, ids[g])
		g.calls.Done()
		if err != nil {
			s.log.Warn("cannot evict from the cache", "org", g.c.org, "err", err)
		}
		left, err := s.noteLeft(g, of, gone, reason)
		if err != nil {
			return evs, err
		}
		evs = append(evs, left...)
	}
	return evs, nil
}

// noteLeft records what a lodger has removed of items.
func (s *Store) noteLeft(g *lodging, items []*item, gone []string, reason string) (evs []Eviction, err error) {
	went := make(map[string]bool)
	for _, id := range gone {
		went[id] = true
	}
	var loose int64
	for _, it := range items {
		if went[it.guest.rec.ID] {
			evs = append(evs, it.eviction(reason))
			loose += it.guest.rec.Loose
		}
	}
	if len(evs) == 0 {
		return nil, nil
	}
	return evs, s.meta.Update(func(tx *bolt.Tx) error {
		if err := g.c.setLoose(tx, func(was int64) int64 { return max(0, was-loose) }); err != nil {
			return err
		}
		return s.recordEvictions(tx, evs...)
	})
}
