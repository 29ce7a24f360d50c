package tokens_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

func principal(typ, app string, extra ...string) tokens.Principal {
	return tokens.Principal{ID: "tok_1", Org: "acme", Type: typ, App: app, Scopes: append(tokens.Scopes(typ), extra...)}
}

func registry(permission string) tokens.Principal {
	t := tokens.Token{ID: "tok_2", Org: "acme", Type: tokens.TypeRegistry, Permission: permission}
	return t.Principal(tokens.RoleAdmin)
}

func TestAllow(t *testing.T) {
	deploy := principal(tokens.TypeDeploy, "shop")
	for _, tc := range []struct {
		name   string
		p      tokens.Principal
		action string
		app    string
		want   string // text of the error; empty if allowed
	}{
		{"deploy builds its app", deploy, tokens.ScopeBuildWrite, "shop", ""},
		{"deploy pushes its app", deploy, tokens.ScopeRegistryPush, "shop", ""},
		{"deploy, another app", deploy, tokens.ScopeBuildWrite, "billing",
			`permission denied: this deploy token is for app "shop", not "billing" (build:write). Needed: deploy token for billing, org token or admin token`},
		{"deploy, all apps", deploy, tokens.ScopeBuildRead, "",
			`permission denied: this deploy token is for app "shop" only, and build:read concerns them all. Needed: readonly token, org token or admin token`},
		{"deploy prunes", deploy, tokens.ScopeCacheWrite, "",
			`permission denied: this deploy token lacks the scope cache:write. Needed: org token or admin token`},
		{"deploy makes tokens", deploy, tokens.ScopeTokenWrite, "shop",
			`permission denied: this deploy token lacks the scope token:write on app "shop". Needed: org token or admin token`},
		{"org builds", principal(tokens.TypeOrg, ""), tokens.ScopeBuildWrite, "shop", ""},
		{"org prunes", principal(tokens.TypeOrg, ""), tokens.ScopeCacheWrite, "", ""},
		{"org makes orgs", principal(tokens.TypeOrg, ""), tokens.ScopeOrgWrite, "",
			`permission denied: this org token lacks the scope org:write. Needed: admin token`},
		{"org makes users", principal(tokens.TypeOrg, ""), tokens.ScopeUserWrite, "",
			`permission denied: this org token lacks the scope user:write. Needed: admin's token or admin token`},
		{"admin does", principal(tokens.TypeAdmin, ""), tokens.ScopeRegistryList, "", ""},
		{"readonly reads", principal(tokens.TypeReadOnly, ""), tokens.ScopeBuildRead, "shop", ""},
		{"readonly of an app reads another", principal(tokens.TypeReadOnly, "shop"), tokens.ScopeBuildRead, "billing",
			`permission denied: this readonly token is for app "shop", not "billing" (build:read). Needed: readonly token, deploy token for billing, org token or admin token`},
		{"readonly builds", principal(tokens.TypeReadOnly, ""), tokens.ScopeBuildWrite, "shop",
			`permission denied: this readonly token lacks the scope build:write on app "shop". Needed: deploy token for shop, org token or admin token`},
		{"registry pulls", principal(tokens.TypeRegistry, ""), tokens.ScopeRegistryPull, "shop", ""},
		{"registry pushes", registry(tokens.ReadOnly), tokens.ScopeRegistryPush, "shop",
			`permission denied: this registry token lacks the scope registry:push on app "shop". Needed: read-write registry token, deploy token for shop, org token or admin token`},
		{"registry read and write pushes", registry(tokens.ReadWrite), tokens.ScopeRegistryPush, "shop", ""},
		{"ssh builds", principal(tokens.TypeSSH, ""), tokens.ScopeBuildWrite, "shop",
			`permission denied: this ssh token lacks the scope build:write on app "shop". Needed: deploy token for shop, org token or admin token`},
		{"nobody", tokens.Principal{}, tokens.ScopeBuildRead, "",
			`permission denied: this token lacks the scope build:read. Needed: readonly token, org token or admin token`},
		{"no such action", principal(tokens.TypeAdmin, ""), "world:end", "",
			`permission denied: this admin token lacks the scope world:end. Needed: nothing grants this`},
		{"no action", principal(tokens.TypeAdmin, ""), "", "",
			`permission denied: this admin token lacks the scope . Needed: nothing grants this`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tokens.Allow(tc.p, tc.action, tc.app)
			var denied *tokens.DeniedError
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("Allow: %v", err)
			case tc.want != "" && (!errors.Is(err, tokens.ErrDenied) || !errors.As(err, &denied) || denied.Action != tc.action):
				t.Errorf("Allow: %v, want a DeniedError", err)
			case tc.want != "" && err.Error() != tc.want:
				t.Errorf("Allow:\n%v, want\n%v", err, tc.want)
			}
		})
	}
}

