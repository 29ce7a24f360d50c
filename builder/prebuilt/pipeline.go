// Package prebuilt deploys images that exist: in a registry, or as files of
// the client. It resolves a reference to a digest once, counts every layer
// against the limit, and takes layers to their repositories without keeping
// them: by a mount or a link where that is possible, else in one pass from the
// source through the count to the target. Manifests stay byte for byte.
//
// What was counted is remembered, by the digests of layers and of the image,
// so that a known image costs a question to its registry and a manifest.
//
// Read [Pipeline.Plan] first, then plan.Build, then relay.go.
package prebuilt

import (
	"context"
	"log/slog"
	"time"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
)

// Options tunes a Pipeline.
type Options struct {
	Bases   *base.Resolver
	Streams int           // layers that are read at once; 0 means 4
	Pause   time.Duration // before a source that broke is asked again, longer each time; 0 means 250 ms
	Stall   time.Duration // silence after which a source is asked again; 0 means a minute
	Log     *slog.Logger
}

// A Pipeline deploys images that exist. It is safe for concurrent use.
type Pipeline struct{ opts Options }

// New returns a pipeline.
func New(o Options) *Pipeline {
	if o.Streams <= 0 {
		o.Streams = 4
	}
	if o.Pause <= 0 {
		o.Pause = 250 * time.Millisecond
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Pipeline{opts: o}
}

// Plan resolves the image and counts what is known of it.
func (p *Pipeline) Plan(ctx context.Context, job *builder.Job) (builder.Plan, error) {
	if err := check(job); err != nil {
		return nil, err
	}
	if job.MaxSize == 0 {
		filled := *job
		filled.MaxSize = limits.DefaultMax
		job = &filled
	}
	if name, ok := parseName(job.Image); ok {
		return p.planFiles(ctx, job, name)
	}
	return p.planRegistry(ctx, job)
}

// check refuses what would make another image.
func check(job *builder.Job) error {
	const hint = "leave the option out, or build an image with a Dockerfile that begins with FROM this one"
	switch {
	case job.Image == "":
		return failure.Userf(failure.InvalidArgument, "name it with --image", "no image is named")
	case len(job.Labels) > 0:
		return failure.Userf(failure.InvalidArgument, hint, "an image that exists cannot be labelled")
	case len(job.BuildArgs) > 0, job.Target != "", len(job.GetDockerfile().GetContent()) > 0:
		return failure.Userf(failure.InvalidArgument, hint, "an image that exists is not built: build arguments, a target and a Dockerfile do not go with it")
	}
	return nil
}

// planRegistry resolves an image of a registry.
func (p *Pipeline) planRegistry(ctx context.Context, job *builder.Job) (*plan, error) {
	if job.Start.Platform == builder.AllPlatforms {
		whole, err := p.opts.Bases.For(job.Cache.Name()).ResolveWhole(ctx, job.Image, job.Session.Credentials)
		if err != nil {
			return nil, imageFailure(job.Image, err)
		}
		return p.planWhole(ctx, p.newPlan(job), whole, found{whole})
	}
	b := p.newPlan(job)
	img, err := p.opts.Bases.For(job.Cache.Name()).ResolveKnown(ctx, job.Image, job.Platform, job.Session.Credentials, b.memory.known)
	if err != nil {
		return nil, imageFailure(job.Image, err)
	}
	return p.planImage(ctx, b, img, found{img})
}
