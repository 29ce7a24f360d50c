package prebuilt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/rescue"
)

// A plan is an image, or a whole index, on its way to its repositories.
type plan struct {
	*Pipeline
	job       *builder.Job
	memory    *memory
	name      string // for people
	images    []*image
	parts     []*part // layers of all images, each once, in order
	manifests []builder.Manifest
	others    []other // blobs beside layers
}

// An image is one platform's.
type image struct {
	*base.Image
	layers []*part // lowest first
	tally  *tally
	record *imageRecord // nil if the image is not known
}

// A part is a layer on its way.
type part struct {
	desc      ocispec.Descriptor
	diffID    digest.Digest
	createdBy string
	origins   []string // repositories that have it
	from      opener
	counted   *counted // nil until the layer has been counted
	size      int64    // of the tar, if known
	known     bool     // it need not be read to be counted
	relay     *relay   // set by Build
}

// An other is a blob that is no layer.
type other struct {
	desc    ocispec.Descriptor
	raw     []byte // nil if it is not at hand
	from    opener
	origins []string
}

// planImage plans for one image, whose blobs are read through from.
func (p *Pipeline) planImage(ctx context.Context, b *plan, img *base.Image, from opener) (*plan, error) {
	if err := b.add(ctx, img, from); err != nil {
		return nil, err
	}
	b.manifests = []builder.Manifest{manifestOf(img)}
	b.name = fmt.Sprintf("%s %s", platforms.Format(img.Config.Platform), img.Digest)
	return b, b.weigh(ctx)
}

func manifestOf(img *base.Image) builder.Manifest {
	return builder.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Raw))}, Raw: img.Raw,
	}
}

// planWhole plans for an index and all that it names.
func (p *Pipeline) planWhole(ctx context.Context, b *plan, w *base.Whole, from opener) (*plan, error) {
	for _, img := range w.Images {
		if err := b.add(ctx, img, from); err != nil {
			return nil, err
		}
	}
	for _, m := range w.Manifests {
		b.manifests = append(b.manifests, builder.Manifest(m))
	}
	for _, d := range w.Blobs {
		b.others = append(b.others, other{desc: d, from: from, origins: w.Images[0].Origins()})
	}
	b.name = fmt.Sprintf("%s, all of its %d platforms", b.manifests[len(b.manifests)-1].Digest, len(w.Images))
	return b, b.weigh(ctx)
}

func (p *Pipeline) newPlan(job *builder.Job) *plan {
	return &plan{Pipeline: p, job: job, memory: &memory{cache: job.Cache, app: job.App}}
}

// add takes an image into the plan, with what is remembered of it.
func (b *plan) add(ctx context.Context, img *base.Image, from opener) error {
	i := &image{Image: img, tally: newTally(b.job.MaxSize)}
	rec, err := b.memory.image(ctx, img)
	if err != nil {
		return err
	}
	if rec != nil && (b.job.MaxSize < 0 || rec.peak <= b.job.MaxSize) {
		i.record = rec
	}
	commands := createdBy(img)
	for n, d := range img.Manifest.Layers {
		l, fresh := b.part(d)
		if fresh {
			l.diffID, l.createdBy, l.origins, l.from = img.Config.RootFS.DiffIDs[n], commands[n], img.Origins(), from
		}
		if i.record != nil {
			l.size = i.record.Sizes[n]
		}
		if l.diffID != img.Config.RootFS.DiffIDs[n] {
			return imageFailure(img.Ref, fmt.Errorf("%w: layer %s has two diff IDs", base.ErrInvalid, d.Digest))
		}
		i.layers = append(i.layers, l)
	}
	b.images = append(b.images, i)
	b.others = append(b.others, other{desc: img.Manifest.Config, raw: img.RawConfig})
	return nil
}

// part returns the layer of a descriptor, made if it is new to the plan.
func (b *plan) part(d ocispec.Descriptor) (p *part, fresh bool) {
	for _, p := range b.parts {
		if p.desc.Digest == d.Digest {
			return p, false
		}
	}
	p = &part{desc: d}
	b.parts = append(b.parts, p)
	return p, true
}

// weigh counts what is known, so that an image that is known to be too large
// fails before anything moves. Of an image that is known as a whole, the
// ledgers of its layers are not needed.
func (b *plan) weigh(ctx context.Context) error {
	for _, l := range b.parts {
		l.known = true
	}
	for _, i := range b.images {
		if i.record != nil {
			continue
		}
		for n, l := range i.layers {
			if err := b.recall(ctx, i, n, l); err != nil {
				return imageFailure(i.Ref, err)
			}
		}
	}
	return nil
}

