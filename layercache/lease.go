package layercache

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Leases in containerd's database: one for each record that has blobs or a
// snapshot, dropped with the record, and those that a [Lease] needs.
const (
	recordLease  = "slipway.record/"
	sessionLease = "slipway.session/"
	expireLabel  = "containerd.io/gc.expire" // read by containerd's collector
)

// A Lease holds what a build uses: everything that is made or looked up under
// its context stays in the cache until the lease is released. Holding costs no
// transaction; the database learns of it before anything is collected.
type Lease struct {
	c   *Cache
	id  string
	ttl time.Duration

	mu   sync.Mutex
	held map[resource]bool // whether the database knows
}

// A leaseID names a lease in containerd's database.
type leaseID struct{ ns, id string }

// A resource is what containerd's collector may remove.
type resource struct {
	ns   string
	kind string // as in leases.Resource
	id   string
}

const (
	contentKind   = "content"
	snapshotsKind = "snapshots/" + snapshotterName
	stepsKind     = "slipway/step"  // no matter for containerd, so never written
	mountsKind    = "slipway/mount" // likewise, and in no lease
)

func (c *Cache) blobResource(d digest.Digest) resource {
	return resource{c.ns, contentKind, d.String()}
}

func (c *Cache) snapshotResource(key string) resource {
	return resource{c.ns, snapshotsKind, key}
}

func (c *Cache) stepResource(k Key) resource { return resource{c.ns, stepsKind, string(k[:])} }

// Lease returns a lease. With a ttl, what it holds stays held for that long
// after the release, or after the end of a daemon that was killed; a lease of
// the same name made meanwhile adds to it. Without a ttl the release ends it.
func (c *Cache) Lease(ctx context.Context, name string, ttl time.Duration) (*Lease, error) {
	l := &Lease{c: c, id: sessionLease + name, ttl: ttl, held: make(map[resource]bool)}
	if ttl <= 0 {
		l.id += "#" + rand.Text()
	} else if err := c.s.write.do(func(tx *bolt.Tx) error { return l.record(ctx, tx, c.ns) }); err != nil {
		return nil, fmt.Errorf("lease %s: %w", name, err)
	}
	c.s.holds.add(l)
	return l, nil
}

// Context returns a context under which everything is held by the lease.
func (l *Lease) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, leaseKey{}, l)
}

// Release ends the lease; see [Cache.Lease] for one that has a ttl. Releasing
// it again does nothing.
func (l *Lease) Release(ctx context.Context) error {
	s := l.c.s
	if !s.holds.has(l) {
		return nil
	}
	if l.ttl > 0 {
		s.sweep.RLock()
		err := s.write.do(func(tx *bolt.Tx) error { return l.flush(ctx, tx) })
		s.sweep.RUnlock()
		if err != nil {
			return fmt.Errorf("release lease: %w", err)
		}
	}
	s.holds.remove(l)
	s.used.futile.Store(0)
	return nil
}

type leaseKey struct{}

// leaseFrom returns the lease of a context, nil if it has none.
func leaseFrom(ctx context.Context) *Lease {
	l, _ := ctx.Value(leaseKey{}).(*Lease)
	return l
}

// hold adds resources to the lease; l may be nil. The caller has sweep.
func (l *Lease) hold(rs ...resource) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rs {
		if _, ok := l.held[r]; !ok {
			l.held[r] = false
		}
	}
}

// drop takes a resource out of the lease that will never be used again.
func (l *Lease) drop(r resource) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held[r] {
		delete(l.held, r)
	}
}

// forget takes a resource out of the lease. The database keeps what it knows
// until the lease ends.
func (l *Lease) forget(r resource) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, r)
}

// holds reports whether the lease has a resource.
func (l *Lease) holds(r resource) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.held[r]
	return ok
}

// keep writes a lease with a ttl into tx, which also makes the resources it
// got: they must be held even if the daemon dies right after.
func (l *Lease) keep(ctx context.Context, tx *bolt.Tx, rs ...resource) error {
	if l == nil || l.ttl <= 0 {
		return nil
	}
	for _, r := range rs {
		if err := l.add(ctx, tx, r); err != nil {
			return err
		}
	}
	return nil
}

// flush writes all that the lease holds, and starts its ttl anew.
func (l *Lease) flush(ctx context.Context, tx *bolt.Tx) error {
	l.mu.Lock()
	held := maps.Clone(l.held)
	l.mu.Unlock()
	if l.ttl > 0 {
		if err := l.record(ctx, tx, l.c.ns); err != nil {
			return err
		}
	}
	for r, known := range held {
		if known || r.kind == stepsKind {
			continue
		}
		if err := l.add(ctx, tx, r); err != nil {
			return err
		}
		tx.OnCommit(func() {
			l.mu.Lock()
			l.held[r] = true
			l.mu.Unlock()
		})
	}
	return nil
}

// add writes one resource, and the lease in its namespace if need be.
func (l *Lease) add(ctx context.Context, tx *bolt.Tx, r resource) error {
	in := (&Cache{ns: r.ns}).within(ctx, tx)
	lease, res := leases.Lease{ID: l.id}, leases.Resource{ID: r.id, Type: r.kind}
	err := l.c.s.leases.AddResource(in, lease, res)
	if !errdefs.IsNotFound(err) {
		return err
	}
	if err := l.record(ctx, tx, r.ns); err != nil {
		return err
	}
	return l.c.s.leases.AddResource(in, lease, res)
}

