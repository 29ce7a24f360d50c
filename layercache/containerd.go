package layercache

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/opencontainers/go-digest"
)

// Containerd is an org's part of the store in containerd's own terms, for
// builders that speak those. The stores are shared by all orgs and told apart
// by the namespace of a call's context; callers use this one and no other.
//
// What is made here is kept as long as one of Leases holds it. It shares its
// bytes with blobs and layers of the [Cache], and obeys the same collector.
type Containerd struct {
	Namespace   string
	Snapshotter string // name of Snapshots
	Content     content.Store
	Snapshots   snapshots.Snapshotter
	Leases      leases.Manager

	// Collect removes what nothing refers to, of all orgs.
	Collect func(context.Context) (gc.Stats, error)
}

// Containerd returns the org's part of the store.
func (c *Cache) Containerd() Containerd {
	s := c.s
	return Containerd{
		Namespace: c.ns, Snapshotter: snapshotterName,
		Content: guarded{s.content, s}, Snapshots: s.snaps, Leases: s.leases,
		Collect: func(ctx context.Context) (gc.Stats, error) { return nil, s.Collect(ctx) },
	}
}

// guarded is a content store whose commits no collection comes between: a file
// of a blob is there before the database knows it.
type guarded struct {
	content.Store
	s *Store
}

func (g guarded) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := g.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return guardedWriter{w, g.s}, nil
}

type guardedWriter struct {
	content.Writer
	s *Store
}

func (w guardedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	w.s.sweep.RLock()
	defer w.s.sweep.RUnlock()
	return w.Writer.Commit(ctx, size, expected, opts...)
}
