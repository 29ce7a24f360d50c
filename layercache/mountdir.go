package layercache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/continuity/fs"
	bolt "go.etcd.io/bbolt"
)

// makeMount makes and records a new directory, or leaves nothing.
func (c *Cache) makeMount(ctx context.Context, o *MountOptions, use *mountUse) error {
	dir := c.s.mountPath(use.id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	err := os.Chmod(dir, 0o755)
	if err == nil && o.Fill != nil {
		err = o.Fill(ctx, dir)
	}
	if err == nil {
		rec := mountRecord{ID: o.ID, App: o.App, Created: time.Now()}
		err = c.s.write.do(func(tx *bolt.Tx) error { return c.put(tx, mountsBucket, []byte(use.id.key), rec) })
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return nil
}

// weighMount finds out how much a directory holds. One that somebody changes
// meanwhile is counted at the end of that use.
func (s *Store) weighMount(ctx context.Context, id recordID) error {
	usage, err := fs.DiskUsage(ctx, s.mountPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var more int64
	err = s.write.do(func(tx *bolt.Tx) error {
		more = 0
		c := s.Org(id.org)
		rec, err := getRecord[mountRecord](c.bucket(tx, mountsBucket), []byte(id.key))
		if err != nil || rec.Bytes == usage.Size {
			return nil // it was evicted, or will be: it does not read back
		}
		more = usage.Size - rec.Bytes
		rec.Bytes = usage.Size
		return c.put(tx, mountsBucket, []byte(id.key), rec)
	})
	if err != nil {
		return err
	}
	s.used.bytes.Add(more)
	s.relieve(ctx)
	return nil
}

// dropMount takes the directory of a record away that is no more. [Store.clean]
// removes it.
func (s *Store) dropMount(id recordID) {
	if id.kind != mountKind {
		return
	}
	dir, _ := mountParts(id.key)
	if dir == "" || !filepath.IsLocal(dir) {
		return // the key is garbage
	}
	if err := s.setAside(filepath.Join(mountsDir, dir)); err != nil {
		s.log.Warn("cannot remove a cache mount", "what", id.String(), "err", err)
	}
}

// putMountsAside takes away the directories that have no record: a process was
// killed before they were filled, or while they were being evicted.
func (s *Store) putMountsAside() error {
	known := make(map[string]bool)
	err := s.eachMount(func(key []byte, _ *bolt.Bucket) {
		dir, _ := mountParts(string(key))
		known[dir] = true
	})
	if err != nil {
		return err
	}
	return s.setStraysAside(mountsDir, func(name string) bool { return known[name] })
}

// mountBytes is what all directories hold, as far as it was counted.
func (s *Store) mountBytes() (int64, error) {
	var total int64
	err := s.eachMount(func(key []byte, b *bolt.Bucket) {
		rec, _ := getRecord[mountRecord](b, key)
		total += rec.Bytes
	})
	return total, err
}

// eachMount calls visit for the record of each directory of every org.
func (s *Store) eachMount(visit func(key []byte, b *bolt.Bucket)) error {
	return s.meta.View(func(tx *bolt.Tx) error {
		names, err := orgs(tx)
		if err != nil {
			return err
		}
		for _, org := range names {
			b := s.Org(org).bucket(tx, mountsBucket)
			if b == nil {
				continue
			}
			err := b.ForEach(func(k, _ []byte) error {
				visit(k, b)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
