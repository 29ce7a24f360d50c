package builder

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A Forecaster is a [Plan] that can say what Build would do, without doing it.
// Either is called once, not both.
type Forecaster interface {
	Forecast(ctx context.Context) (*Forecast, error)
}

// A Forecast is what a pipeline finds out about a build that is not run.
type Forecast struct {
	Steps  []*slipwayv1.ForecastStep
	Need   []int           // entries of the context that steps to run read
	RootFS int64           // bytes of the image unpacked; 0 if steps are to run
	Layers []ForecastLayer // of the image, lowest first
}

// A ForecastLayer is a layer of the image: one that is there, or one to be made
// of about this size.
type ForecastLayer struct {
	ocispec.Descriptor
	Made bool
}

// A History returns the results of an app's last successful builds, newest
// first.
type History func(ctx context.Context, org, app string) ([]*slipwayv1.Result, error)

// forecast answers a request that asks what its build would do.
func (r *run) forecast(ctx context.Context, job *Job, plan Plan) error {
	f, ok := plan.(Forecaster)
	if !ok {
		return failure.Userf(failure.NotSupported, "leave --plan out", "the %s pipeline cannot tell what it would do", pipelineName(r.pipeline()))
	}
	what, err := f.Forecast(ctx)
	if err != nil {
		return failure.At(err, failure.Build, 0)
	}
	out := &slipwayv1.Forecast{Steps: what.Steps, RootfsLimit: uint64(max(0, r.limit()))}
	if err := r.sendable(ctx, job, what, out); err != nil {
		return failure.At(err, failure.Context, 0)
	}
	if err := r.pushable(ctx, what, out); err != nil {
		return failure.At(err, failure.Push, 0)
	}
	r.compare(ctx, what, out)
	r.session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Forecast{Forecast: out}})
	return nil
}

// A lookOnly store tells what it has, and takes nothing.
type lookOnly struct{ *layercache.Contents }

func (lookOnly) Add(context.Context, digest.Digest, int64, io.Reader) error {
	return errors.ErrUnsupported
}

// sendable counts what of the context would travel.
func (r *run) sendable(ctx context.Context, job *Job, what *Forecast, out *slipwayv1.Forecast) error {
	if r.req.GetContext() == nil {
		return nil
	}
	m, err := r.session.Manifest(ctx)
	if err != nil {
		return err
	}
	out.Files, out.Bytes = uint64(m.Files()), uint64(m.Bytes())
	if len(what.Need) == 0 {
		return nil // to buildctx, nil means all
	}
	lacking, err := buildctx.Needs(ctx, m, what.Need, lookOnly{job.Cache.Contents()})
	out.SendFiles = uint64(len(lacking))
	for _, i := range lacking {
		out.SendBytes += uint64(m.Entries[i].Size)
	}
	return err
}

// unwatched is for questions whose retries nobody needs to hear of.
type unwatched struct{}

func (unwatched) At(int64)                   {}
func (unwatched) Sent(int64)                 {}
func (unwatched) Retry(error, time.Duration) {}

// asking is how many blobs a registry is asked about at once.
const asking = 8

// pushable counts the layers that the first registry would get. Layers of
// unknown size count as layers only.
func (r *run) pushable(ctx context.Context, what *Forecast, out *slipwayv1.Forecast) error {
	if len(r.sinks) == 0 {
		return nil
	}
	lacks := make([]bool, len(what.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(asking)
	for i, l := range what.Layers {
		if !l.Made {
			lacks[i] = true
			continue
		}
		g.Go(func() error {
			has, err := r.sinks[0].remote.Target.Exists(gctx, l.Descriptor, unwatched{})
			lacks[i] = !has
			return registryFailure(err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for i, l := range what.Layers {
		if !lacks[i] || l.Made && seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		out.PushLayers++
		out.PushBytes += uint64(l.Size)
	}
	return nil
}

// alike is how many builds a forecast of the time looks at.
const alike = 5

// compare fills in what the app's last builds tell: how large the image was,
// and how long those took that ran as many steps.
func (r *run) compare(ctx context.Context, what *Forecast, out *slipwayv1.Forecast) {
	out.RootfsBytes, out.RootfsKnown = uint64(what.RootFS), what.RootFS > 0
	if r.b.opts.History == nil {
		return
	}
	last, err := r.b.opts.History(ctx, r.req.Org, r.req.App)
	if err != nil {
		r.b.opts.Log.WarnContext(ctx, "last builds", "build", r.req.ID, "err", err)
		return
	}
	if !out.RootfsKnown && len(last) > 0 {
		out.RootfsBytes = last[0].RootfsBytes
	}
	least, most := 0, 0 // steps to run
	for _, s := range what.Steps {
		if s.GetStep().GetNumber() == 1 || s.Cached {
			continue
		}
		if most++; !s.Unknown {
			least++
		}
	}
	var took []int64
	for _, res := range last {
		if len(took) < alike && like(res, least, most) {
			took = append(took, res.GetTimings().GetTotal()-res.GetTimings().GetQueue())
		}
	}
	out.DurationMs, out.Samples = median(took), uint32(len(took))
}

// like reports whether a build ran about as many steps as one that will run from
// least to most: a fifth more or less is alike, none at all is like nothing else.
func like(res *slipwayv1.Result, least, most int) bool {
	ran := int(res.Steps) - int(res.CachedSteps)
	if (ran == 0) != (most == 0) {
		return false
	}
	return ran*5 >= least*4 && ran*4 <= most*5
}

func median(of []int64) int64 {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[len(of)/2]
}
