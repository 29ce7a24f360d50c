package layercache

import (
	"encoding/binary"
	"strconv"

	bolt "go.etcd.io/bbolt"
)

// looseKey is where the bytes are noted that an org's lodgers have in snapshots
// that are not committed. It stays when they are closed, for those snapshots
// stay too.
var looseKey = []byte("loose")

func (c *Cache) loose(tx *bolt.Tx) int64 {
	b := c.bucket(tx, lodgedBucket)
	if b == nil {
		return 0
	}
	v := b.Get(looseKey)
	if len(v) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(v))
}

// setLoose notes another number, and corrects the size of the cache by it.
func (c *Cache) setLoose(tx *bolt.Tx, change func(was int64) int64) error {
	was := c.loose(tx)
	now := change(was)
	if now == was {
		return nil
	}
	b, err := c.makeBucket(tx, lodgedBucket)
	if err != nil {
		return err
	}
	tx.OnCommit(func() { c.s.used.bytes.Add(now - was) })
	return b.Put(looseKey, binary.BigEndian.AppendUint64(nil, uint64(now)))
}

// noteLoose notes a number, with a transaction only if it is another one.
func (c *Cache) noteLoose(bytes int64) error {
	var was int64
	err := c.view(func(tx *bolt.Tx) error {
		was = c.loose(tx)
		return nil
	})
	if err != nil || was == bytes {
		return err
	}
	return c.s.meta.Update(func(tx *bolt.Tx) error {
		return c.setLoose(tx, func(int64) int64 { return bytes })
	})
}

// looseBytes is what is noted of all orgs.
func (s *Store) looseBytes() (total int64, err error) {
	err = s.meta.View(func(tx *bolt.Tx) error {
		names, err := orgs(tx)
		for _, org := range names {
			total += s.Org(org).loose(tx)
		}
		return err
	})
	return total, err
}

// mergedLabel is on snapshots that BuildKit has merged of others. It says how much
// of one is its own; the rest are links to the files of those.
const mergedLabel = "buildkit.mergeUsageSize"

// mergedLabels returns the labels of all such snapshots, which only containerd's
// schema v1 has, by their names in the snapshotter.
func (s *Store) mergedLabels() (map[string]string, error) {
	labels := make(map[string]string)
	err := s.meta.View(func(tx *bolt.Tx) error {
		for _, ns := range namespacesIn(tx) {
			all := tx.Bucket([]byte("v1"))
			for _, name := range []string{ns, "snapshots", snapshotterName} {
				if all = all.Bucket([]byte(name)); all == nil {
					break
				}
			}
			if all == nil {
				continue
			}
			err := all.ForEachBucket(func(key []byte) error {
				b := all.Bucket(key)
				if l := b.Bucket([]byte("labels")); l != nil && l.Get([]byte(mergedLabel)) != nil {
					labels[string(b.Get([]byte("name")))] = string(l.Get([]byte(mergedLabel)))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return labels, err
}

// linked returns how much of a snapshot of size bytes is links; label is its
// mergedLabel.
func linked(label string, size int64) int64 {
	own, err := strconv.ParseInt(label, 10, 64)
	if err != nil {
		return 0
	}
	return max(0, size-own)
}
