package layercache

import (
	"context"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// defaults of Options.
const (
	defaultMaxBytes = 50e9
	defaultMinFree  = 5e9
)

// tryAgain is how long eviction rests after it could not free enough.
const tryAgain = 2 * time.Second

func (o *Options) maxBytes() int64 {
	if o.MaxBytes == 0 {
		return defaultMaxBytes
	}
	return max(o.MaxBytes, 0)
}

// minFree returns what is to stay free of a disk of size bytes.
func (o *Options) minFree(size int64) int64 {
	if o.MinFree == 0 {
		return min(defaultMinFree, size/20)
	}
	return max(o.MinFree, 0)
}

// A pressure is a reason to evict.
type pressure struct {
	bytes  int64 // to free
	reason string
}

// relieve makes room if the cache is over its ceiling or the disk is nearly
// full, and looks at no more than two numbers if neither is. No build fails
// because of it: what goes wrong is logged.
func (s *Store) relieve(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if !s.used.measured.Load() {
		if err := s.measure(ctx); err != nil {
			s.log.Warn("cannot measure the cache", "err", err)
			return
		}
	}
	if s.pressure().bytes <= 0 || time.Now().UnixNano() < s.used.futile.Load() {
		return
	}
	s.openLodgers(ctx, "")
	if err := s.makeRoom(ctx); err != nil {
		s.log.Warn("cannot make room in the cache", "err", err)
	}
}

// relieveSoon is relieve in the background, for those whose callers may hold
// what a [Lodger] waits for.
func (s *Store) relieveSoon() {
	if s.relief.Add(1) > 1 {
		return // the one that runs begins anew
	}
	s.relieving.run(func() {
		for again := true; again; {
			heeded := s.relief.Load()
			s.askLodgersIfDue(context.Background())
			s.relieve(context.Background())
			again = !s.relief.CompareAndSwap(heeded, 0)
		}
	})
}

// pressure says how much there is to free, a tenth more than it must be so
// that not every blob brings the next eviction.
func (s *Store) pressure() pressure {
	if limit := s.opts.maxBytes(); limit > 0 {
		if used := s.used.bytes.Load(); used > limit {
			return pressure{used - limit + limit/10, fmt.Sprintf("the cache is over its ceiling of %d bytes", limit)}
		}
	}
	size, free, err := diskSpace(s.opts.Root)
	if err != nil {
		return pressure{}
	}
	if least := s.opts.minFree(size) + s.reserved.Load(); free < least {
		return pressure{least - free + least/10, fmt.Sprintf("less than %d bytes are free on the disk", least)}
	}
	return pressure{}
}

func diskSpace(path string) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// makeRoom drops spares, collects what nobody refers to, then evicts until the
// pressure is gone. Sizes of records are estimates, for blobs may be shared, so it looks
// again after each round.
func (s *Store) makeRoom(ctx context.Context) error {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	p := s.pressure()
	if p.bytes <= 0 {
		return nil // somebody was faster
	}
	goal := s.used.bytes.Load() - p.bytes
	if _, err := s.dropSpares(ctx, "", p.bytes, anyItem, p.reason); err != nil {
		return err
	}
	if err := s.Collect(ctx); err != nil {
		return err
	}
	for range 4 {
		guests := s.askLodgers(ctx, "") // which corrects what is used
		more := s.used.bytes.Load() - goal
		if more <= 0 {
			return nil
		}
		freed, err := s.evict(ctx, "", guests, choice{need: more, pinned: true, allowed: notExplaining, reason: p.reason})
		if err != nil {
			return err
		}
		if freed.Records == 0 {
			break
		}
	}
	s.used.futile.Store(time.Now().Add(tryAgain).UnixNano())
	return nil
}

func anyItem(*item) bool { return true }

// notExplaining keeps the steps of last builds, and their trails: they are
// small, and tell why the next build misses.
func notExplaining(it *item) bool {
	return (!it.pinned || it.id.kind != stepKind) && !it.explains()
}

// A choice says which records may go.
type choice struct {
	need    int64 // bytes to free; as many as there are if it is negative
	pinned  bool  // also what a last successful build needs
	allowed func(*item) bool
	reason  string
}

// evict removes records of an org, "" means all, that are not held, and
// collects what they held; guests are what lodgers keep of it.
func (s *Store) evict(ctx context.Context, org string, guests []*guest, ch choice) (Pruned, error) {
	evs, leaving, err := s.evictRecords(ctx, org, guests, ch)
	if err != nil {
		return Pruned{}, err
	}
	s.tell(evs...)
	left, err := s.evictLodged(ctx, leaving, ch.reason)
	s.tell(left...)
	p := Pruned{Records: int64(len(evs) + len(left))}
	if err != nil {
		return p, err
	}
	if len(left) > 0 {
		return p, s.Collect(ctx)
	}
	return p, s.clean(ctx)
}

// evictRecords removes Slipway's own records, and returns the lodgers' items
// that are to go as well: nobody may be asked to do that under a lock.
func (s *Store) evictRecords(ctx context.Context, org string, guests []*guest, ch choice) (evs []Eviction, leaving []*item, err error) {
	s.sweep.Lock()
	defer s.sweep.Unlock()
	if err := s.syncLeases(ctx); err != nil {
		return nil, nil, err
	}
	if err := s.meta.Update(s.touched.flush); err != nil {
		return nil, nil, err
	}
	items, err := s.items(org, func(*bolt.Tx) {})
	if err == nil {
		items, err = s.joinLodged(ctx, items, guests)
	}
	if err != nil {
		return nil, nil, err
	}
	held, err := s.heldResources(ctx, idleLeases(guests))
	if err != nil {
		return nil, nil, err
	}
	var own []*item
	for _, it := range choose(items, held, ch) {
		if it.guest != nil {
			leaving = append(leaving, it)
			continue
		}
		own = append(own, it)
		evs = append(evs, it.eviction(ch.reason))
	}
	if len(own) == 0 {
		return nil, leaving, nil
	}
	if err := s.deleteItems(ctx, own, evs); err != nil {
		return nil, nil, err
	}
	return evs, leaving, s.collect(ctx)
}

func (it *item) eviction(reason string) Eviction {
	ev := Eviction{Time: time.Now(), Org: it.id.org, What: it.what(), Bytes: it.bytes, Reason: reason}
	if len(it.apps) == 1 {
		ev.App = it.apps[0]
	}
	return ev
}

func (s *Store) deleteItems(ctx context.Context, items []*item, evs []Eviction) error {
	err := s.meta.Update(func(tx *bolt.Tx) error {
		for _, it := range items {
			if err := s.Org(it.id.org).deleteRecord(ctx, tx, it.id); err != nil {
				return err
			}
		}
		return s.recordEvictions(tx, evs...)
	})
	if err != nil {
		return err
	}
	for _, it := range items {
		s.handles.forgetPack(it.id)
		s.dropMount(it.id)
	}
	return nil
}

// choose picks what goes, oldest first. What others stand on goes only after
// those, and right after if it is older; a step goes with its layer, unless a
// last build needs it, for then it explains the miss.
func choose(items []*item, held map[resource]bool, ch choice) []*item {
	byAge(items)
	e := election{choice: ch, held: held, gone: make(map[*item]bool), children: make(map[recordID]int), waiting: make(map[recordID]*item), steps: make(map[recordID][]*item)}
	for _, it := range items {
		for _, p := range it.parents {
			e.children[p]++
		}
		if it.layer.org != "" {
			e.steps[it.layer] = append(e.steps[it.layer], it)
		}
	}
	for _, it := range items {
		if e.enough() {
			break
		}
		if e.may(it) {
			e.take(it)
		} else if e.children[it.id] > 0 {
			e.waiting[it.id] = it
		}
	}
	return e.order
}

type election struct {
	choice
	held     map[resource]bool
	gone     map[*item]bool
	order    []*item
	freed    int64
	children map[recordID]int
	waiting  map[recordID]*item // those whose turn came when they had children
	steps    map[recordID][]*item
}

func (e *election) enough() bool { return e.need >= 0 && e.freed >= e.need }

func (e *election) may(it *item) bool {
	if e.gone[it] || it.guest != nil && it.guest.rec.InUse || it.pinned && !e.pinned || e.children[it.id] > 0 || e.allowed != nil && !e.allowed(it) {
		return false
	}
	for _, r := range it.resources {
		if e.held[r] {
			return false
		}
	}
	return true
}

func (e *election) take(it *item) {
	e.gone[it] = true
	e.order = append(e.order, it)
	e.freed += it.bytes
	for _, step := range e.steps[it.id] {
		if !e.gone[step] && !step.pinned {
			e.take(step)
		}
	}
	for _, p := range it.parents {
		e.children[p]--
		if w := e.waiting[p]; w != nil && !e.enough() && e.may(w) {
			e.take(w)
		}
	}
}
