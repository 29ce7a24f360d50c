package classic

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// begin carries out FROM: it sets the stage's first node.
func (s *stage) begin(ctx, steps context.Context, st *step, done *slipwayv1.StepDone) error {
	var err error
	switch {
	case s.from != nil:
		s.node, err = s.fromStage(ctx, steps, st, done)
	case s.base != nil:
		s.node, err = s.fromImage(steps, st, done)
	default:
		s.node = s.fromScratch(st)
		done.Cached = true
	}
	if err != nil {
		return err
	}
	if len(s.triggers) > 0 || s.badTrigger != nil {
		return s.trigger(ctx, steps, st, done)
	}
	return nil
}

// fromStage returns a node of this stage's own for the image of another: what
// a child does not inherit is gone.
func (s *stage) fromStage(ctx, steps context.Context, st *step, done *slipwayv1.StepDone) (*node, error) {
	below, err := s.from.result(steps)
	if err != nil {
		return nil, err
	}
	n := &node{parent: below, stage: s, step: st, image: cloneImage(below.image), made: make(chan struct{}),
		plain: true, from: true, cached: !s.from.busted, ghost: below.ghost}
	own := s.inputsOf(st, n, "")
	n.inputs = func() []layercache.Part {
		return append([]layercache.Part{{Name: inStage + " " + s.from.key(), Value: shortID(below.id)}}, own...)
	}
	n.image.Author, n.image.Config.OnBuild = "", nil
	n.image.Config.Env = withPath(n.image.Config.Env)
	done.Cached = n.cached
	// Layers still in the making were not found in the cache, and what stands
	// on them will not be either.
	s.busted = s.from.busted && (below.ghost || !below.isMade())
	if s.from.busted {
		s.first, s.blamed, s.unsure = s.from.first, s.from.blamed, s.from.unsure
		s.after(s.first, s.blamed).tell(done)
	}
	s.build.passes.Go(func() {
		defer close(n.made)
		defer rescue.Into(&n.err)
		if n.err = below.wait(ctx); n.err == nil {
			n.rootfs, n.peak = below.size()
			n.err = n.identify()
		}
	})
	return n, nil
}

// withPath adds the default PATH where there is none.
func withPath(env []string) []string {
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return env
	}
	return append(env, defaultPath)
}

func (s *stage) fromScratch(st *step) *node {
	n := &node{stage: s, step: st, made: make(chan struct{}), cached: true}
	n.inputs = known(s.inputsOf(st, n, ""))
	n.image.Platform = s.build.job.Platform
	n.image.Config.Env = []string{defaultPath}
	n.rootfs = limits.NewLedger(s.build.job.MaxSize).Total()
	n.settle()
	return n
}

// settle ends the making of a node without parent.
func (n *node) settle() {
	n.err = n.identify()
	n.peak = n.rootfs
	close(n.made)
}

// fromImage pulls the base image.
func (s *stage) fromImage(ctx context.Context, st *step, done *slipwayv1.StepDone) (*node, error) {
	force := s.build.job.GetCompression().GetForce()
	var offer func(*layer.Pending)
	if s.final && !force {
		offer = s.build.job.Layer // the blobs go as they come
	}
	layers, err := s.build.pull(ctx, s.base, st, offer)
	if err != nil {
		return nil, err
	}
	if force && s.final && s.build.forecast == nil {
		for i, l := range layers {
			if layers[i], err = s.build.job.Maker.Recompress(ctx, l); err != nil {
				return nil, err
			}
		}
	}
	n := &node{stage: s, step: st, made: make(chan struct{}), base: layers, history: s.base.Config.History, cached: true}
	n.image = baseConfig(s.base.Config)
	n.inputs = known(s.inputsOf(st, n, "", imageInput(inBase, s.ref, s.base.Digest)))
	if s.build.pulled(layers) {
		if n.rootfs, err = s.build.sizeOf(ctx, s.base, layers); err != nil {
			return nil, err
		}
	}
	n.settle()
	n.image.Config.OnBuild = nil
	done.Cached = true
	if n.err != nil || !s.final || !force || s.build.forecast != nil {
		return n, n.err
	}
	return n, s.offerAll(ctx, layers)
}

// baseConfig keeps of a base image's config what its child inherits.
func baseConfig(in dockerspec.DockerOCIImage) dockerspec.DockerOCIImage {
	out := cloneImage(in)
	out.Author, out.Created, out.History = "", nil, nil
	out.RootFS.DiffIDs = nil
	out.Config.Env = withPath(out.Config.Env)
	return out
}

// offerAll hands layers that exist to the push.
func (s *stage) offerAll(ctx context.Context, layers []*layer.Layer) error {
	for _, l := range layers {
		blob, err := s.build.job.Cache.Blob(ctx, l.Descriptor.Digest)
		if err != nil {
			return err
		}
		s.build.job.Layer(layer.Finished(l, blob))
	}
	return nil
}

// pull brings an image's layers into the cache; offer, if not nil, gets them as
// they come.
func (b *build) pull(ctx context.Context, img *base.Image, st *step, offer func(*layer.Pending)) ([]*layer.Layer, error) {
	if b.forecast != nil {
		return b.unpulled(ctx, img)
	}
	layers, err := b.opts.Bases.Pull(ctx, b.job.Cache, img, base.PullOptions{
		App: b.job.App, Max: b.job.MaxSize, Origin: st.source, Line: st.line, Unpack: b.runsOn(img), Offer: offer,
		Progress: b.pulling(img.Ref),
	})
	return layers, baseFailure(img.Ref, err)
}

// runsOn reports whether a RUN step stands on the image.
func (b *build) runsOn(img *base.Image) bool {
	for _, s := range b.stages {
		root := s
		for root.from != nil {
			root = root.from
		}
		if !s.needed || root.base != img {
			continue
		}
		for _, st := range s.steps {
			if _, ok := st.cmd.(*instructions.RunCommand); ok {
				return true
			}
		}
	}
	return false
}

// sizeOf returns what a base image takes unpacked. It is remembered, so that
// only a new base image is counted.
func (b *build) sizeOf(ctx context.Context, img *base.Image, layers []*layer.Layer) (int64, error) {
	if len(layers) == 0 {
		return limits.NewLedger(b.job.MaxSize).Total(), nil
	}
	key := layercache.NewKey(layercache.Part{Name: "size of", Value: layer.ChainID(layers)})
	rec, err := b.job.Cache.Step(ctx, key)
	if err == nil && (b.job.MaxSize < 0 || rec.Peak <= b.job.MaxSize) {
		return rec.RootFS, nil
	}
	if err != nil && !missing(err) {
		return 0, err
	}
	ledger, err := b.charged(ctx, layers)
	if err != nil {
		return 0, failure.At(baseFailure(img.Ref, err), failure.Preflight, 0)
	}
	rec = layercache.Step{
		Created: time.Now().UTC(), DiffID: layers[len(layers)-1].DiffID, RootFS: ledger.Total(), Peak: ledger.Peak(), App: b.job.App,
	}
	return rec.RootFS, b.job.Cache.PutStep(ctx, key, rec)
}
