package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sync/singleflight"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/rescue"
)

// An Unpacker turns layers into snapshots. Builds of one daemon share it, so
// that a chain that two of them need is unpacked once.
type Unpacker struct {
	Log    *slog.Logger
	flight singleflight.Group
}

// ChainID names the file system that layers make when unpacked in order; it
// is "" for none.
func ChainID(layers []*Layer) string {
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = l.DiffID
	}
	return identity.ChainID(ids).String()
}

// Snapshot returns the name of a committed snapshot that holds the layers,
// unpacking what is missing on top of the longest prefix that exists. Without
// layers the name is "". The caller's context must carry a lease of c.
func (u *Unpacker) Snapshot(ctx context.Context, c *layercache.Cache, layers []*Layer) (string, error) {
	at := len(layers)
	for at > 0 && !c.SnapshotExists(ctx, ChainID(layers[:at])) {
		at--
	}
	for ; at < len(layers); at++ {
		if err := u.unpack(ctx, c, layers[:at+1]); err != nil {
			return "", err
		}
	}
	return ChainID(layers), nil
}

// unpack puts the last of layers on top of the snapshot of the others.
func (u *Unpacker) unpack(ctx context.Context, c *layercache.Cache, layers []*Layer) error {
	return u.Apply(ctx, c, ChainID(layers[:len(layers)-1]), ChainID(layers), layers[len(layers)-1])
}

// Apply makes the snapshot name: the layer on top of the snapshot below. What
// exists already stays.
func (u *Unpacker) Apply(ctx context.Context, c *layercache.Cache, below, name string, top *Layer) error {
	for {
		mine := false
		_, err, _ := u.flight.Do(c.Name()+"/"+name, func() (any, error) {
			mine = true
			if c.SnapshotExists(ctx, name) {
				return nil, nil
			}
			return nil, Fill(ctx, c, below, name, func(r *layercache.Snapshot) error {
				return apply(ctx, c, top, rootfs.Dirs{Upper: r.Upper(), Parents: r.Lowers()})
			})
		})
		// Another build's lease may hold what the flight made; hold it too.
		if err == nil && c.SnapshotExists(ctx, name) {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("unpack layer %s: %w", top.DiffID, cause)
		}
		// Another build's failure, a cancel perhaps, is not ours.
		if mine {
			if err == nil {
				err = layercache.ErrNotFound
			}
			return fmt.Errorf("unpack layer %s: %w", top.DiffID, err)
		}
	}
}

// An Unpacking is the snapshot of a lowest layer that is unpacked while it
// arrives. A nil *Unpacking takes nothing.
type Unpacking struct {
	s    *layercache.Snapshot
	name string
}

// NewUnpacking begins the snapshot of the layer with the given diff ID; nil
// if the cache has it. The caller's context must carry a lease of c, and the
// caller closes it.
func NewUnpacking(ctx context.Context, c *layercache.Cache, diffID digest.Digest) (*Unpacking, error) {
	name := ChainID([]*Layer{{DiffID: diffID}})
	if c.SnapshotExists(ctx, name) {
		return nil, nil
	}
	s, err := c.Prepare(ctx, "")
	if err != nil {
		return nil, err
	}
	return &Unpacking{s: s, name: name}, nil
}

// Fill unpacks the layer's tar from r. It may leave bytes after the end of the
// archive.
func (u *Unpacking) Fill(ctx context.Context, r io.Reader) error {
	if u == nil {
		return nil
	}
	return rootfs.Apply(ctx, r, rootfs.Dirs{Upper: u.s.Upper()})
}

// Commit makes the snapshot available. The caller has verified the diff ID.
func (u *Unpacking) Commit(ctx context.Context) error {
	if u == nil {
		return nil
	}
	s := u.s
	u.s = nil
	if err := s.Commit(ctx, u.name); err != nil {
		return errors.Join(err, s.Discard(ctx))
	}
	return nil
}

// Close discards what was not committed.
func (u *Unpacking) Close(ctx context.Context) error {
	if u == nil || u.s == nil {
		return nil
	}
	return u.s.Discard(context.WithoutCancel(ctx))
}

// Fill makes the snapshot name on top of parent: fill writes its upper
// directory. It leaves nothing when fill fails.
func Fill(ctx context.Context, c *layercache.Cache, parent, name string, fill func(*layercache.Snapshot) error) error {
	s, err := c.Prepare(ctx, parent)
	if err != nil {
		return err
	}
	err = rescue.Run(func() error { return fill(s) })
	if err == nil {
		err = s.Commit(ctx, name)
	}
	if err != nil {
		_ = s.Discard(context.WithoutCancel(ctx))
	}
	return err
}

// apply unpacks a layer. A blob that turns out to be damaged is removed from
// the cache; the error then wraps [layercache.ErrNotFound].
func apply(ctx context.Context, c *layercache.Cache, l *Layer, d rootfs.Dirs) error {
	blob, err := c.Blob(ctx, l.Descriptor.Digest)
	if err != nil {
		return err
	}
	if err = unpack(ctx, blob, l, d); err == nil || ctx.Err() != nil {
		return err
	}
	if bad := c.Reject(ctx, l.Descriptor.Digest); bad != nil {
		return errors.Join(err, bad)
	}
	if _, gone := c.Blob(ctx, l.Descriptor.Digest); errors.Is(gone, layercache.ErrNotFound) {
		return fmt.Errorf("%w: %v", gone, err)
	}
	return err
}

func unpack(ctx context.Context, blob *layercache.Blob, l *Layer, d rootfs.Dirs) error {
	r, err := blob.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	plain, err := Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	sum := digest.SHA256.Digester()
	tee := io.TeeReader(plain, sum.Hash())
	if err := rootfs.Apply(ctx, tee, d); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if got := sum.Digest(); got != l.DiffID {
		return fmt.Errorf("blob %s unpacks to %s", l.Descriptor.Digest, got)
	}
	return nil
}
