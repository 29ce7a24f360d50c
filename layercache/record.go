package layercache

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Slipway's buckets in the metadata database:
//
//	slipway
//	├── generation         names the time since snapshots were dropped
//	├── evictions          sequence → Eviction
//	└── orgs
//	    └── <org>
//	        ├── steps      key → Step
//	        ├── layers     diff ID → layerRecord
//	        ├── snapshots  name → snapshotRecord
//	        ├── packs      id → packRecord
//	        ├── packed     id → digests of the contents in the pack
//	        ├── contents   digest → place in a pack
//	        ├── members    key → place in a layer's blob
//	        ├── membersof  digest of a blob → keys of the members in it
//	        ├── mounts     digest, directory and id → mountRecord
//	        ├── lodged     what layercache knows of lodgers' records
//	        ├── builds     app → Build
//	        ├── trails     app and recipe → Trail
//	        └── used       kind and key → time of last use
//
// A record is a checksum and JSON. One that does not read back is dropped.
var (
	slipwayBucket   = []byte("slipway")
	evictionsBucket = []byte("evictions")
	orgsBucket      = []byte("orgs")
	stepsBucket     = []byte("steps")
	layersBucket    = []byte("layers")
	snapshotsBucket = []byte("snapshots")
	packsBucket     = []byte("packs")
	packedBucket    = []byte("packed")
	contentsBucket  = []byte("contents")
	membersBucket   = []byte("members")
	membersOfBucket = []byte("membersof")
	mountsBucket    = []byte("mounts")
	lodgedBucket    = []byte("lodged")
	buildsBucket    = []byte("builds")
	trailsBucket    = []byte("trails")
	usedBucket      = []byte("used")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errGarbage says that a record does not read back.
var errGarbage = errors.New("record does not read back")

// seal puts a checksum before data.
func seal(data []byte) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), crc32.Checksum(data, castagnoli))
	return append(out, data...)
}

// unseal returns the data that seal got. It shares memory with sealed.
func unseal(sealed []byte) ([]byte, error) {
	if len(sealed) < 4 || binary.BigEndian.Uint32(sealed) != crc32.Checksum(sealed[4:], castagnoli) {
		return nil, errGarbage
	}
	return sealed[4:], nil
}

// getRecord reads the record under key; b may be nil. The error is
// ErrNotFound or errGarbage.
func getRecord[T any](b *bolt.Bucket, key []byte) (T, error) {
	var rec T
	if b == nil {
		return rec, ErrNotFound
	}
	sealed := b.Get(key)
	if sealed == nil {
		return rec, ErrNotFound
	}
	data, err := unseal(sealed)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("%w: %v", errGarbage, err)
	}
	return rec, nil
}

func putRecord(b *bolt.Bucket, key []byte, rec any) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return b.Put(key, seal(data))
}

// bucket returns one of the org's buckets, nil if there is none yet.
func (c *Cache) bucket(tx *bolt.Tx, name []byte) *bolt.Bucket {
	b := tx.Bucket(slipwayBucket)
	for _, n := range [][]byte{orgsBucket, []byte(c.org), name} {
		if b == nil {
			return nil
		}
		b = b.Bucket(n)
	}
	return b
}

// makeBucket returns one of the org's buckets and makes it if need be.
func (c *Cache) makeBucket(tx *bolt.Tx, name []byte) (*bolt.Bucket, error) {
	b, err := tx.CreateBucketIfNotExists(slipwayBucket)
	for _, n := range [][]byte{orgsBucket, []byte(c.org), name} {
		if err != nil {
			return nil, err
		}
		b, err = b.CreateBucketIfNotExists(n)
	}
	return b, err
}

// put writes a record of the org.
func (c *Cache) put(tx *bolt.Tx, bucket, key []byte, rec any) error {
	b, err := c.makeBucket(tx, bucket)
	if err != nil {
		return err
	}
	return putRecord(b, key, rec)
}

// orgs returns the orgs that have records.
func orgs(tx *bolt.Tx) ([]string, error) {
	b := tx.Bucket(slipwayBucket)
	if b != nil {
		b = b.Bucket(orgsBucket)
	}
	if b == nil {
		return nil, nil
	}
	var names []string
	return names, b.ForEachBucket(func(k []byte) error {
		names = append(names, string(k))
		return nil
	})
}

// A kind tells the records apart that take part in eviction.
type kind byte

const (
	stepKind     kind = 's'
	layerKind    kind = 'l'
	snapshotKind kind = 'n'
	packKind     kind = 'p'
	mountKind    kind = 'm'
	trailKind    kind = 't'
	lodgedKind   kind = 'b' // of a Lodger; in no bucket
	spareKind    kind = 'f' // likewise
)

func (k kind) bucket() []byte {
	switch k {
	case stepKind:
		return stepsBucket
	case layerKind:
		return layersBucket
	case snapshotKind:
		return snapshotsBucket
	case mountKind:
		return mountsBucket
	case trailKind:
		return trailsBucket
	default:
		return packsBucket
	}
}

// A recordID names one record of a store.
type recordID struct {
	org  string
	kind kind
	key  string
}

// usedKey is where the time of last use is kept.
func (id recordID) usedKey() []byte { return append([]byte{byte(id.kind)}, id.key...) }

func encodeTime(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano()))
}

// decodeTime returns the zero time for what is not a time.
func decodeTime(b []byte) time.Time {
	if len(b) != 8 {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(b)))
}
