package classic

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A change is what an instruction does to an image.
type change struct {
	image     dockerspec.DockerOCIImage
	createdBy string

	// key returns what the step depends on beyond its parent. It may wait for
	// other stages.
	key func(ctx context.Context) ([]layercache.Part, error)

	// run does the work that later steps wait for, on a miss. It may set the
	// node's snapshot. It may be nil.
	run func(ctx context.Context, n *node) error

	// write makes the layer, in the background. nil: the step has no layer.
	write func(ctx context.Context, n *node, w *layer.Writer) error

	// fill, see node.
	fill func(ctx context.Context, n *node, s *layercache.Snapshot) error

	// also returns further parts under which the step may be found, once it
	// was made or when its first key missed. It may be nil.
	also func(ctx context.Context) ([]layercache.Part, error)

	// alone is what else the step depends on if it does not depend on its
	// parent; see adopt. It is nil for a step that does.
	alone []layercache.Part

	// inputs are what key stands for, for people. It is called when the step
	// has missed or is made.
	inputs func() []layercache.Part

	reads []*transfer // of files of the context
	from  *node       // that it copies from; nil if it is none

	unknown string // why a forecast cannot tell whether the step is cached
}

// extra is what a record keeps beside the cache's own fields.
type extra struct {
	CreatedBy string
	Content   layercache.Key `json:",omitzero"` // further key, of what is copied
}

// fixed is the key of a change that depends on nothing to come.
func fixed(parts ...layercache.Part) func(context.Context) ([]layercache.Part, error) {
	return func(context.Context) ([]layercache.Part, error) { return parts, nil }
}

func keyAt(parent digest.Digest, parts []layercache.Part) layercache.Key {
	return layercache.NewKey(append([]layercache.Part{{Name: "parent", Value: parent.String()}}, parts...)...)
}

// apply looks the change up or carries it out, and moves the stage on.
func (s *stage) apply(ctx, steps context.Context, st *step, c *change, done *slipwayv1.StepDone) error {
	n := &node{parent: s.node, stage: s, step: st, image: c.image, createdBy: c.createdBy, made: make(chan struct{}),
		plain: c.write == nil, inputs: c.inputs, reads: c.reads}
	if s.build.forecast != nil {
		return s.foresee(ctx, st, n, c, done)
	}
	if !s.busted {
		hit, err := s.lookup(ctx, n, c)
		if err != nil {
			return err
		}
		if hit {
			done.Cached = true
			s.node = n
			return s.offer(ctx, n)
		}
	}
	if found, err := s.adopt(ctx, n, c); found || err != nil {
		done.Cached = found
		return err
	}
	if !s.busted {
		defer s.explain(ctx, n, done)
		s.bust(steps, st)
	} else {
		s.parent(done)
	}
	if err := s.node.ground(steps); err != nil {
		return err
	}
	if c.fill != nil {
		n.fill = func(ctx context.Context, snap *layercache.Snapshot) error { return c.fill(ctx, n, snap) }
	}
	if c.run != nil {
		if err := c.run(steps, n); err != nil {
			return err
		}
	}
	s.node = n
	s.build.passes.Go(func() {
		err := rescue.Run(func() error { return s.pass(ctx, n, c) })
		if n.err = failure.At(err, failure.Build, st.line); n.err != nil {
			s.build.fail(n.err)
			s.retract(n)
		}
		close(n.made)
	})
	return nil
}

// retract tells that a step failed after all: it had been reported as done
// when its layer was still in the making.
func (s *stage) retract(n *node) {
	if n.parent.err != nil || errors.Is(n.err, context.Canceled) || isLost(n.err) {
		return // not this step's fault
	}
	s.build.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: &slipwayv1.StepDone{
		Step: n.step.id, Error: failure.As(n.err).Message,
	}}})
}

