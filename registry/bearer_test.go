package registry_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/slipwayhq/slipway/registry"
)

// A book is an Access to tokens that can be revoked: policy's, with IDs that do
// not tell the value.
type book struct {
	mu      sync.Mutex
	revoked map[string]context.CancelFunc // by ID; nil until then
	alive   map[string]context.Context
	tries   int // failed ones
}

func (b *book) id(secret string) string {
	if len(secret) < 4 || secret[0] != 's' {
		return ""
	}
	return "tok_" + secret[1:]
}

func (b *book) life(id string) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.alive == nil {
		b.alive, b.revoked = map[string]context.Context{}, map[string]context.CancelFunc{}
	}
	if b.alive[id] == nil {
		b.alive[id], b.revoked[id] = context.WithCancel(context.Background())
	}
	return b.alive[id], b.revoked[id]
}

func (b *book) revoke(secret string) { _, cancel := b.life(b.id(secret)); cancel() }

func (b *book) check(id string) error {
	if alive, _ := b.life(id); alive.Err() != nil {
		return fmt.Errorf("%w: token revoked", registry.ErrUnauthorized)
	}
	return nil
}

func (b *book) Authenticate(_ context.Context, _, secret string) (string, error) {
	id := b.id(secret)
	if id == "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.tries++; b.tries > 3 {
			return "", &registry.TooManyError{After: 1500 * time.Millisecond}
		}
		return "", fmt.Errorf("%w: malformed token", registry.ErrUnauthorized)
	}
	return id, b.check(id)
}

func (b *book) Authorize(ctx context.Context, id, repository string, actions ...string) error {
	if err := b.check(id); err != nil {
		return err
	}
	return decide(policy).Authorize(ctx, "id of s"+strings.TrimPrefix(id, "tok_"), repository, actions...)
}

func (b *book) Allowed(ctx context.Context, id, repository string, actions ...string) ([]string, error) {
	if err := b.check(id); err != nil {
		return nil, err
	}
	return decide(policy).Allowed(ctx, "id of s"+strings.TrimPrefix(id, "tok_"), repository, actions...)
}

func (b *book) Watch(ctx context.Context, id string) context.Context {
	alive, _ := b.life(id)
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(alive, cancel)
	return ctx
}

// A grant is what the token endpoint answers.
type grant struct {
	Token       string
	AccessToken string `json:"access_token"`
	Refresh     string `json:"refresh_token"`
	Scope       string
	Expires     int       `json:"expires_in"`
	Issued      time.Time `json:"issued_at"`
}

// bearer returns the header of a bearer token for the secret and scopes.
func (s served) bearer(t *testing.T, secret string, scopes ...string) string {
	t.Helper()
	resp, body := s.do(t, "GET", "/v2/token?"+url.Values{"scope": scopes}.Encode(), "", "Authorization", basicAuth(secret))
	var g grant
	if err := json.Unmarshal([]byte(body), &g); err != nil || resp.StatusCode != 200 || g.Token == "" {
		t.Fatalf("%s %s", resp.Status, body)
	}
	return "Bearer " + g.Token
}

func basicAuth(secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+secret))
}

// claims decodes what a bearer token says, without looking at the signature.
func claims(t *testing.T, token string) (c jwt.Claims, access []map[string]any) {
	t.Helper()
	parsed, err := jwt.ParseSigned(strings.TrimPrefix(token, "Bearer "), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Access []map[string]any `json:"access"`
	}
	if err := parsed.UnsafeClaimsWithoutVerification(&c, &a); err != nil {
		t.Fatal(err)
	}
	return c, a.Access
}

