package base

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/rescue"
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
	// Unpack is for images that a step will surely run on: the lowest layer
	// becomes a snapshot from the same pass over its bytes.
	Unpack bool

	// Offer, if not nil, gets each layer before any of them arrives, lowest
	// first: what the cache has, what is to come.
	Offer func(*layer.Pending)
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
	wanted := wantedOf(img, o)
	out := make([]*layer.Layer, len(wanted))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pullStreams)
	var missing []int
	for i, w := range wanted {
		found, err := w.find(ctx, c)
		switch {
		case err != nil:
			g.Go(func() error { return w.fail(img, err) })
		case found == nil:
			missing = append(missing, i)
		default:
			out[i] = w.end(found)
		}
	}
	for _, i := range missing {
		w := wanted[i]
		g.Go(func() error {
			err := rescue.Run(func() (err error) {
				out[i], err = r.pull(ctx, c, img, w, o)
				return err
			})
			if err != nil {
				return w.fail(img, err)
			}
			w.end(out[i])
			return nil
		})
	}
	return out, g.Wait()
}

// A wanted layer is one of an image that is being pulled.
type wanted struct {
	layer.Layer                 // as far as it is known
	in          *layer.Incoming // nil if nobody asked for it
}

// wantedOf lists what the image is made of, and offers it.
func wantedOf(img *Image, o PullOptions) []*wanted {
	all := make([]*wanted, len(img.Manifest.Layers))
	for i, desc := range img.Manifest.Layers {
		desc.MediaType = ociType(desc.MediaType)
		w := &wanted{Layer: layer.Layer{
			DiffID: img.Config.RootFS.DiffIDs[i], Descriptor: desc, Cached: true,
			Origin: limits.Source{Line: o.Line, Text: o.Origin}, MountFrom: []string{img.Host + "/" + img.Repository},
		}}
		if o.Offer != nil {
			w.in = layer.Expect(w.Layer)
			o.Offer(w.in.Pending())
		}
		all[i] = w
	}
	return all
}

