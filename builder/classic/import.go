package classic

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A lender is a cache elsewhere that the build may take steps from, one that
// --cache-from names. What it says are claims: of a layer of the final image,
// they are proven at the hit; of other stages, when somebody needs the bytes,
// which may be never. A lender that turns out to be wrong, or that does not
// have what it promised, is left out from then on.
type lender struct {
	ref   string
	image *base.Image // of which only manifest and blobs count
	all   []*lentStep // in the order of the Dockerfile
	steps map[layercache.Key]*lentStep
	out   atomic.Bool
}

// A lentStep is one of a lender's.
type lentStep struct {
	stepcache.Step
	bringing sync.Mutex // held while its layer is on its way
}

// lendTime bounds how long a build waits for what a lender has; it can do
// without.
const lendTime = 20 * time.Second

// maxLenders bounds what one build may name.
const maxLenders = 16

// lendersAtOnce is how many are read side by side.
const lendersAtOnce = 4

// openLenders reads what --cache-from names. What cannot be had is a warning.
func (b *build) openLenders(ctx context.Context) error {
	refs := b.job.CacheFrom
	if b.job.NoCache {
		return nil
	}
	if len(refs) > maxLenders {
		return failure.Userf(failure.InvalidArgument, "name the ones that have most", "--cache-from names %d caches, %d are allowed", len(refs), maxLenders)
	}
	for _, ref := range refs {
		if _, err := base.Parse(ref); err != nil {
			return failure.Userf(failure.InvalidArgument, "write it as HOST/PATH[:TAG]", "--cache-from %s: %v", ref, err)
		}
	}
	found := make([]*lender, len(refs))
	var g errgroup.Group
	g.SetLimit(lendersAtOnce)
	for i, ref := range refs {
		g.Go(func() (err error) {
			if found[i], err = b.openLender(ctx, ref); err != nil && context.Cause(ctx) == nil {
				b.warnLender(fmt.Sprintf("nothing is taken from the cache %s: %v", ref, err), err)
			}
			return context.Cause(ctx)
		})
	}
	err := g.Wait()
	b.lenders = slices.DeleteFunc(found, func(l *lender) bool { return l == nil })
	return err
}

func (b *build) openLender(ctx context.Context, ref string) (*lender, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lendTime, fmt.Errorf("%w: no answer within %v", base.ErrUnavailable, lendTime))
	defer cancel()
	img, err := b.opts.Bases.For(b.job.Cache.Name()).ResolveArtifact(ctx, ref, b.job.Platform, b.job.Session.Credentials)
	if err != nil {
		return nil, err
	}
	doc, err := documentOf(img)
	if err != nil {
		return nil, err
	}
	l := &lender{ref: ref, image: img, steps: map[layercache.Key]*lentStep{}}
	img.Raw, img.RawConfig = nil, nil // others' bytes, of which enough is kept
	for _, st := range doc.Steps {
		one := &lentStep{Step: st}
		l.all = append(l.all, one)
		for _, k := range st.Keys {
			if _, twice := l.steps[k]; !twice {
				l.steps[k] = one
			}
		}
	}
	return l, nil
}

// documentOf returns the steps that a manifest carries, its own config or in
// an image's.
func documentOf(img *base.Image) (*stepcache.Document, error) {
	if img.Manifest.Config.MediaType == stepcache.MediaType {
		return stepcache.Decode(img.RawConfig)
	}
	return stepcache.OfConfig(img.RawConfig)
}

func (b *build) warnLender(text string, err error) {
	hint := "the build goes on without it"
	switch {
	case errors.Is(err, stepcache.ErrNone):
		hint = "build that image with --cache-to type=inline, or name what --cache-to type=registry wrote"
	case errors.Is(err, base.ErrNotFound):
		hint = "it is there after the first build with --cache-to; until then the build goes on without it"
	case errors.Is(err, base.ErrDenied):
		hint = "run docker login for its registry where you deploy; the build goes on without it"
	}
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Warning{Warning: &slipwayv1.Warning{Message: text, Hint: hint}}})
}

