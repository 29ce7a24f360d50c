package layercache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Step is the result of one step of a build.
type Step struct {
	Created  time.Time       `json:"created"`
	Empty    bool            `json:"empty,omitempty"`    // the step changed no file
	DiffID   digest.Digest   `json:"diff_id,omitempty"`  // of the layer it made
	Snapshot string          `json:"snapshot,omitempty"` // of the root file system after it
	RootFS   int64           `json:"rootfs"`             // bytes of the unpacked tree after it
	Peak     int64           `json:"peak"`               // the most it had up to here
	Parts    []Part          `json:"parts,omitempty"`    // what its key was made from
	App      string          `json:"app,omitempty"`
	Extra    json.RawMessage `json:"extra,omitempty"` // the pipeline's own
}

func (c *Cache) stepID(k Key) recordID { return recordID{c.org, stepKind, string(k[:])} }

// Step looks a step up; the lease of ctx holds its layer and its snapshot. The
// error is [ErrNotFound] if it is unknown or the layer it made is gone. Of a
// step whose snapshot alone is gone, Snapshot is empty: the layers can be
// unpacked instead of running it again.
func (c *Cache) Step(ctx context.Context, k Key) (Step, error) {
	var (
		st    Step
		layer layerRecord
		snap  snapshotRecord
		lost  *damage
	)
	err := c.lookUp(ctx, func(tx *bolt.Tx) (err error) {
		if st, err = c.step(tx, k); err != nil {
			return err
		}
		if st.DiffID != "" {
			if layer, err = c.layer(ctx, tx, st.DiffID); err != nil {
				return err
			}
		}
		if st.Snapshot == "" {
			return nil
		}
		snap, _, err = c.snapshot(ctx, tx, st.Snapshot)
		if err == nil {
			return nil
		}
		if dmg, ok := errors.AsType[*damage](err); ok {
			lost = dmg
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		if st.DiffID == "" && !st.Empty {
			return err
		}
		st.Snapshot = ""
		return nil
	}, func() {
		leaseFrom(ctx).hold(c.stepResource(k))
		c.s.touched.add(c.stepID(k))
		if st.DiffID != "" {
			c.useLayer(ctx, layer.Layer)
		}
		if st.Snapshot != "" {
			c.useSnapshot(ctx, st.Snapshot, snap)
		}
	})
	if err != nil {
		return Step{}, fmt.Errorf("step %s: %w", k, err)
	}
	if lost != nil {
		if err := c.s.repair(ctx, c, lost); !errors.Is(err, ErrNotFound) {
			return Step{}, fmt.Errorf("step %s: %w", k, err)
		}
	}
	return st, nil
}

// Peek returns what is recorded of a step, even if its layer is gone. It holds
// nothing and is no use; it is for explaining a miss.
func (c *Cache) Peek(_ context.Context, k Key) (st Step, err error) {
	err = c.view(func(tx *bolt.Tx) error {
		st, err = c.step(tx, k)
		return err
	})
	if _, ok := errors.AsType[*damage](err); ok {
		err = ErrNotFound
	}
	if err != nil {
		return Step{}, fmt.Errorf("step %s: %w", k, err)
	}
	return st, nil
}

func (c *Cache) step(tx *bolt.Tx, k Key) (Step, error) {
	st, err := getRecord[Step](c.bucket(tx, stepsBucket), k[:])
	if errors.Is(err, errGarbage) {
		id := c.stepID(k)
		err = &damage{record: &id, what: err.Error()}
	}
	return st, err
}

// PutStep records a step under its key, in place of an older one; the lease of
// ctx holds it. Its layer and its snapshot are recorded on their own.
func (c *Cache) PutStep(ctx context.Context, k Key, st Step) error {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	err := c.s.write.do(func(tx *bolt.Tx) error { return c.put(tx, stepsBucket, k[:], st) })
	if err != nil {
		return fmt.Errorf("put step %s: %w", k, err)
	}
	leaseFrom(ctx).hold(c.stepResource(k))
	c.s.touched.add(c.stepID(k))
	return nil
}
