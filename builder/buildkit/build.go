package buildkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd/compress"
	"github.com/slipwayhq/slipway/rescue"
)

// builds are a tenant's builds under way, by their session.
type builds struct {
	receipts receipts

	mu  sync.Mutex
	all map[string]*build
}

func newBuilds() *builds { return &builds{receipts: newReceipts(), all: map[string]*build{}} }

func (x *builds) add(b *build) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all[b.session] = b
}

// remove takes a build out, and reports whether it was the last one.
func (x *builds) remove(b *build) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, b.session)
	return len(x.all) == 0
}

// get returns the build of a session, nil if there is none.
func (x *builds) get(session string) *build {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.all[session]
}

// of returns the builds that wait for what a group of sessions asked for.
func (x *builds) of(g session.Group) []*build {
	var out []*build
	for _, id := range session.AllSessionIDs(g) {
		if b := x.get(id); b != nil {
			out = append(out, b)
		}
	}
	return out
}

// limit is the largest that a build of the group allows, in bytes; less than 0
// if one has no limit.
func (x *builds) limit(g session.Group) int64 {
	var most int64
	all := x.of(g)
	if len(all) == 0 {
		return -1
	}
	for _, b := range all {
		if b.job.MaxSize < 0 {
			return -1
		}
		most = max(most, b.job.MaxSize)
	}
	return most
}

// A build is one solve whose image goes through the daemon's push.
type build struct {
	tenant  *tenant
	job     *builder.Job
	app     string
	session string
	owner   string          // of the session
	still   bool            // no layer is made or pushed before the image is known
	client  *solve          // of a client of BuildKit's API; nil if it is a deploy
	view    *view           // of the context; nil if the client's session has it
	ctx     context.Context // of the build, with its lease
	stop    context.CancelCauseFunc
	lines   lines
	events  *events
	keeper  *shell.Keeper // nil keeps nothing

	early sync.WaitGroup // layers on their way

	mu     sync.Mutex
	over   bool
	blobs  map[digest.Digest]*layer.Pending // that the push has
	own    map[digest.Digest]bool           // blobs that were made for it
	making map[digest.Digest]chan struct{}  // by vertex, closed when its layer is made
	ledger chainLedger
	image  *builder.Image
	causes []*failure.Error  // of errors that BuildKit makes texts of
	named  map[string]func() // sessions that were asked for, to be given up
}

// fail ends the build for a reason of its own, such as the limit.
func (b *build) fail(err error) error {
	if e := failure.As(err); e.Code != failure.Cancelled {
		b.stop(err)
	}
	return err
}

// end says that the image takes no more layers, and waits for those under way.
func (b *build) end() {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.early.Wait()
}

// offer hands a layer to the push, unless the build is over.
func (b *build) offer(p *layer.Pending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.still {
		b.job.Layer(p)
	}
}

