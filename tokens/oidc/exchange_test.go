package oidc_test

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

func (x *exchanger) exchange(t *testing.T, claims map[string]any) (tokens.Token, string, error) {
	t.Helper()
	got, value, _, err := x.Exchange(t.Context(), tokens.ExchangeRequest{IDToken: x.issuer.Token("us", claims)})
	return got, value, err
}

func TestExchange(t *testing.T) {
	x := newExchanger(t)
	rule := x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeDeploy, App: "shop", Env: "live", Claims: map[string]string{"repository": "acme/shop", "ref": "refs/heads/*"}, TTL: 30 * time.Minute})
	ctx := tokens.From(t.Context(), "192.0.2.1")
	got, value, by, err := x.Exchange(ctx, tokens.ExchangeRequest{IDToken: x.issuer.Token("us", map[string]any{"repository": "acme/shop", "ref": "refs/heads/main"})})
	if err != nil {
		t.Fatal(err)
	}
	if by.ID != rule.ID || got.Parent != "" || got.CreatedBy != "trust shop" || got.User != "trust:shop" || got.Org != "acme" {
		t.Errorf("token %+v by rule %+v", got, by)
	}
	if left := time.Until(got.Expires); left > 30*time.Minute || left < 29*time.Minute {
		t.Errorf("lives for %v", left)
	}
	p, err := x.Authenticate(ctx, value)
	if err != nil || p.Type != tokens.TypeDeploy || p.App != "shop" || p.Env != "live" || p.Role != tokens.RoleDeveloper {
		t.Errorf("stands for %+v, %v", p, err)
	}
	if err := tokens.CheckName("a user", got.User); err == nil {
		t.Errorf("a user could be called %q", got.User)
	}
	short, _, _, err := x.Exchange(ctx, tokens.ExchangeRequest{IDToken: x.issuer.Token("us", map[string]any{"repository": "acme/shop", "ref": "refs/heads/x"}), ExpiresIn: time.Minute, Rule: "shop", Org: "acme"})
	if err != nil || time.Until(short.Expires) > time.Minute {
		t.Errorf("asked for a minute: %v, %v", short.Expires, err)
	}
	long, _, _, err := x.Exchange(ctx, tokens.ExchangeRequest{IDToken: x.issuer.Token("us", map[string]any{"repository": "acme/shop", "ref": "refs/heads/x"}), ExpiresIn: 100 * time.Hour, Rule: rule.ID})
	if err != nil || time.Until(long.Expires) > 30*time.Minute {
		t.Errorf("asked for 100 hours: %v, %v", long.Expires, err)
	}
	if log := x.audit(t); !strings.Contains(log, "trust.create") || !strings.Contains(log, "token.exchange") || !strings.Contains(log, "192.0.2.1") || strings.Contains(log, value) {
		t.Errorf("audit log %s", log)
	}
}

