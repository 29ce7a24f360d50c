package builder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A run is one build under way.
type run struct {
	b       *Builder
	req     Request
	session Session
	with    Pipeline      // nil if the daemon lacks the one that is asked for
	roomy   *roomySession // session, as the pipeline has it
	begun   time.Time
	timings slipwayv1.Timings

	mu      sync.Mutex
	sinks   []*sink
	exports []*export
	image   *Image
	pushed  *pushedImage
	current string // phase, for errors
}

func newRun(b *Builder, req Request, s Session) *run {
	return &run{b: b, req: req, session: s, begun: time.Now(), current: failure.Preflight,
		timings: slipwayv1.Timings{Queue: req.Queued.Milliseconds()}}
}

func (r *run) run(ctx context.Context) error {
	cache := r.b.opts.Cache.Org(r.req.Org)
	// What the build uses is held until it ends. Then the cache decides.
	lease, err := cache.Lease(ctx, "build-"+r.req.ID, 0)
	if err != nil {
		return err
	}
	// The lease ends also when ctx has.
	defer func() { _ = lease.Release(context.WithoutCancel(ctx)) }()
	ctx = lease.Context(ctx)
	job, err := r.job(cache)
	if err != nil {
		return err
	}
	plan, err := r.preflight(ctx, job)
	if err != nil {
		return err
	}
	if r.req.PlanOnly {
		return r.forecast(ctx, job, plan)
	}
	release, err := r.reserve(ctx, plan)
	if err != nil {
		return failure.At(err, failure.Preflight, 0)
	}
	defer release()
	if err := r.detach(ctx); err != nil {
		return err
	}
	if err := r.buildAndPush(ctx, plan); err != nil {
		return err
	}
	if r.image == nil {
		return nil
	}
	r.mark(ctx, cache)
	r.export(ctx)
	return nil
}

// reserve sets aside what the plan is going to write, before anything travels.
func (r *run) reserve(ctx context.Context, plan Plan) (release func(), err error) {
	held, err := r.b.opts.Cache.Reserve(ctx, leastRoom+plan.Writes())
	if err != nil {
		return nil, roomFailure("the build", err)
	}
	r.roomy.held = held
	return held.Release, nil
}

// detach has the client of a detached build send all that the store lacks at
// once, so that it may leave.
func (r *run) detach(ctx context.Context) error {
	if !r.req.Detach || r.req.GetContext() == nil {
		return nil
	}
	m, err := r.session.Manifest(ctx)
	if err != nil {
		return failure.At(err, failure.Context, 0)
	}
	all := make([]int, len(m.Entries))
	for i := range all {
		all[i] = i
	}
	return failure.At(r.roomy.Need(ctx, all), failure.Context, 0)
}

// mark tells the cache what the app's last good build needs.
func (r *run) mark(ctx context.Context, cache *layercache.Cache) {
	var layers []digest.Digest
	for _, l := range r.image.Layers {
		layers = append(layers, l.DiffID)
	}
	if err := cache.MarkBuild(ctx, r.req.App, r.image.Keys, layers); err != nil {
		r.b.opts.Log.WarnContext(ctx, "mark build", "build", r.req.ID, "err", err)
	}
}

// job checks the request and gives it its means.
func (r *run) job(cache *layercache.Cache) (*Job, error) {
	platform, err := r.platform()
	if known, ok := errors.AsType[*failure.Error](err); ok {
		return nil, known
	}
	if err != nil {
		return nil, failure.Userf(failure.InvalidArgument, "give --platform as os/arch, like linux/amd64", "%v", err)
	}
	if err := r.checkCaches(); err != nil {
		return nil, err
	}
	zip, err := compression(r.req.Compression, r.b.opts.Compression)
	if err != nil {
		return nil, err
	}
	r.roomy = newRoomySession(r.session, cache)
	return &Job{
		Request: r.req, Session: r.roomy, Cache: cache, Platform: platform, MaxSize: r.b.opts.MaxSize,
		Maker: &layer.Maker{Cache: cache, Compression: zip, App: r.req.App, Made: r.compressed, Uplink: r.uplink},
		Layer: r.layer, Landed: r.landed, Names: r.names,
	}, nil
}

func (r *run) platform() (ocispec.Platform, error) {
	if r.req.Platform == AllPlatforms && r.pipeline() == slipwayv1.Pipeline_PIPELINE_PREBUILT {
		return base.Default("")
	}
	first, _, several := strings.Cut(r.req.Platform, ",")
	if several && r.pipeline() != slipwayv1.Pipeline_PIPELINE_BUILDKIT {
		return ocispec.Platform{}, failure.Userf(failure.NotSupported, "build for several platforms with --buildkit, or for one",
			"the %s pipeline builds for one platform, not for %s", pipelineName(r.pipeline()), r.req.Platform)
	}
	return base.Default(first)
}

