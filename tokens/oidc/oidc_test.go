package oidc_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // of test servers, about handshakes that are meant to fail
	os.Exit(m.Run())
}

func anyone(string) bool { return true }

func newVerifier(t *testing.T, i *oidctest.Issuer, again time.Duration) *oidc.Verifier {
	t.Helper()
	v, err := oidc.New(&oidc.Options{CAFile: i.CAFile(), Again: again, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerify(t *testing.T) {
	i := oidctest.New(t)
	v := newVerifier(t, i, 0)
	c, err := v.Verify(t.Context(), i.Token("us", map[string]any{"n": 9007199254740993}), anyone)
	if err != nil {
		t.Fatal(err)
	}
	if c["sub"] != "somebody" || c["n"] != json.Number("9007199254740993") {
		t.Errorf("claims %v", c)
	}
	if _, err := v.Verify(t.Context(), i.Token("us", nil), anyone); err != nil || i.Asked() != 2 {
		t.Errorf("a second token: %v, after %d questions; want those for the first one, discovery and keys", err, i.Asked())
	}
}

func TestVerifyRefuses(t *testing.T) {
	i, other := oidctest.New(t), oidctest.New(t)
	now := time.Now()
	at := func(claim string, d time.Duration) string {
		return i.Token("us", map[string]any{claim: now.Add(d).Unix()})
	}
	good := i.Token("us", nil)
	parts := strings.Split(good, ".")
	header := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	hmac := func() string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
		if err != nil {
			t.Fatal(err)
		}
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		j, err := s.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := j.CompactSerialize()
		return out
	}
	v := newVerifier(t, i, time.Hour)
	for _, tc := range []struct{ name, token, want string }{
		{"nothing", "", "no ID token"},
		{"text", "no token at all", "no ID token"},
		{"JSON form", `{"payload":"` + parts[1] + `","signatures":[]}`, "no ID token"},
		{"not base64", "a.!.c", "base64url"},
		{"not JSON", "a." + header("x") + ".c", "JSON"},
		{"null", i.Sign([]byte("null")), "JSON"},
		{"a list", i.Sign([]byte("[]")), "JSON"},
		{"two objects", i.Sign([]byte(`{"iss":"` + i.URL() + `"} {}`)), "JSON"},
		{"huge", i.Token("us", map[string]any{"x": strings.Repeat("x", 20<<10)}), "bytes"},
		{"no issuer", i.Token("us", map[string]any{"iss": nil}), "no issuer"},
		{"issuer a number", i.Token("us", map[string]any{"iss": 7}), "no issuer"},
		{"wrong key", other.Token("us", map[string]any{"iss": i.URL()}), "signature"},
		{"alg none", header(`{"alg":"none"}`) + "." + parts[1] + ".", "signature"},
		{"alg HS256", hmac(), "signature"},
		{"another payload", parts[0] + "." + header(`{"iss":"`+i.URL()+`","exp":9999999999}`) + "." + parts[2], "signature"},
		{"cut short", good[:len(good)-4], "signature"},
		{"no expiry", i.Token("us", map[string]any{"exp": nil}), "does not say when"},
		{"expiry in words", i.Token("us", map[string]any{"exp": "tomorrow"}), "signature"}, // go-oidc reads no claims then
		{"expiry without end", i.Token("us", map[string]any{"exp": 1e300}), "no time"},
		{"expired", at("exp", -2*time.Minute), "expired at"},
		{"not yet", at("nbf", 2*time.Minute), "future"},
		{"made later", at("iat", 2*time.Minute), "future"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tc.token, anyone)
			if !errors.Is(err, tokens.ErrUnauthorized) || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("%v; want one about %q", err, tc.want)
			}
			if tc.token != "" && strings.Contains(fmt.Sprint(err), tc.token) {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
	for _, near := range []string{at("exp", -30*time.Second), at("nbf", 30*time.Second), at("iat", 30*time.Second)} {
		if _, err := v.Verify(t.Context(), near, anyone); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
	}
}

func TestVerifyAlgorithms(t *testing.T) {
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := oidctest.New(t)
	v := newVerifier(t, i, time.Nanosecond)
	i.Use(strong, jose.RS256)
	if _, err := v.Verify(t.Context(), i.Token("us", nil), anyone); err != nil {
		t.Errorf("RS256: %v", err)
	}
	i.Use(edwards, jose.EdDSA)
	if _, err := v.Verify(t.Context(), i.Token("us", nil), anyone); err != nil {
		t.Errorf("EdDSA: %v", err)
	}
}

// An issuer that nobody trusts is not spoken to: a token can name any address.
func TestVerifyAsksTrustedIssuersOnly(t *testing.T) {
	i := oidctest.New(t)
	v := newVerifier(t, i, 0)
	_, err := v.Verify(t.Context(), i.Token("us", nil), func(iss string) bool {
		if iss != i.URL() {
			t.Errorf("asked about %q", iss)
		}
		return false
	})
	if !errors.Is(err, tokens.ErrUnauthorized) || i.Asked() != 0 {
		t.Errorf("%v, and %d questions to the issuer", err, i.Asked())
	}
	plain := strings.Replace(i.URL(), "https", "http", 1)
	if _, err := v.Verify(t.Context(), i.Token("us", map[string]any{"iss": plain}), anyone); !errors.Is(err, tokens.ErrIssuer) {
		t.Errorf("plain http: %v", err)
	}
}

func TestVerifyFollowsRotation(t *testing.T) {
	i := oidctest.New(t)
	v := newVerifier(t, i, time.Nanosecond)
	before := i.Token("us", nil)
	if _, err := v.Verify(t.Context(), before, anyone); err != nil {
		t.Fatal(err)
	}
	i.Rotate()
	if _, err := v.Verify(t.Context(), i.Token("us", nil), anyone); err != nil {
		t.Errorf("signed with the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), before, anyone); !errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("signed with the key that was taken back: %v", err)
	}
}

// Bad tokens do not let us ask an issuer again and again.
func TestVerifyAsksSeldom(t *testing.T) {
	i := oidctest.New(t)
	v := newVerifier(t, i, time.Hour)
	forged := oidctest.New(t).Token("us", map[string]any{"iss": i.URL()})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), forged, anyone); !errors.Is(err, tokens.ErrUnauthorized) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if i.Asked() > 2 {
		t.Errorf("%d questions for 20 forged tokens", i.Asked())
	}
}

func TestVerifyDistrustsAnswers(t *testing.T) {
	i := oidctest.New(t)
	discovery := func(issuer, keys string, then http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/.well-known/openid-configuration" {
				fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer, keys)
				return
			}
			then(w, r)
		}
	}
	huge := func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"keys":[`)
		for io.WriteString(w, `{"kty":"oct","k":"`+strings.Repeat("A", 1<<16)+`"},`); ; {
			if _, err := io.WriteString(w, `{"kty":"oct","k":"`+strings.Repeat("A", 1<<16)+`"},`); err != nil {
				return
			}
		}
	}
	many := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[%s{}]}`, strings.Repeat(`{"kty":"oct","k":"AA"},`, 1000))
	}
	symmetric := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"keys":[{"kty":"oct","k":"AAAA"}]}`) }
	slow := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"not found", http.NotFound, "404"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, "decode"},
		{"of another issuer", discovery("https://evil.example", i.URL()+"/keys", http.NotFound), "did not match"},
		{"keys in plaintext", discovery(i.URL(), "http://127.0.0.1:1/keys", http.NotFound), "not an https address"},
		{"keys in a file", discovery(i.URL(), "file:///etc/passwd", http.NotFound), "not an https address"},
		{"redirected to plaintext", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "not an https address"},
		{"redirected in a circle", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, "redirects"},
		{"huge discovery", huge, "more than"},
		{"huge keys", discovery(i.URL(), i.URL()+"/keys", huge), "more than"},
		{"many keys", discovery(i.URL(), i.URL()+"/keys", many), "more than"},
		{"no keys that sign", discovery(i.URL(), i.URL()+"/keys", symmetric), "none"},
		{"slow", slow, "exceeded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i.Pretend(tc.answer)
			defer i.Pretend(nil)
			v, err := oidc.New(&oidc.Options{CAFile: i.CAFile(), Timeout: 500 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			_, err = v.Verify(t.Context(), i.Token("us", nil), anyone)
			if !errors.Is(err, tokens.ErrIssuer) || errors.Is(err, tokens.ErrUnauthorized) || !strings.Contains(strings.ToLower(fmt.Sprint(err)), tc.want) {
				t.Errorf("%v; want one about %q", err, tc.want)
			}
		})
	}
	v, err := oidc.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), i.Token("us", nil), anyone); !errors.Is(err, tokens.ErrIssuer) {
		t.Errorf("without the CA: %v", err)
	}
}

// What was good a moment ago stays so while the issuer is away.
func TestVerifyOutlivesOutage(t *testing.T) {
	i := oidctest.New(t)
	v := newVerifier(t, i, time.Nanosecond)
	token := i.Token("us", nil)
	if _, err := v.Verify(t.Context(), token, anyone); err != nil {
		t.Fatal(err)
	}
	i.Pretend(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	forged := oidctest.New(t).Token("us", map[string]any{"iss": i.URL()})
	if _, err := v.Verify(t.Context(), forged, anyone); !errors.Is(err, tokens.ErrUnauthorized) {
		t.Errorf("forged: %v", err)
	}
	if _, err := v.Verify(t.Context(), token, anyone); err != nil {
		t.Errorf("while the issuer is away: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	i := oidctest.New(f)
	v, err := oidc.New(&oidc.Options{CAFile: i.CAFile(), Again: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	payload, err := json.Marshal(i.Claims("us", nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add([]byte(`{"iss":"` + i.URL() + `","exp":1e400}`))
	f.Add([]byte(`{"iss":"` + i.URL() + `","EXP":9999999999,"ISS":"x","nbf":null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := v.Verify(t.Context(), i.Sign(payload), func(iss string) bool { return iss == i.URL() })
		if err != nil {
			if !errors.Is(err, tokens.ErrUnauthorized) && !errors.Is(err, tokens.ErrIssuer) {
				t.Fatalf("%v", err)
			}
			return
		}
		if exp, _ := c["exp"].(json.Number).Float64(); c["iss"] != i.URL() || exp < float64(time.Now().Add(-time.Minute).Unix()) {
			t.Fatalf("accepted %v", c)
		}
	})
}