func TestExchangeRefuses(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeDeploy, App: "shop", Claims: map[string]string{"repository": "acme/shop", "ref": "refs/heads/main"}})
	good := map[string]any{"repository": "acme/shop", "ref": "refs/heads/main"}
	with := func(name string, v any) map[string]any {
		return map[string]any{"repository": good["repository"], "ref": good["ref"], name: v}
	}
	for _, tc := range []struct {
		name   string
		claims map[string]any
		told   string
	}{
		{"other repository", with("repository", "evil/shop"), `repository "evil/shop"`},
		{"no repository", with("repository", nil), `repository (none)`},
		{"an object", with("repository", map[string]any{"x": "acme/shop"}), `repository (none)`},
		{"other branch", with("ref", "refs/heads/main2"), `ref "refs/heads/main2"`},
		{"other audience", with("aud", "them"), `audience "them"`},
		{"audiences", with("aud", []string{"them", "you"}), `audience "them" "you"`},
		{"line breaks", with("ref", "x\r\nevil"), `ref "x\r\nevil"`},
		{"long", with("ref", strings.Repeat("x", 5000)), `xxx…`},
		{"of a sign-in", with("nonce", "n"), "not made for this sign-in"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := tokens.From(t.Context(), tc.name)
			_, value, _, err := x.Exchange(ctx, tokens.ExchangeRequest{IDToken: x.issuer.Token("us", tc.claims)})
			if !errors.Is(err, tokens.ErrUnauthorized) || value != "" || !strings.Contains(fmt.Sprint(err), tc.told) {
				t.Errorf("%v; want it to tell %s", err, tc.told)
			}
			if text := fmt.Sprint(err); len(text) > 1000 || strings.Contains(text, "refs/heads/main,") || strings.Contains(text, "acme/shop,") && tc.claims["repository"] != "acme/shop" {
				t.Errorf("tells too much: %s", text)
			}
		})
	}
	for name, r := range map[string]tokens.ExchangeRequest{"another rule": {Rule: "other"}, "another org": {Org: "other"}, "a browser": {Session: true, Nonce: "n"}} {
		claims := good
		if r.Session {
			claims = with("nonce", "n")
		}
		r.IDToken = x.issuer.Token("us", claims)
		if _, _, _, err := x.Exchange(tokens.From(t.Context(), name), r); !errors.Is(err, tokens.ErrUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := x.exchange(t, with("aud", []string{"them", "us"})); err != nil {
		t.Errorf("one of two audiences: %v", err)
	}
	if log := x.audit(t); !strings.Contains(log, `rule shop: ref is "refs/heads/main2", not refs/heads/main`) {
		t.Errorf("the audit log does not say why: %s", log)
	}
}

func TestExchangeOfUnknownIssuer(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Issuer: "https://id.example.com", Claims: map[string]string{"sub": "x"}})
	_, _, err := x.exchange(t, nil)
	if !errors.Is(err, tokens.ErrUnauthorized) || !strings.Contains(fmt.Sprint(err), "no trust rule matches") || x.issuer.Asked() != 0 {
		t.Errorf("%v, and %d questions to it", err, x.issuer.Asked())
	}
}

