package web_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
	"github.com/slipwayhq/slipway/web"
)

// A provider is an issuer at which people sign in.
type provider struct {
	*oidctest.Issuer
	t    *testing.T
	http *http.Client
	keys []byte

	mu      sync.Mutex
	asked   url.Values     // what the daemon wants of the last sign-in
	claims  map[string]any // of the ID token
	refused int            // requests for an ID token that were wrong
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{Issuer: oidctest.New(t), t: t}
	pem, err := os.ReadFile(p.CAFile())
	check(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	p.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(p.http.CloseIdleConnections)
	r, err := http.NewRequestWithContext(t.Context(), "GET", p.URL()+"/keys", nil)
	check(t, err)
	resp, err := p.http.Do(r)
	check(t, err)
	defer resp.Body.Close()
	p.keys, err = io.ReadAll(resp.Body)
	check(t, err)
	p.Pretend(p.answer)
	return p
}

func (p *provider) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL(), "jwks_uri": p.URL() + "/keys", "authorization_endpoint": p.URL() + "/authorize", "token_endpoint": p.URL() + "/token",
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	case "/keys":
		_, _ = w.Write(p.keys)
	case "/token":
		p.token(w, r)
	default:
		http.NotFound(w, r)
	}
}

// token gives an ID token for a code, to the client that asked for it.
func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, secret, _ := r.BasicAuth()
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if id != "slipway" || secret != "hush" || r.PostFormValue("code") != "a-code" || r.PostFormValue("redirect_uri") != p.asked.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != p.asked.Get("code_challenge") {
		p.refused++
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	claims := map[string]any{"nonce": p.asked.Get("nonce")}
	for k, v := range p.claims {
		claims[k] = v
	}
	audience := "slipway"
	if a, ok := claims["aud"].(string); ok {
		audience = a
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": p.Token(audience, claims)})
}

// begin starts a sign-in and returns where the provider sends the browser.
func (p *provider) begin(b *browser, next string) string {
	p.t.Helper()
	a := b.get("/signin/oidc?next=" + url.QueryEscape(next))
	to, err := url.Parse(a.Header.Get("Location"))
	check(p.t, err)
	q := to.Query()
	p.mu.Lock()
	p.asked = q
	p.mu.Unlock()
	if !strings.HasPrefix(to.String(), p.URL()+"/authorize?") || q.Get("response_type") != "code" || q.Get("client_id") != "slipway" ||
		q.Get("code_challenge_method") != "S256" || len(q.Get("state")) < 20 || len(q.Get("nonce")) < 20 || !strings.Contains(q.Get("scope"), "openid") ||
		q.Get("redirect_uri") != b.base+"/signin/oidc/callback" || strings.Contains(to.String(), "hush") {
		p.t.Fatalf("the browser is sent to %s", to)
	}
	return "/signin/oidc/callback?code=a-code&state=" + url.QueryEscape(q.Get("state"))
}

// withProvider starts a daemon at which people of a provider may sign in.
func withProvider(t *testing.T) (*daemon, *provider) {
	t.Helper()
	p := newProvider(t)
	d := startWith(t, nil, verifier(t, p), func(o *web.Options) {
		o.OIDC = &web.OIDC{Name: "Example", Issuer: p.URL(), ClientID: "slipway", Secret: "hush", HTTP: p.http}
	})
	_, err := d.authority.CreateTrust(context.Background(), d.principal(d.admin), tokens.Trust{
		Name: "people", Issuer: p.URL(), Audience: "slipway", Type: tokens.TypeUser, Role: tokens.RoleDeveloper, TTL: time.Hour, Claims: map[string]string{"groups": "staff"},
	})
	check(t, err)
	p.claims = map[string]any{"preferred_username": "ann", "groups": "staff"}
	return d, p
}

// verifier is what the API checks ID tokens with.
func verifier(t *testing.T, p *provider) tokens.Verifier {
	v, err := oidc.New(&oidc.Options{CAFile: p.CAFile()})
	check(t, err)
	return v
}

func TestSignInWithOIDC(t *testing.T) {
	d, p := withProvider(t)
	b := d.browser()
	b.get("/signin").want(t, 200, "Continue with Example", "/signin/oidc?next=")
	callback := p.begin(b, "/tokens")
	a := b.get(callback)
	if to := a.Header.Get("Location"); to != "/tokens" {
		t.Fatalf("status %d to %q:\n%s", a.StatusCode, to, a.text)
	}
	b.follow(a).want(t, 200, "Token Management", ">ann<")
	if who := d.principal(b.session()); who.User != "ann" || !who.Session || who.Role != tokens.RoleDeveloper || time.Until(who.Expires) > time.Hour {
		t.Errorf("the session is %+v", who)
	}
	// The address is good for one time, and for this browser.
	b.get(callback).want(t, 403, "was not begun in this browser")
	b.get("/builds").want(t, 200)
}

func TestSignInWithOIDCRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		claims map[string]any
		change func(callback string) string
		other  bool // another browser comes back
		code   int
		says   string
	}{
		{name: "another state", change: func(c string) string { return c[:len(c)-1] + "_" }, code: 403, says: "was not begun"},
		{name: "no state", change: func(string) string { return "/signin/oidc/callback?code=a-code" }, code: 403, says: "was not begun"},
		{name: "another browser", other: true, code: 403, says: "was not begun"},
		{name: "another code", change: func(c string) string { return strings.Replace(c, "a-code", "b", 1) }, code: 503, says: "cannot be used now"},
		{name: "another nonce", claims: map[string]any{"nonce": "n"}, code: 503, says: "cannot be used now"},
		{name: "no nonce", claims: map[string]any{"nonce": nil}, code: 503, says: "cannot be used now"},
		{name: "another audience", claims: map[string]any{"aud": "other"}, code: 503, says: "cannot be used now"},
		{name: "expired", claims: map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, code: 503, says: "cannot be used now"},
		{name: "not of the staff", claims: map[string]any{"groups": "guests"}, code: 401, says: "rule"},
		{name: "refused there", change: func(c string) string {
			return strings.Replace(c, "code=a-code", "error=access_denied&error_description=<b>", 1)
		}, code: 403, says: "did not let you in"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p := withProvider(t)
			for k, v := range tc.claims {
				p.claims[k] = v
			}
			b := d.browser()
			callback := p.begin(b, "/")
			if tc.change != nil {
				callback = tc.change(callback)
			}
			if tc.other {
				b = d.browser()
			}
			a := b.get(callback)
			a.want(t, tc.code, tc.says, `name="token"`)
			if b.session() != "" || strings.Contains(a.text, "<b>") {
				t.Errorf("session %q:\n%s", b.session(), a.text)
			}
		})
	}
}

// TestProviderComesLater: one that is not there when somebody asks is asked
// again.
func TestProviderComesLater(t *testing.T) {
	d, p := withProvider(t)
	p.Pretend(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "soon", http.StatusServiceUnavailable) })
	b := d.browser()
	b.get("/signin/oidc").want(t, 503, "cannot be used now", `name="token"`)
	p.Pretend(p.answer)
	b.get(p.begin(b, "/")).want(t, http.StatusSeeOther)
}