// uplink is that of the slowest registry that the image goes to.
func (r *run) uplink() float64 {
	slowest := math.Inf(1)
	for _, s := range r.sinks {
		if t, ok := s.remote.Target.(interface{ Uplink() float64 }); ok {
			slowest = min(slowest, t.Uplink())
		}
	}
	return slowest
}

func (r *run) compressed(l *layer.Layer) {
	r.roomy.made(l)
	if r.b.opts.Observe != nil {
		r.b.opts.Observe.Compressed(l.Descriptor.Size)
	}
}

// preflight does all that can fail before content travels: the plan and the
// right to push, side by side.
func (r *run) preflight(ctx context.Context, job *Job) (Plan, error) {
	defer r.phase(slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT, &r.timings.Preflight)()
	if r.with == nil {
		return nil, failure.Userf(failure.NotSupported, "leave the option out to build with the classic pipeline",
			"this daemon has no %s pipeline", pipelineName(r.pipeline()))
	}
	if err := r.openSinks(ctx); err != nil {
		return nil, failure.At(err, failure.Preflight, 0)
	}
	if err := r.openExports(ctx); err != nil {
		return nil, failure.At(err, failure.Preflight, 0)
	}
	var plan Plan
	g, gctx := errgroup.WithContext(ctx)
	for _, s := range r.sinks {
		g.Go(func() (err error) {
			defer rescue.Into(&err)
			return failure.At(s.probe(gctx), failure.Preflight, 0)
		})
	}
	for _, e := range r.exports {
		g.Go(func() error { return r.probeExport(gctx, e) })
	}
	g.Go(func() (err error) {
		defer rescue.Into(&err)
		plan, err = r.with.Plan(gctx, job)
		return failure.At(err, failure.Preflight, 0)
	})
	err := g.Wait()
	return plan, err
}

// openSinks opens the repositories that the image goes to.
func (r *run) openSinks(ctx context.Context) error {
	if !r.req.Push {
		return nil
	}
	names := r.req.Targets
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		s, err := r.openSink(ctx, name)
		if err != nil && failure.As(err).Code == failure.Internal {
			err = failure.Userf(failure.InvalidArgument, "give a target as host/path or host/path:tag", "cannot push to %s: %v", name, err)
		}
		if err != nil {
			return err
		}
		r.addSink(s)
	}
	return nil
}

// addSink adds a repository, or tags to one that the image goes to already.
func (r *run) addSink(s *sink) {
	for _, other := range r.sinks {
		if other.remote.Name == s.remote.Name {
			other.tags = append(other.tags, s.tags...)
			return
		}
	}
	r.sinks = append(r.sinks, s)
}

func (r *run) buildAndPush(ctx context.Context, plan Plan) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, s := range r.sinks {
		s.start(ctx, stop)
		defer s.abort(context.Canceled)
	}
	image, err := r.build(ctx, plan)
	if err != nil || image == nil {
		return refused(ctx, err)
	}
	return refused(ctx, r.push(ctx, image))
}

