package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// Images are those of the daemon's own registry.
type Images interface {
	// Resolve returns the digest of the manifest that a tag or digest of an
	// app's repository stands for. The error wraps [ErrNoImage] if there is
	// none.
	Resolve(ctx context.Context, app, reference string) (string, error)

	// Parts returns the manifests that an index names; none for other images.
	Parts(ctx context.Context, app, digest string) ([]string, error)
}

// ErrNoImage means that a repository has no such image.
var ErrNoImage = errors.New("no such image")

// CreateRelease implements EnvironmentService.
func (s *environmentService) CreateRelease(ctx context.Context, req *slipwayv1.CreateReleaseRequest) (*slipwayv1.CreateReleaseResponse, error) {
	env := req.Environment
	if env == "" {
		env = caller(ctx).Env
	}
	if err := s.releasable(ctx, req.App, env); err != nil {
		return nil, err
	}
	reference, err := s.reference(req.App, req.Image)
	if err != nil {
		return nil, err
	}
	r, err := s.draft(ctx, req.App, env, reference)
	if err != nil {
		return nil, err
	}
	if r, err = s.opts.Records.Release(ctx, r); err != nil {
		return nil, err
	}
	return &slipwayv1.CreateReleaseResponse{Release: releaseProto(s.opts.Registry, r)}, nil
}

// releasable checks that the caller may release an app to an environment, and
// that there is one; it may be none in particular.
func (s *environmentService) releasable(ctx context.Context, app, env string) error {
	if err := tokens.CheckName("an app", app); err != nil {
		return tokenError(err)
	}
	if err := checkEnvApp(env, ""); err != nil {
		return err
	}
	return mayRelease(ctx, s.opts.Records, app, env)
}

// mayRelease checks that the caller may release an app to an environment that
// there is.
func mayRelease(ctx context.Context, r *records.Store, app, env string) error {
	if err := allowIn(ctx, tokens.ScopeReleaseWrite, app, env); err != nil {
		return err
	}
	owner, err := accessOf(ctx).guard.Owner(ctx, app)
	if err != nil {
		return err
	}
	if owner != "" && owner != caller(ctx).Org {
		return &failure.Error{Code: failure.PermissionDenied, Phase: failure.Auth, Blame: failure.User,
			Message: fmt.Sprintf("this token may not release the app %s", app), Hint: "use a token of the org whose app it is"}
	}
	if env == "" {
		return nil
	}
	_, err = environment(ctx, r, env)
	return err
}

// reference takes the tag or digest out of what somebody calls an image of an
// app: TAG, sha256:…, APP:TAG, or HOST/APP with either.
func (s *environmentService) reference(app, image string) (string, error) {
	name, digest, byDigest := strings.Cut(image, "@")
	switch {
	case image == "":
		return "", failure.Userf(failure.InvalidArgument, "give a tag or a digest of "+app, "a release needs an image")
	case len(image) > 1000:
		return "", failure.Userf(failure.InvalidArgument, "give a tag or a digest of "+app, "%s… is no image", image[:100])
	case tagName.MatchString(image), strings.HasPrefix(image, "sha256:"):
		return image, nil
	}
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if name != app && name != "" && !s.isApp(app, image) {
		return "", failure.Userf(failure.InvalidArgument, fmt.Sprintf("images of %s are called %s/%s:TAG; slipway deploy --image copies others there", app, s.opts.Registry, app),
			"%s is no image of the app %s in the daemon's registry", image, app)
	}
	if byDigest {
		return digest, nil
	}
	if tag == "" {
		tag = "latest"
	}
	return tag, nil
}

func (s *environmentService) isApp(app, image string) bool {
	return ownRepository(&s.opts, image) == app
}

// ownRepository returns the repository of the daemon's registry that a
// reference names; "" if it names none.
func ownRepository(o *Options, image string) string {
	if o.Repository == nil {
		return ""
	}
	name, own, mirrored := o.Repository(image)
	if !own || mirrored {
		return ""
	}
	return name
}