func TestTokenEndpoint(t *testing.T) {
	s, _ := open(t, registry.Options{Access: &book{}, Host: "registry.example"})
	form := func(pairs ...string) string {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Add(pairs[i], pairs[i+1])
		}
		return v.Encode()
	}
	for _, tc := range []struct {
		name, secret, query, form string
		want                      string // scope that is granted
	}{
		{"no scope", secret, "", "", ""},
		{"everything", secret, form("service", "registry.example", "scope", "repository:shop:pull,push"), "", "repository:shop:pull,push"},
		{"another order", secret, form("scope", "repository:shop:push,pull,delete"), "", "repository:shop:pull,push,delete"},
		{"all", secret, form("scope", "repository:a/b:*"), "", "repository:a/b:pull,push,delete"},
		{"catalog", secret, form("scope", "registry:catalog:*"), "", "registry:catalog:*"},
		{"several", secret, form("scope", "repository:a:pull repository:b:pull", "scope", "repository:c:push"), "", "repository:a:pull repository:b:pull repository:c:push"},
		{"less than asked", "sr_shop", form("scope", "repository:shop:pull,push"), "", "repository:shop:pull"},
		{"some of several", "sr_shop", form("scope", "repository:shop:pull,push", "scope", "repository:other:pull"), "", "repository:shop:pull"},
		{"nothing of it", "sr_shop", form("scope", "repository:other:pull"), "", ""},
		{"unknown things", secret, form("scope", "repository(plugin):shop:pull", "scope", "wallet:x:spend", "scope", "repository:shop:pull,eat", "scope", "junk", "scope", "::", "scope", "repository:../x:pull", "scope", "registry:else:*"), "", "repository:shop:pull"},
		{"offline", secret, form("offline_token", "true", "scope", "repository:shop:pull"), "", "repository:shop:pull"},
		{"password", "", "", form("grant_type", "password", "username", "x", "password", "sr_shop", "scope", "repository:shop:pull,push"), "repository:shop:pull"},
		{"refresh token", "", "", form("grant_type", "refresh_token", "refresh_token", secret, "scope", "repository:a:pull repository:b:push", "access_type", "offline"), "repository:a:pull repository:b:push"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			method, header := "GET", []string{"Authorization", basicAuth(tc.secret)}
			if tc.form != "" {
				method, header = "POST", []string{"Authorization", "", "Content-Type", "application/x-www-form-urlencoded; charset=utf-8"}
			}
			resp, body := s.do(t, method, "/v2/token?"+tc.query, tc.form, header...)
			var g grant
			if err := json.Unmarshal([]byte(body), &g); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%s %s", resp.Status, body)
			}
			if g.Scope != tc.want || g.Token == "" || g.Token != g.AccessToken || g.Expires != 300 || g.Issued.IsZero() {
				t.Errorf("%+v, want scope %q", g, tc.want)
			}
			if g.Refresh != "" || strings.Contains(body, secret) {
				t.Errorf("hands out the token itself: %s", body)
			}
			if got := resp.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control %q", got)
			}
			c, access := claims(t, g.Token)
			var scopes []string
			for _, a := range access {
				var actions []string
				for _, action := range a["actions"].([]any) {
					actions = append(actions, action.(string))
				}
				scopes = append(scopes, fmt.Sprintf("%s:%s:%s", a["type"], a["name"], strings.Join(actions, ",")))
			}
			if got := strings.Join(scopes, " "); got != tc.want {
				t.Errorf("the token is for %q, want %q", got, tc.want)
			}
			if !strings.HasPrefix(c.Subject, "tok_") || strings.Contains(c.Subject, secret) || !slices.Equal(c.Audience, jwt.Audience{"registry.example"}) || c.ID == "" || c.Expiry.Time().Sub(c.IssuedAt.Time()) != 5*time.Minute {
				t.Errorf("claims %+v", c)
			}
		})
	}
}