// recall charges the nth layer of an image if it is known.
func (b *plan) recall(ctx context.Context, i *image, n int, l *part) (err error) {
	if l.counted == nil {
		if l.counted, err = b.memory.layer(ctx, l.desc, l.diffID); err != nil {
			return err
		}
	}
	if l.counted == nil {
		l.known = false
		return nil
	}
	l.size = l.counted.Uncompressed
	return i.tally.settle(n, l.source(n), l.counted.Delta)
}

// createdBy returns the command that made each layer, where the config tells.
func createdBy(img *base.Image) []string {
	out := make([]string, len(img.Manifest.Layers))
	n := 0
	for _, h := range img.Config.History {
		if h.EmptyLayer {
			continue
		}
		if n < len(out) {
			out[n] = h.CreatedBy
		}
		n++
	}
	return out
}

// source is what a report says of the layer that is the nth of its image.
func (l *part) source(n int) limits.Source {
	text := fmt.Sprintf("layer %d", n+1)
	if l.createdBy != "" {
		text += ": " + l.createdBy
	}
	return limits.Source{Text: text}
}

// Writes implements builder.Plan: an image of a registry passes through.
func (b *plan) Writes() int64 { return 0 }

// Detail says what goes where.
func (b *plan) Detail() string {
	var bytes int64
	for _, l := range b.parts {
		bytes += l.desc.Size
	}
	layers := "layers"
	if len(b.parts) == 1 {
		layers = "layer"
	}
	return fmt.Sprintf("%s, %d %s of %.1f MB", b.name, len(b.parts), layers, float64(bytes)/1e6)
}

// Build takes the layers to the repositories and counts those that are not
// known, a few at a time and the lowest first.
func (b *plan) Build(ctx context.Context) (*builder.Image, error) {
	err := b.carry(ctx)
	// What was counted is worth keeping also when the rest failed.
	if keepErr := b.memory.keep(context.WithoutCancel(ctx), b); err == nil {
		err = keepErr
	}
	if err != nil {
		return nil, err
	}
	out := &builder.Image{Manifests: b.manifests, Config: b.images[0].Config, Keys: b.memory.keys(b)}
	for _, i := range b.images {
		out.RootFS = max(out.RootFS, i.rootFS())
	}
	for _, l := range b.parts {
		out.Layers = append(out.Layers, &layer.Layer{
			DiffID: l.diffID, Descriptor: l.desc, Uncompressed: l.size, CreatedBy: l.createdBy, Cached: l.known, MountFrom: l.origins,
		})
	}
	for _, o := range b.others {
		out.Blobs = append(out.Blobs, b.blob(ctx, o))
	}
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Rootfs{Rootfs: &slipwayv1.RootFS{
		Bytes: uint64(out.RootFS), Limit: uint64(max(0, b.job.MaxSize)),
	}}})
	return out, nil
}

func (i *image) rootFS() int64 {
	if i.record != nil {
		return i.record.rootFS
	}
	return i.tally.total()
}

func (b *plan) blob(ctx context.Context, o other) pushd.Blob {
	p := pushd.Blob{Name: "config", Descriptor: o.desc, MountFrom: o.origins}
	if o.raw != nil {
		p.Source = pushd.Bytes(o.raw)
		return p
	}
	r := b.relay(ctx, o.desc, o.from, nil)
	p.Name, p.Source = "attestation", r.source()
	return p
}

func (b *plan) relay(ctx context.Context, d ocispec.Descriptor, from opener, c *counter) *relay {
	return newRelay(ctx, d, from, c, relayOptions{pause: b.opts.Pause, stall: b.opts.Stall, log: b.opts.Log})
}

func (b *plan) carry(ctx context.Context) error {
	streams := make(chan struct{}, b.opts.Streams)
	g, gctx := errgroup.WithContext(ctx)
	for n, l := range b.parts {
		if l.known {
			b.offer(ctx, l, nil)
			continue
		}
		select {
		case streams <- struct{}{}:
		case <-gctx.Done():
			return g.Wait()
		}
		c := newCounter(l.desc, l.diffID, b.job.MaxSize, func() *limits.Layer { return b.begin(n, l) })
		pending := b.offer(ctx, l, c)
		g.Go(func() (err error) {
			defer func() { <-streams }()
			defer rescue.Into(&err)
			return b.count(gctx, l, c, pending)
		})
	}
	return g.Wait()
}

