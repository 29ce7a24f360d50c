package layercache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Build is what the last successful build of an app used.
type Build struct {
	Time   time.Time       `json:"time"`
	Steps  []Key           `json:"steps,omitempty"`  // in the order of the Dockerfile
	Layers []digest.Digest `json:"layers,omitempty"` // diff IDs, those of the base image too
}

// MarkBuild records the last successful build of an app. What it names is
// evicted only when nothing else is left to evict.
func (c *Cache) MarkBuild(_ context.Context, app string, steps []Key, layers []digest.Digest) error {
	b := Build{Time: time.Now(), Steps: steps, Layers: layers}
	err := c.s.write.do(func(tx *bolt.Tx) error { return c.put(tx, buildsBucket, appKey(app), b) })
	if err != nil {
		return fmt.Errorf("mark build of %s: %w", app, err)
	}
	return nil
}

// LastBuild returns what MarkBuild recorded last, else [ErrNotFound].
func (c *Cache) LastBuild(_ context.Context, app string) (b Build, err error) {
	err = c.view(func(tx *bolt.Tx) error {
		b, err = getRecord[Build](c.bucket(tx, buildsBucket), appKey(app))
		return err
	})
	if errors.Is(err, errGarbage) {
		err = ErrNotFound // the next MarkBuild replaces it
	}
	if err != nil {
		return Build{}, fmt.Errorf("last build of %s: %w", app, err)
	}
	return b, nil
}

// appKey is never empty, as bbolt wants of a key.
func appKey(app string) []byte { return append([]byte{'a', '/'}, app...) }
