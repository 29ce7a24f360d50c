package web_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/tokens"
)

func TestSignIn(t *testing.T) {
	d := start(t, nil)
	b := d.browser()
	a := b.get("/tokens?type=org")
	if to := a.Header.Get("Location"); a.StatusCode != http.StatusSeeOther || to != "/signin?next=%2Ftokens%3Ftype%3Dorg" {
		t.Fatalf("without a session: status %d, to %q", a.StatusCode, to)
	}
	b.follow(a).want(t, 200, `name="token"`, `value="/tokens?type=org"`)
	a = b.post("/signin", "token", " "+d.admin+"\n", "next", "/tokens?type=org")
	b.follow(a).want(t, 200, "Token Management", "Sign out")

	// The session is a token of its own, narrower in time, and not the one that
	// was pasted.
	value := b.session()
	p := d.principal(value)
	if value == d.admin || !p.Session || p.Expires.IsZero() {
		t.Errorf("the session is %+v", p)
	}
	c := a.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Secure {
		t.Errorf("the cookie is %v", c)
	}
	if strings.Contains(a.text+b.get("/tokens?sessions=1").text, d.admin) {
		t.Error("a page shows the token that was pasted")
	}
}

func TestSignInRefused(t *testing.T) {
	d := start(t, nil)
	for _, tc := range []struct {
		name, token string
		code        int
	}{
		{"empty", "", 422},
		{"two words", "su_a b", 422},
		{"long", strings.Repeat("a", 300), 422},
		{"malformed", "su_nonsense", 401},
		{"unknown", tokens.New("su_"), 401},
		{"header", "x\r\nSet-Cookie: a=b", 422},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := d.browser()
			a := b.post("/signin", "token", tc.token, "next", "//evil.example/")
			a.want(t, tc.code, `role="alert"`, `name="next" value="/"`)
			if b.session() != "" || tc.token != "" && strings.Contains(a.text, tc.token) {
				t.Errorf("session %q:\n%s", b.session(), a.text)
			}
		})
	}
}

func TestNextIsOurs(t *testing.T) {
	d := start(t, nil)
	for _, next := range []string{"//evil.example", "https://evil.example/", `/\evil.example`, "javascript:alert(1)", "evil", "/\t/evil.example", ""} {
		a := d.browser().post("/signin", "token", d.admin, "next", next)
		if to := a.Header.Get("Location"); to != "/" {
			t.Errorf("after sign-in with next %q: to %q", next, to)
		}
	}
}

func TestSignOut(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	value := b.session()
	b.follow(b.post("/signout")).want(t, 200, "You have signed out.")
	if b.session() != "" {
		t.Error("the cookie is still there")
	}
	if _, err := d.authority.Authenticate(context.Background(), value); err == nil {
		t.Error("the session is still good")
	}
	d.principal(d.admin) // its parent is
	b.post("/signout").want(t, http.StatusSeeOther)
}

// TestEndedSession leads back to the sign-in page, which says why once.
func TestEndedSession(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	_, err := d.authority.Revoke(context.Background(), d.principal(d.admin), d.principal(b.session()).ID)
	check(t, err)
	a := b.get("/builds")
	page := b.follow(a)
	page.want(t, 200, "Your session has ended", "revoked", `value="/builds"`)
	if b.session() != "" || strings.Contains(b.get("/signin").text, "has ended") {
		t.Error("the browser keeps the session, or the page the reason")
	}

	// htmx is told to go there with the whole page.
	b = d.signedIn(d.admin)
	_, err = d.authority.Revoke(context.Background(), d.principal(d.admin), d.principal(b.session()).ID)
	check(t, err)
	r := b.request("GET", "/builds", nil)
	r.Header.Set("HX-Request", "true")
	a = b.do(r)
	a.want(t, 401)
	if to := a.Header.Get("HX-Redirect"); to != "/signin?next=%2Fbuilds" {
		t.Errorf("HX-Redirect is %q", to)
	}
}

func TestOtherSitesAreRefused(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	for _, path := range []string{"/signout", "/tokens", "/signin", "/cache/prune"} {
		for _, h := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}} {
			r := b.request("POST", path, nil)
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set(h[0], h[1])
			b.do(r).want(t, 403, "came from another site")
		}
	}
	d.principal(b.session())
}

func TestHeaders(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	for _, path := range []string{"/signin", "/builds", "/tokens", "/nowhere", "/assets/slipway.css", "/assets/../web.go"} {
		h := b.get(path).Header
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "style-src 'self';", "connect-src 'self';", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: policy %q lacks %s", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") == "" || h.Get("Cache-Control") == "" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
	if c := b.get("/tokens").Header.Get("Cache-Control"); c != "no-store" {
		t.Errorf("a page may be kept: %q", c)
	}
	// No page has a script or style of its own text.
	for _, path := range []string{"/signin", "/builds", "/tokens", "/tokens/new", "/cache", "/environments", "/users"} {
		a := b.get(path)
		a.want(t, 200)
		for _, bad := range []string{"<style", "style=", "<script>", " onclick", "javascript:"} {
			if strings.Contains(a.text, bad) {
				t.Errorf("%s has %s", path, bad)
			}
		}
	}
}