func TestTokenEndpointRefuses(t *testing.T) {
	b := &book{}
	s, _ := open(t, registry.Options{Access: b, Host: "registry.example"})
	const form = "application/x-www-form-urlencoded"
	many := "scope=" + url.QueryEscape(strings.Repeat("repository:a:pull ", 65))
	for _, tc := range []struct {
		name, method, query, body, auth string
		status                          int
		text                            string
	}{
		{"nobody", "GET", "", "", "", 401, "a token as password"},
		{"empty password", "GET", "", "", basicAuth(""), 401, "a token as password"},
		{"wrong token", "GET", "", "", basicAuth("nope"), 401, `"message":"malformed token"`},
		{"wrong token by form", "POST", "", "grant_type=password&username=x&password=nope", "", 401, "malformed token"},
		{"wrong identity token", "POST", "", "grant_type=refresh_token&refresh_token=nope", "", 401, "malformed token"},
		{"too often", "GET", "", "", basicAuth("nope"), 429, "TOOMANYREQUESTS"},
		{"outage", "GET", "", "", basicAuth("sr_unknowable"), 503, "UNAVAILABLE"},
		{"other grant", "POST", "", "grant_type=authorization_code&code=1", "", 400, "invalid_request"},
		{"secret in the query", "POST", "grant_type=password&username=x&password=" + secret, "", "", 400, "invalid_request"},
		{"broken form", "POST", "", "grant_type=%zz", "", 400, "invalid_request"},
		{"endless form", "POST", "", "grant_type=password&password=" + strings.Repeat("x", 1<<17), "", 400, "invalid_request"},
		{"endless scopes", "GET", many, "", basicAuth(secret), 400, "too many scopes"},
		{"other method", "PUT", "", "", basicAuth(secret), 400, "invalid_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := s.do(t, tc.method, "/v2/token?"+tc.query, tc.body, "Authorization", tc.auth, "Content-Type", form)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.text) {
				t.Errorf("%s %s; want %d with %q", resp.Status, body, tc.status, tc.text)
			}
			if got, want := resp.Header.Get("WWW-Authenticate"), `Basic realm="registry.example"`; tc.status == 401 && got != want {
				t.Errorf("WWW-Authenticate %q, want %q", got, want)
			}
			if got := resp.Header.Get("Retry-After"); tc.status == 429 && got != "2" {
				t.Errorf("Retry-After %q", got)
			}
			if strings.Contains(body, "10.0.0.7") {
				t.Errorf("tells strangers about our network: %s", body)
			}
		})
	}
}

func TestBearer(t *testing.T) {
	b := &book{}
	s, _ := open(t, registry.Options{Access: b, Host: "registry.example"})
	link(t, s.repository(t, "shop"), randomImage(t), t.TempDir(), "v1")
	pull := s.bearer(t, "sr_shop", "repository:shop:pull,push")
	none := s.bearer(t, "sr_shop")
	admin := s.bearer(t, secret, "repository:shop:pull")
	tampered := pull[:len(pull)-3] + "AAA"
	for _, tc := range []struct {
		name, method, path, auth string
		status                   int
		challenge                string // what it ends with
	}{
		{"known", "GET", "/v2/", none, 200, ""},
		{"may", "GET", "/v2/shop/manifests/v1", pull, 200, ""},
		{"may", "HEAD", "/v2/shop/manifests/v1", "bearer " + strings.TrimPrefix(pull, "Bearer "), 200, ""},
		{"lists", "GET", "/v2/shop/tags/list", pull, 200, ""},
		{"could have more", "GET", "/v2/shop/manifests/v1", none, 401, `,scope="repository:shop:pull",error="insufficient_scope"`},
		{"could have more", "POST", "/v2/shop/blobs/uploads/", admin, 401, `,scope="repository:shop:pull,push",error="insufficient_scope"`},
		{"could have more", "GET", "/v2/_catalog", admin, 401, `,scope="registry:catalog:*",error="insufficient_scope"`},
		{"for another repository", "GET", "/v2/other/manifests/v1", admin, 401, `,scope="repository:other:pull",error="insufficient_scope"`},
		{"may never", "POST", "/v2/shop/blobs/uploads/", pull, 403, ""},
		{"may never", "GET", "/v2/other/manifests/v1", pull, 403, ""},
		{"nobody", "GET", "/v2/shop/manifests/v1", "", 401, `,scope="repository:shop:pull"`},
		{"tampered", "GET", "/v2/shop/manifests/v1", tampered, 401, `,scope="repository:shop:pull",error="invalid_token"`},
		{"as a password", "GET", "/v2/", basicAuth(strings.TrimPrefix(pull, "Bearer ")), 401, `service="registry.example"`},
		{"wrong token itself", "GET", "/v2/", "Bearer nope", 401, `,error="invalid_token"`},
	} {
		t.Run(tc.name+" "+tc.method+" "+tc.path, func(t *testing.T) {
			resp, body := s.do(t, tc.method, tc.path, "", "Authorization", tc.auth, "Accept", manifestType)
			if resp.StatusCode != tc.status {
				t.Errorf("%s %s; want %d", resp.Status, body, tc.status)
			}
			got, want := resp.Header.Get("WWW-Authenticate"), ""
			if tc.status == 401 {
				want = fmt.Sprintf("Bearer realm=%q", s.url+"/v2/token")
			}
			if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, tc.challenge) || (got == "") != (want == "") {
				t.Errorf("WWW-Authenticate %s, want %s…%s", got, want, tc.challenge)
			}
		})
	}
	if resp, body := s.do(t, "POST", "/v2/shop/blobs/uploads/", "", "Authorization", s.bearer(t, secret, "repository:shop:push,pull")); resp.StatusCode != 202 {
		t.Errorf("push: %s %s", resp.Status, body)
	}
	b.revoke("sr_shop")
	resp, body := s.do(t, "GET", "/v2/shop/manifests/v1", "", "Authorization", pull)
	if resp.StatusCode != 401 || !strings.Contains(body, "token revoked") || !strings.HasSuffix(resp.Header.Get("WWW-Authenticate"), `,error="invalid_token"`) {
		t.Errorf("revoked: %s %s %s", resp.Status, resp.Header.Get("WWW-Authenticate"), body)
	}
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