// begin opens an account for a layer: that of its image if the layers below
// are counted, so that the image stops at the very entry that is too much.
func (b *plan) begin(n int, l *part) *limits.Layer {
	if len(b.images) == 1 && len(b.images[0].layers) == len(b.parts) {
		if y := b.images[0].tally.begin(n, l.source(n)); y != nil {
			return y
		}
	}
	return limits.NewLedger(b.job.MaxSize).Begin(l.source(n))
}

// offer hands a layer to the push.
func (b *plan) offer(ctx context.Context, l *part, c *counter) *layer.Pending {
	l.relay = b.relay(ctx, l.desc, l.from, c)
	pending := layer.Finished(&layer.Layer{
		DiffID: l.diffID, Descriptor: l.desc, Origin: limits.Source{Text: l.createdBy}, MountFrom: l.origins,
	}, b.source(ctx, l))
	b.job.Layer(pending)
	return pending
}

// source is where a push gets the layer's bytes: the cache if it has them,
// else the relay.
func (b *plan) source(ctx context.Context, l *part) pushd.Source {
	blob, err := b.job.Cache.Blob(ctx, l.desc.Digest)
	if err == nil {
		if d, err := blob.Descriptor(ctx); err == nil && d.Size == l.desc.Size {
			l.relay.from = cached{blob}
		}
	}
	return l.relay.source()
}

// count waits until the layer is at its targets and has been counted on its
// way. What took another way, by a mount or because it was there, is read for
// the count alone.
func (b *plan) count(ctx context.Context, l *part, c *counter, p *layer.Pending) error {
	defer c.stop()
	err := b.job.Landed(ctx, p)
	if cause := c.failed(); cause != nil {
		err = cause
	}
	if err != nil {
		return imageFailure(b.images[0].Ref, err)
	}
	if err := b.readRest(ctx, l, c); err != nil {
		return imageFailure(b.images[0].Ref, err)
	}
	got, err := c.result(ctx)
	if err != nil {
		return imageFailure(b.images[0].Ref, err)
	}
	l.counted, l.size = got, got.Uncompressed
	return b.settle(l)
}

// readRest reads what no push has read. Another deploy may have counted the
// layer meanwhile.
func (b *plan) readRest(ctx context.Context, l *part, c *counter) error {
	if c.complete() {
		return nil
	}
	if c.position() == 0 {
		if known, err := b.memory.layer(ctx, l.desc, l.diffID); known != nil || err != nil {
			c.take(known)
			return err
		}
	}
	r, err := l.relay.Open(ctx, c.position())
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, readBuffer)
	told := time.Now()
	for at := c.position(); ; {
		n, err := r.Read(buf)
		at += int64(n)
		if errors.Is(err, io.EOF) {
			b.tell(l, at, true)
			return nil
		}
		if err != nil {
			return err
		}
		if time.Since(told) > 200*time.Millisecond {
			told = time.Now()
			b.tell(l, at, false)
		}
	}
}

const readBuffer = 128 << 10

// tell reports bytes that come to be counted only.
func (b *plan) tell(l *part, n int64, done bool) {
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Pull{Pull: &slipwayv1.PullProgress{
		Ref: b.images[0].Ref, Digest: l.desc.Digest.String(), Bytes: uint64(n), Total: uint64(l.desc.Size), Done: done,
	}}})
}

// settle charges a layer to the images that have it.
func (b *plan) settle(l *part) error {
	var added int64
	for _, i := range b.images {
		for n, have := range i.layers {
			if have != l || i.record != nil {
				continue
			}
			before := i.tally.total()
			if err := i.tally.settle(n, l.source(n), l.counted.Delta); err != nil {
				return imageFailure(i.Ref, err)
			}
			added = i.tally.total() - before
		}
	}
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Layer{Layer: &slipwayv1.LayerDone{RootfsDelta: added, Layer: &slipwayv1.Layer{
		Digest: l.desc.Digest.String(), DiffId: l.diffID.String(), Size: uint64(l.desc.Size), Uncompressed: uint64(l.size), MediaType: l.desc.MediaType,
	}}}})
	return nil
}
