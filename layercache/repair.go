package layercache

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// damage is what a look-up found broken. It never leaves the package: after
// the repair it is ErrNotFound.
type damage struct {
	blob   digest.Digest // a blob that is not whole
	record *recordID     // a record that does not read back or lost what it names
	what   string
}

func (d *damage) Error() string { return damagedPrefix + d.what }

// repair removes what is damaged and returns ErrNotFound, or why it could not.
// The caller must not have sweep.
func (s *Store) repair(ctx context.Context, c *Cache, d *damage) error {
	ctx = context.WithoutCancel(ctx)
	var err error
	if d.blob != "" {
		err = s.purge(ctx, c, d.blob, d.what, true)
	}
	if d.record != nil && err == nil {
		err = s.dropRecord(ctx, c, *d.record, d.what)
	}
	if err != nil {
		return err
	}
	return ErrNotFound
}

// purge removes a blob's file and its registration with the org. Other orgs
// find it missing when they look. With recheck it leaves a blob alone that
// somebody has put there anew.
func (s *Store) purge(ctx context.Context, c *Cache, d digest.Digest, why string, recheck bool) error {
	ev, err := s.purgeLocked(ctx, c, d, why, recheck)
	if err == nil && ev != nil {
		s.used.bytes.Add(-ev.Bytes)
		s.tell(*ev)
	}
	return err
}

func (s *Store) purgeLocked(ctx context.Context, c *Cache, d digest.Digest, why string, recheck bool) (*Eviction, error) {
	s.sweep.Lock()
	defer s.sweep.Unlock()
	if recheck {
		var now error
		err := c.view(func(tx *bolt.Tx) error {
			_, now = c.check(ctx, tx, d)
			return nil
		})
		if _, still := errors.AsType[*damage](now); err != nil || !still {
			return nil, err
		}
	}
	ev := &Eviction{Time: time.Now(), Org: c.org, What: "blob " + d.String(), Reason: damagedPrefix + why}
	if st, err := os.Stat(s.blobPath(d)); err == nil {
		ev.Bytes = st.Size()
	}
	if err := os.Remove(s.blobPath(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s.handles.forget(d)
	return ev, s.meta.Update(func(tx *bolt.Tx) error {
		err := s.content.Delete(c.within(ctx, tx), d)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return s.recordEvictions(tx, *ev)
	})
}

// dropRecord removes one record and what goes with it, unless somebody has made
// it whole again.
func (s *Store) dropRecord(ctx context.Context, c *Cache, id recordID, why string) error {
	ev := Eviction{Time: time.Now(), Org: c.org, What: id.String(), Reason: damagedPrefix + why}
	var dropped bool
	err := s.write.do(func(tx *bolt.Tx) error {
		dropped = c.broken(ctx, tx, id)
		if !dropped {
			return nil
		}
		if err := c.deleteRecord(ctx, tx, id); err != nil {
			return err
		}
		return s.recordEvictions(tx, ev)
	})
	if err == nil && dropped {
		s.dropMount(id)
		s.tell(ev)
	}
	return err
}

// broken reports whether a record does not read back or lost what it names.
func (c *Cache) broken(ctx context.Context, tx *bolt.Tx, id recordID) bool {
	var err error
	switch id.kind {
	case stepKind:
		_, err = c.step(tx, Key([]byte(id.key)))
	case layerKind:
		_, err = c.layer(ctx, tx, digest.Digest(id.key))
	case snapshotKind:
		_, _, err = c.snapshot(ctx, tx, id.key)
	case packKind:
		_, err = c.pack(ctx, tx, []byte(id.key))
	case mountKind:
		_, err = c.mountRecord(ctx, tx, id.key)
	}
	_, broken := errors.AsType[*damage](err)
	return broken
}

// deleteRecord removes a record, its lease, its time of last use, and what is
// found by it: the contents of a pack, the members of a layer.
func (c *Cache) deleteRecord(ctx context.Context, tx *bolt.Tx, id recordID) error {
	if id.kind == packKind {
		if err := c.deletePacked(tx, []byte(id.key)); err != nil {
			return err
		}
	}
	if id.kind == layerKind {
		if err := c.deleteMembers(tx, id.key); err != nil {
			return err
		}
	}
	for _, b := range []struct{ name, key []byte }{
		{id.kind.bucket(), []byte(id.key)},
		{usedBucket, id.usedKey()},
	} {
		if bkt := c.bucket(tx, b.name); bkt != nil {
			if err := bkt.Delete(b.key); err != nil {
				return err
			}
		}
	}
	return c.deleteRecordLease(ctx, tx, id)
}