func TestExchangeOnce(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	for name, claims := range map[string]map[string]any{"jti": nil, "no jti": {"jti": nil}} {
		id := x.issuer.Token("us", claims)
		var good, replayed atomic.Int32
		var all sync.WaitGroup
		for n := range 10 {
			all.Go(func() {
				_, _, _, err := x.Exchange(tokens.From(t.Context(), fmt.Sprint(name, n)), tokens.ExchangeRequest{IDToken: id})
				switch {
				case err == nil:
					good.Add(1)
				case errors.Is(err, tokens.ErrUnauthorized) && strings.Contains(err.Error(), "exchanged before"):
					replayed.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if good.Load() != 1 || replayed.Load() != 9 {
			t.Errorf("%s: exchanged %d times, refused %d times", name, good.Load(), replayed.Load())
		}
	}
	var soonest int64
	if err := x.db.QueryRow(t.Context(), `select min(expires) from redeemed`).Scan(&soonest); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.UnixMilli(soonest)); left < 5*time.Minute+time.Minute {
		t.Errorf("forgotten in %v, while the token may still be good", left)
	}
}

// A signature of this kind can be turned into another one that is as good.
func TestExchangeOnceWithAnotherSignature(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	id := x.issuer.Token("us", map[string]any{"jti": nil})
	at := strings.LastIndexByte(id, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(id[at:])
	check(t, err)
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	twin := id[:at] + base64.RawURLEncoding.EncodeToString(signature)
	for n, token := range []string{id, twin} {
		_, _, _, err := x.Exchange(t.Context(), tokens.ExchangeRequest{IDToken: token})
		if n == 0 && err != nil || n == 1 && (err == nil || !strings.Contains(err.Error(), "exchanged before")) {
			t.Errorf("exchange %d: %v", n+1, err)
		}
	}
}

func TestExchangeOfSeveralRules(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "one", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	x.trust(t, tokens.Trust{Name: "two", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "some*"}})
	id := x.issuer.Token("us", nil)
	_, _, _, err := x.Exchange(t.Context(), tokens.ExchangeRequest{IDToken: id})
	if !errors.Is(err, tokens.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "one of acme, two of acme") {
		t.Errorf("%v", err)
	}
	if _, _, rule, err := x.Exchange(t.Context(), tokens.ExchangeRequest{IDToken: id, Rule: "two"}); err != nil || rule.Name != "two" {
		t.Errorf("the same ID token with a rule: %v by %s", err, rule.Name)
	}
}

func TestExchangeSignsIn(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "people", Type: tokens.TypeUser, Role: tokens.RoleAdmin, Claims: map[string]string{"groups": "staff"}, TTL: 12 * time.Hour})
	for user, role := range map[string]string{"ann": tokens.RoleAdmin, "bob": tokens.RoleDeveloper, "eve": tokens.RoleAdmin} {
		if _, _, _, err := x.CreateUser(t.Context(), x.admin, user, role, false, tokens.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.RemoveUser(t.Context(), x.admin, "eve"); err != nil {
		t.Fatal(err)
	}
	staff := []any{"guests", "staff"}
	for _, tc := range []struct {
		name   string
		claims map[string]any
		user   string // "" if refused
		role   string
	}{
		{"first time", map[string]any{"preferred_username": "Ann.Lee"}, "ann.lee", tokens.RoleAdmin},
		{"known", map[string]any{"preferred_username": "bob"}, "bob", tokens.RoleDeveloper},
		{"removed", map[string]any{"preferred_username": "eve"}, "", ""},
		{"address", map[string]any{"email": "Cy@Example.com", "email_verified": true}, "cy-at-example.com", tokens.RoleAdmin},
		{"address of nobody knows whom", map[string]any{"email": "bob@example.com"}, "", ""},
		{"address that is not verified", map[string]any{"email": "bob@example.com", "email_verified": false}, "", ""},
		{"no name", nil, "", ""},
		{"no name of ours", map[string]any{"preferred_username": "trust:people"}, "", ""},
		{"path", map[string]any{"preferred_username": "../bob"}, "", ""},
		{"not of the staff", map[string]any{"preferred_username": "bob", "groups": "guests"}, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			claims := map[string]any{"groups": staff, "nonce": "n"}
			for k, v := range tc.claims {
				claims[k] = v
			}
			got, value, _, err := x.Exchange(tokens.From(t.Context(), tc.name), tokens.ExchangeRequest{IDToken: x.issuer.Token("us", claims), Session: true, Nonce: "n"})
			if tc.user == "" {
				if !errors.Is(err, tokens.ErrUnauthorized) {
					t.Errorf("%v; want it refused", err)
				}
				return
			}
			if err != nil || got.User != tc.user || !got.Session || got.Type != tokens.TypeUser {
				t.Fatalf("%+v, %v", got, err)
			}
			if p, err := x.Authenticate(t.Context(), value); err != nil || p.Role != tc.role || p.Has(tokens.ScopeUserWrite) != (tc.role == tokens.RoleAdmin) {
				t.Errorf("stands for %+v, %v", p, err)
			}
		})
	}
	unasked := x.issuer.Token("us", map[string]any{"groups": staff, "preferred_username": "bob"})
	if _, _, _, err := x.Exchange(tokens.From(t.Context(), "unasked"), tokens.ExchangeRequest{IDToken: unasked, Session: true}); err == nil {
		t.Error("signed in with an ID token that was made for no sign-in")
	}
	for name, r := range map[string]tokens.ExchangeRequest{"another nonce": {Session: true, Nonce: "m"}, "no nonce": {Session: true}, "no session": {}} {
		r.IDToken = x.issuer.Token("us", map[string]any{"groups": staff, "nonce": "n", "preferred_username": "bob"})
		if _, _, _, err := x.Exchange(tokens.From(t.Context(), name), r); err == nil {
			t.Errorf("%s: signed in", name)
		}
	}
}

func TestExchangeKeepsDaemonsAdmin(t *testing.T) {
	x := newExchanger(t)
	x.admin = adminOf(tokens.DefaultOrg)
	x.trust(t, tokens.Trust{Name: "people", Type: tokens.TypeUser, Claims: map[string]string{"sub": "**"}})
	if _, _, err := x.exchange(t, map[string]any{"preferred_username": "admin"}); !errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("%v", err)
	}
}

func TestExchangeOfForeignApp(t *testing.T) {
	x := newExchanger(t)
	if err := x.Claim(t.Context(), adminOf("other"), "shop"); err != nil {
		t.Fatal(err)
	}
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeDeploy, App: "shop", Claims: map[string]string{"sub": "somebody"}})
	if _, _, err := x.exchange(t, nil); !errors.Is(err, tokens.ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestExchangeSlowsDown(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	ctx := tokens.From(t.Context(), "192.0.2.1")
	try := func(ctx context.Context, sub string) error {
		_, _, _, err := x.Exchange(ctx, tokens.ExchangeRequest{IDToken: x.issuer.Token("us", map[string]any{"sub": sub})})
		return err
	}
	var many *tokens.TooManyError
	for n := 0; n < 20 && !errors.As(try(ctx, "nobody"), &many); n++ {
	}
	if many == nil {
		t.Fatal("20 failures in a row, and nothing happens")
	}
	if err := try(tokens.From(t.Context(), "192.0.2.2"), "nobody"); errors.As(err, &many) {
		t.Errorf("another address: %v", err)
	}
	if err := try(ctx, "somebody"); err != nil {
		t.Errorf("a good one from that address: %v", err)
	}
}

func TestExchangeWithoutIssuer(t *testing.T) {
	x := newExchanger(t)
	x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	x.issuer.Pretend(http.NotFound)
	if _, _, err := x.exchange(t, nil); !errors.Is(err, tokens.ErrIssuer) || errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("the issuer is away: %v", err)
	}
	none, err := tokens.Open(t.Context(), tokens.Options{Store: x.store})
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if _, _, _, err := none.Exchange(t.Context(), tokens.ExchangeRequest{IDToken: x.issuer.Token("us", nil)}); !errors.Is(err, tokens.ErrInvalid) {
		t.Errorf("a daemon that exchanges nothing: %v", err)
	}
}

