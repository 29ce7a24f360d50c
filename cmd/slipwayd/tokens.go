package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/store"
)

// openTokens opens the authority over all tokens. The one that the daemon's
// first start writes down is one of them.
func (d *daemon) openTokens(ctx context.Context) error {
	kept, err := store.New(ctx, d.db)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	issuers, err := oidc.New(&oidc.Options{CAFile: d.config.oidcCA})
	if err != nil {
		return err
	}
	if d.authority, err = tokens.Open(ctx, tokens.Options{Store: kept, Issuer: issuers, Log: d.log.With("part", "tokens")}); err != nil {
		return err
	}
	d.closing(d.authority.Close)
	return d.adoptAdmin(ctx)
}

func (d *daemon) adoptAdmin(ctx context.Context) error {
	file := d.dir("admin.token")
	_, statErr := os.Stat(file)
	admin, err := tokens.AdminFile(file)
	if err != nil {
		return err
	}
	if os.IsNotExist(statErr) {
		d.log.Info("wrote the admin token", "file", file)
	}
	err = d.authority.Adopt(ctx, admin)
	if errors.Is(err, tokens.ErrRevoked) {
		d.log.Warn("the admin token is good for nothing; remove its file and start again to get a new one", "file", file, "err", err)
		return nil
	}
	return err
}

// openApps gives the apps that were built before apps belonged to orgs to those
// who built them first.
func (d *daemon) openApps(ctx context.Context) error {
	owners, err := d.records.Owners(ctx)
	if err != nil {
		return err
	}
	for app, org := range owners {
		if tokens.CheckName("an app", app) != nil {
			continue // a build for no app
		}
		who := tokens.Principal{Name: "slipwayd", Org: org}
		if err := d.authority.Claim(ctx, who, app); err != nil && !errors.Is(err, tokens.ErrDenied) {
			return err
		}
	}
	return nil
}

// pulled notes what a token of an environment fetched or checked.
func (d *daemon) pulled(ctx context.Context, e registry.Event) {
	if e.Method == http.MethodPut || e.Token == "" {
		return
	}
	p, err := d.authority.Principal(ctx, e.Token)
	if err != nil {
		return // it has died since it was let in
	}
	d.pulls.Saw(p, server.PullEvent{
		Time: e.Time, App: e.Repository, Reference: e.Reference, Digest: e.Digest.String(), Address: e.Remote, UserAgent: e.UserAgent,
	})
}
