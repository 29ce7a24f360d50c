package layercache

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Member is a piece of a layer's blob that can be used again: a compressed
// member of it, found by what it holds.
type Member struct {
	Key    [32]byte
	Offset int64 // in the blob
	Size   int
	Sum    uint32 // CRC-32C of its bytes
}

// memberLen is the length of what is stored of a member: the digest of its
// blob, offset, size and sum.
const memberLen = 32 + 8 + 4 + 4

// PutMembers records the members of a blob that a layer has. They go when the
// layer does.
func (c *Cache) PutMembers(_ context.Context, blob digest.Digest, ms []Member) error {
	raw := rawDigest(blob)
	if raw == nil || len(ms) == 0 {
		return nil
	}
	return c.s.write.do(func(tx *bolt.Tx) error {
		index, err := c.makeBucket(tx, membersBucket)
		if err != nil {
			return err
		}
		lists, err := c.makeBucket(tx, membersOfBucket)
		if err != nil {
			return err
		}
		keys := make([]byte, 0, 32*len(ms))
		for _, m := range ms {
			b := append(make([]byte, 0, memberLen), raw...)
			b = binary.BigEndian.AppendUint64(b, uint64(m.Offset))
			b = binary.BigEndian.AppendUint32(b, uint32(m.Size))
			b = binary.BigEndian.AppendUint32(b, m.Sum)
			if err := index.Put(m.Key[:], seal(b)); err != nil {
				return err
			}
			keys = append(keys, m.Key[:]...)
		}
		return lists.Put(raw, keys)
	})
}

// Member appends a member to dst and reports whether the cache has it, whole.
func (c *Cache) Member(ctx context.Context, key [32]byte, dst []byte) ([]byte, bool) {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	var (
		m    Member
		blob digest.Digest
	)
	err := c.view(func(tx *bolt.Tx) error {
		index := c.bucket(tx, membersBucket)
		if index == nil {
			return ErrNotFound
		}
		b, err := unseal(index.Get(key[:]))
		if err != nil || len(b) != memberLen {
			return ErrNotFound
		}
		blob = digest.NewDigestFromBytes(digest.SHA256, b[:32])
		m.Offset = int64(binary.BigEndian.Uint64(b[32:]))
		m.Size = int(binary.BigEndian.Uint32(b[40:]))
		m.Sum = binary.BigEndian.Uint32(b[44:])
		size, err := c.check(ctx, tx, blob)
		if err == nil && (m.Offset < 0 || m.Offset > size-int64(m.Size)) {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return dst, false
	}
	f, err := os.Open(c.s.blobPath(blob))
	if err != nil {
		return dst, false
	}
	defer f.Close()
	start := len(dst)
	out := append(dst, make([]byte, m.Size)...)
	if _, err := f.ReadAt(out[start:], m.Offset); err != nil || crc32.Checksum(out[start:], castagnoli) != m.Sum {
		return dst, false
	}
	return out, true
}

// deleteMembers forgets the members of a layer's blobs, whose record is still
// there.
func (c *Cache) deleteMembers(tx *bolt.Tx, diffID string) error {
	index, lists := c.bucket(tx, membersBucket), c.bucket(tx, membersOfBucket)
	if index == nil || lists == nil {
		return nil
	}
	rec, err := getRecord[layerRecord](c.bucket(tx, layersBucket), []byte(diffID))
	if err != nil {
		return ignoreGarbage(err)
	}
	for _, b := range rec.Blobs {
		raw := rawDigest(b.Digest)
		if raw == nil {
			continue
		}
		for keys := lists.Get(raw); len(keys) >= 32; keys = keys[32:] {
			m, err := unseal(index.Get(keys[:32]))
			if err == nil && len(m) == memberLen && string(m[:32]) != string(raw) {
				continue // another blob has it too, and was recorded later
			}
			if err := index.Delete(keys[:32]); err != nil {
				return err
			}
		}
		if err := lists.Delete(raw); err != nil {
			return err
		}
	}
	return nil
}

func ignoreGarbage(err error) error {
	if errors.Is(err, errGarbage) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
