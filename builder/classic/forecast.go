package classic

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A forecast is what a build under --plan finds out. Its stages go the way of a
// real build, but a step that misses is a ghost: it has a config and no result.
type forecast struct {
	mu   sync.Mutex
	need []int // entries of the manifest that steps to run read
}

// silent is the session of a forecast: nothing travels, and only what concerns
// the user's Dockerfile is told.
type silent struct{ builder.Session }

var errTravel = errors.New("a plan needs no contents")

func (silent) Need(context.Context, ...[]int) error { return errTravel }

func (s silent) Emit(e *slipwayv1.Event) {
	if e.GetWarning() != nil {
		s.Session.Emit(e)
	}
}

// Forecast looks every step up and says what Build would do. Nothing runs,
// travels, or is recorded.
func (b *build) Forecast(ctx context.Context) (*builder.Forecast, error) {
	job := *b.job
	job.Session, job.Layer = silent{b.job.Session}, func(*layer.Pending) {}
	b.job, b.forecast = &job, &forecast{}
	steps, halt := context.WithCancelCause(ctx)
	defer halt(nil)
	b.halt, b.group = halt, &errgroup.Group{}
	for _, s := range b.stages {
		if s.needed {
			s.start(ctx, steps)
		}
	}
	err := b.group.Wait()
	b.passes.Wait()
	if cause := context.Cause(steps); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	return b.outlook(ctx)
}

// outlook puts the forecast together.
func (b *build) outlook(ctx context.Context) (*builder.Forecast, error) {
	out := &builder.Forecast{Need: b.forecast.need}
	for _, s := range b.stages {
		if !s.needed {
			continue
		}
		for _, st := range s.steps {
			out.Steps = append(out.Steps, st.outlook)
		}
	}
	end, err := b.target.result(ctx)
	if err != nil {
		return nil, err
	}
	if err := end.wait(ctx); err != nil {
		return nil, err
	}
	if !end.ghost {
		out.RootFS = end.rootfs // 0 for a base that the cache lacks
	}
	t, _ := b.lastTrail(ctx)
	out.Layers = end.outlook(t)
	return out, nil
}

// outlook lists the layers of the node's image, lowest first. Those of steps to
// run are taken to be as large as in the last build.
func (n *node) outlook(t layercache.Trail) []builder.ForecastLayer {
	if n.parent == nil {
		var out []builder.ForecastLayer
		for _, l := range n.base {
			out = append(out, builder.ForecastLayer{Descriptor: l.Descriptor, Made: true})
		}
		return out
	}
	out := n.parent.outlook(t)
	switch {
	case n.layer != nil:
		return append(out, builder.ForecastLayer{Descriptor: n.layer.Descriptor, Made: true})
	case !n.ghost || n.from:
		return out
	}
	source, known := clipText(n.step.source, maxInput), false
	for _, st := range stepsOf(t, n.stage.key()) {
		if st.Source == source && st.Blob != "" {
			l := builder.ForecastLayer{}
			l.Size = st.Size
			return append(out, l)
		}
		known = known || st.Source == source && !st.Unfinished
	}
	if known || n.plain {
		return out // it had no layer, or never has
	}
	return append(out, builder.ForecastLayer{})
}

// foresee looks a change up, and goes on without having carried it out.
func (s *stage) foresee(ctx context.Context, st *step, n *node, c *change, done *slipwayv1.StepDone) error {
	unknown := ""
	switch {
	case s.unsure:
		unknown = "depends on " + s.blamed.labelOf(s.first)
	case s.busted:
	case c.unknown != "":
		unknown = c.unknown
	case c.from != nil && c.from.ghost:
		unknown = "depends on " + c.from.stage.labelOf(c.from.step)
	default:
		hit, err := s.lookup(ctx, n, c)
		if err != nil {
			return err
		}
		if hit {
			done.Cached = true
			s.node = n
			return nil
		}
	}
	switch {
	case unknown == "" && s.busted:
		s.parent(done)
	case unknown == "":
		s.why(ctx, n).tell(done)
	default:
		s.unsure, st.unknown, done.Miss = true, true, unknown
	}
	return s.haunt(st, n, c)
}

// haunt goes on with n as a ghost.
func (s *stage) haunt(st *step, n *node, c *change) error {
	if !s.busted {
		s.busted, s.first, s.blamed = true, st, s
	}
	n.ghost = true
	close(n.made)
	s.node = n
	f := s.build.forecast
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range c.reads {
		need, err := t.entries()
		if err != nil {
			return err
		}
		f.need = append(f.need, need...)
	}
	return nil
}

// foreseen notes what becomes of a step. What is unknown of a trigger is
// unknown of the FROM that it belongs to.
func (s *stage) foreseen(st *step, done *slipwayv1.StepDone) {
	if s.build.forecast == nil {
		return
	}
	st.outlook = &slipwayv1.ForecastStep{
		Step: s.planned(st), Cached: done.Cached, Unknown: st.unknown || st.number == 1 && s.unsure, Why: done.Why, Miss: done.Miss,
	}
}

// unpulled describes an image's layers without bringing what the cache lacks.
func (b *build) unpulled(ctx context.Context, img *base.Image) ([]*layer.Layer, error) {
	var out []*layer.Layer
	for i, desc := range img.Manifest.Layers {
		l, err := layer.Lookup(ctx, b.job.Cache, img.Config.RootFS.DiffIDs[i], desc.MediaType)
		if missing(err) {
			l, err = &layer.Layer{DiffID: img.Config.RootFS.DiffIDs[i], Descriptor: desc}, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// pulled reports whether the cache has the layers, as it has in a build.
func (b *build) pulled(layers []*layer.Layer) bool {
	for _, l := range layers {
		if l.Ledger == "" {
			return b.forecast == nil
		}
	}
	return true
}
