package server

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/tokens"
)

// mayRead checks that the caller may pull what a prebuilt image names, if that
// lies in the embedded registry: the daemon reads there without asking it. An
// app's repository is its org's.
func (f *Front) mayRead(ctx context.Context, image string) error {
	if image == "" || f.opts.Repository == nil {
		return nil
	}
	repository, own, mirrored := f.opts.Repository(image)
	if !own {
		return nil
	}
	owner, err := accessOf(ctx).guard.Owner(ctx, repository)
	if err != nil || mirrored && owner == "" {
		return err // what the operator mirrors is for everybody
	}
	if err := allow(ctx, tokens.ScopeRegistryPull, repository); err != nil {
		return err
	}
	if owner != "" && owner != caller(ctx).Org {
		return &failure.Error{Code: failure.PermissionDenied, Phase: failure.Auth, Blame: failure.User,
			Message: fmt.Sprintf("this token may not read the repository %s of the daemon's registry", repository),
			Hint:    "use a token of the org whose app it is"}
	}
	return nil
}

// mayWrite checks that the caller may push to what lies in the embedded registry
// of the names that the image and its steps are to go to: the daemon writes
// there without asking it. The app's own repository is not among the names.
func (f *Front) mayWrite(ctx context.Context, s *slipwayv1.Start) error {
	if f.opts.Repository == nil {
		return nil
	}
	var names []string
	if s.Push {
		names = append(names, s.Targets...)
	}
	for _, c := range s.CacheTo {
		if c.GetType() == slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY {
			names = append(names, c.GetRef())
		}
	}
	for _, name := range names {
		repository, own, mirrored := f.opts.Repository(name)
		if !own || mirrored {
			continue
		}
		if err := allow(ctx, tokens.ScopeRegistryPush, repository); err != nil {
			return err
		}
	}
	return nil
}