// TestBearerExpires asks in a bubble, where time is ours.
func TestBearerExpires(t *testing.T) {
	s, _ := open(t, registry.Options{})
	synctest.Test(t, func(t *testing.T) {
		ask := func(path, auth string) *httptest.ResponseRecorder {
			req := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
			req.Header.Set("Authorization", auth)
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, req)
			return w
		}
		var g grant
		if err := json.Unmarshal(ask("/v2/token", basicAuth(secret)).Body.Bytes(), &g); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Minute - time.Second)
		if w := ask("/v2/", "Bearer "+g.Token); w.Code != 200 {
			t.Errorf("in time: %d %s", w.Code, w.Body)
		}
		time.Sleep(2 * time.Second)
		if w := ask("/v2/", "Bearer "+g.Token); w.Code != 401 || !strings.Contains(w.Body.String(), "expired") {
			t.Errorf("too late: %d %s", w.Code, w.Body)
		}
	})
}

// TestForgedBearer signs tokens as the registry would, and changes one thing.
func TestForgedBearer(t *testing.T) {
	root := t.TempDir()
	lax := decide(func(secret, _ string, _ ...string) error {
		if secret == "tok_deleted" {
			return registry.ErrUnauthorized
		}
		return nil
	})
	s, _ := open(t, registry.Options{Root: root, Host: "registry.example", Access: lax})
	file := filepath.Join(root, "token.key")
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", fi, err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*ecdsa.PrivateKey)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	good := map[string]any{
		"iss": "registry.example", "aud": "registry.example", "sub": "id of " + secret, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		"access": []any{map[string]any{"type": "repository", "name": "shop", "actions": []string{"pull"}}},
	}
	with := func(name string, value any) map[string]any {
		c := maps.Clone(good)
		if c[name] = value; value == nil {
			delete(c, name)
		}
		return c
	}
	own := sign(t, jose.ES256, key, good)
	parts := strings.Split(own, ".")
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	embedded := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: other}, &jose.SignerOptions{EmbedJWK: true}, good)
	for _, tc := range []struct {
		name, token string
		status      int
	}{
		{"good", own, 404}, // there is no such manifest
		{"without a signature", unsigned, 401},
		{"without a signature but the dot", parts[0] + "." + parts[1] + ".", 401},
		{"signed with the public key", sign(t, jose.HS256, public, good), 401},
		{"signed with another key", sign(t, jose.ES256, other, good), 401},
		{"brings its key", embedded, 401},
		{"other issuer", sign(t, jose.ES256, key, with("iss", "else.example")), 401},
		{"other audience", sign(t, jose.ES256, key, with("aud", "else.example")), 401},
		{"no audience", sign(t, jose.ES256, key, with("aud", nil)), 401},
		{"expired", sign(t, jose.ES256, key, with("exp", now.Add(-time.Second).Unix())), 401},
		{"never expires", sign(t, jose.ES256, key, with("exp", nil)), 401},
		{"not yet", sign(t, jose.ES256, key, with("nbf", now.Add(time.Minute).Unix())), 401},
		{"nobody's", sign(t, jose.ES256, key, with("sub", nil)), 401},
		{"unknown token", sign(t, jose.ES256, key, with("sub", "tok_deleted")), 401},
		{"replayed elsewhere", strings.Replace(own, parts[1], base64.RawURLEncoding.EncodeToString([]byte("{}")), 1), 401},
	} {
		resp, body := s.do(t, "GET", "/v2/shop/manifests/v1", "", "Authorization", "Bearer "+tc.token)
		if resp.StatusCode != tc.status {
			t.Errorf("%s: %s %s; want %d", tc.name, resp.Status, body, tc.status)
		}
	}
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	return signWith(t, jose.SigningKey{Algorithm: alg, Key: key}, nil, claims)
}