// drop leaves a lender out from now on and says why, once.
func (b *build) drop(l *lender, err error) {
	if !l.out.Swap(true) {
		b.opts.Log.Warn("cache elsewhere fails", "build", b.job.ID, "ref", l.ref, "err", err)
		b.warnLender(fmt.Sprintf("nothing more is taken from the cache %s: %v", l.ref, err), err)
	}
}

// lenderOf returns who has a step of one of these keys.
func (b *build) lenderOf(keys ...layercache.Key) (*lender, *lentStep) {
	for _, k := range keys {
		for _, l := range b.lenders {
			if st := l.steps[k]; st != nil && !l.out.Load() {
				return l, st
			}
		}
	}
	return nil, nil
}

// borrow fills a node that the org's own cache lacks from a cache elsewhere.
func (s *stage) borrow(ctx context.Context, n *node, c *change) (bool, error) {
	for {
		l, st := s.build.lenderOf(n.keys()...)
		if l == nil {
			return false, nil
		}
		if c.write == nil && !st.Empty {
			s.build.drop(l, fmt.Errorf("%w: it has a layer of %s, which makes none", stepcache.ErrInvalid, n.step.source))
			continue
		}
		cl, err := s.claim(ctx, n, c, l, st)
		if err != nil {
			return false, err
		}
		hit, err := s.accept(ctx, n, cl)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return false, cause
		}
		if err == nil {
			if hit {
				s.note(n.step, " ---> Using cache from %s", l.ref)
			}
			return hit, nil
		}
		s.build.drop(l, err)
	}
}

// A claim is a step as a lender describes it.
type claim struct {
	build  *build
	lender *lender
	step   *lentStep
	origin limits.Source
	record layercache.Step // but for sizes

	mu     sync.Mutex // guards the rest; never held while waiting
	layer  *layer.Layer
	proven bool
	rootfs int64 // of what is proven
	peak   int64
}

func (s *stage) claim(ctx context.Context, n *node, c *change, l *lender, st *lentStep) (*claim, error) {
	parts, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	x := extra{CreatedBy: cmp.Or(c.createdBy, st.CreatedBy)}
	if n.also == (layercache.Key{}) && len(st.Keys) > 1 {
		n.also = st.Keys[1]
	}
	x.Content = n.also
	raw, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	return &claim{build: s.build, lender: l, step: st, origin: limits.Source{Line: n.step.line, Text: n.step.source},
		record: layercache.Step{Created: st.Created.UTC(), Empty: st.Empty, DiffID: st.DiffID, Parts: parts, App: s.build.job.App, Extra: raw},
	}, nil
}

// accept makes the claim the node's. The error is the lender's fault.
func (s *stage) accept(ctx context.Context, n *node, cl *claim) (bool, error) {
	if s.final && s.build.forecast == nil {
		return s.prove(ctx, n, cl)
	}
	var x extra
	if err := json.Unmarshal(cl.record.Extra, &x); err != nil {
		return false, err
	}
	if !cl.step.Empty {
		n.layer = cl.described(x.CreatedBy)
	}
	n.claim, n.rootfs, n.peak = cl, cl.step.RootFS, cl.step.Peak // for a forecast; see size
	n.created, n.createdBy, n.cached = cl.record.Created, x.CreatedBy, true
	if err := n.identify(); err != nil {
		return false, err
	}
	close(n.made)
	return true, nil
}

// prove brings a layer of the final image, counts it and restores the node as
// from the org's own cache, which has it from now on.
func (s *stage) prove(ctx context.Context, n *node, cl *claim) (bool, error) {
	s.lookAhead(ctx, cl)
	before := s.proof
	s.proof = proof{} // until the ledger stands at n
	rec := cl.record
	rec.RootFS, rec.Peak = n.parent.size()
	ledger := before.at(n.parent)
	if !rec.Empty {
		l, err := cl.bring(ctx)
		if err != nil {
			return false, err
		}
		if ledger == nil {
			if ledger, err = s.build.charged(ctx, n.parent.layers()); err != nil {
				return false, err
			}
		}
		if err := layer.Charge(ctx, s.build.job.Cache, l, ledger); err != nil {
			return false, err
		}
		rec.RootFS, rec.Peak = ledger.Total(), max(rec.Peak, ledger.Peak())
	}
	if err := s.build.job.Cache.PutStep(ctx, n.key, rec); err != nil {
		return false, err
	}
	hit, err := s.restore(ctx, n, rec)
	if hit {
		s.proof = proof{n, ledger}
	}
	return hit, err
}

