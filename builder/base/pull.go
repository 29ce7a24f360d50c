package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// Progress is called as a layer's bytes arrive; done ends the layer.
type Progress func(d digest.Digest, bytes, total int64, done bool)

// PullOptions tunes a pull.
type PullOptions struct {
	App      string
	Max      int64    // limit of the unpacked size, as [limits.NewLedger] takes it
	Line     int      // of the Dockerfile, that names the image
	Origin   string   // its text
	Progress Progress // may be nil
}

// pullStreams is how many layers arrive at once.
const pullStreams = 4

// pullTries is how often one layer is asked for before the pull fails.
const pullTries = 4

// Pull brings the image's layers into the cache and returns them, lowest
// first. Layers that the cache has are not read at all. Each other layer is
// verified against its digest and diff ID, and stops at the limit. The
// caller's context must carry a lease of c.
func (r *Resolver) Pull(ctx context.Context, c *layercache.Cache, img *Image, o PullOptions) ([]*layer.Layer, error) {
	out := make([]*layer.Layer, len(img.Manifest.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pullStreams)
	for i, desc := range img.Manifest.Layers {
		g.Go(func() error {
			l, err := r.pull(ctx, c, img, i, desc, o)
			if err != nil {
				return fmt.Errorf("layer %s of %s: %w", desc.Digest, img.Ref, err)
			}
			l.Cached = true
			l.Origin = limits.Source{Line: o.Line, Text: o.Origin}
			l.MountFrom = []string{img.Host + "/" + img.Repository}
			out[i] = l
			return nil
		})
	}
	return out, g.Wait()
}

// pull returns one layer, from the cache if it has that very blob.
func (r *Resolver) pull(ctx context.Context, c *layercache.Cache, img *Image, i int, desc ocispec.Descriptor, o PullOptions) (*layer.Layer, error) {
	desc.MediaType = ociType(desc.MediaType)
	diffID := img.Config.RootFS.DiffIDs[i]
	l, err := layer.Lookup(ctx, c, diffID, desc.MediaType)
	if err == nil && l.Descriptor.Digest == desc.Digest {
		return l, nil
	}
	if err != nil && !errors.Is(err, layercache.ErrNotFound) {
		return nil, err
	}
	for try := 1; ; try++ {
		l, err := fetch(ctx, c, img, diffID, desc, o)
		if err == nil {
			return l, layer.Store(ctx, c, l, o.App)
		}
		if try == pullTries || !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		}
		r.opts.Log.WarnContext(ctx, "pull again", "ref", img.Ref, "layer", desc.Digest, "err", err)
		select {
		case <-time.After(time.Duration(try*try) * 250 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// fetch reads a blob once: into the cache, through the decompressor, the diff
// ID and the ledger.
func fetch(ctx context.Context, c *layercache.Cache, img *Image, diffID digest.Digest, desc ocispec.Descriptor, o PullOptions) (*layer.Layer, error) {
	src, err := img.source.blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	blob, err := c.Create(ctx)
	if err != nil {
		return nil, err
	}
	l, err := receive(ctx, c, &arrival{r: src, total: desc.Size, digest: desc.Digest, tell: o.Progress}, blob, desc, diffID, o.Max)
	if err != nil {
		blob.Abort(err)
		return nil, err
	}
	return l, nil
}

func receive(ctx context.Context, c *layercache.Cache, src *arrival, blob *layercache.BlobWriter, desc ocispec.Descriptor, diffID digest.Digest, most int64) (*layer.Layer, error) {
	tee := io.TeeReader(src, blob)
	plain, err := compression.DecompressStream(tee)
	if err != nil {
		return nil, src.blame(fmt.Errorf("%w: %v", ErrInvalid, err))
	}
	defer plain.Close()
	sum := digest.SHA256.Digester()
	charge := limits.NewLedger(most).Begin(limits.Source{})
	size, err := io.Copy(sum.Hash(), charge.Reader(plain))
	delta, closeErr := charge.Close()
	if err == nil {
		err = closeErr
	}
	if err == nil {
		// What follows the compressed stream belongs to the blob too.
		_, err = io.Copy(io.Discard, tee)
	}
	if err != nil {
		return nil, src.blame(err)
	}
	if got := sum.Digest(); got != diffID {
		return nil, fmt.Errorf("%w: content has diff ID %s, the config says %s", ErrInvalid, got, diffID)
	}
	got, err := blob.Commit(ctx)
	if err != nil {
		return nil, err
	}
	if got.Digest != desc.Digest {
		return nil, fmt.Errorf("%w: blob has digest %s", ErrInvalid, got.Digest)
	}
	ledger, err := c.PutBytes(ctx, delta)
	if err != nil {
		return nil, err
	}
	src.end()
	return &layer.Layer{DiffID: diffID, Descriptor: desc, Uncompressed: size, Ledger: ledger}, nil
}

// arrival counts and bounds a blob's bytes and remembers how reading failed.
type arrival struct {
	r      io.Reader
	n      int64
	total  int64
	digest digest.Digest
	tell   Progress
	told   time.Time
	err    error
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.n += int64(n)
	if a.n > a.total {
		err = fmt.Errorf("%w: blob is longer than the %d bytes of its descriptor", ErrInvalid, a.total)
	}
	if err != nil && err != io.EOF {
		a.err = err
	}
	if now := time.Now(); a.tell != nil && now.Sub(a.told) > 200*time.Millisecond {
		a.told = now
		a.tell(a.digest, a.n, a.total, false)
	}
	return n, err
}

func (a *arrival) end() {
	if a.tell != nil {
		a.tell(a.digest, a.n, a.total, true)
	}
}

// blame tells a connection that broke from content that is wrong: what the
// reader met comes before what the decompressor made of it.
func (a *arrival) blame(err error) error {
	var size *limits.SizeError
	switch {
	case errors.As(err, &size), errors.Is(a.err, ErrInvalid):
		return err
	case a.err != nil:
		return fmt.Errorf("%w: %v", ErrUnavailable, a.err)
	}
	return fmt.Errorf("%w: %v", ErrInvalid, err)
}

// ociType maps Docker's layer types to OCI's: the same bytes.
func ociType(mt string) string {
	switch {
	case mt == images.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case mt == images.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	}
	return mt
}
