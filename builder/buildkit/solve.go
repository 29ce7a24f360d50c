package buildkit

import (
	"context"
	"errors"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress"
	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A solve is one build of a client's. For package builder it is a pipeline and
// its own plan: preflight, lease, push and count are as for any other build.
// BuildKit solves it, and its export of an image waits for the push.
type solve struct {
	api    *API
	tenant *tenant
	caller Caller
	app    string
	req    *controlapi.SolveRequest
	image  *imageSpec              // that goes to registries, or whose layers say how; nil if none is exported
	hangUp context.CancelCauseFunc // ends the call
	cancel context.CancelCauseFunc // ends the build alone
	place  *place
	rest   rest

	ready chan struct{}       // closed when BuildKit has it, or never will
	made  chan *builder.Image // the image, when all exports are done
	built chan struct{}       // closed when package builder is done with it; result is set
	ended chan struct{}       // closed when BuildKit is done with it; resp and err are set

	call   context.Context
	ctx    context.Context // of the build, which is the call's until cancel
	told   sync.WaitGroup  // of what BuildKit says of it, in the build's log
	job    *builder.Job
	build  *build // set when ready
	result *slipwayv1.Result
	resp   *controlapi.SolveResponse
	err    error
}

// Solve implements BuildKit's Control.
func (a *API) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	_, t, err := a.admit(ctx, Build, a.own(ctx))
	if err != nil {
		return nil, a.status(ctx, err)
	}
	resp, err := a.solve(ctx, t, req)
	return resp, a.status(ctx, err)
}

func (a *API) solve(ctx context.Context, t *tenant, req *controlapi.SolveRequest) (_ *controlapi.SolveResponse, err error) {
	s := &solve{api: a, tenant: t, req: req, place: newPlace(), ready: make(chan struct{}), made: make(chan *builder.Image, 1), built: make(chan struct{}), ended: make(chan struct{})}
	s.call, s.hangUp = context.WithCancelCause(ctx)
	defer s.hangUp(nil)
	s.ctx, s.cancel = context.WithCancelCause(s.call)
	defer s.cancel(nil)
	defer func() {
		if err != nil {
			t.solves.refuse(req.Ref, a.opts.Caller(ctx).ID, err)
		}
	}()
	normalize(req)
	if err := checkRequest(req, a.engine.entitlements()); err != nil {
		return nil, err
	}
	start, err := s.start()
	if err != nil {
		return nil, err
	}
	if err := s.admit(start); err != nil {
		return nil, err
	}
	if err := a.enter(s); err != nil {
		return nil, err
	}
	defer a.leave(s)
	release, err := t.owners.take(req.Session, s.caller.ID, toBuild)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := t.solves.add(s); err != nil {
		return nil, err
	}
	defer t.solves.remove(s)
	return s.run(start)
}

// start is the build as package builder wants it.
func (s *solve) start() (*slipwayv1.Start, error) {
	start := &slipwayv1.Start{Pipeline: slipwayv1.Pipeline_PIPELINE_BUILDKIT, Detach: false}
	for _, e := range s.req.Exporters {
		if e.Type != client.ExporterImage {
			continue
		}
		delete(e.Attrs, attrBuild)
		spec, _, err := loadImage(s.ctx, e.Attrs)
		if err != nil {
			return nil, err
		}
		switch {
		case s.image == nil || spec.push && !s.image.push:
			s.image = spec
		case spec.push:
			return nil, failure.Userf(failure.InvalidArgument, "give one all names, with commas between them", "two outputs of type image are to be pushed")
		}
		if e.Attrs == nil {
			e.Attrs = map[string]string{}
		}
		e.Attrs[attrBuild] = s.req.Session
	}
	if s.image == nil {
		return start, nil
	}
	if s.image.push {
		start.Push, start.Targets = true, s.image.targets()
	}
	var err error
	start.Compression, err = s.image.compressed()
	return start, err
}

