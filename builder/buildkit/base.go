package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// An applier unpacks layers that BuildKit has pulled, and counts them on their
// way.
type applier struct {
	blobs *containerdsnapshot.Store
	cache *layercache.Cache
	most  int64 // of a layer, as limits.NewLedger takes it
}

// Apply implements containerd's applier.
func (a *applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	dirs := rootfs.Dirs{Upper: upperOf(mounts), Parents: lowersOf(mounts)}
	if dirs.Upper == "" {
		return ocispec.Descriptor{}, fmt.Errorf("unpack layer %s: its snapshot has no directory", d.Digest)
	}
	r, err := a.open(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	l, err := count(ctx, a.cache, d, "", a.most, r, func(tar io.Reader) error { return rootfs.Apply(ctx, tar, dirs) })
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("unpack layer %s: %w", d.Digest, err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Uncompressed}, nil
}

func (a *applier) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	at, err := a.blobs.ReaderAt(ctx, d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(at), at}, nil
}

// count reads a layer's blob, gives its tar to use, and records the layer with
// its ledger. The error is [layer.ErrContent] if want is not "" and not the
// diff ID.
func count(ctx context.Context, c *layercache.Cache, d ocispec.Descriptor, want digest.Digest, most int64, blob io.Reader, use func(tar io.Reader) error) (*layer.Layer, error) {
	plain, err := layer.Decompress(blob)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	account := limits.NewLedger(most).Begin(limits.Source{Text: "layer " + d.Digest.String()})
	sum := digest.SHA256.Digester()
	size := &counting{}
	tar := io.TeeReader(account.Reader(plain), io.MultiWriter(sum.Hash(), size))
	err = use(tar)
	if err == nil {
		_, err = io.Copy(io.Discard, tar)
	}
	delta, closeErr := account.Close()
	if err = errors.Join(err, closeErr); err != nil {
		return nil, err
	}
	if want != "" && sum.Digest() != want {
		return nil, fmt.Errorf("%w: diff ID %s instead of %s", layer.ErrContent, sum.Digest(), want)
	}
	ledger, err := c.PutBytes(ctx, delta)
	if err != nil {
		return nil, err
	}
	l := &layer.Layer{DiffID: sum.Digest(), Uncompressed: size.n, Ledger: ledger, Cached: true,
		Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	return l, layer.Store(ctx, c, l, "")
}

// counting counts bytes.
type counting struct{ n int64 }

func (c *counting) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// layer returns what the store knows of a layer that BuildKit has, and counts
// one that nobody has counted.
func (t *tenant) layer(ctx context.Context, d ocispec.Descriptor) (*layer.Layer, error) {
	diffID := digest.Digest(d.Annotations[labels.LabelUncompressed])
	if diffID == "" {
		return nil, fmt.Errorf("%w: %s has no diff ID", errNoLayer, d.Digest)
	}
	rec, err := t.cache.Layer(ctx, diffID)
	if err == nil && rec.Ledger != "" {
		return &layer.Layer{DiffID: diffID, Uncompressed: rec.Uncompressed, Ledger: rec.Ledger, Cached: true,
			Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}, nil
	}
	if err != nil && !errors.Is(err, layercache.ErrNotFound) {
		return nil, err
	}
	blob, err := t.cache.Blob(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	r, err := blob.Open(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return count(ctx, t.cache, d, diffID, t.engine.opts.MaxSize, r, func(io.Reader) error { return nil })
}

// A weighed chain is what layers, lowest first, come to together.
type weighed struct {
	ledger *limits.Ledger
	layers []digest.Digest // diff IDs; nil if not all of them are counted
}

// begins reports whether a chain begins with all of the layers.
func (w *weighed) begins(chain []ocispec.Descriptor) bool {
	if len(w.layers) == 0 || len(w.layers) > len(chain) {
		return false
	}
	for i, d := range w.layers {
		if diffID(chain[i]) != d {
			return false
		}
	}
	return true
}

func diffID(d ocispec.Descriptor) digest.Digest {
	return digest.Digest(d.Annotations[labels.LabelUncompressed])
}

// weights keep the chain that was weighed last: the next step stands on one
// layer more. Whoever takes it has it alone, until it is put back.
type weights struct {
	mu   sync.Mutex
	last *weighed
}

// take returns what begins a chain, or nothing that was weighed.
func (w *weights) take(chain []ocispec.Descriptor) *weighed {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.last; last != nil && last.begins(chain) {
		w.last = nil
		return last
	}
	return &weighed{ledger: limits.NewLedger(-1)}
}

// drop forgets what was put back: a tree of many paths takes its memory.
func (w *weights) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = nil
}

func (w *weights) put(x *weighed) {
	if x == nil || x.layers == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = x
}

// weigh charges the layers below a step that have been counted to a ledger; all
// says that these are all of them. A step on nothing has an empty one.
func (t *tenant) weigh(ctx context.Context, parent cache.ImmutableRef) (x *weighed, all bool) {
	none := &weighed{ledger: limits.NewLedger(-1)}
	if parent == nil {
		return none, true
	}
	chain := parent.LayerChain()
	defer func() { _ = chain.Release(context.WithoutCancel(ctx)) }()
	for n := len(chain); n > 0; n-- {
		remotes, err := chain[n-1].GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: compression.New(compression.Default)}, false, nil)
		if err == nil {
			return t.weighLayers(ctx, remotes[0].Descriptors), n == len(chain)
		}
	}
	return none, len(chain) == 0
}

func (t *tenant) weighLayers(ctx context.Context, chain []ocispec.Descriptor) *weighed {
	x := t.weights.take(chain)
	whole := true
	for _, d := range chain[len(x.layers):] {
		rec, err := t.cache.Layer(ctx, diffID(d))
		if err == nil && rec.Ledger != "" {
			err = layer.Charge(ctx, t.cache, &layer.Layer{DiffID: rec.DiffID, Ledger: rec.Ledger}, x.ledger)
		}
		// What cannot be read is not known, as if it had never been counted.
		whole = whole && err == nil && rec.Ledger != ""
		x.layers = append(x.layers, diffID(d))
	}
	if !whole {
		x.layers = nil
	}
	return x
}