// A proof is the ledger of a node whose claim was proven, for the next one:
// that each charges its own layer only.
type proof struct {
	node   *node
	ledger *limits.Ledger
}

// at returns the ledger if it stands at n, else nil.
func (p proof) at(n *node) *limits.Ledger {
	if p.node != n {
		return nil
	}
	return p.ledger
}

// lookAhead begins to bring the image's layers that come after this one: its
// steps are likely to hit as well. A miss, or the end of the stage, stops it.
func (s *stage) lookAhead(ctx context.Context, cl *claim) {
	if s.stopAhead != nil {
		return
	}
	ctx, s.stopAhead = context.WithCancel(ctx)
	all := cl.lender.all
	later := all[slices.Index(all, cl.step)+1:]
	s.build.passes.Go(func() {
		var g errgroup.Group
		g.SetLimit(lendersAtOnce - 1) // one is the step's own
		for _, st := range later {
			if st.Empty || !st.InImage || ctx.Err() != nil {
				continue
			}
			ahead := &claim{build: cl.build, lender: cl.lender, step: st, origin: cl.origin}
			g.Go(func() error {
				// What fails here fails again, and is told, at the hit.
				_, _ = ahead.bring(ctx)
				return nil
			})
		}
		_ = g.Wait()
	})
}

// described is the layer as it is claimed to be.
func (cl *claim) described(createdBy string) *layer.Layer {
	return &layer.Layer{DiffID: cl.step.DiffID, Descriptor: cl.step.Blob.Descriptor(), Origin: cl.origin, CreatedBy: createdBy, Cached: true}
}

// bring returns the layer, verified, from the org's cache or the lender's.
func (cl *claim) bring(ctx context.Context) (*layer.Layer, error) {
	cl.step.bringing.Lock()
	defer cl.step.bringing.Unlock()
	if l := cl.brought(); l != nil {
		return l, nil
	}
	l, err := layer.Lookup(ctx, cl.build.job.Cache, cl.step.DiffID, cl.build.mediaType())
	if missing(err) {
		l, err = cl.pull(ctx)
	}
	if err != nil {
		return nil, err
	}
	l.Origin = cl.origin
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.layer = l
	return l, nil
}

func (cl *claim) pull(ctx context.Context) (*layer.Layer, error) {
	b := cl.build
	if most := b.job.MaxSize; most > 0 && cl.step.Blob.Size > most {
		return nil, fmt.Errorf("%w: blob %s of %d bytes is larger than any image may be", base.ErrInvalid, cl.step.Blob.Digest, cl.step.Blob.Size)
	}
	one, err := cl.lender.image.Layer(cl.step.Blob.Descriptor(), cl.step.DiffID)
	if err != nil {
		return nil, err
	}
	layers, err := b.opts.Bases.Pull(ctx, b.job.Cache, one, base.PullOptions{
		App: b.job.App, Max: b.job.MaxSize, Line: cl.origin.Line, Origin: cl.origin.Text, Progress: b.pulling(cl.lender.ref),
	})
	if err != nil {
		return nil, err
	}
	return layers[0], nil
}

func (cl *claim) brought() *layer.Layer {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.layer
}

func (cl *claim) isProven() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.proven
}

// settle stores the step, now that its layer and its sizes are known.
func (cl *claim) settle(ctx context.Context, key layercache.Key, rootfs, peak int64) error {
	rec := cl.record
	rec.RootFS, rec.Peak = rootfs, peak
	if err := cl.build.job.Cache.PutStep(ctx, key, rec); err != nil {
		return err
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.proven, cl.rootfs, cl.peak = true, rootfs, peak
	return nil
}

// A lostError says that a step that counted as cached cannot be had after all.
// The build begins anew, without that lender. It hides what it stands for, so
// that nobody takes that for the build's own failure.
type lostError struct {
	lender *lender
	err    error
}

func (e *lostError) Error() string { return e.lender.ref + ": " + e.err.Error() }

// isLost reports whether err is one that the build can mend by itself.
func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}

