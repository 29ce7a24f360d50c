package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/tokens"
)

// A people knows tokens by their names, which are values and IDs at once.
type people map[string]tokens.Principal

func (p people) Authenticate(ctx context.Context, value string) (tokens.Principal, error) {
	return p.Principal(ctx, value)
}

func (p people) Principal(_ context.Context, id string) (tokens.Principal, error) {
	switch id {
	case "old":
		return tokens.Principal{}, tokens.ErrExpired
	case "outage":
		return tokens.Principal{}, errors.New("database is locked")
	}
	if one, ok := p[id]; ok {
		return one, nil
	}
	return tokens.Principal{}, tokens.ErrUnauthorized
}

func (people) Allow(_ context.Context, p tokens.Principal, action, app string) error {
	return tokens.Allow(p, action, app)
}

// A land is which app belongs to which org.
type land map[string]string

func (l land) owner(_ context.Context, repository string, claim *tokens.Principal) (string, error) {
	if l[repository] == "" && claim != nil {
		l[repository] = claim.Org
	}
	return l[repository], nil
}

func someone(id, org, typ, app string, scopes ...string) tokens.Principal {
	if scopes == nil {
		scopes = tokens.Scopes(typ)
	}
	return tokens.Principal{ID: id, Org: org, Type: typ, App: app, Scopes: scopes}
}

func newAccess() (registryAccess, land) {
	apps := land{"shop": "acme", "blog": "acme", "bank": "evil"}
	return registryAccess{owner: apps.owner, principals: people{
		"dev":    someone("dev", "acme", tokens.TypeOrg, ""),
		"ci":     someone("ci", "acme", tokens.TypeDeploy, "shop"),
		"reader": someone("reader", "acme", tokens.TypeReadOnly, ""),
		"node":   someone("node", "acme", tokens.TypeRegistry, "", tokens.ScopeRegistryPull, tokens.ScopeRegistryList),
		"shell":  someone("shell", "acme", tokens.TypeSSH, ""),
		"other":  someone("other", "evil", tokens.TypeOrg, ""),
	}}, apps
}

func TestRegistryAccess(t *testing.T) {
	for _, tc := range []struct {
		who, repository string
		want            string // of pull, push and delete, in that order
	}{
		{"dev", "shop", "pull push delete"},
		{"dev", "bank", ""},
		{"dev", "new", "pull push delete"},
		{"dev", "shop/web", "pull push delete"}, // another app
		{"ci", "shop", "pull push"},
		{"ci", "blog", ""},
		{"ci", "shop/web", ""},
		{"ci", "new", ""},
		{"ci", "bank", ""},
		{"reader", "shop", "pull"},
		{"reader", "new", ""}, // as if it were another org's
		{"reader", "bank", ""},
		{"node", "blog", "pull"},
		{"shell", "shop", ""},
		{"other", "bank", "pull push delete"},
		{"other", "shop", ""},
	} {
		a, _ := newAccess()
		actions := []string{registry.ActionPull, registry.ActionPush, registry.ActionDelete}
		got, err := a.Allowed(t.Context(), tc.who, tc.repository, actions...)
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%s could %q in %s, %v; want %q", tc.who, got, tc.repository, err, tc.want)
		}
		for _, action := range actions {
			err := a.Authorize(t.Context(), tc.who, tc.repository, action)
			if ok := slices.Contains(strings.Fields(tc.want), action); ok != (err == nil) || !ok && !errors.Is(err, registry.ErrDenied) {
				t.Errorf("%s may %s in %s: %v; want %t", tc.who, action, tc.repository, err, ok)
			}
		}
	}
}

func TestRegistryAccessToNothing(t *testing.T) {
	a, _ := newAccess()
	for who, list := range map[string]bool{"dev": true, "ci": true, "reader": true, "node": true, "shell": false} {
		if id, err := a.Authenticate(t.Context(), "anything", who); id != who || err != nil {
			t.Errorf("%s is %q, %v", who, id, err)
		}
		if err := a.Authorize(t.Context(), who, ""); err != nil {
			t.Errorf("%s: %v", who, err)
		}
		if err := a.Authorize(t.Context(), who, "", registry.ActionCatalog); list != (err == nil) {
			t.Errorf("%s may list: %v; want %t", who, err, list)
		}
	}
	for who, want := range map[string]error{"old": registry.ErrUnauthorized, "nobody": registry.ErrUnauthorized, "outage": nil} {
		_, err1 := a.Authenticate(t.Context(), "", who)
		err2 := a.Authorize(t.Context(), who, "shop", registry.ActionPull)
		_, err3 := a.Allowed(t.Context(), who, "shop", registry.ActionPull)
		for _, err := range []error{err1, err2, err3} {
			if err == nil || errors.Is(err, registry.ErrUnauthorized) != (want != nil) || errors.Is(err, registry.ErrDenied) {
				t.Errorf("%s: %v; want %v", who, err, want)
			}
		}
	}
}