// admit finds the build's app, and whether the caller may build it and push it
// to where it is to go.
func (s *solve) admit(start *slipwayv1.Start) error {
	c := s.api.opts.Caller(s.ctx)
	var repositories []string
	for _, target := range start.Targets {
		name, _, _ := cutTag(target)
		if repository, own := s.api.opts.Repository(name); own {
			repositories = append(repositories, repository)
		}
	}
	s.app = c.App
	for _, r := range repositories {
		if s.app == "" && appName.MatchString(r) {
			s.app = r
		}
	}
	if s.app == "" {
		s.app = noApp
	}
	start.App = s.app
	s.caller = c
	if err := s.api.opts.Allow(s.ctx, Build, s.app); err != nil {
		return err
	}
	for _, r := range append(repositories, s.caches()...) {
		if err := s.api.opts.Allow(s.ctx, Push, r); err != nil {
			return err
		}
	}
	return nil
}

// caches are the repositories of the daemon's own registry that caches are
// exported to.
func (s *solve) caches() []string {
	var out []string
	for _, e := range s.req.Cache.Exports {
		if e.GetType() != "registry" {
			continue
		}
		name, ok := cacheName(e.GetAttrs())
		if !ok {
			continue
		}
		if repository, own := s.api.opts.Repository(name); own {
			out = append(out, repository)
		}
	}
	return out
}

// run has package builder build it when it is its turn, and returns when
// BuildKit is done, too.
func (s *solve) run(start *slipwayv1.Start) (*controlapi.SolveResponse, error) {
	result, err := s.queue().Do(s.call, builder.Guest{Start: start, Place: s.place.set, Run: s.turn})
	if s.result == nil {
		s.result = result
	}
	if s.build == nil {
		s.err = s.refusal(err)
		close(s.ready)
		return nil, s.err
	}
	defer s.tenant.over(s.build)
	defer s.build.forget()
	defer s.build.stop(nil)
	if s.err != nil {
		return nil, s.because(s.err)
	}
	if err := s.failure(); err != nil {
		return nil, err
	}
	return s.resp, nil
}

// refusal is why BuildKit never got the build.
func (s *solve) refusal(err error) error {
	if err == nil {
		err = s.failure()
	}
	if err == nil {
		err = errStopped // and nothing could be written down
	}
	return err
}

func (s *solve) queue() Queue {
	if q := s.api.opts.Queue; q != nil {
		return q
	}
	return atOnce{s.caller}
}

// atOnce is a queue in which nobody waits.
type atOnce struct{ Caller }

// Do implements [Queue].
func (q atOnce) Do(ctx context.Context, g builder.Guest) (*slipwayv1.Result, error) {
	req := builder.Request{ID: ulid.Make().String(), Org: q.Org, Created: time.Now(), Start: g.Start}
	return g.Run(ctx, builder.Turn{Request: req, Emit: func(*slipwayv1.Event) {}, Rest: func() func() { return func() {} }}), nil
}

// turn runs the build. When it returns all has been told of it.
func (s *solve) turn(ctx context.Context, t builder.Turn) *slipwayv1.Result {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	if s.image != nil {
		t.ByDigest, t.Insecure = s.image.byDigest, s.image.insecure
	}
	if s.driven() {
		s.rest.start(t.Rest)
		defer s.rest.end()
	}
	s.result = s.api.opts.Builder.BuildWith(ctx, t.Request, &clientSession{s, t.Emit}, s)
	close(s.built)
	if s.build == nil {
		return s.result
	}
	<-s.ended
	s.told.Wait()
	s.build.events.end(s.err == nil)
	s.settle()
	return s.result
}

// driven reports whether the client says what to do while the build runs.
func (s *solve) driven() bool { return s.req.Frontend == "" && len(s.req.Definition.GetDef()) == 0 }

// settle makes the result that of the whole: an output beside the image may
// have failed, and what was cached is known now.
func (s *solve) settle() {
	steps, cached := s.build.events.counts()
	s.result.Steps, s.result.CachedSteps = uint32(steps), uint32(cached)
	if s.err != nil && s.result.Error == nil {
		s.result.Status = slipwayv1.ResultStatus_RESULT_STATUS_FAILED
		s.result.Image, s.result.Digest = "", ""
		s.result.Error = builder.Proto(failure.As(failure.At(s.build.explain(s.because(s.err)), failure.Build, 0)))
	}
}

