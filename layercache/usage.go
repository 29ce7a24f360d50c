package layercache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Usage is what the cache holds.
type Usage struct {
	Bytes     int64 // of what was asked for, each record once
	Limit     int64 // ceiling of the whole cache, 0 if it has none
	DiskFree  int64
	Apps      []AppUsage  // by name
	Kinds     []KindUsage // in a fixed order
	Evictions []Eviction  // newest first
}

// AppUsage is what one app's builds hold. Shared bytes count for each.
type AppUsage struct {
	App      string
	Bytes    int64
	Records  int64
	LastUsed time.Time
}

// KindUsage is a part of the bytes, by what they are: "layer", "snapshot",
// "context", "ledger", "mount", "buildkit" for what a [Lodger]
// keeps, or "failed step" for a [Spare]. A blob that is in a layer as well counts
// as that.
type KindUsage struct {
	Kind  string
	Bytes int64
	Count int64
}

// Usage sums up what an org has in the cache; with an app, only what that app
// uses. Without an org it is everything, and lodgers are counted as they were
// when they were last asked: it is for those who look all the time.
func (s *Store) Usage(ctx context.Context, org, app string) (Usage, error) {
	s.behind.settle()
	guests := s.lodgers.known()
	if org != "" {
		s.openLodgers(ctx, org)
		guests = s.askLodgers(ctx, org)
	}
	u := Usage{Limit: s.opts.maxBytes()}
	items, err := s.items(org, func(tx *bolt.Tx) { u.Evictions = evictions(tx, org) })
	if err == nil {
		items, err = s.joinLodged(ctx, items, guests)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("cache usage: %w", err)
	}
	if _, u.DiskFree, err = diskSpace(s.opts.Root); err != nil {
		return Usage{}, fmt.Errorf("cache usage: %w", err)
	}
	for _, x := range s.spares.of(org) {
		items = append(items, x.item())
	}
	sum := newSums()
	for _, it := range items {
		if it.id.kind != trailKind && (app == "" || slices.Contains(it.apps, app)) {
			sum.add(it, app)
		}
	}
	u.Bytes, u.Kinds, u.Apps = sum.bytes, sum.kinds, sum.apps()
	if app != "" {
		u.Evictions = slices.DeleteFunc(u.Evictions, func(e Eviction) bool { return e.App != app })
	}
	return u, nil
}

// items reads all records of an org, "" means all; also runs in the same
// transaction.
func (s *Store) items(org string, also func(*bolt.Tx)) ([]*item, error) {
	var items []*item
	err := s.meta.View(func(tx *bolt.Tx) error {
		also(tx)
		names, err := orgs(tx)
		if err != nil {
			return err
		}
		for _, name := range names {
			if org != "" && name != org {
				continue
			}
			of, err := s.Org(name).inventory(tx)
			if err != nil {
				return err
			}
			items = append(items, of...)
		}
		return nil
	})
	s.touched.apply(items)
	return items, err
}

type sums struct {
	bytes int64
	kinds []KindUsage
	byApp map[string]*AppUsage
}

func newSums() *sums {
	return &sums{
		kinds: []KindUsage{{Kind: "layer"}, {Kind: "snapshot"}, {Kind: "context"}, {Kind: "ledger"}, {Kind: "mount"}, {Kind: "buildkit"}, {Kind: "failed step"}},
		byApp: make(map[string]*AppUsage),
	}
}