// TestForeign lets nobody who only reads tell what is another org's from what
// is not there.
func TestForeign(t *testing.T) {
	a, _ := newAccess()
	taken := a.Authorize(t.Context(), "reader", "bank", registry.ActionPull)
	absent := a.Authorize(t.Context(), "reader", "none", registry.ActionPull)
	if taken == nil || absent == nil || strings.ReplaceAll(taken.Error(), "bank", "none") != absent.Error() {
		t.Errorf("%v; %v", taken, absent)
	}
	if err := a.Authorize(t.Context(), "dev", "bank", registry.ActionPush); err == nil || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("push: %v", err)
	}
}

// TestClaim lets two orgs push to a name that is nobody's yet. Who asks only
// what it could do claims nothing.
func TestClaim(t *testing.T) {
	a, apps := newAccess()
	if _, err := a.Allowed(t.Context(), "dev", "new", registry.ActionPush); err != nil || apps["new"] != "" {
		t.Errorf("asking: %q, %v", apps["new"], err)
	}
	if err := a.Authorize(t.Context(), "dev", "new", registry.ActionPull); err != nil || apps["new"] != "" {
		t.Errorf("pulling: %q, %v", apps["new"], err)
	}
	if err := a.Authorize(t.Context(), "other", "new", registry.ActionPull, registry.ActionPush); err != nil || apps["new"] != "evil" {
		t.Errorf("pushing: %q, %v", apps["new"], err)
	}
	if err := a.Authorize(t.Context(), "dev", "new", registry.ActionPush); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("pushing second: %v", err)
	}
	race := a
	race.owner = func(_ context.Context, _ string, claim *tokens.Principal) (string, error) {
		if claim != nil {
			return "evil", nil
		}
		return "", nil
	}
	if err := race.Authorize(t.Context(), "dev", "newer", registry.ActionPush); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("somebody was faster: %v", err)
	}
}

// Who is inside the daemon reads for one org, or writes to one repository.
func TestRegistryAccessInside(t *testing.T) {
	a, _ := newAccess()
	ctx := context.WithValue(t.Context(), inside{}, true)
	for _, tc := range []struct{ password, repository, want string }{
		{insidePull + "acme", "shop", "pull"},
		{insidePull + "acme", "nobodys", "pull"},
		{insidePull + "acme", "bank", ""},
		{insidePull + "evil", "bank", "pull"},
		{insidePush + "bank", "bank", "pull push"},
		{insidePush + "bank", "shop", ""},
		{insidePush + "bank", "bank/deep", ""},
		{"inside", "shop", ""},
		{"", "shop", ""},
	} {
		id, err := a.Authenticate(ctx, "inside", tc.password)
		if err != nil {
			t.Fatal(err)
		}
		actions := []string{registry.ActionPull, registry.ActionPush, registry.ActionDelete, registry.ActionCatalog}
		if got, err := a.Allowed(ctx, id, tc.repository, actions...); err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%q could in %s: %q, %v; want %q", tc.password, tc.repository, got, err, tc.want)
		}
		var may []string
		for _, action := range actions {
			err := a.Authorize(ctx, id, tc.repository, action)
			if err == nil {
				may = append(may, action)
			} else if !errors.Is(err, registry.ErrDenied) {
				t.Errorf("%q %s: %v", tc.password, action, err)
			}
		}
		if got := strings.Join(may, " "); got != tc.want {
			t.Errorf("%q in %s: %q, want %q", tc.password, tc.repository, got, tc.want)
		}
		if err := a.Authorize(t.Context(), id, tc.repository, registry.ActionPull); !errors.Is(err, registry.ErrUnauthorized) {
			t.Errorf("from outside: %v", err)
		}
	}
}
