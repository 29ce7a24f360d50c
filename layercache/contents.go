package layercache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Contents are the files of build contexts, by the digest of what is in them.
// Small ones share a blob, a pack: an org with a million of them has some
// hundred files on the disk.
type Contents struct {
	c   *Cache
	app string
}

// Contents returns the contents of the org.
func (c *Cache) Contents() *Contents { return &Contents{c: c} }

// For returns the same contents, with what is written accounted to an app.
func (x *Contents) For(app string) *Contents { return &Contents{c: x.c, app: app} }

// packRecord is what is stored of a pack. Its id counts up; the contents point
// to it.
type packRecord struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Count  int           `json:"count"`
	App    string        `json:"app,omitempty"`
}

func (c *Cache) packID(id []byte) recordID { return recordID{c.org, packKind, string(id)} }

// A place is where a content is: bytes of a pack.
type place struct {
	pack      [8]byte
	off, size int64
}

const placeLen = 8 + 8 + 8

func (p place) encode() []byte {
	b := make([]byte, 0, placeLen)
	b = append(b, p.pack[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.off))
	return seal(binary.BigEndian.AppendUint64(b, uint64(p.size)))
}

// decodePlace reads what encode wrote, else errGarbage.
func decodePlace(sealed []byte) (place, error) {
	b, err := unseal(sealed)
	if err != nil || len(b) != placeLen {
		return place{}, errGarbage
	}
	p := place{
		pack: [8]byte(b),
		off:  int64(binary.BigEndian.Uint64(b[8:])),
		size: int64(binary.BigEndian.Uint64(b[16:])),
	}
	if p.off < 0 || p.size < 0 {
		return place{}, errGarbage
	}
	return p, nil
}

// rawDigest returns the bytes of a SHA-256 digest, nil if it is none.
func rawDigest(d digest.Digest) []byte {
	text, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(text) != 2*sha256.Size || strings.ContainsAny(text, "ABCDEF") {
		return nil
	}
	raw, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}
	return raw
}

var emptyDigest = digest.FromBytes(nil)

// Missing returns the indices of the digests whose content the cache lacks.
// What it has is held by the lease of ctx.
func (x *Contents) Missing(ctx context.Context, ds []digest.Digest) ([]int, error) {
	missing, broken, err := x.missing(ctx, ds)
	for _, dmg := range broken {
		if err == nil {
			err = ignoreNotFound(x.c.s.repair(ctx, x.c, dmg))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up %d contents: %w", len(ds), err)
	}
	return missing, nil
}

func (x *Contents) missing(ctx context.Context, ds []digest.Digest) (missing []int, broken []*damage, err error) {
	c, lease := x.c, leaseFrom(ctx)
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	whole := make(map[[8]byte]bool)
	err = c.view(func(tx *bolt.Tx) error {
		index := c.bucket(tx, contentsBucket)
		for i, d := range ds {
			if d == emptyDigest {
				continue
			}
			p, err := findPlace(index, rawDigest(d))
			if err != nil {
				missing = append(missing, i)
				continue
			}
			ok, seen := whole[p.pack]
			if !seen {
				rec, err := c.pack(ctx, tx, p.pack[:])
				if dmg, isDamage := errors.AsType[*damage](err); isDamage {
					broken = append(broken, dmg)
				} else if err != nil && !errors.Is(err, ErrNotFound) {
					return err
				}
				ok = err == nil
				whole[p.pack] = ok
				if ok {
					lease.hold(c.blobResource(rec.Digest))
					c.s.touched.add(c.packID(p.pack[:]))
				}
			}
			if !ok {
				missing = append(missing, i)
			}
		}
		return nil
	})
	return missing, broken, err
}

func ignoreNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// findPlace looks a content up; what does not read back is not found, and is
// replaced when the content comes again.
func findPlace(index *bolt.Bucket, raw []byte) (place, error) {
	if index == nil || raw == nil {
		return place{}, ErrNotFound
	}
	p, err := decodePlace(index.Get(raw))
	if err != nil {
		return place{}, ErrNotFound
	}
	return p, nil
}

// pack reads the record of a pack. The error is ErrNotFound or *damage.
func (c *Cache) pack(ctx context.Context, tx *bolt.Tx, key []byte) (packRecord, error) {
	id := c.packID(key)
	rec, err := getRecord[packRecord](c.bucket(tx, packsBucket), key)
	if errors.Is(err, errGarbage) {
		return rec, &damage{record: &id, what: err.Error()}
	}
	if err != nil {
		return rec, err
	}
	size, err := c.check(ctx, tx, rec.Digest)
	if err == nil && size != rec.Size {
		err = ErrNotFound
	}
	if err != nil {
		return rec, c.blame(err, id, "its blob is gone")
	}
	return rec, nil
}

// A Content is one open file of a build context. It may be read concurrently
// until it is closed.
type Content struct {
	*io.SectionReader
	digest digest.Digest
	file   *handle
	s      *Store
	own    bool // it is all of its file, and large
}

// Close lets go of the content. It must be called once.
func (o *Content) Close() error {
	if o.file != nil {
		o.file.release()
	}
	return nil
}

// Digest returns the content's digest.
func (o *Content) Digest() digest.Digest { return o.digest }

// Linkable reports whether the content is large enough for a file of its own.
func (o *Content) Linkable() bool { return o.own }

// Link gives a large content's file a second name, in the directory open as
// dir, instead of a copy. It does so once for a file: its owner, mode, times and
// attributes belong to the second name, and to nobody else, until that is
// removed. It reports false where the caller must copy. The bytes must never
// be written to.
func (o *Content) Link(dir int, name string) (bool, error) {
	if !o.own {
		return false, nil
	}
	o.s.linking.Lock()
	defer o.s.linking.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(o.file.f.Fd()), &st); err != nil || st.Nlink != 1 {
		return false, nil
	}
	err := unix.Linkat(unix.AT_FDCWD, o.file.f.Name(), dir, name, 0)
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK), errors.Is(err, unix.ENOENT):
		return false, nil // another file system, or evicted meanwhile
	case err != nil:
		return false, fmt.Errorf("link content: %w", err)
	}
	return true, nil
}

