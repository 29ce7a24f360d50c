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
	return ofCaller(ctx, owner, repository)
}

// ofCaller refuses a repository of another org than the caller's.
func ofCaller(ctx context.Context, owner, repository string) error {
	if owner == "" || owner == caller(ctx).Org {
		return nil
	}
	return &failure.Error{Code: failure.PermissionDenied, Phase: failure.Auth, Blame: failure.User,
		Message: fmt.Sprintf("the repository %s of the daemon's registry belongs to another organization", repository),
		Hint:    "use a token of the organization whose app it is"}
}

// Push checks that the caller may push to a repository of the daemon's
// registry, which becomes one of the caller's org if it is nobody's.
func Push(ctx context.Context, repository string) error {
	if err := allow(ctx, tokens.ScopeRegistryPush, repository); err != nil {
		return err
	}
	a := accessOf(ctx)
	return refused(a.guard.Claim(ctx, a.principal, repository))
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
		if err := Push(ctx, repository); err != nil {
			return err
		}
	}
	return nil
}
