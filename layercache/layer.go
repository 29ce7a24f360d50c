package layercache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// A Layer is what the cache knows of one layer of an image.
type Layer struct {
	DiffID       digest.Digest        `json:"diff_id"` // of the uncompressed tar
	Blobs        []ocispec.Descriptor `json:"blobs"`   // one a compression
	Uncompressed int64                `json:"uncompressed"`
	Ledger       digest.Digest        `json:"ledger,omitempty"` // blob with its limits.Delta
}

// layerRecord is what is stored of a layer.
type layerRecord struct {
	Layer
	LedgerBytes int64    `json:"ledger_bytes,omitempty"`
	Apps        []string `json:"apps,omitempty"`
}

func (r *layerRecord) bytes() int64 {
	n := r.LedgerBytes
	for _, b := range r.Blobs {
		n += b.Size
	}
	return n
}

func (c *Cache) layerID(diffID digest.Digest) recordID {
	return recordID{c.org, layerKind, string(diffID)}
}

// Layer looks a layer up; the lease of ctx holds its blobs. The error is
// [ErrNotFound] if the cache has no whole blob of it, or lost its ledger.
func (c *Cache) Layer(ctx context.Context, diffID digest.Digest) (Layer, error) {
	var rec layerRecord
	err := c.lookUp(ctx, func(tx *bolt.Tx) (err error) {
		rec, err = c.layer(ctx, tx, diffID)
		return err
	}, func() { c.useLayer(ctx, rec.Layer) })
	if err != nil {
		return Layer{}, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return rec.Layer, nil
}

// lookUp runs read in a transaction, and found if it succeeded, with nothing
// collected in between. Damage is repaired and becomes ErrNotFound.
func (c *Cache) lookUp(ctx context.Context, read func(*bolt.Tx) error, found func()) error {
	err := c.lookUpLocked(read, found)
	if dmg, ok := errors.AsType[*damage](err); ok {
		return c.s.repair(ctx, c, dmg)
	}
	return err
}

func (c *Cache) lookUpLocked(read func(*bolt.Tx) error, found func()) error {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	if err := c.view(read); err != nil {
		return err
	}
	found()
	return nil
}

// layer reads a layer and leaves blobs out that are not whole. The error is
// ErrNotFound or *damage.
func (c *Cache) layer(ctx context.Context, tx *bolt.Tx, diffID digest.Digest) (layerRecord, error) {
	id := c.layerID(diffID)
	rec, err := getRecord[layerRecord](c.bucket(tx, layersBucket), []byte(diffID))
	if errors.Is(err, errGarbage) {
		return rec, &damage{record: &id, what: err.Error()}
	}
	if err != nil {
		return rec, err
	}
	if rec.Ledger != "" {
		if _, err := c.check(ctx, tx, rec.Ledger); err != nil {
			return rec, c.blame(err, id, "its ledger is gone")
		}
	}
	var missing error
	rec.Blobs = slices.DeleteFunc(rec.Blobs, func(b ocispec.Descriptor) bool {
		size, err := c.check(ctx, tx, b.Digest)
		if err == nil && size != b.Size {
			err = ErrNotFound
		}
		if err != nil {
			missing = err
		}
		return err != nil
	})
	if len(rec.Blobs) == 0 {
		return rec, c.blame(missing, id, "its blobs are gone")
	}
	return rec, nil
}

// blame extends what is wrong with a blob to the record that names it.
func (c *Cache) blame(err error, id recordID, what string) error {
	if dmg, ok := errors.AsType[*damage](err); ok {
		dmg.record = &id
		return dmg
	}
	if err == nil || errors.Is(err, ErrNotFound) {
		return &damage{record: &id, what: what}
	}
	return err
}

// useLayer holds a layer and notes that it is used. The caller has sweep.
func (c *Cache) useLayer(ctx context.Context, l Layer) {
	leaseFrom(ctx).hold(c.layerResources(l)...)
	c.s.touched.add(c.layerID(l.DiffID))
}

func (c *Cache) layerResources(l Layer) []resource {
	rs := make([]resource, 0, len(l.Blobs)+1)
	for _, b := range l.Blobs {
		rs = append(rs, c.blobResource(b.Digest))
	}
	if l.Ledger != "" {
		rs = append(rs, c.blobResource(l.Ledger))
	}
	return rs
}

// PutLayer records a layer for an app, and keeps its blobs until the record is
// evicted. Blobs of the same layer that are known already stay with it. The
// error is [ErrNotFound] if the cache does not have the blobs.
func (c *Cache) PutLayer(ctx context.Context, l Layer, app string) error {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	err := c.s.write.do(func(tx *bolt.Tx) error { return c.putLayer(ctx, tx, l, app) })
	if err != nil {
		if _, ok := errors.AsType[*damage](err); ok {
			err = ErrNotFound
		}
		return fmt.Errorf("put layer %s: %w", l.DiffID, err)
	}
	c.useLayer(ctx, l)
	return nil
}

func (c *Cache) putLayer(ctx context.Context, tx *bolt.Tx, l Layer, app string) error {
	for _, b := range l.Blobs {
		size, err := c.check(ctx, tx, b.Digest)
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		if size != b.Size {
			return fmt.Errorf("blob %s has %d bytes, not %d: %w", b.Digest, size, b.Size, ErrNotFound)
		}
	}
	rec := layerRecord{Layer: l}
	if l.Ledger != "" {
		size, err := c.check(ctx, tx, l.Ledger)
		if err != nil {
			return fmt.Errorf("ledger %s: %w", l.Ledger, err)
		}
		rec.LedgerBytes = size
	}
	if old, err := c.layer(ctx, tx, l.DiffID); err == nil {
		rec.Apps = old.Apps
		rec.Blobs = slices.Clone(l.Blobs)
		for _, b := range old.Blobs {
			if !slices.ContainsFunc(l.Blobs, func(n ocispec.Descriptor) bool { return n.Digest == b.Digest }) {
				rec.Blobs = append(rec.Blobs, b)
			}
		}
	}
	rec.Apps = withApp(rec.Apps, app)
	if err := c.put(tx, layersBucket, []byte(l.DiffID), rec); err != nil {
		return err
	}
	return c.putRecordLease(ctx, tx, c.layerID(l.DiffID), c.layerResources(rec.Layer)...)
}

// withApp returns apps, sorted, with app among them.
func withApp(apps []string, app string) []string {
	i, ok := slices.BinarySearch(apps, app)
	if ok || app == "" {
		return apps
	}
	return slices.Insert(slices.Clone(apps), i, app)
}
