package prebuilt

import (
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/layercache"
)

// An opener reads blobs where they lie.
type opener interface {
	// Open returns a blob's bytes from off on. They are not verified.
	Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error)

	// File returns what gives the path of a blob's file, which nobody may
	// write to. It is nil if the blob has none.
	File(d ocispec.Descriptor) func(context.Context) (string, error)
}

// A finder knows where a registry's blobs are: *base.Image, *base.Whole.
type finder interface {
	Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error)
	File(ctx context.Context, d ocispec.Descriptor) (path string, ok bool)
}

// found opens blobs of a registry.
type found struct{ finder }

// File implements opener: the daemon's own registry has files.
func (f found) File(d ocispec.Descriptor) func(context.Context) (string, error) {
	if _, ok := f.finder.File(context.Background(), d); !ok {
		return nil
	}
	return func(ctx context.Context) (string, error) {
		path, ok := f.finder.File(ctx, d)
		if !ok {
			return "", fmt.Errorf("%w: blob %s is gone", base.ErrNotFound, d.Digest)
		}
		return path, nil
	}
}

// cached opens a blob that the cache has.
type cached struct{ *layercache.Blob }

// Open implements opener.
func (c cached) Open(ctx context.Context, _ ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	return c.Blob.Open(ctx, off)
}

// File implements opener.
func (c cached) File(ocispec.Descriptor) func(context.Context) (string, error) { return c.Blob.File }
