package layercache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// A Blob is a finished blob of the cache. It is there as long as the lease
// under which it was looked up.
type Blob struct {
	path string
	desc ocispec.Descriptor
}

// Blob looks a blob up; the lease of ctx holds it. The error is [ErrNotFound]
// if the org does not have it whole.
func (c *Cache) Blob(ctx context.Context, d digest.Digest) (*Blob, error) {
	size, err := c.find(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return &Blob{path: c.s.blobPath(d), desc: ocispec.Descriptor{Digest: d, Size: size}}, nil
}

// Open returns the blob's bytes from off on.
func (b *Blob) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	f, err := os.Open(b.path)
	if errors.Is(err, os.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", b.desc.Digest, err)
	}
	if off > 0 {
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			f.Close()
			return nil, fmt.Errorf("blob %s: %w", b.desc.Digest, err)
		}
	}
	return f, nil
}

// Descriptor returns digest and size; it never waits.
func (b *Blob) Descriptor(context.Context) (ocispec.Descriptor, error) { return b.desc, nil }

// File returns the path of the blob's file, for hard links to it. Nobody may
// write to it.
func (b *Blob) File(context.Context) (string, error) { return b.path, nil }

// Reject tells the cache that a blob's bytes may not be those of its digest, as
// somebody found who read it. If so, the blob is removed for all orgs.
func (c *Cache) Reject(ctx context.Context, d digest.Digest) error {
	f, err := os.Open(c.s.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reject blob %s: %w", d, err)
	}
	defer f.Close()
	got, err := digest.SHA256.FromReader(f)
	if err == nil && got == d {
		return nil
	}
	if err := c.s.purge(ctx, c, d, "its bytes do not match its digest", false); err != nil {
		return fmt.Errorf("reject blob %s: %w", d, err)
	}
	return nil
}

// find returns the size of a blob and holds it by ctx's lease. One that is
// not whole is removed.
func (c *Cache) find(ctx context.Context, d digest.Digest) (int64, error) {
	size, err := c.findAndHold(ctx, d)
	if dmg, ok := errors.AsType[*damage](err); ok {
		return 0, c.s.repair(ctx, c, dmg)
	}
	return size, err
}

func (c *Cache) findAndHold(ctx context.Context, d digest.Digest) (size int64, err error) {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	err = c.view(func(tx *bolt.Tx) error {
		size, err = c.check(ctx, tx, d)
		return err
	})
	if err == nil {
		leaseFrom(ctx).hold(c.blobResource(d))
	}
	return size, err
}

// check returns the size of a blob that is registered for the org and has a
// file of that size, else ErrNotFound or *damage.
func (c *Cache) check(ctx context.Context, tx *bolt.Tx, d digest.Digest) (int64, error) {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return 0, ErrNotFound
	}
	info, err := c.s.content.Info(c.within(ctx, tx), d)
	if errdefs.IsNotFound(err) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(c.s.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return 0, &damage{blob: d, what: "its file is gone"}
	}
	if err != nil {
		return 0, err
	}
	if st.Size() != info.Size {
		return 0, &damage{blob: d, what: fmt.Sprintf("its file has %d bytes instead of %d", st.Size(), info.Size)}
	}
	return info.Size, nil
}

// register makes the blob file of a digest known to the org, within tx. It may
// run more than once.
func (c *Cache) register(ctx context.Context, tx *bolt.Tx, desc ocispec.Descriptor) error {
	in := c.within(ctx, tx)
	// The metadata store takes a blob over that its backend has under the
	// expected digest, and reads none of it.
	w, err := c.s.content.Writer(in, content.WithRef("slipway/"+desc.Digest.String()), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	return ignoreExists(w.Commit(in, desc.Size, desc.Digest))
}

func (s *Store) blobPath(d digest.Digest) string {
	return s.path("content", "blobs", "sha256", d.Encoded())
}