// TestScopesGrow holds types to the order that suggestions rely on.
func TestScopesGrow(t *testing.T) {
	org, admin := tokens.Scopes(tokens.TypeOrg), tokens.Scopes(tokens.TypeAdmin)
	for _, typ := range tokens.Types() {
		for _, s := range tokens.Scopes(typ) {
			if !slices.Contains(admin, s) {
				t.Errorf("admin lacks %s of %s", s, typ)
			}
			if typ != tokens.TypeAdmin && typ != tokens.TypeUser && !slices.Contains(org, s) {
				t.Errorf("org lacks %s of %s", s, typ)
			}
		}
	}
	tokens.Scopes(tokens.TypeOrg)[0] = "changed"
	if tokens.Scopes(tokens.TypeOrg)[0] == "changed" {
		t.Error("a caller can change the scopes of a type")
	}
}

func TestPrincipal(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		expires time.Time
		want    bool
	}{
		{"never", time.Time{}, false},
		{"later", now.Add(time.Nanosecond), false},
		{"now", now, true},
		{"before", now.Add(-time.Hour), true},
	} {
		if got := (tokens.Principal{Expires: tc.expires}).Expired(now); got != tc.want {
			t.Errorf("%s: Expired = %v", tc.name, got)
		}
	}
	if s := principal(tokens.TypeDeploy, "shop").String(); s != "deploy:shop" {
		t.Errorf("String = %q", s)
	}
	if s := principal(tokens.TypeAdmin, "").String(); s != "admin" {
		t.Errorf("String = %q", s)
	}
}

func TestAllowIn(t *testing.T) {
	bound := principal(tokens.TypeDeploy, "shop")
	bound.Env = "staging"
	for _, tc := range []struct {
		name     string
		p        tokens.Principal
		app, env string
		want     string
	}{
		{"its own", bound, "shop", "staging", ""},
		{"another", bound, "shop", "production",
			`permission denied: this deploy token is for environment "staging", not "production" (release:write). Needed: read-write registry token, deploy token for shop, org token or admin token, for environment production or for none`},
		{"none", bound, "shop", "", `permission denied: this deploy token is for environment "staging"`},
		{"another app in its own", bound, "blog", "staging", `permission denied: this deploy token is for app "shop", not "blog"`},
		{"not bound", principal(tokens.TypeDeploy, "shop"), "shop", "production", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tokens.AllowIn(tc.p, tokens.ScopeReleaseWrite, tc.app, tc.env)
			if (err == nil) != (tc.want == "") || err != nil && (!errors.Is(err, tokens.ErrDenied) || !strings.HasPrefix(err.Error(), tc.want)) {
				t.Errorf("AllowIn:\n%v, want\n%v", err, tc.want)
			}
		})
	}
}

// Roles and permissions take away what their type could have.
func TestScopesOfPrincipals(t *testing.T) {
	for _, tc := range []struct {
		typ, permission, role, scope string
		want                         bool
	}{
		{tokens.TypeUser, "", tokens.RoleAdmin, tokens.ScopeUserWrite, true},
		{tokens.TypeUser, "", tokens.RoleDeveloper, tokens.ScopeUserWrite, false},
		{tokens.TypeUser, "", "", tokens.ScopeAuditRead, false},
		{tokens.TypeUser, "", tokens.RoleDeveloper, tokens.ScopeTokenWrite, true},
		{tokens.TypeUser, "", tokens.RoleAdmin, tokens.ScopeOrgWrite, false},
		{tokens.TypeOrg, "", tokens.RoleAdmin, tokens.ScopeUserWrite, false},
		{tokens.TypeRegistry, "", tokens.RoleAdmin, tokens.ScopeRegistryPush, false},
		{tokens.TypeRegistry, tokens.ReadWrite, tokens.RoleDeveloper, tokens.ScopeReleaseWrite, true},
		{tokens.TypeAdmin, "", "", tokens.ScopeOrgWrite, true},
	} {
		p := (&tokens.Token{Type: tc.typ, Permission: tc.permission}).Principal(tc.role)
		if p.Has(tc.scope) != tc.want {
			t.Errorf("%+v: %v", tc, !tc.want)
		}
	}
}
