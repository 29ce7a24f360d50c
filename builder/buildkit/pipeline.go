package buildkit

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/session"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A plan is a deploy that BuildKit is going to build.
type plan struct {
	tenant *tenant
	job    *builder.Job
	steps  string
}

// Plan implements [builder.Pipeline]. BuildKit resolves base images itself,
// before it asks for anything of the context.
func (e *Engine) Plan(ctx context.Context, job *builder.Job) (builder.Plan, error) {
	if job.MaxSize == 0 {
		filled := *job
		filled.MaxSize = limits.DefaultMax
		job = &filled
	}
	steps, err := check(job.GetDockerfile())
	if err != nil {
		return nil, err
	}
	t, err := e.tenant(ctx, job.Org)
	if err != nil {
		return nil, err
	}
	return &plan{tenant: t, job: job, steps: steps}, nil
}

// check parses a Dockerfile that the frontend of this daemon is going to read,
// and says what is in it. Another frontend may know another syntax.
func check(f *slipwayv1.Dockerfile) (steps string, err error) {
	content := f.GetContent()
	if len(bytes.TrimSpace(content)) == 0 {
		return "", failure.Userf(failure.DockerfileInvalid, "write at least a FROM line", "the Dockerfile (%s) cannot be empty", f.GetName())
	}
	if syntax, _, _, ok := parser.DetectSyntax(content); ok {
		return "syntax " + syntax, nil
	}
	ast, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return "", invalid(err)
	}
	stages, _, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return "", invalid(err)
	}
	n := len(stages)
	for _, s := range stages {
		n += len(s.Commands)
		if err := spoken(s); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d instructions in %d stages", n, len(stages)), nil
}

// spoken refuses repositories that the daemon cannot fetch: the frontend would
// look for the keys of SSH servers first.
func spoken(s instructions.Stage) error {
	for _, c := range s.Commands {
		add, ok := c.(*instructions.AddCommand)
		if !ok {
			continue
		}
		for _, src := range add.SourcePaths {
			if err := otherProtocol(src); err != nil {
				return failure.At(err, failure.Preflight, add.Location()[0].Start.Line)
			}
		}
	}
	return nil
}

// Detail implements [builder.Plan].
func (p *plan) Detail() string {
	return fmt.Sprintf("%s (%s)", p.job.GetDockerfile().GetName(), p.steps)
}

// Writes implements [builder.Plan]: files of the context are written for
// BuildKit, copied by it, and compressed.
func (p *plan) Writes() int64 { return 3 * int64(p.job.GetContext().GetBytes()) }

// Build implements [builder.Plan].
func (p *plan) Build(ctx context.Context) (*builder.Image, error) {
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return nil, err
	}
	b := newBuild(ctx, p.tenant, p.job, s.ID())
	b.owner, b.view = deploy(b.session), &view{build: b}
	release, err := p.tenant.owners.take(b.session, b.owner, toBuild)
	if err != nil {
		return nil, err
	}
	defer release()
	defer b.forget()
	p.tenant.builds.add(b)
	defer p.tenant.over(b)
	defer b.stop(nil)
	err = b.solve(s)
	b.end()
	b.events.end(err == nil)
	if cause := context.Cause(b.ctx); cause != nil && err != nil {
		return nil, cause
	}
	if err != nil {
		return nil, b.explain(err)
	}
	return b.result()
}

// newBuild returns a build that asks the session for what it needs.
func newBuild(ctx context.Context, t *tenant, job *builder.Job, session string) *build {
	b := &build{
		tenant: t, job: job, app: job.App, session: session, keeper: t.engine.opts.Keep,
		blobs: map[digest.Digest]*layer.Pending{}, own: map[digest.Digest]bool{}, making: map[digest.Digest]chan struct{}{},
	}
	b.ctx, b.stop = context.WithCancelCause(ctx)
	b.events = newEvents(b)
	return b
}

// solve runs the build.
func (b *build) solve(s *session.Session) error {
	status := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for st := range status {
			b.events.status(st)
		}
	}()
	_, err := b.tenant.client.Solve(b.ctx, nil, b.options(s), status)
	<-done
	return err
}

// options is the request as BuildKit wants it.
func (b *build) options(s *session.Session) client.SolveOpt {
	opt := client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: b.attrs(),
		Exports:       []client.ExportEntry{{Type: client.ExporterImage, Attrs: b.export()}},
		Session:       attachables(b.ctx, b.job.Session),
		SharedSession: s, Internal: true, // the daemon's own records have it
	}
	for _, ref := range b.job.GetCacheFrom() {
		opt.CacheImports = append(opt.CacheImports, client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	for _, to := range b.job.GetCacheTo() {
		opt.CacheExports = append(opt.CacheExports, cacheExport(to))
	}
	return opt
}

// export has our exporter make the image. Its attestations are about what has
// its names.
func (b *build) export() map[string]string {
	attrs := map[string]string{attrBuild: b.session}
	if b.job.Names != nil {
		attrs[string(exptypes.OptKeyName)] = strings.Join(b.job.Names(), ",")
	}
	return attrs
}

// cacheExport is a place for a build's steps as BuildKit knows it.
func cacheExport(to *slipwayv1.CacheExport) client.CacheOptionsEntry {
	if to.GetType() == slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE {
		return client.CacheOptionsEntry{Type: "inline"}
	}
	attrs := map[string]string{"ref": to.GetRef()}
	if to.GetAll() {
		attrs["mode"] = "max"
	}
	return client.CacheOptionsEntry{Type: "registry", Attrs: attrs}
}

// attrs is the request as the Dockerfile's frontend wants it.
func (b *build) attrs() map[string]string {
	req := b.job.Start
	attrs := map[string]string{"filename": dockerfileName(req.GetDockerfile())}
	if req.GetPlatform() != "" {
		attrs["platform"] = req.GetPlatform()
	}
	if req.GetTarget() != "" {
		attrs["target"] = req.GetTarget()
	}
	for k, v := range req.GetBuildArgs() {
		attrs["build-arg:"+k] = v
	}
	for k, v := range req.GetLabels() {
		attrs["label:"+k] = v
	}
	for k, v := range req.GetAttestations() {
		attrs["attest:"+k] = v
	}
	if stages := req.GetNoCacheStages(); len(stages) > 0 {
		attrs["no-cache"] = strings.Join(stages, ",")
	}
	if req.GetNoCache() {
		attrs["no-cache"] = ""
	}
	return attrs
}

// dockerfileName is what the frontend calls the Dockerfile.
func dockerfileName(f *slipwayv1.Dockerfile) string {
	if f.GetName() == "-" || f.GetName() == "" {
		return "Dockerfile"
	}
	return path.Base(f.GetName())
}

// result is the image that the export left.
func (b *build) result() (*builder.Image, error) {
	b.mu.Lock()
	img := b.image
	b.mu.Unlock()
	if img == nil {
		return nil, fmt.Errorf("%w: nothing was exported", errNoLayer)
	}
	img.Steps, img.Cached = b.events.counts()
	b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Rootfs{Rootfs: &slipwayv1.RootFS{
		Bytes: uint64(img.RootFS), Limit: uint64(max(0, b.job.MaxSize)),
	}}})
	return img, nil
}