// offered notes which blob a layer that the push has turned out to be.
func (b *build) offered(d digest.Digest, p *layer.Pending) {
	if b.still {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blobs[d], b.own[d] = p, true
}

// makes reports whether the build itself has made a blob.
func (b *build) makes(d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.own[d]
}

// has reports whether the push has a blob.
func (b *build) has(d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.blobs[d]
	return ok
}

// left has the layer of a step made and pushed while the build goes on. Layers
// that stand on one another are made one after the other.
func (b *build) left(v *vertex, ref cache.ImmutableRef) {
	b.events.left(v.digest)
	if !v.layer {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return
	}
	ref = ref.Clone()
	below, done := b.making[b.lines.under(v.digest)], make(chan struct{})
	b.making[v.digest] = done
	b.early.Go(func() {
		defer close(done)
		err := rescue.Run(func() error {
			defer func() { _ = ref.Release(context.WithoutCancel(b.ctx)) }()
			if err := waitFor(b.ctx, below); err != nil {
				return err
			}
			_, err := b.layers(context.WithValue(b.ctx, originKey{}, b.lines.of(v.digest)), ref, v.digest)
			return err
		})
		if err != nil && context.Cause(b.ctx) == nil {
			_ = b.fail(fmt.Errorf("layer of a step: %w", err))
		}
	})
}

// made waits for the layers that are made while the build goes on: what is
// wrong with one is said of its line.
func (b *build) made() error {
	b.mu.Lock()
	under := slices.Collect(maps.Values(b.making))
	b.mu.Unlock()
	for _, done := range under {
		if err := waitFor(b.ctx, done); err != nil {
			return err
		}
	}
	return context.Cause(b.ctx)
}

// originKey is under which a context has the line whose layer is being made.
type originKey struct{}

func waitFor(ctx context.Context, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// layers returns the layers of a file system, lowest first, each of them in
// the store, counted and offered to the push. The vertex is the one that has
// left it, "" if that is not known.
func (b *build) layers(ctx context.Context, ref cache.ImmutableRef, vertex digest.Digest) ([]*layer.Layer, error) {
	out, err := b.counted(ctx, ref, vertex)
	if err != nil {
		return nil, err
	}
	for _, l := range out {
		if err := b.push(l); err != nil {
			return nil, err
		}
	}
	_, err = b.charge(out)
	return out, err
}

// counted returns the layers of a file system, lowest first, each of them in
// the store and counted for itself.
func (b *build) counted(ctx context.Context, ref cache.ImmutableRef, vertex digest.Digest) ([]*layer.Layer, error) {
	remotes, err := ref.GetRemotes(ctx, true, b.config(), false, session.NewGroup(b.session))
	if err != nil {
		return nil, err
	}
	var out []*layer.Layer
	for _, d := range remotes[0].Descriptors {
		// A layer of a base image may not have been needed so far.
		r, err := remotes[0].Provider.ReaderAt(ctx, d)
		if err != nil {
			return nil, err
		}
		r.Close()
		l, err := b.tenant.layer(b.ctx, d)
		if err != nil {
			return nil, err
		}
		l.Cached = !b.makes(d.Digest)
		l.MountFrom = origins(d)
		out = append(out, l)
	}
	b.lines.place(out, vertex)
	return out, nil
}

// push offers a finished layer that the push lacks.
func (b *build) push(l *layer.Layer) error {
	if b.still || b.has(l.Descriptor.Digest) {
		return nil
	}
	blob, err := b.tenant.cache.Blob(b.ctx, l.Descriptor.Digest)
	if err != nil {
		return err
	}
	p := layer.Finished(l, blob)
	b.mu.Lock()
	_, twice := b.blobs[l.Descriptor.Digest]
	b.blobs[l.Descriptor.Digest] = p
	b.mu.Unlock()
	if !twice {
		b.offer(p)
	}
	return nil
}

// charge counts an image of the layers, and returns its size unpacked.
func (b *build) charge(layers []*layer.Layer) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ledger.charge(b.ctx, b, layers)
}

// A chainLedger is the ledger of the layers that were charged last: chains grow
// by a layer a step.
type chainLedger struct {
	ledger *limits.Ledger
	layers []digest.Digest // diff IDs
}

func (c *chainLedger) charge(ctx context.Context, b *build, layers []*layer.Layer) (int64, error) {
	n := len(c.layers)
	if c.ledger == nil || n > len(layers) || !c.begins(layers[:n]) {
		c.ledger, c.layers, n = limits.NewLedger(b.job.MaxSize), nil, 0
	}
	for _, l := range layers[n:] {
		before := c.ledger.Total()
		if err := layer.Charge(ctx, b.tenant.cache, l, c.ledger); err != nil {
			c.ledger = nil
			return 0, failure.At(err, failure.Build, l.Origin.Line)
		}
		c.layers = append(c.layers, l.DiffID)
		b.events.layer(l, c.ledger.Total()-before)
	}
	return c.ledger.Total(), nil
}

func (c *chainLedger) begins(layers []*layer.Layer) bool {
	for i, l := range layers {
		if c.layers[i] != l.DiffID {
			return false
		}
	}
	return true
}

// config is how the image's new layers are made.
func (b *build) config() cacheconfig.RefConfig {
	how := compression.Config{Type: maker{Type: typeOf(b.job.Maker.Compression.Type), build: b}, Force: b.job.GetCompression().GetForce()}
	return cacheconfig.RefConfig{Compression: how}
}

// typeOf is BuildKit's name for a compression. It wants to know the media type
// of a layer before it is made, so that what is chosen by a layer's begin is
// gzip.
func typeOf(t compress.Type) compression.Type {
	switch t {
	case compress.Zstd:
		return compression.Zstd
	case compress.None:
		return compression.Uncompressed
	}
	return compression.Gzip
}

// origins are the repositories that a layer came from, as "host/path".
func origins(d ocispec.Descriptor) []string {
	const prefix = "containerd.io/distribution.source."
	var out []string
	for key, repos := range d.Annotations {
		host, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		for _, r := range strings.Split(repos, ",") {
			out = append(out, host+"/"+r)
		}
	}
	return out
}

var errNoLayer = errors.New("BuildKit made no such layer")
