package web_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/web"
)

// openRoutes are all that a browser without a session gets to.
var openRoutes = map[string]int{
	"GET /assets/slipway.css":   http.StatusOK,
	"GET /signin":               http.StatusOK,
	"POST /signin":              http.StatusUnprocessableEntity, // no token
	"GET /signin/oidc":          http.StatusNotFound,            // not set up
	"GET /signin/oidc/callback": http.StatusNotFound,
	"POST /signout":             http.StatusSeeOther,
}

// concrete fills a pattern in with what exists.
func concrete(pattern, build, token string) string {
	path := strings.NewReplacer("{$}", "", "{file}", "slipway.css", "{key}", "KEY", "{name}", "production").Replace(pattern)
	if strings.HasPrefix(path, "/builds/") {
		return strings.ReplaceAll(path, "{id}", build)
	}
	return strings.ReplaceAll(path, "{id}", token)
}

// TestRoutes visits each route with every session that is not good, and those
// of an organization with one of another.
func TestRoutes(t *testing.T) {
	d := start(t, succeed, proxied)
	build := d.build("shop")
	ctx := context.Background()
	admin := d.principal(d.admin)
	expired := d.expiredToken()
	revoked, revokedValue, err := d.authority.Create(ctx, admin, tokens.Request{Type: tokens.TypeOrg})
	check(t, err)
	_, err = d.authority.Revoke(ctx, admin, revoked.ID)
	check(t, err)
	ours, _, err := d.authority.Create(ctx, admin, tokens.Request{Type: tokens.TypeOrg})
	check(t, err)
	good := d.user("kim", tokens.RoleAdmin)

	bad := map[string]string{
		"none": "", "malformed": "nonsense", "cut": good[:len(good)-4], "forged": tokens.New("su_"), "expired": expired, "revoked": revokedValue,
		"header": "x%0d%0aSet-Cookie:", "long": strings.Repeat("su_", 2000),
	}
	routes := web.Routes()
	visits := 0
	if len(routes) < 30 {
		t.Fatalf("found only %d routes", len(routes))
	}
	for _, r := range routes {
		path := concrete(r.Pattern, build, ours.ID)
		name := r.Method + " " + path
		if r.Open == r.Session {
			t.Errorf("%s: nobody said who gets there", name)
		}
		code, listed := openRoutes[name]
		if r.Open != listed {
			t.Errorf("%s is open: %v, in this test's list: %v", name, r.Open, listed)
		}
		for kind, value := range bad {
			visits++
			b := d.browser()
			b.addr = fmt.Sprintf("192.0.2.%d", visits%200) // an address has few attempts
			if value != "" {
				b.setSession(value)
			}
			a := b.do(b.request(r.Method, path, nil))
			if r.Open {
				if a.StatusCode != code {
					t.Errorf("%s, session %s: status %d, want %d", name, kind, a.StatusCode, code)
				}
				continue
			}
			refused := a.StatusCode == http.StatusSeeOther && strings.HasPrefix(a.Header.Get("Location"), "/signin") || a.StatusCode == http.StatusUnauthorized
			if !refused || strings.Contains(a.text, "shop") {
				t.Errorf("%s, session %s: status %d to %q:\n%s", name, kind, a.StatusCode, a.Header.Get("Location"), a.text)
			}
		}
	}
	d.foreigners(t, build, ours.ID)
}

// foreigners checks that one org's session gets nothing of another's.
func (d *daemon) foreigners(t *testing.T, build, token string) {
	other := d.signedIn(d.otherOrg("globex"))
	for _, r := range web.Routes() {
		if r.Open || !strings.Contains(r.Pattern, "{id}") && !strings.Contains(r.Pattern, "{name}") {
			continue
		}
		path := concrete(r.Pattern, build, token)
		if r.Pattern == "/users/{name}/remove" && r.Method == "GET" {
			continue // asks about any name
		}
		if r.Pattern == "/environments/{name}/delete" && r.Method == "GET" {
			continue
		}
		a := other.do(other.request(r.Method, path, nil))
		if a.StatusCode < 400 || strings.Contains(a.text, "shop") {
			t.Errorf("%s %s of another organization: status %d:\n%s", r.Method, path, a.StatusCode, a.text)
		}
	}
	for _, path := range []string{"/builds", "/tokens", "/cache", "/users", "/environments"} {
		a := other.get(path)
		a.want(t, 200)
		if strings.Contains(a.text, "shop") || strings.Contains(a.text, token) || strings.Contains(a.text, ">kim<") {
			t.Errorf("%s shows another organization's:\n%s", path, a.text)
		}
	}
	if tok, err := d.store.Token(context.Background(), tokens.DefaultOrg, token); err != nil || !tok.Revoked.IsZero() {
		t.Errorf("another organization ended the token: %+v, %v", tok, err)
	}
}

// expiredToken returns the value of a token that was good once.
func (d *daemon) expiredToken() string {
	d.t.Helper()
	value := tokens.New("so_")
	past := time.Now().Add(-time.Hour)
	err := d.store.CreateToken(context.Background(), tokens.Token{
		ID: "tok_01EXPIRED", Org: tokens.DefaultOrg, Type: tokens.TypeOrg, Name: "old", User: "admin", CreatedBy: "admin", Created: past.Add(-time.Hour), Expires: past,
	}, tokens.Hash(value), tokens.Decision{ID: "01EXPIRED", Time: past, Org: tokens.DefaultOrg, Action: "token.create", Allowed: true, Count: 1})
	check(d.t, err)
	return value
}

// succeed is a pipeline whose images are empty.
var succeed builder.Pipeline = script{}

func proxied(o *web.Options) { o.Proxied = true }

// TestAddress says from where a session was used: what the proxy says that is
// nearest, and only if there is one.
func TestAddress(t *testing.T) {
	for _, tc := range []struct {
		name string
		tune []func(*web.Options)
		want string
	}{
		{"direct", nil, "127.0.0.1"},
		{"proxied", []func(*web.Options){proxied}, "192.0.2.7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := start(t, nil, tc.tune...)
			b := d.browser()
			b.addr = "192.0.2.7"
			b.post("/signin", "token", tokens.New("su_"))
			check(t, d.authority.Close()) // writes what is in memory
			for e, err := range d.store.Decisions(context.Background(), tokens.AuditQuery{Org: tokens.DefaultOrg, Unknown: true, Denied: true}) {
				check(t, err)
				if e.Addr != tc.want {
					t.Errorf("the failed attempt came from %q, want %q", e.Addr, tc.want)
				}
				return
			}
			t.Error("the audit log has no failed attempt")
		})
	}
}
