package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/tokens"
)

// principals knows tokens, by value and by ID.
type principals interface {
	tokens.Authenticator

	// Principal returns whom the token of that ID stands for now. Its errors
	// are those of Authenticate.
	Principal(ctx context.Context, id string) (tokens.Principal, error)

	// Allow is [tokens.Allow] as a decision that is recorded.
	Allow(ctx context.Context, p tokens.Principal, action, app string) error
}

// An ownerFunc says whose repository of the registry one is: it returns the org
// whose app has that name, or "" if there is no such app. With a principal, it
// makes the app its org's if there is none.
type ownerFunc func(ctx context.Context, repository string, claim *tokens.Principal) (org string, err error)

// registryAccess lets tokens into the registry: any user name, a token as
// password. Who is inside the daemon may read.
type registryAccess struct {
	principals principals
	owner      ownerFunc
}

// scopes says which scope an action of the registry needs.
var scopes = map[string]string{
	registry.ActionPull: tokens.ScopeRegistryPull, registry.ActionPush: tokens.ScopeRegistryPush,
	registry.ActionDelete: tokens.ScopeRegistryDelete, registry.ActionCatalog: tokens.ScopeRegistryList,
}

// Authenticate implements registry.Access.
func (a registryAccess) Authenticate(ctx context.Context, _, secret string) (string, error) {
	if ctx.Value(inside{}) != nil {
		return secret, nil // says what for it is here
	}
	p, err := a.principals.Authenticate(tokens.From(ctx, registry.RemoteAddr(ctx)), secret)
	return p.ID, refused(err)
}

// Authorize implements registry.Access.
func (a registryAccess) Authorize(ctx context.Context, id, repository string, actions ...string) error {
	if ctx.Value(inside{}) != nil {
		return a.allowInside(ctx, id, repository, actions)
	}
	p, err := a.principals.Principal(ctx, id)
	if err != nil {
		return refused(err)
	}
	ctx = tokens.From(ctx, registry.RemoteAddr(ctx))
	record := func(action, app string) error { return a.principals.Allow(ctx, p, action, app) }
	if err := a.allow(ctx, p, repository, actions, record); err != nil {
		return err
	}
	if !slices.Contains(actions, registry.ActionPush) {
		return nil
	}
	org, err := a.owner(ctx, repository, &p)
	if err == nil && org != p.Org { // somebody was faster
		err = foreign(p, repository, true)
	}
	return err
}

// Allowed implements registry.Access.
func (a registryAccess) Allowed(ctx context.Context, id, repository string, actions ...string) ([]string, error) {
	may := func(action string) error { return a.allowInside(ctx, id, repository, []string{action}) }
	if ctx.Value(inside{}) == nil {
		p, err := a.principals.Principal(ctx, id)
		if err != nil {
			return nil, refused(err)
		}
		look := func(action, app string) error { return tokens.Allow(p, action, app) }
		may = func(action string) error { return a.allow(ctx, p, repository, []string{action}, look) }
	}
	var out []string
	for _, action := range actions {
		switch err := may(action); {
		case err == nil:
			out = append(out, action)
		case !errors.Is(err, registry.ErrDenied):
			return nil, err
		}
	}
	return out, nil
}

// Watch implements registry.Watcher, as far as who knows the tokens does.
func (a registryAccess) Watch(ctx context.Context, id string) context.Context {
	if w, ok := a.principals.(registry.Watcher); ok && ctx.Value(inside{}) == nil {
		return w.Watch(ctx, id)
	}
	return ctx
}

// allow decides whether a principal may do all of the actions in a repository
// of its org, or of nobody yet. decide is asked about each of them.
func (a registryAccess) allow(ctx context.Context, p tokens.Principal, repository string, actions []string, decide func(action, app string) error) error {
	for _, action := range actions {
		app := repository
		if action == registry.ActionCatalog {
			app = p.App // the registry leaves out what it may not see
		}
		if err := decide(scopes[action], app); err != nil {
			return fmt.Errorf("%w: %s", registry.ErrDenied, strings.TrimPrefix(err.Error(), tokens.ErrDenied.Error()+": "))
		}
	}
	if repository == "" {
		return nil
	}
	org, err := a.owner(ctx, repository, nil)
	if err != nil {
		return err
	}
	// What is nobody's yet is there only for those who may make it theirs: to
	// others it looks like what belongs to another org.
	mayMake := tokens.Allow(p, tokens.ScopeRegistryPush, repository) == nil
	if org == p.Org || org == "" && mayMake {
		return nil
	}
	return foreign(p, repository, mayMake)
}

// foreign says why a repository is not for a principal. Who may push learns by
// that whether a name is taken, and gets to know it in words.
func foreign(p tokens.Principal, repository string, mayMake bool) error {
	if mayMake {
		return fmt.Errorf("%w: app %q belongs to another organization; choose another name", registry.ErrDenied, repository)
	}
	return fmt.Errorf("%w: organization %q has no app %q", registry.ErrDenied, p.Org, repository)
}

// allowInside lets who is inside the daemon read for the org, or write to the
// repository, that it says it is here for.
func (a registryAccess) allowInside(ctx context.Context, id, repository string, actions []string) error {
	may := []string{registry.ActionPull, registry.ActionPush}
	if id != insidePush+repository {
		org, reads := strings.CutPrefix(id, insidePull)
		if !reads {
			return registry.ErrDenied
		}
		owner, err := a.owner(ctx, repository, nil)
		if err != nil {
			return err
		}
		if owner != "" && owner != org {
			return registry.ErrDenied
		}
		may = may[:1]
	}
	if slices.ContainsFunc(actions, func(action string) bool { return !slices.Contains(may, action) }) {
		return registry.ErrDenied
	}
	return nil
}

// refused returns why a token is no good as the registry tells its clients;
// other errors, and nil, as they are.
func refused(err error) error {
	if many := (*tokens.TooManyError)(nil); errors.As(err, &many) {
		return &registry.TooManyError{After: many.Wait}
	}
	for _, e := range []error{tokens.ErrUnauthorized, tokens.ErrExpired, tokens.ErrMalformed} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %v", registry.ErrUnauthorized, err)
		}
	}
	return err
}

// owner is the ownerFunc of an authority's apps.
func owner(a *tokens.Authority) ownerFunc {
	return func(ctx context.Context, repository string, claim *tokens.Principal) (string, error) {
		if claim != nil {
			err := a.Claim(ctx, *claim, repository)
			if err != nil && !errors.Is(err, tokens.ErrDenied) {
				return "", err
			}
		}
		return a.Owner(ctx, repository)
	}
}
