package layercache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// temporaryLabel is on leases of lodgers that mean nothing once their process
// has ended.
const temporaryLabel = "buildkit/lease.temporary"

// A lodgerLeases is containerd's manager of leases for an org's lodger, with fewer
// transactions. Temporary leases are held in memory, as those of builds are.
// Others are, until there is something for them to hold: until then the end of
// the process loses nothing. What holds them keeps them from the collector too.
type lodgerLeases struct {
	leases.Manager
	c *Cache // in the namespace of a call, see in
}

// in returns m in the namespace of a context: a lodger may have several.
func (m lodgerLeases) in(ctx context.Context) lodgerLeases {
	ns, ok := namespaces.Namespace(ctx)
	if !ok || ns == m.c.ns {
		return m
	}
	return lodgerLeases{m.Manager, &Cache{s: m.c.s, org: m.c.org, ns: ns}}
}

// A heldLease is a lease of a lodger that the database does not have.
type heldLease struct {
	leases.Lease
	temporary bool
	hold      *Lease
}

// heldLeases are those of all orgs.
type heldLeases struct {
	// turn is had by who changes what a lease holds, or makes what one may be for:
	// so nothing is made that a lease waits for and is not written with it. It
	// comes after sweep, and before transactions.
	turn sync.Mutex

	mu  sync.Mutex
	all map[leaseID]*heldLease
}

func (h *heldLeases) get(id leaseID) *heldLease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[id]
}

// add reports whether there was none of that id.
func (h *heldLeases) add(id leaseID, l *heldLease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[id] != nil {
		return false
	}
	if h.all == nil {
		h.all = make(map[leaseID]*heldLease)
	}
	h.all[id] = l
	return true
}

// take returns a lease which from then on is not held any more.
func (h *heldLeases) take(id leaseID) *heldLease {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.all[id]
	delete(h.all, id)
	return l
}

// of returns the leases of a namespace that fit.
func (h *heldLeases) of(ns string, fits func(*heldLease) bool) []*heldLease {
	h.mu.Lock()
	defer h.mu.Unlock()
	var of []*heldLease
	for id, l := range h.all {
		if id.ns == ns && fits(l) {
			of = append(of, l)
		}
	}
	return of
}

func (m lodgerLeases) id(l leases.Lease) leaseID { return leaseID{m.c.ns, l.ID} }

// Create implements leases.Manager.
func (m lodgerLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	m = m.in(ctx)
	l := leases.Lease{CreatedAt: time.Now().UTC()}
	for _, o := range opts {
		if err := o(&l); err != nil {
			return leases.Lease{}, err
		}
	}
	if l.ID == "" {
		return leases.Lease{}, fmt.Errorf("lease without an id: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := m.Manager.ListResources(ctx, l); !errdefs.IsNotFound(err) {
		if err == nil {
			err = fmt.Errorf("lease %q: %w", l.ID, errdefs.ErrAlreadyExists)
		}
		return leases.Lease{}, err
	}
	hold, err := m.c.Lease(ctx, "lodger/"+l.ID, 0)
	if err != nil {
		return leases.Lease{}, err
	}
	_, temporary := l.Labels[temporaryLabel]
	if !m.c.s.held.add(m.id(l), &heldLease{Lease: l, temporary: temporary, hold: hold}) {
		_ = hold.Release(ctx) // nothing is in it
		return leases.Lease{}, fmt.Errorf("lease %q: %w", l.ID, errdefs.ErrAlreadyExists)
	}
	return l, nil
}

// Delete implements leases.Manager.
func (m lodgerLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	m = m.in(ctx)
	m.c.s.held.turn.Lock()
	held := m.c.s.held.take(m.id(l))
	m.c.s.held.turn.Unlock()
	if held != nil {
		return held.hold.Release(ctx)
	}
	return m.c.s.write.do(func(tx *bolt.Tx) error { return m.Manager.Delete(m.c.within(ctx, tx), l, opts...) })
}

// List implements leases.Manager.
func (m lodgerLeases) List(ctx context.Context, fs ...string) ([]leases.Lease, error) {
	m = m.in(ctx)
	f, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	all, err := m.Manager.List(ctx, fs...)
	if err != nil {
		return nil, err
	}
	for _, l := range m.c.s.held.of(m.c.ns, func(l *heldLease) bool { return f.Match(l) }) {
		all = append(all, l.Lease)
	}
	return all, nil
}

// Field implements filters.Adaptor.
func (l *heldLease) Field(path []string) (string, bool) {
	switch {
	case len(path) == 1 && path[0] == "id":
		return l.ID, true
	case len(path) > 1 && path[0] == "labels":
		v, ok := l.Labels[strings.Join(path[1:], ".")]
		return v, ok
	}
	return "", false
}

// AddResource implements leases.Manager.
func (m lodgerLeases) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	m = m.in(ctx)
	s := m.c.s
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	if held, err := m.addHeld(ctx, l, r); held || err != nil {
		return err
	}
	return s.write.do(func(tx *bolt.Tx) error { return m.Manager.AddResource(m.c.within(ctx, tx), l, r) })
}

// addHeld reports whether the lease is one that the database did not have. If
// it has to have it now, it gets it.
func (m lodgerLeases) addHeld(ctx context.Context, l leases.Lease, r leases.Resource) (bool, error) {
	m.c.s.held.turn.Lock()
	defer m.c.s.held.turn.Unlock()
	held := m.c.s.held.get(m.id(l))
	if held == nil {
		return false, nil
	}
	if !holdable(r) {
		return true, fmt.Errorf("lease %q cannot hold %s %q: %w", l.ID, r.Type, r.ID, errdefs.ErrInvalidArgument)
	}
	held.hold.hold(resource{m.c.ns, r.Type, r.ID})
	if held.temporary || r.Type == snapshotsKind && !m.exists(ctx, r.ID) {
		return true, nil
	}
	return true, m.settle(ctx, []*heldLease{held}, nil)
}

