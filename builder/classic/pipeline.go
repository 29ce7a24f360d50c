package classic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A Runner runs the process of a RUN step.
type Runner interface {
	Run(ctx context.Context, p sandbox.Process) (exitCode int, err error)
}

// Options tunes a Pipeline.
type Options struct {
	Bases    *base.Resolver
	Unpacker *layer.Unpacker
	Runner   Runner
	Network  sandbox.Mode      // of RUN steps
	Limits   sandbox.Limits    // of RUN steps
	Fetch    http.RoundTripper // of ADD URL; it guards which addresses may be reached
	Git      *gitfetch.Fetcher // of ADD of repositories; nil refuses them
	Scratch  string            // directory for mount points
	Keep     *shell.Keeper     // of what failed RUN steps leave; nil keeps nothing
	Parallel int               // RUN steps of one build at once; 0 means one a core
	Observe  builder.Observer  // may be nil
	Log      *slog.Logger
}

// A Pipeline is the classic way to build. It is safe for concurrent use.
type Pipeline struct{ opts Options }

// New returns a pipeline.
func New(o Options) *Pipeline {
	if o.Parallel <= 0 {
		o.Parallel = runtime.NumCPU()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Pipeline{opts: o}
}

// Plan parses the Dockerfile, picks the stages that the target needs and
// resolves their base images.
func (p *Pipeline) Plan(ctx context.Context, job *builder.Job) (builder.Plan, error) {
	if job.MaxSize == 0 {
		filled := *job
		filled.MaxSize = limits.DefaultMax
		job = &filled
	}
	b, err := p.newBuild(ctx, job, func(ctx context.Context, b *build) error { return b.openLenders(ctx) })
	if err != nil {
		return nil, err
	}
	b.announce()
	if err := b.lint(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// newBuild does all of Plan but to tell of it; lend, beside, finds the caches
// that the build may take steps from.
func (p *Pipeline) newBuild(ctx context.Context, job *builder.Job, lend func(context.Context, *build) error) (*build, error) {
	file, err := parse(job.GetDockerfile().GetName(), job.GetDockerfile().GetContent())
	if err != nil {
		return nil, err
	}
	b := &build{Pipeline: p, job: job, file: file, running: make(chan struct{}, p.opts.Parallel)}
	if err := b.selectStages(); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.resolveBases(ctx) })
	g.Go(func() error { return lend(ctx, b) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	b.number()
	return b, nil
}

// A build is one Dockerfile on its way to an image.
type build struct {
	*Pipeline
	job     *builder.Job
	file    *dockerfile
	stages  []*stage // all of the file's; those not needed are never run
	target  *stage
	meta    map[string]string // ARGs before the first FROM
	running chan struct{}     // a slot for each RUN step under way

	lenders  []*lender    // caches elsewhere
	incoming atomic.Int64 // bytes of base layers that the cache lacks

	group   *errgroup.Group
	passes  sync.WaitGroup // layers in the making
	halt    context.CancelCauseFunc
	args    usedArgs
	context contextFiles
	mounts  mounts
	clones  clones
	bound   boundFiles

	memory   memory
	forecast *forecast // nil if steps are to run
}

// contextFiles is the build context's manifest as a tree, made once.
type contextFiles struct {
	once sync.Once
	fs   *manifestFS
	err  error
}

// Detail says what the plan builds.
func (b *build) Detail() string {
	steps, stages := 0, 0
	for _, s := range b.stages {
		if s.needed {
			steps, stages = steps+len(s.steps), stages+1
		}
	}
	return fmt.Sprintf("%s (%s, %s)", b.file.name, count(steps, "step"), count(stages, "stage"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Build runs the needed stages and returns the target's image. When a step
// fails, layers of the steps before it are still finished and cached.
func (b *build) Build(ctx context.Context) (*builder.Image, error) {
	for {
		img, err := b.attempt(ctx)
		if !isLost(err) || context.Cause(ctx) != nil {
			return img, err
		}
		if b, err = b.restart(ctx); err != nil {
			return nil, err
		}
	}
}

// attempt is Build as far as what caches elsewhere have promised is true.
func (b *build) attempt(ctx context.Context) (*builder.Image, error) {
	steps, halt := context.WithCancelCause(ctx)
	defer halt(nil)
	b.halt = halt
	b.group = &errgroup.Group{}
	for _, s := range b.stages {
		if s.needed {
			s.start(ctx, steps)
		}
	}
	err := b.group.Wait()
	b.passes.Wait()
	if err := errors.Join(b.mounts.close(), b.bound.close(ctx), b.clones.close()); err != nil {
		b.opts.Log.Error("unmount and remove", "build", b.job.ID, "err", err)
	}
	b.remember(ctx, err != nil || context.Cause(steps) != nil)
	if err != nil || context.Cause(steps) != nil {
		if cause := context.Cause(steps); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	b.warnUnusedArgs()
	return b.target.image(ctx)
}

// aside does what no step waits for. Only a panic in it fails the build.
func (b *build) aside(f func()) {
	b.passes.Go(func() {
		if err := rescue.Run(func() error { f(); return nil }); err != nil {
			b.fail(err)
		}
	})
}

// fail stops the steps under way; the first cause wins.
func (b *build) fail(err error) { b.halt(err) }

// files returns the build context, when its manifest has arrived.
func (b *build) files(ctx context.Context) (*manifestFS, error) {
	b.context.once.Do(func() {
		var m *buildctx.Manifest
		if m, b.context.err = b.job.Session.Manifest(ctx); b.context.err == nil {
			b.context.fs = newManifestFS(m, b.job)
		}
	})
	return b.context.fs, b.context.err
}

// announce tells which steps will be looked at.
func (b *build) announce() {
	plan := &slipwayv1.Plan{}
	for _, s := range b.stages {
		if !s.needed {
			continue
		}
		plan.Stages++
		for _, st := range s.steps {
			plan.Steps = append(plan.Steps, s.planned(st))
		}
	}
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: plan}})
}

func (s *stage) planned(st *step) *slipwayv1.PlannedStep {
	return &slipwayv1.PlannedStep{
		Step: st.id, Stage: s.label, Number: uint32(st.number), Total: uint32(len(s.steps)),
		Source: st.source, Line: uint32(st.line), EndLine: uint32(st.end),
	}
}

func (b *build) warn(line int, format string, args ...any) {
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Warning{
		Warning: &slipwayv1.Warning{Message: fmt.Sprintf(format, args...), Line: uint32(line)},
	}})
}

func (b *build) warnUnusedArgs() {
	if unused := b.args.unused(b.job.BuildArgs); len(unused) > 0 {
		b.warn(0, "One or more build-args [%s] were not consumed", strings.Join(unused, " "))
	}
}

// selectStages finds the target and marks the stages it needs.
func (b *build) selectStages() error {
	meta, err := b.metaArgs()
	if err != nil {
		return err
	}
	b.meta = meta
	if err := b.cutAtTarget(); err != nil {
		return err
	}
	if err := b.makeStages(); err != nil {
		return err
	}
	b.target = b.stages[len(b.stages)-1]
	b.target.need()
	for s := b.target; s != nil; s = s.from {
		s.final = true
	}
	return b.freshen()
}

// freshen marks the stages whose steps are not to be looked up.
func (b *build) freshen() error {
	for _, name := range b.job.NoCacheStages {
		s := b.stageNamed(name, len(b.stages))
		if s == nil {
			return failure.Userf(failure.DockerfileInvalid, "name one of the stages: "+strings.Join(b.stageNames(), ", "),
				"there is no stage %s to build without the cache", name)
		}
		s.fresh = true
	}
	return nil
}

// cutAtTarget drops the stages after the one that the request names: they need
// not make sense.
func (b *build) cutAtTarget() error {
	want := b.job.Target
	if want == "" {
		return nil
	}
	at, ok := instructions.HasStage(b.file.stages, want)
	if !ok {
		i, err := strconv.Atoi(want)
		if err != nil || i < 0 || i >= len(b.file.stages) {
			return failure.Userf(failure.DockerfileInvalid, "name one of the stages: "+strings.Join(b.stageNames(), ", "),
				"target stage %q could not be found", want)
		}
		at = i
	}
	b.file.cut = at < len(b.file.stages)-1
	b.file.stages = b.file.stages[:at+1]
	return nil
}

func (b *build) number() {
	var id uint32
	needed := 0
	for _, s := range b.stages {
		if s.needed {
			needed++
		}
	}
	for _, s := range b.stages {
		if !s.needed {
			continue
		}
		if needed > 1 {
			s.label = s.name
			if s.label == "" {
				s.label = fmt.Sprintf("stage-%d", s.index)
			}
		}
		for _, st := range s.steps {
			id++
			st.id = id
		}
	}
}

func (b *build) stageNames() []string {
	var names []string
	for i, s := range b.file.stages {
		if s.Name != "" {
			names = append(names, strings.ToLower(s.Name))
		} else {
			names = append(names, fmt.Sprint(i))
		}
	}
	return names
}