func signWith(t *testing.T, key jose.SigningKey, o *jose.SignerOptions, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(key, o)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestBearerSurvivesRestart(t *testing.T) {
	root := t.TempDir()
	s, stop := open(t, registry.Options{Root: root})
	token := s.bearer(t, secret)
	header, _, _ := strings.Cut(strings.TrimPrefix(token, "Bearer "), ".")
	raw, err := base64.RawURLEncoding.DecodeString(header)
	var h struct{ Alg, Kid, Typ string }
	if err := json.Unmarshal(raw, &h); err != nil || h.Alg != "ES256" || h.Typ != "JWT" {
		t.Errorf("header %s, %v", raw, err)
	}
	if n, err := base64.RawURLEncoding.DecodeString(h.Kid); err != nil || len(n) != crypto.SHA256.Size() {
		t.Errorf("key id %q", h.Kid)
	}
	if err != nil {
		t.Fatal(err)
	}
	stop()
	again, stop := open(t, registry.Options{Root: root})
	if resp, body := again.do(t, "GET", "/v2/", "", "Authorization", token); resp.StatusCode != 200 {
		t.Errorf("after a restart: %s %s", resp.Status, body)
	}
	stop()
	if err := os.WriteFile(filepath.Join(root, "token.key"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh, _ := open(t, registry.Options{Root: root})
	if resp, body := fresh.do(t, "GET", "/v2/", "", "Authorization", token); resp.StatusCode != 401 {
		t.Errorf("with another key: %s %s", resp.Status, body)
	}
	if resp, body := fresh.do(t, "GET", "/v2/", "", "Authorization", fresh.bearer(t, secret)); resp.StatusCode != 200 {
		t.Errorf("with another key: %s %s", resp.Status, body)
	}
}

func TestRealm(t *testing.T) {
	forwarded := http.Header{
		"X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"registry.example"}, "X-Forwarded-For": {"6.6.6.6, 203.0.113.7"},
	}
	for _, tc := range []struct {
		name    string
		proxied bool
		header  http.Header
		want    string
		addr    string
	}{
		{"plain", false, nil, "http://inside:7071", "192.0.2.1"},
		{"headers of a client", false, forwarded, "http://inside:7071", "192.0.2.1"},
		{"proxy", true, forwarded, "https://registry.example", "203.0.113.7"},
		{"proxy that says nothing", true, nil, "http://inside:7071", "192.0.2.1"},
		{"proxy that passes junk", true, http.Header{"X-Forwarded-Proto": {"gopher"}, "X-Forwarded-For": {"unknown"}}, "http://inside:7071", "192.0.2.1"},
		{"client pretends before the proxy", true, http.Header{"X-Forwarded-For": {"6.6.6.6", "203.0.113.7"}, "X-Forwarded-Proto": {"http, https"}}, "https://inside:7071", "203.0.113.7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var a asked
			s, _ := open(t, registry.Options{Access: &a, Proxied: tc.proxied})
			ask := func(auth string) *httptest.ResponseRecorder {
				req := httptest.NewRequestWithContext(t.Context(), "GET", "http://inside:7071/v2/", nil)
				maps.Copy(req.Header, tc.header)
				req.Header.Set("Authorization", auth)
				w := httptest.NewRecorder()
				s.Handler().ServeHTTP(w, req)
				return w
			}
			if got, want := ask("").Header().Get("WWW-Authenticate"), fmt.Sprintf("Bearer realm=%q", tc.want+"/v2/token"); !strings.HasPrefix(got, want+",") {
				t.Errorf("WWW-Authenticate %s, want %s", got, want)
			}
			ask(basicAuth("s"))
			if got := a.take(); len(got) != 2 || !strings.HasSuffix(got[0], " at "+tc.addr) {
				t.Errorf("asked %q, want address %s", got, tc.addr)
			}
		})
	}
	s, _ := open(t, registry.Options{})
	tls := httptest.NewTLSServer(s.Handler())
	defer tls.Close()
	resp, err := tls.Client().Get(tls.URL + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, fmt.Sprintf("Bearer realm=%q,", tls.URL+"/v2/token")) {
		t.Errorf("by TLS: %s", got)
	}
}