// lookup fills the node from the cache.
func (s *stage) lookup(ctx context.Context, n *node, c *change) (bool, error) {
	if err := n.parent.wait(ctx); err != nil {
		return false, err
	}
	if s.disabled() != "" {
		return false, nil
	}
	rec, err := s.find(ctx, n, c)
	if missing(err) {
		return s.borrow(ctx, n, c)
	}
	if err != nil {
		return false, err
	}
	hit, err := s.restore(ctx, n, rec)
	if err != nil || hit {
		return hit, err
	}
	return s.borrow(ctx, n, c)
}

// find asks for the step by its key, then by what it would copy.
func (s *stage) find(ctx context.Context, n *node, c *change) (layercache.Step, error) {
	cache := s.build.job.Cache
	parts, err := c.key(ctx)
	if err != nil {
		return layercache.Step{}, err
	}
	key := keyAt(n.parent.id, parts)
	n.key, n.asked = key, key
	rec, err := cache.Step(ctx, key)
	if !missing(err) || c.also == nil || s.build.forecast != nil {
		return rec, err
	}
	if l, _ := s.build.lenderOf(key); l != nil {
		return rec, err // without a look at what it would copy
	}
	if parts, err = c.also(ctx); err != nil {
		return rec, err
	}
	n.also = keyAt(n.parent.id, parts)
	if rec, err = cache.Step(ctx, n.also); err == nil {
		err = cache.PutStep(ctx, key, rec)
	}
	return rec, err
}

func missing(err error) bool { return errors.Is(err, layercache.ErrNotFound) }

