package layercache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A Snapshot is a root file system in the making: directories for an overlay
// mount, which the caller makes. It ends with Commit or Discard.
type Snapshot struct {
	c      *Cache
	lease  *Lease
	key    string // in the metadata database
	name   string // after Commit
	parent string
	lowers []string
	upper  string
	handed bool // somebody else has it
}

// snapshotRecord is what is stored of a committed snapshot. Its key in the
// metadata database is its own each time it is made, so that what is left of
// a lost one is never in the way.
type snapshotRecord struct {
	Key    string `json:"key"`
	Parent string `json:"parent,omitempty"` // a name
	Bytes  int64  `json:"bytes"`
}

// upperLabel is the label by which the snapshotter tells a snapshot's own
// directory.
const upperLabel = "containerd.io/snapshot/overlay.upperdir"

func (c *Cache) snapshotID(name string) recordID { return recordID{c.org, snapshotKind, name} }

// Prepare begins a snapshot on top of a committed one; "" begins from nothing.
// The lease of ctx holds both. The error is [ErrNotFound] if the parent is not
// there, or one that it stands on.
func (c *Cache) Prepare(ctx context.Context, parent string) (*Snapshot, error) {
	s := &Snapshot{c: c, lease: leaseFrom(ctx), key: "active/" + rand.Text(), parent: parent}
	err := s.prepare(ctx)
	if dmg, ok := errors.AsType[*damage](err); ok {
		err = c.s.repair(ctx, c, dmg)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot on %q: %w", parent, err)
	}
	return s, nil
}

func (s *Snapshot) prepare(ctx context.Context) error {
	c := s.c
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	var (
		rec    snapshotRecord
		mounts []mount.Mount
	)
	err := c.s.update(func(tx *bolt.Tx) (err error) {
		if s.parent != "" {
			if rec, _, err = c.snapshot(ctx, tx, s.parent); err != nil {
				return err
			}
		}
		mounts, err = c.s.snaps.Prepare(c.within(ctx, tx), s.key, rec.Key)
		return err
	})
	if err != nil {
		return err
	}
	s.lease.hold(c.snapshotResource(s.key))
	if s.parent != "" {
		c.useSnapshot(ctx, s.parent, rec)
	}
	return s.parse(mounts)
}

// parse reads the directories from the snapshotter's mount: an overlay, or a
// bind mount of the upper directory where there is no parent.
func (s *Snapshot) parse(mounts []mount.Mount) error {
	if len(mounts) != 1 {
		return fmt.Errorf("snapshotter returned %d mounts, want 1", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" {
		s.upper = m.Source
		return nil
	}
	for _, o := range m.Options {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "lowerdir":
			s.lowers = strings.Split(v, ":")
		case "upperdir":
			s.upper = v
		}
	}
	if s.upper == "" || len(s.lowers) == 0 {
		return fmt.Errorf("snapshotter returned a mount of type %s without directories", m.Type)
	}
	return nil
}

// Lowers returns the directories below, topmost first; none if the snapshot
// began from nothing, and then there is nothing to mount an overlay on.
func (s *Snapshot) Lowers() []string { return slices.Clone(s.lowers) }

// Upper returns the directory that takes the changes.
func (s *Snapshot) Upper() string { return s.upper }

// Work returns overlayfs's work directory.
func (s *Snapshot) Work() string { return filepath.Join(filepath.Dir(s.upper), "work") }

// Name returns the name that Commit gave, before that "".
func (s *Snapshot) Name() string { return s.name }

// Commit ends the snapshot under a name. Nothing may be written to it from
// then on. If the cache has a whole snapshot of that name already, that one
// stays and this one is discarded: names stand for content. The lease under
// which it was prepared holds it.
func (s *Snapshot) Commit(ctx context.Context, name string) error {
	if name == "" {
		return errors.New("commit snapshot: no name")
	}
	if s.c.snapshotExists(ctx, s.lease, name) {
		s.name = name
		return s.Discard(ctx)
	}
	if err := s.commit(ctx, name); err != nil {
		return fmt.Errorf("commit snapshot %s: %w", name, err)
	}
	s.c.s.relieve(ctx)
	return nil
}