// holdable reports whether a lease can hold it: what is in the way of a
// transaction must not come to light when that is due.
func holdable(r leases.Resource) bool {
	return r.ID != "" && (r.Type == snapshotsKind || r.Type == contentKind && digest.Digest(r.ID).Validate() == nil)
}

// exists reports whether there is a snapshot of that key.
func (m lodgerLeases) exists(ctx context.Context, key string) bool {
	_, err := m.c.s.snaps.Stat(ctx, key)
	return !errdefs.IsNotFound(err)
}

// settle writes leases to the database, and what also does, in one transaction.
// The caller has sweep and the turn. Also may be nil.
func (m lodgerLeases) settle(ctx context.Context, held []*heldLease, also func(context.Context) error) error {
	err := m.c.s.update(func(tx *bolt.Tx) error {
		in := m.c.within(ctx, tx)
		for _, l := range held {
			if err := m.put(in, l); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(in)
	})
	if err != nil {
		return err
	}
	for _, l := range held {
		if m.c.s.held.take(m.id(l.Lease)) != nil {
			m.c.s.holds.remove(l.hold)
		}
	}
	return nil
}

// put writes one lease.
func (m lodgerLeases) put(in context.Context, l *heldLease) error {
	_, err := m.Manager.Create(in, func(to *leases.Lease) error { *to = l.Lease; return nil })
	if ignoreExists(err) != nil {
		return err
	}
	for _, r := range l.resources() {
		if err := m.Manager.AddResource(in, l.Lease, r); err != nil {
			return err
		}
	}
	return nil
}

// resources are what the lease holds, in an order.
func (l *heldLease) resources() []leases.Resource {
	l.hold.mu.Lock()
	defer l.hold.mu.Unlock()
	all := make([]leases.Resource, 0, len(l.hold.held))
	for r := range l.hold.held {
		all = append(all, leases.Resource{ID: r.id, Type: r.kind})
	}
	slices.SortFunc(all, func(a, b leases.Resource) int { return strings.Compare(a.Type+"\x00"+a.ID, b.Type+"\x00"+b.ID) })
	return all
}

// DeleteResource implements leases.Manager.
func (m lodgerLeases) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	m = m.in(ctx)
	m.c.s.held.turn.Lock()
	held := m.c.s.held.get(m.id(l))
	if held != nil {
		held.hold.forget(resource{m.c.ns, r.Type, r.ID})
	}
	m.c.s.held.turn.Unlock()
	if held != nil {
		return nil
	}
	return m.c.s.write.do(func(tx *bolt.Tx) error { return m.Manager.DeleteResource(m.c.within(ctx, tx), l, r) })
}

// ListResources implements leases.Manager.
func (m lodgerLeases) ListResources(ctx context.Context, l leases.Lease) ([]leases.Resource, error) {
	m = m.in(ctx)
	if held := m.c.s.held.get(m.id(l)); held != nil {
		return held.resources(), nil
	}
	return m.Manager.ListResources(ctx, l)
}

// make makes a snapshot, in one transaction with the leases that were made for
// it. The lease of ctx holds it, which may be a temporary one.
func (m lodgerLeases) make(ctx context.Context, key string, do func(context.Context) error) error {
	m = m.in(ctx)
	s, r := m.c.s, m.c.snapshotResource(key)
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	held, err := m.leased(ctx)
	if err != nil {
		return err
	}
	s.held.turn.Lock()
	defer s.held.turn.Unlock()
	waiting := s.held.of(m.c.ns, func(l *heldLease) bool { return !l.temporary && l.hold.holds(r) })
	var exists error
	err = m.settle(ctx, waiting, func(in context.Context) error {
		err := do(in)
		if errdefs.IsAlreadyExists(err) {
			exists, err = err, nil // and the leases hold it
		}
		return err
	})
	if err == nil && held != nil {
		held.hold.hold(r)
	}
	return errors.Join(err, exists)
}

// renamed takes a snapshot that has another name from now on out of the
// temporary lease of a context.
func (m lodgerLeases) renamed(ctx context.Context, key string) {
	m = m.in(ctx)
	id, _ := leases.FromContext(ctx)
	if held := m.c.s.held.get(leaseID{m.c.ns, id}); held != nil {
		held.hold.forget(m.c.snapshotResource(key))
	}
}

// leased returns the temporary lease of a context, nil if it has none. Another
// lease is in the database when leased returns. The caller has sweep.
func (m lodgerLeases) leased(ctx context.Context) (*heldLease, error) {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil, nil
	}
	m.c.s.held.turn.Lock()
	defer m.c.s.held.turn.Unlock()
	held := m.c.s.held.get(leaseID{m.c.ns, id})
	if held == nil || held.temporary {
		return held, nil
	}
	return nil, m.settle(ctx, []*heldLease{held}, nil)
}

// drop forgets leases of a namespace, and all that have expired.
func (h *heldLeases) drop(holds *holds, ns string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, l := range h.all {
		if id.ns == ns || expired(l.Lease) {
			holds.remove(l.hold)
			delete(h.all, id)
		}
	}
}

// A bare context ends as another one does, and has no values but our lease.
type bare struct{ context.Context }

func (b bare) Value(key any) any {
	if key == (leaseKey{}) {
		return b.Context.Value(key)
	}
	return nil
}