// The claims of the four CI systems, as they document them.
func TestExchangeOfCISystems(t *testing.T) {
	x := newExchanger(t)
	const org, project = "3b7d2f3e-1c2a-4a5b-9d10-2bbf3c4d5e6f", "6a1b2c3d-4e5f-6789-abcd-ef0123456789"
	for _, tc := range []struct {
		name   string
		rule   map[string]string
		claims map[string]any
		wrong  map[string]any
	}{
		{"github", map[string]string{"repository": "acme/shop", "ref": "refs/heads/main", "environment": "production"},
			map[string]any{"sub": "repo:acme/shop:environment:production", "repository": "acme/shop", "repository_owner": "acme", "repository_id": "74",
				"ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "environment": "production", "run_attempt": "1"},
			map[string]any{"environment": "staging"}},
		{"github by subject", map[string]string{"sub": "repo:acme/shop:ref:refs/heads/*"},
			map[string]any{"sub": "repo:acme/shop:ref:refs/heads/main"}, map[string]any{"sub": "repo:acme/shop:ref:refs/heads/feature/x"}},
		{"gitlab", map[string]string{"project_path": "acme/platform/shop", "ref": "main", "ref_type": "branch", "ref_protected": "true"},
			map[string]any{"sub": "project_path:acme/platform/shop:ref_type:branch:ref:main", "project_path": "acme/platform/shop", "project_id": "22",
				"namespace_path": "acme/platform", "ref": "main", "ref_type": "branch", "ref_protected": "true", "pipeline_source": "push"},
			map[string]any{"ref_protected": "false"}},
		{"buildkite", map[string]string{"organization_slug": "acme", "pipeline_slug": "shop", "build_branch": "main", "build_number": "5"},
			map[string]any{"sub": "organization:acme:pipeline:shop:ref:refs/heads/main:commit:b5ff:step:", "organization_slug": "acme", "pipeline_slug": "shop",
				"build_number": 5, "build_branch": "main", "build_tag": nil, "step_key": nil, "build_source": "ui"},
			map[string]any{"organization_slug": "evil"}},
		{"circleci", map[string]string{"oidc.circleci.com/project-id": project, "oidc.circleci.com/context-ids": "b", "oidc.circleci.com/ssh-rerun": "false"},
			map[string]any{"sub": "org/" + org + "/project/" + project + "/user/u/vcs-origin/github.com/acme/shop/vcs-ref/refs/heads/main", "jti": nil, "nbf": nil,
				"oidc.circleci.com/project-id": project, "oidc.circleci.com/context-ids": []any{"a", "b"}, "oidc.circleci.com/ssh-rerun": false},
			map[string]any{"oidc.circleci.com/ssh-rerun": true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rule := x.trust(t, tokens.Trust{Name: strings.ReplaceAll(tc.name, " ", "-"), Type: tokens.TypeReadOnly, Claims: tc.rule})
			ask := func(claims map[string]any) error {
				_, _, _, err := x.Exchange(tokens.From(t.Context(), tc.name), tokens.ExchangeRequest{IDToken: x.issuer.Token("us", claims), Rule: rule.Name})
				return err
			}
			if err := ask(tc.claims); err != nil {
				t.Error(err)
			}
			for name, v := range tc.wrong {
				tc.claims[name] = v
			}
			if err := ask(tc.claims); !errors.Is(err, tokens.ErrUnauthorized) {
				t.Errorf("with %v: %v", tc.wrong, err)
			}
		})
	}
}

func TestTrustRules(t *testing.T) {
	x := newExchanger(t)
	rule := x.trust(t, tokens.Trust{Name: "shop", Type: tokens.TypeReadOnly, Claims: map[string]string{"sub": "somebody"}})
	if _, err := x.CreateTrust(t.Context(), x.admin, tokens.Trust{Name: "shop", Issuer: x.issuer.URL(), Audience: "us", Type: tokens.TypeReadOnly}); !errors.Is(err, tokens.ErrExists) {
		t.Errorf("a second one of that name: %v", err)
	}
	developer := x.admin
	developer.Scopes = tokens.Scopes(tokens.TypeOrg)
	bound := x.admin
	bound.Env = "live"
	for name, by := range map[string]tokens.Principal{"developer": developer, "admin for one environment": bound} {
		if _, err := x.CreateTrust(t.Context(), by, tokens.Trust{Name: "other", Issuer: x.issuer.URL(), Audience: "us", Type: tokens.TypeReadOnly}); !errors.Is(err, tokens.ErrDenied) {
			t.Errorf("%s makes a rule: %v", name, err)
		}
		if err := x.DeleteTrust(t.Context(), by, rule.ID); !errors.Is(err, tokens.ErrDenied) {
			t.Errorf("%s removes a rule: %v", name, err)
		}
	}
	if _, err := x.Trusts(t.Context(), developer); !errors.Is(err, tokens.ErrDenied) {
		t.Errorf("developer reads rules: %v", err)
	}
	if all, err := x.Trusts(t.Context(), adminOf("other")); err != nil || len(all) != 0 {
		t.Errorf("another org's admin sees %v, %v", all, err)
	}
	if err := x.DeleteTrust(t.Context(), adminOf("other"), rule.ID); !errors.Is(err, tokens.ErrNotFound) {
		t.Errorf("another org's admin removes it: %v", err)
	}
	if all, err := x.Trusts(t.Context(), x.admin); err != nil || len(all) != 1 || all[0].Claims["sub"] != "somebody" || all[0].TTL != time.Hour {
		t.Errorf("%+v, %v", all, err)
	}
	_, value, err := x.exchange(t, nil)
	check(t, err)
	check(t, x.DeleteTrust(t.Context(), x.admin, rule.ID))
	if _, _, err := x.exchange(t, nil); !errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("after its rule is gone: %v", err)
	}
	if _, err := x.Authenticate(t.Context(), value); err != nil {
		t.Errorf("a token that it gave: %v", err)
	}
}

// What is in an unchecked token reaches neither the store nor a terminal as it is.
func TestExchangeOfOddIssuers(t *testing.T) {
	x := newExchanger(t)
	for _, iss := range []string{"x\x00y", "https://x\x1b[31m", "javascript:1", strings.Repeat("x", 2000)} {
		_, _, err := x.exchange(t, map[string]any{"iss": iss})
		if !errors.Is(err, tokens.ErrUnauthorized) || strings.ContainsAny(fmt.Sprint(err), "\x00\x1b") || len(fmt.Sprint(err)) > 500 {
			t.Errorf("%q: %v", iss, err)
		}
	}
}
