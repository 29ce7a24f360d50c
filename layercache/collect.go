package layercache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Collect removes what no record and no lease refers to: blobs of failed
// builds, discarded snapshots, what a killed daemon left. Evictions do it by
// themselves; a daemon calls it once after it has started.
func (s *Store) Collect(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := s.collectLocked(ctx)
	if err == nil {
		err = s.clean(ctx)
	}
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return nil
}

func (s *Store) collectLocked(ctx context.Context) error {
	s.sweep.Lock()
	defer s.sweep.Unlock()
	if err := s.syncLeases(ctx); err != nil {
		return err
	}
	return s.collect(ctx)
}

// collect runs containerd's collector. The caller has sweep exclusively and
// has called syncLeases.
func (s *Store) collect(ctx context.Context) error {
	if _, err := s.meta.GarbageCollect(ctx); err != nil {
		return err
	}
	return s.removeOrphans(ctx)
}

// removeOrphans removes blob files that no org has registered: a process was
// killed between the two.
func (s *Store) removeOrphans(ctx context.Context) error {
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(s.blobs())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := sizes[digest.NewDigestFromEncoded(digest.SHA256, e.Name())]; ok {
			continue
		}
		if err := os.Remove(s.path("content", "blobs", "sha256", e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// clean removes directories that nothing refers to any more, which may take
// long and stops nobody, and measures what is left.
func (s *Store) clean(ctx context.Context) error {
	if c, ok := s.overlay.(snapshots.Cleaner); ok {
		if err := ignoreNone(c.Cleanup(ctx)); err != nil {
			return err
		}
	}
	old, err := os.ReadDir(s.path("spool"))
	if err != nil {
		return err
	}
	for _, e := range old {
		if !strings.HasPrefix(e.Name(), asidePrefix) {
			continue
		}
		if err := os.RemoveAll(s.path("spool", e.Name())); err != nil {
			return err
		}
	}
	return s.measure(ctx)
}

// measure finds out how much the cache has on the disk: each blob once,
// the committed snapshots, the cache mounts, spares, and what lodgers keep in
// snapshots that are not committed. Those of builds under way are not counted.
func (s *Store) measure(ctx context.Context) error {
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	before := s.used.bytes.Load()
	var total int64
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return err
	}
	for _, n := range sizes {
		total += n
	}
	labels, err := s.mergedLabels()
	if err != nil {
		return err
	}
	var committed []string
	err = s.overlay.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			committed = append(committed, info.Name)
		}
		return nil
	})
	if ignoreNone(err) != nil {
		return err
	}
	for _, name := range committed {
		usage, err := s.overlay.Usage(ctx, name)
		if ignoreNone(err) != nil {
			return err
		}
		total += usage.Size - linked(labels[name], usage.Size)
	}
	inMounts, err := s.mountBytes()
	if err != nil {
		return err
	}
	loose, err := s.looseBytes()
	if err != nil {
		return err
	}
	total += inMounts + loose + s.spares.bytes()
	// What was added meanwhile may be counted twice; the next time it is not.
	s.used.bytes.Add(total - before)
	s.used.measured.Store(true)
	return nil
}

// ignoreNone takes away what the snapshotter says before its first snapshot,
// and of one that went meanwhile.
func ignoreNone(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// blobSizes returns the size of each blob that an org has registered.
func (s *Store) blobSizes(ctx context.Context) (map[digest.Digest]int64, error) {
	var names []string
	err := s.meta.View(func(tx *bolt.Tx) error {
		names = namespacesIn(tx)
		return nil
	})
	if err != nil {
		return nil, err
	}
	sizes := make(map[digest.Digest]int64)
	for _, ns := range names {
		err := s.content.Walk((&Cache{ns: ns}).context(ctx), func(info content.Info) error {
			sizes[info.Digest] = info.Size
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

// namespacesIn returns the namespaces of containerd's schema v1.
func namespacesIn(tx *bolt.Tx) []string {
	var names []string
	b := tx.Bucket([]byte("v1"))
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if v == nil {
			names = append(names, string(k))
		}
	}
	return names
}