func (s *stage) restore(ctx context.Context, n *node, rec layercache.Step) (bool, error) {
	if rec.Peak > s.build.job.MaxSize && s.build.job.MaxSize > 0 {
		n.tooLarge = true
		return false, nil // run it again: the ledger says what is too large
	}
	var x extra
	if err := json.Unmarshal(rec.Extra, &x); err != nil {
		return false, nil
	}
	if !rec.Empty {
		l, err := s.layerOf(ctx, n, rec.DiffID, x)
		if missing(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		n.layer = l
	}
	n.also = x.Content
	n.setSnapshot(rec.Snapshot)
	n.created, n.createdBy, n.cached = rec.Created, x.CreatedBy, true
	n.rootfs, n.peak = rec.RootFS, rec.Peak
	if err := n.identify(); err != nil {
		return false, err
	}
	close(n.made)
	return true, nil
}

// layerOf returns a layer that the cache has as the node's.
func (s *stage) layerOf(ctx context.Context, n *node, diffID digest.Digest, x extra) (*layer.Layer, error) {
	l, err := layer.Lookup(ctx, s.build.job.Cache, diffID, s.build.mediaType())
	if err != nil {
		return nil, err
	}
	l.Origin, l.CreatedBy = limits.Source{Line: n.step.line, Text: n.step.source}, x.CreatedBy
	if s.build.job.GetCompression().GetForce() && s.final && s.build.forecast == nil {
		return s.build.job.Maker.Recompress(ctx, l)
	}
	return l, nil
}

// pass makes the node's layer, one pass over its bytes, after the layers
// below it have been counted, and records the step.
func (s *stage) pass(ctx context.Context, n *node, c *change) error {
	if err := n.parent.wait(ctx); err != nil {
		return err
	}
	n.rootfs, n.peak = n.parent.size()
	if c.write != nil {
		if err := s.makeLayer(ctx, n, c); err != nil {
			return err
		}
	}
	n.created = time.Now().UTC()
	if err := n.identify(); err != nil {
		return err
	}
	return s.record(ctx, n, c)
}

func (s *stage) makeLayer(ctx context.Context, n *node, c *change) error {
	ledger, err := s.ledgerOf(ctx, n.parent)
	if err != nil {
		return err
	}
	l, err := s.build.job.Maker.Make(ctx, layer.Spec{
		Origin:    limits.Source{Line: n.step.line, Text: n.step.source},
		CreatedBy: c.createdBy, Ledger: ledger,
		Write: func(ctx context.Context, w *layer.Writer) error { return c.write(ctx, n, w) },
		Started: func(p *layer.Pending) {
			if s.final {
				s.build.job.Layer(p)
			}
		},
	})
	if err != nil {
		return err
	}
	below, peak := n.parent.size()
	added := ledger.Total() - below
	n.rootfs, n.peak = ledger.Total(), max(peak, ledger.Peak())
	if l == nil {
		return nil
	}
	l.CreatedBy = n.createdBy
	n.layer = l
	s.tell(n, added)
	return nil
}

// tell reports a finished layer and where the root file system now stands.
func (s *stage) tell(n *node, added int64) {
	emit := s.build.job.Session.Emit
	l := n.layer
	emit(&slipwayv1.Event{Event: &slipwayv1.Event_Layer{Layer: &slipwayv1.LayerDone{Step: n.step.id, RootfsDelta: added, Layer: &slipwayv1.Layer{
		Digest: l.Descriptor.Digest.String(), DiffId: l.DiffID.String(), Size: uint64(l.Descriptor.Size),
		Uncompressed: uint64(l.Uncompressed), CreatedBy: l.CreatedBy, MediaType: l.Descriptor.MediaType,
	}}}})
	if s.final {
		emit(&slipwayv1.Event{Event: &slipwayv1.Event_Rootfs{Rootfs: &slipwayv1.RootFS{
			Bytes: uint64(n.rootfs), Limit: uint64(max(0, s.build.job.MaxSize)),
		}}})
	}
}

// record stores the step under each of its keys.
func (s *stage) record(ctx context.Context, n *node, c *change) error {
	parts, err := c.key(ctx)
	if err != nil {
		return err
	}
	var also []layercache.Part
	if c.also != nil {
		if also, err = c.also(ctx); err != nil {
			return err
		}
		n.also = keyAt(n.parent.id, also)
	}
	x, err := json.Marshal(extra{CreatedBy: n.createdBy, Content: n.also})
	if err != nil {
		return err
	}
	rec := layercache.Step{
		Created: n.created, Empty: n.layer == nil, Snapshot: n.filled(), RootFS: n.rootfs, Peak: n.peak,
		Parts: parts, App: s.build.job.App, Extra: x,
	}
	if n.layer != nil {
		rec.DiffID = n.layer.DiffID
	}
	cache := s.build.job.Cache
	n.key = keyAt(n.parent.id, parts)
	if err := cache.PutStep(ctx, n.key, rec); err != nil {
		return err
	}
	if err := s.keepAlone(ctx, rec, c); err != nil || c.also == nil {
		return err
	}
	rec.Parts = also
	if err := s.keepAlone(ctx, rec, c); err != nil {
		return err
	}
	return cache.PutStep(ctx, n.also, rec)
}

// ledgerOf returns the stage's ledger, which stands where parent does.
func (s *stage) ledgerOf(ctx context.Context, parent *node) (*limits.Ledger, error) {
	if s.ledger != nil {
		return s.ledger, nil
	}
	if err := parent.ground(ctx); err != nil {
		return nil, err
	}
	ledger, err := s.build.charged(ctx, parent.layers())
	if err != nil {
		return nil, err
	}
	s.ledger = ledger
	return ledger, nil
}

// charged returns a ledger that holds the layers.
func (b *build) charged(ctx context.Context, layers []*layer.Layer) (*limits.Ledger, error) {
	ledger := limits.NewLedger(b.job.MaxSize)
	for _, l := range layers {
		if err := layer.Charge(ctx, b.job.Cache, l, ledger); err != nil {
			return nil, err
		}
	}
	return ledger, nil
}

// offer hands a cached layer of the final image to the push.
func (s *stage) offer(ctx context.Context, n *node) error {
	if !s.final || n.layer == nil || s.build.forecast != nil {
		return nil
	}
	blob, err := s.build.job.Cache.Blob(ctx, n.layer.Descriptor.Digest)
	if err != nil {
		return err
	}
	s.build.job.Layer(layer.Finished(n.layer, blob))
	return nil
}