// Open opens a content; the lease of ctx holds it. The error is [ErrNotFound]
// if the cache lacks it.
func (x *Contents) Open(ctx context.Context, d digest.Digest) (*Content, error) {
	if d == emptyDigest {
		return &Content{SectionReader: io.NewSectionReader(nil, 0, 0), digest: d}, nil
	}
	o, err := x.open(ctx, d)
	if dmg, ok := errors.AsType[*damage](err); ok {
		err = x.c.s.repair(ctx, x.c, dmg)
	}
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	return o, nil
}

func (x *Contents) open(ctx context.Context, d digest.Digest) (*Content, error) {
	c := x.c
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	var (
		p  place
		hd *handle
	)
	err := c.view(func(tx *bolt.Tx) (err error) {
		if p, err = findPlace(c.bucket(tx, contentsBucket), rawDigest(d)); err != nil {
			return err
		}
		id := c.packID(p.pack[:])
		if hd = c.s.handles.get(id); hd != nil {
			return nil
		}
		rec, err := c.pack(ctx, tx, p.pack[:])
		if err != nil {
			return err
		}
		c.s.touched.add(id)
		hd, err = c.s.handles.open(id, rec.Digest, c.s.blobPath(rec.Digest), rec.Size)
		return err
	})
	if err != nil {
		return nil, err
	}
	leaseFrom(ctx).hold(c.blobResource(hd.blob))
	return &Content{SectionReader: io.NewSectionReader(hd.f, p.off, p.size), digest: d, file: hd, s: c.s, own: p.size == hd.size && p.size >= ownBlob}, nil
}

// putPack records a pack and the contents in it, within tx.
func (c *Cache) putPack(ctx context.Context, tx *bolt.Tx, rec packRecord, entries []packed) error {
	packs, err := c.makeBucket(tx, packsBucket)
	if err != nil {
		return err
	}
	n, err := packs.NextSequence()
	if err != nil {
		return err
	}
	index, err := c.makeBucket(tx, contentsBucket)
	if err != nil {
		return err
	}
	p := place{pack: [8]byte(binary.BigEndian.AppendUint64(nil, n))}
	digests := make([]byte, 0, len(entries)*32)
	for _, e := range entries {
		p.off, p.size = e.off, e.size
		if err := index.Put(e.digest[:], p.encode()); err != nil {
			return err
		}
		digests = append(digests, e.digest[:]...)
	}
	list, err := c.makeBucket(tx, packedBucket)
	if err != nil {
		return err
	}
	list.FillPercent = 1 // ids only grow
	if err := list.Put(p.pack[:], digests); err != nil {
		return err
	}
	id := c.packID(p.pack[:])
	if err := putRecord(packs, p.pack[:], rec); err != nil {
		return err
	}
	return c.putRecordLease(ctx, tx, id, c.blobResource(rec.Digest))
}

// deletePacked removes the contents that are in a pack, and the list of them.
func (c *Cache) deletePacked(tx *bolt.Tx, pack []byte) error {
	list, index := c.bucket(tx, packedBucket), c.bucket(tx, contentsBucket)
	if list == nil || index == nil {
		return nil
	}
	for digests := list.Get(pack); len(digests) >= 32; digests = digests[32:] {
		p, err := decodePlace(index.Get(digests[:32]))
		if err == nil && string(p.pack[:]) != string(pack) {
			continue // it came again, in another pack
		}
		if err := index.Delete(digests[:32]); err != nil {
			return err
		}
	}
	return list.Delete(pack)
}