// find returns the layer if the cache has that very blob, else nil.
func (w *wanted) find(ctx context.Context, c *layercache.Cache) (*layer.Layer, error) {
	l, err := layer.Lookup(ctx, c, w.DiffID, w.Descriptor.MediaType)
	if errors.Is(err, layercache.ErrNotFound) || err == nil && l.Descriptor.Digest != w.Descriptor.Digest {
		return nil, nil
	}
	if err != nil || w.in == nil {
		return l, err
	}
	blob, err := c.Blob(ctx, l.Descriptor.Digest)
	if errors.Is(err, layercache.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w.in.From(blob)
	return l, nil
}

// end completes the layer, which is in the cache, and tells who waits for it.
func (w *wanted) end(l *layer.Layer) *layer.Layer {
	l.Cached, l.Origin, l.MountFrom = w.Cached, w.Origin, w.MountFrom
	w.in.End(l, nil)
	return l
}

// fail tells who waits for the layer why it does not come.
func (w *wanted) fail(img *Image, err error) error {
	err = fmt.Errorf("layer %s of %s: %w", w.Descriptor.Digest, img.Ref, err)
	w.in.End(nil, err)
	return err
}

// pull brings one layer into the cache.
func (r *Resolver) pull(ctx context.Context, c *layercache.Cache, img *Image, w *wanted, o PullOptions) (*layer.Layer, error) {
	for try := 1; ; try++ {
		l, err := r.fetch(ctx, c, img, w, o)
		if err == nil {
			return l, layer.Store(ctx, c, l, o.App)
		}
		if try == pullTries || !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		}
		r.opts.Log.WarnContext(ctx, "pull again", "ref", img.Ref, "layer", w.Descriptor.Digest, "err", err)
		if err := pause(ctx, time.Duration(try*try)*r.opts.Pause); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fetch reads a blob once: into the cache, through the decompressor, the diff
// ID and the ledger.
func (r *Resolver) fetch(ctx context.Context, c *layercache.Cache, img *Image, w *wanted, o PullOptions) (*layer.Layer, error) {
	diffID, desc := w.DiffID, w.Descriptor
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	silence := time.AfterFunc(r.opts.Stall, func() { stop(fmt.Errorf("%w: no byte for %v", ErrUnavailable, r.opts.Stall)) })
	defer silence.Stop()
	src, err := img.source.blob(reading, desc)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	blob, err := c.Create(ctx)
	if err != nil {
		return nil, err
	}
	var to *layer.Unpacking
	if o.Unpack && diffID == img.Config.RootFS.DiffIDs[0] {
		if to, err = layer.NewUnpacking(ctx, c, diffID); err != nil {
			blob.Abort(err)
			return nil, err
		}
		defer to.Close(ctx)
	}
	a := &arrival{ctx: reading, r: src, spool: blob, desc: desc, tell: o.Progress, alive: func() { silence.Reset(r.opts.Stall) }}
	w.in.From(blob)
	l, err := receive(ctx, c, a, blob, diffID, o.Max, to)
	if err != nil {
		blob.Abort(err)
		return nil, err
	}
	return l, nil
}

func receive(ctx context.Context, c *layercache.Cache, src *arrival, blob *layercache.BlobWriter, diffID digest.Digest, most int64, to *layer.Unpacking) (_ *layer.Layer, err error) {
	defer rescue.Into(&err) // so that the blob is given up
	size, sum, delta, err := unpack(ctx, src, most, to)
	if err != nil {
		return nil, src.blame(err)
	}
	if sum != diffID {
		return nil, fmt.Errorf("%w: content has diff ID %s, the config says %s", ErrInvalid, sum, diffID)
	}
	got, err := blob.Commit(ctx)
	if err != nil {
		return nil, err
	}
	if got.Digest != src.desc.Digest || got.Size != src.desc.Size {
		return nil, fmt.Errorf("%w: blob %s of %d bytes is %s of %d", ErrInvalid, src.desc.Digest, src.desc.Size, got.Digest, got.Size)
	}
	ledger, err := c.PutBytes(ctx, delta)
	if err != nil {
		return nil, err
	}
	if err := to.Commit(ctx); err != nil {
		return nil, err
	}
	src.end()
	return &layer.Layer{DiffID: diffID, Descriptor: src.desc, Uncompressed: size, Ledger: ledger}, nil
}

// unpack reads src to its end and charges the tar in it; to, if not nil, takes
// its files.
func unpack(ctx context.Context, src *arrival, most int64, to *layer.Unpacking) (size int64, sum digest.Digest, delta limits.Delta, err error) {
	plain, err := layer.Decompress(src)
	if err != nil {
		return 0, "", nil, err
	}
	defer plain.Close()
	hash := digest.SHA256.Digester()
	charge := limits.NewLedger(most).Begin(limits.Source{})
	all := &bounded{r: charge.Reader(plain), src: src, most: cmp.Or(most, limits.DefaultMax)}
	err = to.Fill(ctx, io.TeeReader(all, hash.Hash()))
	if err == nil {
		_, err = io.Copy(hash.Hash(), all)
	}
	size = all.n
	delta, closeErr := charge.Close()
	if err == nil {
		err = closeErr
	}
	if err == nil {
		// What follows the compressed stream belongs to the blob too.
		_, err = io.Copy(io.Discard, src)
	}
	return size, hash.Digest(), delta, err
}

// bounded stops a stream that unpacks to much more than any root file system
// within the limit needs: bytes that a ledger does not charge, after the end
// of the archive for example, are not free either.
type bounded struct {
	r    io.Reader
	src  *arrival
	most int64 // of the root file system; below 0 means none
	n    int64
}

// A layer's tar may be larger than what it adds: headers, names and entries
// that replace each other.
const slack = 1 << 30

// maxRatio is what gzip can reach at most; more is nobody's layer.
const maxRatio = 1100

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > slack && (b.most >= 0 && b.n-slack > 2*b.most || b.n/maxRatio > b.src.n) {
		return n, fmt.Errorf("%w: %d bytes unpack to more than %d", ErrInvalid, b.src.n, b.n)
	}
	return n, err
}

// An arrival is a blob on its way: what is read from it has been counted and
// written to the spool. It remembers how reading or writing failed.
type arrival struct {
	ctx   context.Context // of the reading
	r     io.Reader
	spool io.Writer
	desc  ocispec.Descriptor
	alive func()
	n     int64
	tell  Progress
	told  time.Time
	read  error // of r
	wrote error // of spool
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.alive()
	a.n += int64(n)
	if a.n > a.desc.Size {
		err = fmt.Errorf("%w: blob is longer than the %d bytes of its descriptor", ErrInvalid, a.desc.Size)
	}
	if err != nil && err != io.EOF {
		a.read = err
	}
	if _, a.wrote = a.spool.Write(p[:n]); a.wrote != nil {
		return 0, a.wrote
	}
	if now := time.Now(); a.tell != nil && now.Sub(a.told) > 200*time.Millisecond {
		a.told = now
		a.tell(a.desc.Digest, a.n, a.desc.Size, false)
	}
	return n, err
}

func (a *arrival) end() {
	if a.tell != nil {
		a.tell(a.desc.Digest, a.n, a.desc.Size, true)
	}
}

// blame tells a connection that broke, and a disk that is full, from content
// that is wrong: what the reader met comes before what the decompressor made
// of it.
func (a *arrival) blame(err error) error {
	var size *limits.SizeError
	switch {
	case errors.As(err, &size), errors.Is(err, ErrInvalid):
		return err
	case a.wrote != nil:
		return a.wrote
	case context.Cause(a.ctx) != nil:
		return context.Cause(a.ctx)
	case errors.Is(a.read, ErrInvalid), a.read != nil && a.n == a.desc.Size:
		// All of it came, and the last read says that it is something else.
		return fmt.Errorf("%w: %v", ErrInvalid, a.read)
	case a.read != nil, a.n < a.desc.Size && errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %v", ErrUnavailable, withoutQuery(cmp.Or(a.read, err)))
	case errors.As(err, new(syscall.Errno)):
		return err // the disk that it is unpacked to
	}
	return fmt.Errorf("%w: %v", ErrInvalid, err)
}

// ociType maps Docker's layer types to OCI's: the same bytes.
func ociType(mt string) string {
	switch {
	case mt == images.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case mt == images.MediaTypeDockerSchema2LayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	case mt == images.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	}
	return mt
}
