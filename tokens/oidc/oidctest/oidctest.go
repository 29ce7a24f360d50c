// Package oidctest is an OpenID Connect issuer for tests, on this machine.
package oidctest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// An Issuer signs ID tokens and says with which keys.
type Issuer struct {
	t      testing.TB
	server *httptest.Server

	mu      sync.Mutex
	keys    []jose.JSONWebKey // the last one signs
	asked   int
	pretend http.HandlerFunc // answers instead; nil for none
}

// New starts an issuer that ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t}
	i.Rotate()
	i.server = httptest.NewTLSServer(i)
	t.Cleanup(i.server.Close)
	return i
}

// URL is what the tokens have as iss.
func (i *Issuer) URL() string { return i.server.URL }

// CAFile returns a file with the certificate that the issuer's is signed with.
func (i *Issuer) CAFile() string {
	i.t.Helper()
	file := filepath.Join(i.t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		i.t.Fatal(err)
	}
	return file
}

// Rotate makes a key with which tokens are signed from now on. Those before are
// forgotten.
func (i *Issuer) Rotate() {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.Use(key, jose.ES256)
}

// Use signs with a key from now on.
func (i *Issuer) Use(key crypto.Signer, alg jose.SignatureAlgorithm) {
	i.mu.Lock()
	defer i.mu.Unlock()
	id := fmt.Sprintf("key-%d", time.Now().UnixNano())
	i.keys = []jose.JSONWebKey{{Key: key, KeyID: id, Algorithm: string(alg), Use: "sig"}}
}

// Pretend lets f answer instead of the issuer; nil ends that.
func (i *Issuer) Pretend(f http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pretend = f
}

// Asked returns how many requests there were.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// Claims returns claims of a good token for an audience, with more in addition,
// or instead. A claim that is nil is left out.
func (i *Issuer) Claims(audience string, more map[string]any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": i.URL(), "aud": audience, "sub": "somebody", "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	for name, v := range more {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

// Token signs such claims.
func (i *Issuer) Token(audience string, more map[string]any) string {
	i.t.Helper()
	payload, err := json.Marshal(i.Claims(audience, more))
	if err != nil {
		i.t.Fatal(err)
	}
	return i.Sign(payload)
}

// Sign signs any text.
func (i *Issuer) Sign(payload []byte) string {
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		i.t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

// ServeHTTP implements [http.Handler].
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked++
	pretend := i.pretend
	public := jose.JSONWebKeySet{}
	for _, k := range i.keys {
		public.Keys = append(public.Keys, k.Public())
	}
	i.mu.Unlock()
	if pretend != nil {
		pretend(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL(), "jwks_uri": i.URL() + "/keys"})
	case "/keys":
		json.NewEncoder(w).Encode(public)
	default:
		http.NotFound(w, r)
	}
}