// record writes the lease itself. One that exists gets a new time to expire.
func (l *Lease) record(ctx context.Context, tx *bolt.Tx, ns string) error {
	in := (&Cache{ns: ns}).within(ctx, tx)
	opts := []leases.Opt{leases.WithID(l.id)}
	if l.ttl <= 0 {
		_, err := l.c.s.leases.Create(in, opts...)
		return ignoreExists(err)
	}
	old, err := l.c.s.leases.ListResources(in, leases.Lease{ID: l.id})
	if errdefs.IsNotFound(err) {
		old = nil
	} else if err != nil {
		return err
	} else if err := l.c.s.leases.Delete(in, leases.Lease{ID: l.id}); err != nil {
		return err
	}
	lease, err := l.c.s.leases.Create(in, append(opts, leases.WithExpiration(l.ttl))...)
	if err != nil {
		return err
	}
	for _, r := range old {
		if err := l.c.s.leases.AddResource(in, lease, r); err != nil {
			return err
		}
	}
	return nil
}

func ignoreExists(err error) error {
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// putRecordLease makes the lease by which a record holds resources.
func (c *Cache) putRecordLease(ctx context.Context, tx *bolt.Tx, id recordID, rs ...resource) error {
	if err := c.deleteRecordLease(ctx, tx, id); err != nil {
		return err
	}
	in := c.within(ctx, tx)
	lease, err := c.s.leases.Create(in, leases.WithID(id.lease()))
	if err != nil {
		return err
	}
	for _, r := range rs {
		if err := c.s.leases.AddResource(in, lease, leases.Resource{ID: r.id, Type: r.kind}); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) deleteRecordLease(ctx context.Context, tx *bolt.Tx, id recordID) error {
	err := c.s.leases.Delete(c.within(ctx, tx), leases.Lease{ID: id.lease()})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (id recordID) lease() string {
	if id.kind == packKind {
		return fmt.Sprintf("%s%c/%x", recordLease, id.kind, id.key)
	}
	return fmt.Sprintf("%s%c/%s", recordLease, id.kind, id.key)
}

// holds are the leases of this process that are not released.
type holds struct {
	mu   sync.Mutex
	live map[*Lease]struct{}
}

func (h *holds) add(l *Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live[l] = struct{}{}
}

func (h *holds) remove(l *Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.live, l)
}

func (h *holds) has(l *Lease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.live[l]
	return ok
}

func (h *holds) all() []*Lease {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Lease, 0, len(h.live))
	for l := range h.live {
		all = append(all, l)
	}
	return all
}

// syncLeases brings the database up to date before a collection: what live
// leases hold goes in; leases that were released or left by a dead daemon go.
// The caller has sweep exclusively.
func (s *Store) syncLeases(ctx context.Context) error {
	s.held.drop(&s.holds, "")
	live := s.holds.all()
	return s.meta.Update(func(tx *bolt.Tx) error {
		ids := make(map[string]bool)
		for _, l := range live {
			ids[l.id] = true
			if err := l.flush(ctx, tx); err != nil {
				return err
			}
		}
		for _, ns := range namespacesIn(tx) {
			if err := s.dropDeadLeases((&Cache{ns: ns}).within(ctx, tx), ids); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) dropDeadLeases(ctx context.Context, live map[string]bool) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		_, expires := l.Labels[expireLabel]
		if expires || live[l.ID] || !strings.HasPrefix(l.ID, sessionLease) {
			continue
		}
		if err := s.leases.Delete(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// heldResources returns what leases other than those of records hold; idle are
// leases of lodgers' records that are not in use. The caller has sweep
// exclusively and has called syncLeases.
func (s *Store) heldResources(ctx context.Context, idle map[leaseID]bool) (map[resource]bool, error) {
	held := make(map[resource]bool)
	for _, l := range s.holds.all() {
		l.mu.Lock()
		for r := range l.held {
			held[r] = true
		}
		l.mu.Unlock()
	}
	s.mounts.hold(s, held)
	err := s.meta.View(func(tx *bolt.Tx) error {
		for _, ns := range namespacesIn(tx) {
			if err := s.readLeases((&Cache{ns: ns}).within(ctx, tx), ns, idle, held); err != nil {
				return err
			}
		}
		return nil
	})
	return held, err
}

// readLeases adds what the leases of a namespace hold.
func (s *Store) readLeases(ctx context.Context, ns string, idle map[leaseID]bool, held map[resource]bool) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		if strings.HasPrefix(l.ID, recordLease) || idle[leaseID{ns, l.ID}] || expired(l) {
			continue
		}
		rs, err := s.leases.ListResources(ctx, l)
		if err != nil {
			return err
		}
		for _, r := range rs {
			held[resource{ns, r.Type, r.ID}] = true
		}
	}
	return nil
}

// dropForeignLeases deletes the leases of a namespace that are not Slipway's.
func dropForeignLeases(tx *bolt.Tx, ns string) error {
	b := tx.Bucket([]byte("v1"))
	for _, name := range []string{ns, "leases"} {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(name))
	}
	if b == nil {
		return nil
	}
	var foreign [][]byte
	err := b.ForEachBucket(func(id []byte) error {
		if !strings.HasPrefix(string(id), recordLease) && !strings.HasPrefix(string(id), sessionLease) {
			foreign = append(foreign, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range foreign {
		if err := b.DeleteBucket(id); err != nil {
			return err
		}
	}
	return nil
}

func expired(l leases.Lease) bool {
	at, err := time.Parse(time.RFC3339, l.Labels[expireLabel])
	return err == nil && time.Now().After(at)
}