func (s *Snapshot) commit(ctx context.Context, name string) error {
	c := s.c
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	rec := snapshotRecord{Key: "committed/" + rand.Text(), Parent: s.parent}
	err := c.s.update(func(tx *bolt.Tx) error {
		in := c.within(ctx, tx)
		if err := c.s.snaps.Commit(in, rec.Key, s.key); err != nil {
			return err
		}
		usage, err := c.s.snaps.Usage(in, rec.Key)
		if err != nil {
			return err
		}
		rec.Bytes = usage.Size
		if err := c.put(tx, snapshotsBucket, []byte(name), rec); err != nil {
			return err
		}
		if err := c.putRecordLease(ctx, tx, c.snapshotID(name), c.snapshotResource(rec.Key)); err != nil {
			return err
		}
		return s.lease.keep(ctx, tx, c.snapshotResource(rec.Key))
	})
	if err != nil {
		return err
	}
	s.lease.drop(c.snapshotResource(s.key))
	s.lease.hold(c.snapshotResource(rec.Key))
	c.s.touched.add(c.snapshotID(name))
	c.s.used.bytes.Add(rec.Bytes)
	s.name = name
	return nil
}

// Discard gives the snapshot up and frees its space. Nothing may be mounted
// on it any more.
func (s *Snapshot) Discard(context.Context) error {
	if s.handed {
		return nil
	}
	s.lease.drop(s.c.snapshotResource(s.key))
	// What the databases know of it goes with the next collection.
	if err := os.RemoveAll(filepath.Dir(s.upper)); err != nil {
		return fmt.Errorf("discard snapshot: %w", err)
	}
	return nil
}

// Hand gives the snapshot to another lease, and returns it as that has it: the
// one it was can be discarded, and nothing happens. Nothing may be mounted on it.
// The error is [ErrNotFound] if what it stands on is gone.
func (s *Snapshot) Hand(ctx context.Context, l *Lease) (*Snapshot, error) {
	s.c.s.sweep.RLock()
	l.hold(s.c.snapshotResource(s.key))
	s.c.s.sweep.RUnlock()
	if s.parent != "" {
		if _, err := s.c.View(l.Context(ctx), s.parent); err != nil {
			return nil, fmt.Errorf("hand snapshot over: %w", err)
		}
	}
	to := *s
	to.lease, s.handed = l, true
	return &to, nil
}

// SnapshotExists reports whether a committed snapshot is there with all that
// it stands on. The lease of ctx holds it.
func (c *Cache) SnapshotExists(ctx context.Context, name string) bool {
	return c.snapshotExists(ctx, leaseFrom(ctx), name)
}

func (c *Cache) snapshotExists(ctx context.Context, l *Lease, name string) bool {
	if l != nil {
		ctx = l.Context(ctx)
	}
	_, err := c.View(ctx, name)
	return err == nil
}

// View returns the directories of a committed snapshot, topmost first: its own
// and those of all that it stands on. The lease of ctx holds them. The error
// is [ErrNotFound] if one is missing.
func (c *Cache) View(ctx context.Context, name string) ([]string, error) {
	var (
		rec  snapshotRecord
		dirs []string
	)
	err := c.lookUp(ctx, func(tx *bolt.Tx) (err error) {
		rec, dirs, err = c.snapshot(ctx, tx, name)
		return err
	}, func() { c.useSnapshot(ctx, name, rec) })
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	return dirs, nil
}

// useSnapshot holds a snapshot and notes that it is used. The caller has
// sweep.
func (c *Cache) useSnapshot(ctx context.Context, name string, rec snapshotRecord) {
	leaseFrom(ctx).hold(c.snapshotResource(rec.Key))
	c.s.touched.add(c.snapshotID(name))
}

// snapshot reads a snapshot's record and finds the directories that it and
// its parents have. The error is ErrNotFound or *damage.
func (c *Cache) snapshot(ctx context.Context, tx *bolt.Tx, name string) (snapshotRecord, []string, error) {
	id := c.snapshotID(name)
	if name == "" {
		return snapshotRecord{}, nil, ErrNotFound
	}
	rec, err := getRecord[snapshotRecord](c.bucket(tx, snapshotsBucket), []byte(name))
	if errors.Is(err, errGarbage) {
		return rec, nil, &damage{record: &id, what: err.Error()}
	}
	if err != nil {
		return rec, nil, err
	}
	var dirs []string
	for key := rec.Key; key != ""; {
		info, err := c.s.snaps.Stat(c.within(ctx, tx), key)
		if errdefs.IsNotFound(err) {
			return rec, nil, &damage{record: &id, what: "the snapshotter lost " + key}
		}
		if err != nil {
			return rec, nil, err
		}
		dir := info.Labels[upperLabel]
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
			return rec, nil, &damage{record: &id, what: "its directory " + dir + " is gone"}
		}
		dirs, key = append(dirs, dir), info.Parent
	}
	return rec, dirs, nil
}