// add counts an item, for one app or for all that use it.
func (s *sums) add(it *item, app string) {
	s.bytes += it.bytes
	switch it.id.kind {
	case layerKind:
		s.kinds[0].Bytes += it.bytes - it.ledger
		s.kinds[0].Count++
		if it.ledger > 0 {
			s.kinds[3].Bytes += it.ledger
			s.kinds[3].Count++
		}
	case snapshotKind:
		s.kinds[1].Bytes += it.bytes
		s.kinds[1].Count++
	case packKind:
		s.kinds[2].Bytes += it.bytes
		s.kinds[2].Count += it.count
	case mountKind:
		s.kinds[4].Bytes += it.bytes
		s.kinds[4].Count++
	case lodgedKind:
		s.kinds[5].Bytes += it.bytes
		s.kinds[5].Count++
	case spareKind:
		s.kinds[6].Bytes += it.bytes
		s.kinds[6].Count++
	}
	for _, name := range it.apps {
		if app != "" && name != app {
			continue
		}
		a := s.byApp[name]
		if a == nil {
			a = &AppUsage{App: name}
			s.byApp[name] = a
		}
		a.Bytes += it.bytes
		a.Records++
		if it.used.After(a.LastUsed) {
			a.LastUsed = it.used
		}
	}
}

func (s *sums) apps() []AppUsage {
	apps := make([]AppUsage, 0, len(s.byApp))
	for _, a := range s.byApp {
		apps = append(apps, *a)
	}
	slices.SortFunc(apps, func(a, b AppUsage) int { return cmp.Compare(a.App, b.App) })
	return apps
}

// PruneOptions says what [Store.Prune] removes.
type PruneOptions struct {
	Org       string        // "" means all
	App       string        // only what this app alone uses; "" means any
	All       bool          // everything that no lease holds
	OlderThan time.Duration // else what was not used for so long, and no last build needs
	KeepBytes int64         // stop when this much is left of what was asked for
}

// Pruned is what a prune has removed.
type Pruned struct {
	Bytes   int64 // that the disk got back
	Records int64
}

// Prune removes what no lease holds and opts allow, least recently used first.
func (s *Store) Prune(ctx context.Context, opts PruneOptions) (Pruned, error) {
	ctx = context.WithoutCancel(ctx)
	s.behind.settle()
	s.openLodgers(ctx, opts.Org)
	s.evicting.Lock()
	defer s.evicting.Unlock()
	p, err := s.prune(ctx, opts)
	if err != nil {
		return p, fmt.Errorf("prune: %w", err)
	}
	return p, nil
}

func (s *Store) prune(ctx context.Context, opts PruneOptions) (Pruned, error) {
	guests := s.askLodgers(ctx, opts.Org)
	if err := s.measure(ctx); err != nil {
		return Pruned{}, err
	}
	before := s.used.bytes.Load()
	if err := s.Collect(ctx); err != nil {
		return Pruned{}, err
	}
	ch := choice{need: -1, pinned: opts.All, reason: "pruned by request"}
	if !opts.All {
		ch.reason = fmt.Sprintf("pruned by request: not used for %v", opts.OlderThan)
	}
	limit := time.Now().Add(-opts.OlderThan)
	ch.allowed = func(it *item) bool {
		return opts.of(it) && (opts.All || it.used.Before(limit)) && !it.explains()
	}
	if opts.KeepBytes > 0 {
		items, err := s.items(opts.Org, func(*bolt.Tx) {})
		if err == nil {
			items, err = s.joinLodged(ctx, items, guests)
		}
		if err != nil {
			return Pruned{}, err
		}
		ch.need = -opts.KeepBytes
		for _, x := range s.spares.of(opts.Org) {
			items = append(items, x.item())
		}
		for _, it := range items {
			if opts.of(it) {
				ch.need += it.bytes
			}
		}
		ch.need = max(ch.need, 0)
	}
	spare, err := s.dropSpares(ctx, opts.Org, ch.need, ch.allowed, ch.reason)
	if err != nil {
		return spare, err
	}
	if ch.need >= 0 {
		ch.need = max(0, ch.need-spare.Bytes)
	}
	if spare.Records > 0 {
		guests = s.askLodgers(ctx, opts.Org) // of whose records they may have held some
	}
	p, err := s.evict(ctx, opts.Org, guests, ch)
	p.Records += spare.Records
	p.Bytes = max(before-s.used.bytes.Load(), 0)
	return p, err
}

// of reports whether an item is the app's alone.
func (o *PruneOptions) of(it *item) bool {
	return o.App == "" || len(it.apps) == 1 && it.apps[0] == o.App
}