// draft is the release of an image that is there.
func (s *environmentService) draft(ctx context.Context, app, env, reference string) (records.Release, error) {
	p := caller(ctx)
	r := records.Release{Org: p.Org, App: app, Env: env, CreatedBy: p.Actor(), Created: time.Now().UTC()}
	if s.opts.Images == nil {
		return r, failure.Userf(failure.NotSupported, "", "this daemon has no registry of its own")
	}
	var err error
	r.Digest, err = s.opts.Images.Resolve(ctx, app, reference)
	if errors.Is(err, ErrNoImage) {
		return r, failure.Userf(failure.NotFound, "slipway builds list -a "+app+" shows what was built", "the registry has no image %s of the app %s", reference, app)
	}
	if err != nil {
		return r, err
	}
	var built string
	if r.BuildID, built, err = s.opts.Records.BuildOf(ctx, p.Org, app, r.Digest); err != nil {
		return r, err
	}
	if r.Tag = reference; strings.Contains(reference, ":") {
		r.Tag = built
	}
	return r, nil
}

// ListReleases implements EnvironmentService.
func (s *environmentService) ListReleases(ctx context.Context, req *slipwayv1.ListReleasesRequest) (*slipwayv1.ListReleasesResponse, error) {
	q := records.ReleaseQuery{Org: caller(ctx).Org, Before: req.BeforeId, Limit: pageSize(req.Limit), Version: int64(min(req.Version, math.MaxInt64))}
	env := req.Environment
	if env == "" {
		env = caller(ctx).Env
	}
	var err error
	if q.App, err = s.readable(ctx, env, req.App); err != nil {
		return nil, err
	}
	if env != "" {
		q.Env = &env
		if _, err := s.opts.Records.Environment(ctx, q.Org, env); errors.Is(err, records.ErrNoEnvironment) {
			_, err := environment(ctx, s.opts.Records, env)
			return nil, err
		}
	}
	list, err := s.opts.Records.Releases(ctx, q)
	if err != nil {
		return nil, err
	}
	resp := &slipwayv1.ListReleasesResponse{}
	for _, r := range list {
		resp.Releases = append(resp.Releases, releaseProto(s.opts.Registry, r))
	}
	return resp, nil
}

// Promote implements EnvironmentService.
func (s *environmentService) Promote(ctx context.Context, req *slipwayv1.PromoteRequest) (*slipwayv1.PromoteResponse, error) {
	switch {
	case req.To == "":
		return nil, failure.Userf(failure.InvalidArgument, "give it with --to", "a promotion needs an environment to go to")
	case req.From == req.To:
		return nil, failure.Userf(failure.InvalidArgument, "name two environments", "%.100q cannot be promoted to itself", req.From)
	}
	for _, env := range []string{req.From, req.To} {
		if err := s.releasable(ctx, req.App, env); err != nil {
			return nil, err
		}
	}
	last, err := s.opts.Records.LastReleases(ctx, caller(ctx).Org, req.From, req.App)
	if err != nil {
		return nil, err
	}
	if len(last) == 0 {
		return nil, nothingReleased(req.App, req.From)
	}
	r, err := s.draft(ctx, req.App, req.To, last[0].Digest)
	if err != nil {
		return nil, err
	}
	r.PromotedFrom, r.Tag, r.BuildID = req.From, last[0].Tag, last[0].BuildID
	r, made, err := s.opts.Records.ReleaseNew(ctx, r)
	if err != nil {
		return nil, err
	}
	return &slipwayv1.PromoteResponse{Release: releaseProto(s.opts.Registry, r), Unchanged: !made}, nil
}

func nothingReleased(app, env string) error {
	if env == "" {
		return failure.Userf(failure.NotFound, "slipway deploy -a "+app+" makes a release", "nothing was released of the app %s", app)
	}
	return failure.Userf(failure.NotFound, fmt.Sprintf("slipway deploy -a %s --env %s releases to it", app, env), "nothing was released of the app %s to %s", app, env)
}
