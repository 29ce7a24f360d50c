package layercache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Trail is the way that an app's last build of one recipe took: its steps
// and what their keys were made from. It tells why a step of the next build is
// not cached, and takes no part in finding one that is.
type Trail struct {
	App    string      `json:"app"`
	Recipe string      `json:"recipe"` // which Dockerfile, for which target and platform
	Time   time.Time   `json:"time"`   // when it was recorded
	Steps  []TrailStep `json:"steps"`

	// Files is a blob with the list of files that its steps chose from, in
	// the caller's own form; "" if none is kept.
	Files     digest.Digest `json:"files,omitempty"`
	FilesSize int64         `json:"files_size,omitempty"`
}

// A TrailStep is one step of a trail.
type TrailStep struct {
	Stage      string        `json:"stage"`
	Source     string        `json:"source"`           // as written
	Inputs     []Part        `json:"inputs,omitempty"` // for people; no secrets
	Key        Key           `json:"key"`
	Image      digest.Digest `json:"image,omitempty"` // what the image was after it
	DiffID     digest.Digest `json:"diff_id,omitempty"`
	Blob       digest.Digest `json:"blob,omitempty"` // of its layer
	Size       int64         `json:"size,omitempty"` // of the blob
	Unfinished bool          `json:"unfinished,omitempty"`
}

// Bounds on what trails take.
const (
	maxTrails = 500                 // of an org
	keepTrail = 30 * 24 * time.Hour // unused, before it makes room
)

func (c *Cache) trailID(app, recipe string) recordID {
	sum := digest.FromString(fmt.Sprintf("%d:%s%s", len(app), app, recipe))
	return recordID{c.org, trailKind, sum.Encoded()}
}

// Trail returns what [Cache.PutTrail] recorded last, else [ErrNotFound]. The
// lease of ctx holds its list of files.
func (c *Cache) Trail(ctx context.Context, app, recipe string) (Trail, error) {
	id := c.trailID(app, recipe)
	var t Trail
	err := c.lookUp(ctx, func(tx *bolt.Tx) (err error) {
		t, err = getRecord[Trail](c.bucket(tx, trailsBucket), []byte(id.key))
		if errors.Is(err, errGarbage) {
			err = ErrNotFound // the next PutTrail replaces it
		}
		return err
	}, func() {
		c.s.touched.add(id)
		if t.Files != "" {
			leaseFrom(ctx).hold(c.blobResource(t.Files))
		}
	})
	if err != nil {
		return Trail{}, fmt.Errorf("trail of %s: %w", app, err)
	}
	return t, nil
}

// TrailFiles returns the list of files that a trail names, else [ErrNotFound].
func (c *Cache) TrailFiles(ctx context.Context, t Trail) ([]byte, error) {
	if t.Files == "" {
		return nil, ErrNotFound
	}
	return c.GetBytes(ctx, t.Files, t.FilesSize)
}

// PutTrail records a trail in place of the one before. The lease of ctx must
// hold t.Files.
func (c *Cache) PutTrail(ctx context.Context, t Trail) error {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	id := c.trailID(t.App, t.Recipe)
	err := c.s.write.do(func(tx *bolt.Tx) error {
		if err := c.put(tx, trailsBucket, []byte(id.key), t); err != nil {
			return err
		}
		var held []resource
		if t.Files != "" {
			held = append(held, c.blobResource(t.Files))
		}
		if err := c.putRecordLease(ctx, tx, id, held...); err != nil {
			return err
		}
		return c.trimTrails(ctx, tx, id)
	})
	if err != nil {
		return fmt.Errorf("put trail of %s: %w", t.App, err)
	}
	c.s.touched.add(id)
	return nil
}

// trimTrails drops the oldest trail of an org that has too many; just is the
// one that has just come.
func (c *Cache) trimTrails(ctx context.Context, tx *bolt.Tx, just recordID) error {
	b := c.bucket(tx, trailsBucket)
	var keys []string
	err := b.ForEach(func(key, _ []byte) error {
		keys = append(keys, string(key))
		return nil
	})
	if err != nil || len(keys) <= maxTrails {
		return err
	}
	oldest, at := "", time.Time{}
	for _, key := range keys {
		t, _ := getRecord[Trail](b, []byte(key)) // one that does not read back is the oldest
		if key != just.key && (oldest == "" || t.Time.Before(at)) {
			oldest, at = key, t.Time
		}
	}
	return c.deleteRecord(ctx, tx, recordID{c.org, trailKind, oldest})
}

// Lost returns the last eviction since a time that took a step, its layer or
// the blob of that; ok is false if none is remembered.
func (c *Cache) Lost(k Key, diffID, blob digest.Digest, since time.Time) (ev Eviction, ok bool) {
	names := map[string]bool{c.stepID(k).String(): true}
	if diffID != "" {
		names[c.layerID(diffID).String()] = true
	}
	if blob != "" {
		names["blob "+blob.String()] = true
	}
	_ = c.view(func(tx *bolt.Tx) error { // a view that reads does not fail
		for _, e := range evictions(tx, c.org) {
			if e.Time.Before(since) {
				break
			}
			if names[e.What] {
				ev, ok = e, true
				break
			}
		}
		return nil
	})
	return ev, ok
}

// damagedPrefix begins the reason of an eviction of what was found broken.
const damagedPrefix = "damaged: "

// Damaged reports whether what was removed had been found broken.
func (e Eviction) Damaged() bool { return strings.HasPrefix(e.Reason, damagedPrefix) }

// explains reports whether an item is a trail that may be needed to tell what
// became of the other records.
func (it *item) explains() bool { return it.id.kind == trailKind && time.Since(it.used) < keepTrail }
