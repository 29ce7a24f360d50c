package layercache

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Containerd is an org's part of the store in containerd's own terms, for
// builders that speak those. The stores are shared by all orgs and told apart
// by the namespace of a call's context; callers use this one and no other.
//
// What is made here is kept as long as one of Leases holds it. It shares its
// bytes with blobs and layers of the [Cache], and obeys the same collector. Leases
// that are temporary, as BuildKit marks them, end with the process. What
// is committed here may bring an eviction, in the background: callers may hold
// locks that their [Lodger] needs.
type Containerd struct {
	Namespace   string
	Snapshotter string // name of Snapshots
	Content     content.Store
	Snapshots   snapshots.Snapshotter
	Leases      leases.Manager

	// Collect removes what nothing refers to, of all orgs.
	Collect func(context.Context) (gc.Stats, error)

	// Forget deletes all leases of the namespace that are not layercache's own,
	// for a lodger that has lost or thrown away its records: what they held goes
	// with the next collection. Nothing of the lodger may be in use.
	Forget func(context.Context) error
}

// Containerd returns the org's part of the store.
func (c *Cache) Containerd() Containerd {
	s := c.s
	held := lodgerLeases{s.leases, c}
	return Containerd{
		Namespace: c.ns, Snapshotter: snapshotterName,
		Content: guarded{s.content, held}, Snapshots: weighed{s.snaps, held}, Leases: held,
		Collect: func(ctx context.Context) (gc.Stats, error) { return nil, s.Collect(ctx) },
		Forget:  c.forget,
	}
}

func (c *Cache) forget(context.Context) error {
	err := c.s.meta.Update(func(tx *bolt.Tx) error {
		if err := dropForeignLeases(tx, c.ns); err != nil {
			return err
		}
		return c.setLoose(tx, func(int64) int64 { return 0 })
	})
	if err != nil {
		return fmt.Errorf("forget leases of %s: %w", c.ns, err)
	}
	c.s.held.drop(&c.s.holds, c.ns)
	return nil
}

// weighed is a snapshotter that counts what is committed.
type weighed struct {
	snapshots.Snapshotter
	held lodgerLeases
}

func (w weighed) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	err = w.held.make(ctx, key, func(ctx context.Context) (err error) {
		m, err = w.Snapshotter.Prepare(ctx, key, parent, opts...)
		return err
	})
	return m, err
}

func (w weighed) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	err = w.held.make(ctx, key, func(ctx context.Context) (err error) {
		m, err = w.Snapshotter.View(ctx, key, parent, opts...)
		return err
	})
	return m, err
}

func (w weighed) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := w.held.make(ctx, name, func(ctx context.Context) error {
		return w.Snapshotter.Commit(ctx, name, key, opts...)
	})
	if err != nil {
		return err
	}
	w.held.renamed(ctx, key)
	if info, err := w.Stat(ctx, name); err == nil {
		if usage, err := w.Usage(ctx, name); err == nil {
			w.held.c.s.used.bytes.Add(usage.Size - linked(info.Labels[mergedLabel], usage.Size))
		}
	}
	w.held.c.s.relieveSoon()
	return nil
}

// guarded is a content store whose commits no collection comes between: a file
// of a blob is there before the database knows it.
type guarded struct {
	content.Store
	held lodgerLeases
}

func (g guarded) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	held := g.held.in(ctx)
	held.c.s.sweep.RLock()
	defer held.c.s.sweep.RUnlock()
	lease, err := held.leased(ctx)
	if err != nil {
		return nil, err
	}
	w, err := g.Store.Writer(held.c.context(ctx), opts...)
	if err == nil {
		return guardedWriter{w, held}, nil
	}
	if lease != nil && errdefs.IsAlreadyExists(err) {
		var o content.WriterOpts
		for _, opt := range opts {
			if err := opt(&o); err != nil {
				return nil, err
			}
		}
		lease.hold.hold(held.c.blobResource(o.Desc.Digest))
	}
	return nil, err
}

type guardedWriter struct {
	content.Writer
	held lodgerLeases
}

func (w guardedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	written := size
	if st, err := w.Status(); err == nil {
		written = st.Offset
	}
	if s, ok := w.Writer.(content.Syncer); ok {
		_ = s.Sync() // so that the lock is not held for that; Commit says what went wrong
	}
	if err := w.commit(ctx, size, expected, opts...); err != nil {
		return err
	}
	w.held.c.s.used.bytes.Add(written) // a blob of two orgs counts twice until the next collection
	w.held.c.s.relieveSoon()
	return nil
}

func (w guardedWriter) commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	w.held.c.s.sweep.RLock()
	defer w.held.c.s.sweep.RUnlock()
	lease, err := w.held.leased(ctx)
	if err != nil {
		return err
	}
	d := w.Digest()
	err = w.Writer.Commit(w.held.c.context(ctx), size, expected, opts...)
	if lease != nil && ignoreExists(err) == nil {
		lease.hold.hold(w.held.c.blobResource(d))
	}
	return err
}
