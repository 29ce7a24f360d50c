package layercache

import (
	"cmp"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// An item is one record as eviction and usage see it.
type item struct {
	id        recordID
	bytes     int64
	ledger    int64 // of bytes
	count     int64 // contents of a pack, else 1
	used      time.Time
	apps      []string
	pinned    bool // the last successful build of an app needs it
	layer     recordID
	snapshot  recordID
	parents   []recordID // that go only after it
	resources []resource
	guest     *guest // nil if it is Slipway's own
}

// what names an item for people.
func (it *item) what() string {
	if it.guest != nil {
		return it.guest.rec.What
	}
	return it.id.String()
}

// inventory reads all records of an org. Those that do not read back are
// items without an app, last used never.
func (c *Cache) inventory(tx *bolt.Tx) ([]*item, error) {
	v := inventory{c: c, tx: tx, byID: make(map[recordID]*item)}
	for _, k := range []kind{stepKind, layerKind, snapshotKind, packKind, mountKind, trailKind} {
		if err := v.read(k); err != nil {
			return nil, err
		}
	}
	v.attribute()
	if err := v.pin(); err != nil {
		return nil, err
	}
	return v.items, nil
}

type inventory struct {
	c     *Cache
	tx    *bolt.Tx
	items []*item
	byID  map[recordID]*item
}

func (v *inventory) read(k kind) error {
	b := v.c.bucket(v.tx, k.bucket())
	if b == nil {
		return nil
	}
	used := v.c.bucket(v.tx, usedBucket)
	return b.ForEach(func(key, val []byte) error {
		it := &item{id: recordID{v.c.org, k, string(key)}, count: 1}
		if used != nil {
			it.used = decodeTime(used.Get(it.id.usedKey()))
		}
		v.describe(it, b, key, int64(len(val)))
		v.items = append(v.items, it)
		v.byID[it.id] = it
		return nil
	})
}

// describe fills in what the record says.
func (v *inventory) describe(it *item, b *bolt.Bucket, key []byte, size int64) {
	c := v.c
	switch it.id.kind {
	case stepKind:
		rec, _ := getRecord[Step](b, key)
		it.bytes, it.apps = size, withApp(nil, rec.App)
		if len(key) == len(Key{}) {
			it.resources = []resource{c.stepResource(Key(key))}
		}
		if rec.DiffID != "" {
			it.layer = c.layerID(rec.DiffID)
		}
		if rec.Snapshot != "" {
			it.snapshot = c.snapshotID(rec.Snapshot)
		}
		if it.used.IsZero() {
			it.used = rec.Created
		}
	case layerKind:
		rec, _ := getRecord[layerRecord](b, key)
		it.bytes, it.ledger, it.apps = rec.bytes(), rec.LedgerBytes, rec.Apps
		it.resources = c.layerResources(rec.Layer)
	case snapshotKind:
		rec, _ := getRecord[snapshotRecord](b, key)
		it.bytes = rec.Bytes
		it.resources = []resource{c.snapshotResource(rec.Key)}
		if rec.Parent != "" {
			it.parents = []recordID{c.snapshotID(rec.Parent)}
		}
	case packKind:
		rec, _ := getRecord[packRecord](b, key)
		it.bytes, it.count, it.apps = rec.Size, int64(rec.Count), withApp(nil, rec.App)
		it.resources = []resource{c.blobResource(rec.Digest)}
	case mountKind:
		rec, _ := getRecord[mountRecord](b, key)
		it.bytes, it.apps = rec.Bytes, withApp(nil, rec.App)
		it.resources = []resource{c.mountResource(string(key))}
		if it.used.IsZero() {
			it.used = rec.Created
		}
	case trailKind:
		rec, _ := getRecord[Trail](b, key)
		it.bytes, it.apps = size+rec.FilesSize, withApp(nil, rec.App)
		if rec.Files != "" {
			it.resources = []resource{c.blobResource(rec.Files)}
		}
		if it.used.IsZero() {
			it.used = rec.Time
		}
	}
}

// attribute gives layers and snapshots the apps of the steps that made them,
// and steps what their layers and snapshots are held by.
func (v *inventory) attribute() {
	for _, it := range v.items {
		for _, id := range []recordID{it.layer, it.snapshot} {
			if of := v.byID[id]; of != nil {
				it.resources = append(it.resources, of.resources...)
			}
		}
		for _, app := range it.apps {
			v.give(it, app)
		}
	}
}

func (v *inventory) give(step *item, app string) {
	for _, id := range []recordID{step.layer, step.snapshot} {
		if to := v.byID[id]; to != nil {
			to.apps = withApp(to.apps, app)
		}
	}
}

// pin marks what the last successful builds need.
func (v *inventory) pin() error {
	b := v.c.bucket(v.tx, buildsBucket)
	if b == nil {
		return nil
	}
	return b.ForEach(func(key, _ []byte) error {
		build, err := getRecord[Build](b, key)
		if err != nil {
			return nil // it does not read back; the next build writes it anew
		}
		app := string(key[2:])
		for _, k := range build.Steps {
			if it := v.byID[v.c.stepID(k)]; it != nil {
				v.pinItem(it, app)
				v.pinItem(v.byID[it.layer], app)
				v.pinChain(it.snapshot, app)
			}
		}
		for _, d := range build.Layers {
			v.pinItem(v.byID[v.c.layerID(digest.Digest(d))], app)
		}
		return nil
	})
}

func (v *inventory) pinItem(it *item, app string) {
	if it != nil {
		it.pinned, it.apps = true, withApp(it.apps, app)
	}
}

// pinChain pins a snapshot and all that it stands on.
func (v *inventory) pinChain(id recordID, app string) {
	for it := v.byID[id]; it != nil; it = v.byID[id] {
		v.pinItem(it, app)
		if len(it.parents) == 0 {
			return
		}
		id = it.parents[0]
	}
}

// byAge sorts what goes first to the front: what no last build needs, then
// what was not used for longest, then what is bigger.
func byAge(items []*item) {
	slices.SortStableFunc(items, func(a, b *item) int {
		if a.pinned != b.pinned {
			if b.pinned {
				return -1
			}
			return 1
		}
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(b.bytes, a.bytes))
	})
}