// failure is why package builder says that the build has failed; nil if it has
// not.
func (s *solve) failure() error {
	e := s.result.GetError()
	if e == nil {
		return nil
	}
	return &failure.Error{Code: e.Code, Phase: e.Phase, Retryable: e.Retryable, Line: int(e.Line), ExitCode: int(e.ExitCode), Message: e.Message, Hint: e.Hint}
}

// because is the reason that the build ended for, if BuildKit's error only says
// that it did, or all that is known of it.
func (s *solve) because(err error) error {
	for _, ctx := range []context.Context{s.build.ctx, s.ctx} {
		cause := context.Cause(ctx)
		if e, ok := errors.AsType[*failure.Error](cause); ok && e.Code != failure.Internal {
			return e
		}
		if cause != nil && failure.As(cause).Code != failure.Internal && !errors.Is(cause, context.Canceled) {
			return cause
		}
	}
	if known := s.build.foreseen(err); known != nil {
		return known
	}
	return err
}

// underWay waits until BuildKit has the build. The error is why it never will.
func (s *solve) underWay(ctx context.Context) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.build == nil {
		return s.err
	}
	return nil
}

// Plan implements [builder.Pipeline]: clients have planned it.
func (s *solve) Plan(_ context.Context, job *builder.Job) (builder.Plan, error) {
	filled := *job
	if filled.MaxSize == 0 {
		filled.MaxSize = limits.DefaultMax
	}
	s.job = &filled
	return s, nil
}

// Detail implements [builder.Plan].
func (s *solve) Detail() string { return "for a client of BuildKit" }

// Writes implements [builder.Plan]. Nobody knows.
func (s *solve) Writes() int64 { return 0 }

// Build implements [builder.Plan]. BuildKit goes on when the image is made: it
// waits for the push.
func (s *solve) Build(ctx context.Context) (*builder.Image, error) {
	b := newBuild(ctx, s.tenant, s.job, s.req.Session)
	b.owner, b.client = s.caller.ID, s
	b.still = s.image == nil || s.image.rewrite
	if err := b.mark(s.req.Definition); err != nil {
		return nil, err
	}
	s.tenant.builds.add(b)
	s.build = b
	solving, stop := context.WithCancelCause(s.ctx)
	go s.solve(solving, stop)
	s.told.Go(func() { s.tell(solving, b) })
	close(s.ready)
	until := context.AfterFunc(b.ctx, func() { stop(context.Cause(b.ctx)) })
	defer until()
	select {
	case img := <-s.made:
		b.end()
		return img, nil
	case <-s.ended:
	}
	b.end()
	if s.err != nil {
		return nil, b.explain(s.because(s.err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.image, nil
}

// solve is BuildKit's part.
func (s *solve) solve(ctx context.Context, stop context.CancelCauseFunc) {
	defer close(s.ended)
	defer stop(nil)
	err := rescue.Run(func() (err error) {
		s.resp, err = s.tenant.control.Solve(ctx, s.req)
		return err
	})
	if err != nil {
		s.err = err
		s.cancel(err) // there is nothing to push, or nobody to tell of it
	}
}

// finalize hands the image over and waits for the push. The context is
// BuildKit's, whose progress tells the client.
func (s *solve) finalize(ctx context.Context, img *builder.Image) error {
	s.made <- img
	done := progress.OneOff(ctx, "pushing layers")
	select {
	case <-s.built:
	case <-ctx.Done():
		s.cancel(context.Cause(ctx))
		<-s.built
	}
	err := s.failure()
	if done(err) != nil {
		return err
	}
	for _, name := range s.image.targets() {
		_ = progress.OneOff(ctx, "pushing manifest for "+name+"@"+s.result.Digest)(nil)
	}
	return nil
}

// cutTag splits "host/path:tag".
func cutTag(name string) (path, tag string, tagged bool) {
	for i := len(name) - 1; i >= 0 && name[i] != '/'; i-- {
		if name[i] == ':' {
			return name[:i], name[i+1:], true
		}
	}
	return name, "", false
}