// push completes the push everywhere before any registry gets a manifest: one
// that refuses a blob must not leave the image at another.
func (r *run) push(ctx context.Context, image *Image) error {
	r.current = failure.Push
	defer r.phase(slipwayv1.PhaseName_PHASE_NAME_PUSH, &r.timings.Push)()
	made, err := assemble(ctx, r.b.opts.Cache.Org(r.req.Org), image, r.inlineSteps(image))
	if err != nil {
		return err
	}
	r.pushed = made
	for _, step := range []func(*sink, context.Context, *pushedImage) error{(*sink).blobs, (*sink).manifest} {
		g, gctx := errgroup.WithContext(ctx)
		for _, s := range r.sinks {
			g.Go(func() (err error) {
				defer rescue.Into(&err)
				return failure.At(step(s, gctx, made), failure.Push, 0)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// refused returns the refusal of a registry that stopped the build, if that is
// why it ended, else err.
func refused(ctx context.Context, err error) error {
	var r *refusal
	if err != nil && errors.As(context.Cause(ctx), &r) {
		return r.Unwrap()
	}
	return err
}

func (r *run) build(ctx context.Context, plan Plan) (*Image, error) {
	r.current = failure.Build
	done := r.phase(slipwayv1.PhaseName_PHASE_NAME_BUILD, &r.timings.Build, plan.Detail())
	image, err := plan.Build(ctx)
	done()
	if err != nil {
		return nil, failure.At(err, failure.Build, 0)
	}
	r.mu.Lock()
	r.image = image
	r.mu.Unlock()
	for _, s := range r.sinks {
		s.markEarly()
	}
	return image, nil
}

// layer hands a layer of the final image to every repository.
func (r *run) layer(p *layer.Pending) {
	for _, s := range r.sinks {
		s.add(p)
	}
}

// landed waits until every repository has a layer.
func (r *run) landed(ctx context.Context, p *layer.Pending) error {
	for _, s := range r.sinks {
		if err := s.landed(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// phase emits a phase's begin and returns what emits its end.
func (r *run) phase(name slipwayv1.PhaseName, into *int64, detail ...string) func() {
	begun := time.Now()
	text := strings.Join(detail, " ")
	r.session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Phase{Phase: &slipwayv1.Phase{Name: name, Detail: text}}})
	return func() {
		*into = time.Since(begun).Milliseconds()
		r.session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Phase{
			Phase: &slipwayv1.Phase{Name: name, Done: true, DurationMs: *into, Detail: text},
		}})
	}
}

func (r *run) pipeline() slipwayv1.Pipeline {
	if r.req.Pipeline == slipwayv1.Pipeline_PIPELINE_UNSPECIFIED {
		return slipwayv1.Pipeline_PIPELINE_CLASSIC
	}
	return r.req.Pipeline
}

func pipelineName(p slipwayv1.Pipeline) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "PIPELINE_"))
}

// result sums the build up; err is why it failed.
func (r *run) result(err error) *slipwayv1.Result {
	r.timings.Total = time.Since(r.begun).Milliseconds() + r.timings.Queue
	out := &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, BuildId: r.req.ID, App: r.req.App,
		Pipeline: pipelineName(r.pipeline()), RootfsLimit: uint64(max(0, r.limit())), Context: r.session.Context(), Timings: &r.timings,
	}
	r.describe(out)
	if err != nil {
		r.fail(out, err)
	}
	if o := r.b.opts.Observe; o != nil && !r.req.PlanOnly {
		o.BuildEnded(out.Pipeline, statusName(out.Status), out.Timings)
	}
	return out
}

func (r *run) fail(out *slipwayv1.Result, err error) {
	e := failure.As(err)
	out.Status = slipwayv1.ResultStatus_RESULT_STATUS_FAILED
	if e.Code == failure.Cancelled {
		out.Status = slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED
	}
	phase := e.Phase
	if phase == "" {
		phase = r.current
	}
	out.Error = Proto(e)
	out.Error.Phase = phase
	out.Error.Excerpt = excerpt(r.req.GetDockerfile().GetContent(), e.Line)
	out.Image, out.Digest = "", ""
	level := r.b.opts.Log.InfoContext
	if e.Code == failure.Internal {
		level = r.b.opts.Log.ErrorContext
	}
	level(context.Background(), "build failed", "build", r.req.ID, "app", r.req.App, "code", e.Code, "phase", phase, "err", err)
}

func (r *run) limit() int64 {
	if r.b.opts.MaxSize == 0 {
		return limits.DefaultMax
	}
	return r.b.opts.MaxSize
}

// describe fills in what is known of the image.
func (r *run) describe(out *slipwayv1.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.image == nil {
		return
	}
	out.RootfsBytes = uint64(r.image.RootFS)
	out.Steps, out.CachedSteps = uint32(r.image.Steps), uint32(r.image.Cached)
	for _, l := range r.image.Layers {
		p := &slipwayv1.Layer{
			Digest: l.Descriptor.Digest.String(), DiffId: l.DiffID.String(), Size: uint64(l.Descriptor.Size),
			Uncompressed: uint64(l.Uncompressed), CreatedBy: clip(l.CreatedBy, maxSource), Cached: l.Cached, MediaType: l.Descriptor.MediaType,
		}
		out.UncompressedBytes += p.Uncompressed
		out.CompressedBytes += p.Size
		if len(r.sinks) > 0 {
			p.Pushed = r.sinks[0].outcome(l.Descriptor.Digest)
		}
		out.Layers = append(out.Layers, p)
	}
	if r.pushed == nil {
		return
	}
	out.Digest = r.pushed.digest().String()
	for i, s := range r.sinks {
		if i == 0 {
			out.Image = s.ref()
		}
		out.WireBytes += uint64(s.push.Account().WireBytes)
		out.EarlyBytes += uint64(s.early)
	}
}

// excerpt shows the lines around one of the Dockerfile.
func excerpt(file []byte, line int) string {
	if line <= 0 || len(file) == 0 {
		return ""
	}
	lines := strings.Split(strings.ReplaceAll(string(file), "\r\n", "\n"), "\n")
	var b strings.Builder
	for n := max(1, line-2); n <= min(len(lines), line+1); n++ {
		mark := " "
		if n == line {
			mark = ">"
		}
		fmt.Fprintf(&b, "%s %3d | %s\n", mark, n, clip(lines[n-1], maxLine))
	}
	return b.String()
}

func statusName(s slipwayv1.ResultStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "RESULT_STATUS_"))
}