// ground proves the claims in what the node stands on and is. The error is a
// lostError when a lender is at fault.
func (n *node) ground(ctx context.Context) error {
	for n != nil && (n.claim == nil || n.claim.isProven()) {
		n = n.parent // what is above is nobody's claim
	}
	if n == nil {
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lendersAtOnce)
	for _, cl := range n.unproven() {
		if cl.step.Empty {
			continue
		}
		g.Go(func() error {
			_, err := cl.bring(gctx)
			if err != nil && context.Cause(gctx) == nil {
				err = cl.build.lost(cl, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return n.count(ctx)
}

func (b *build) lost(cl *claim, err error) error {
	b.drop(cl.lender, err)
	return &lostError{cl.lender, err}
}

// unproven lists the claims of the node and of those below it.
func (n *node) unproven() []*claim {
	var all []*claim
	for at := n; at != nil; at = at.parent {
		if at.claim != nil && !at.claim.isProven() {
			all = append(all, at.claim)
		}
	}
	return all
}

// count charges what the node is made of, from the lowest layer on, and
// settles the claims on the way.
func (n *node) count(ctx context.Context) error {
	b := n.stage.build
	ledger := limits.NewLedger(b.job.MaxSize)
	for _, at := range n.chain() {
		for _, l := range at.own() {
			err := layer.Charge(ctx, b.job.Cache, l, ledger)
			if err != nil && at.claim != nil && context.Cause(ctx) == nil {
				err = b.lost(at.claim, err)
			}
			if err != nil {
				return err
			}
		}
		if at.claim == nil || at.claim.isProven() {
			continue
		}
		if err := at.claim.settle(ctx, at.key, ledger.Total(), ledger.Peak()); err != nil {
			return err
		}
	}
	return nil
}

// chain lists the node and those below it, lowest first.
func (n *node) chain() []*node {
	var all []*node
	for at := n; at != nil; at = at.parent {
		all = append(all, at)
	}
	slices.Reverse(all)
	return all
}

// own lists the layers that the node adds to its parent's.
func (n *node) own() []*layer.Layer {
	switch {
	case n.parent == nil:
		return n.base
	case n.claim != nil && n.layer != nil:
		return []*layer.Layer{cmp.Or(n.claim.brought(), n.layer)}
	case n.layer != nil:
		return []*layer.Layer{n.layer}
	}
	return nil
}

// size is what the node's tree takes, and the most that it took on the way.
// What is only claimed does not count.
func (n *node) size() (rootfs, peak int64) {
	switch {
	case n.claim != nil && n.claim.isProven():
		n.claim.mu.Lock()
		defer n.claim.mu.Unlock()
		return n.claim.rootfs, n.claim.peak
	case n.claim != nil, n.from:
		return n.parent.size()
	}
	return n.rootfs, n.peak
}

// keys are those under which the step may be found elsewhere.
func (n *node) keys() []layercache.Key {
	keys := []layercache.Key{n.key}
	if n.also != (layercache.Key{}) && n.also != n.key {
		keys = append(keys, n.also)
	}
	return keys
}

// restart returns the build as it was planned: steps change what they were
// parsed to.
func (b *build) restart(ctx context.Context) (*build, error) {
	return b.newBuild(ctx, b.job, func(_ context.Context, fresh *build) error {
		fresh.lenders = b.lenders
		return nil
	})
}

// pulling returns what tells how an image's layers arrive.
func (b *build) pulling(ref string) base.Progress {
	var mu sync.Mutex
	return func(d digest.Digest, n, total int64, done bool) {
		mu.Lock()
		defer mu.Unlock()
		b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Pull{Pull: &slipwayv1.PullProgress{
			Ref: ref, Digest: d.String(), Bytes: uint64(n), Total: uint64(total), Done: done,
		}}})
	}
}

// A blob of a claim, for who takes it on to another place.
func (cl *claim) open() builder.Open {
	one, err := cl.lender.image.Layer(cl.step.Blob.Descriptor(), cl.step.DiffID)
	if err != nil {
		return nil
	}
	return one.Open
}

func (s *stage) endAhead() {
	if s.stopAhead != nil {
		s.stopAhead()
	}
}
