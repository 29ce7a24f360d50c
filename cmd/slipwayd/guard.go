package main

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// oneToken is the guard of a daemon that knows its admin token only. Who built
// an app first has it.
type oneToken struct {
	tokens.Authenticator
	records *records.Store
}

// Enter implements server.Guard.
func (oneToken) Enter(ctx context.Context, _ tokens.Principal) (context.Context, func()) {
	return ctx, func() {}
}

// Allow implements server.Guard.
func (oneToken) Allow(_ context.Context, p tokens.Principal, action, app string) error {
	return tokens.Allow(p, action, app)
}

// AllowIn implements server.Guard.
func (oneToken) AllowIn(_ context.Context, p tokens.Principal, action, app, env string) error {
	return tokens.AllowIn(p, action, app, env)
}

// Claim implements server.Guard.
func (o oneToken) Claim(ctx context.Context, p tokens.Principal, app string) error {
	owner, err := o.records.Owner(ctx, app)
	if err == nil && owner != "" && owner != p.Org {
		err = fmt.Errorf("%w: app %q belongs to another organization", tokens.ErrDenied, app)
	}
	return err
}

// Owner implements server.Guard.
func (o oneToken) Owner(ctx context.Context, app string) (string, error) {
	return o.records.Owner(ctx, app)
}
