// Package oidc checks ID tokens of OpenID Connect issuers, as CI systems and
// identity providers make them.
//
// A [Verifier] finds an issuer's keys by discovery and keeps them. It speaks
// to no issuer but those that whoever asks it trusts. Read Verify first.
package oidc

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/singleflight"

	"github.com/slipwayhq/slipway/tokens"
)

// Options tunes a Verifier. A nil *Options means the defaults.
type Options struct {
	CAFile  string        // PEM certificates to trust besides the system's
	Plain   bool          // speak http:// to issuers on this machine, for tests
	Timeout time.Duration // of one question to an issuer; 0 means 10 s
	Again   time.Duration // how soon an issuer is asked again for keys that are new or were not to be had; 0 means 10 s
}

func (o *Options) timeout() time.Duration {
	if o == nil || o.Timeout <= 0 {
		return 10 * time.Second
	}
	return o.Timeout
}

func (o *Options) again() time.Duration {
	if o == nil || o.Again <= 0 {
		return 10 * time.Second
	}
	return o.Again
}

func (o *Options) plain() bool { return o != nil && o.Plain }

// Bounds of what others give us.
const (
	maxToken  = 16 << 10
	maxAnswer = 1 << 20 // of an issuer
	maxKeys   = 200
	maxKnown  = 1000 // issuers whose keys are kept
)

// How long keys are good: they are asked for again after fresh, and an issuer
// that does not answer then is believed until they are stale.
const (
	fresh = 10 * time.Minute
	stale = time.Hour
)

// leeway is by how much clocks may differ.
const leeway = time.Minute

// algorithms are the ways to sign that only who has a private key can.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}

// A Verifier checks ID tokens. It is safe for concurrent use.
type Verifier struct {
	opts   *Options
	client *client
	asking singleflight.Group

	mu    sync.Mutex
	known map[string]*keys // by issuer
}

var _ tokens.Verifier = (*Verifier)(nil)

// New returns a Verifier that knows no keys yet.
func New(o *Options) (*Verifier, error) {
	v := &Verifier{opts: o, known: map[string]*keys{}}
	var roots *x509.CertPool
	if o != nil && o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificates for OIDC issuers: %w", err)
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificates for OIDC issuers: %s holds no PEM certificate", o.CAFile)
		}
	}
	v.client = newClient(roots, o.timeout(), o.plain())
	return v, nil
}

// Verify implements [tokens.Verifier]. Keys that an issuer has since it was
// last asked are found by asking it again, though not at once each time.
func (v *Verifier) Verify(ctx context.Context, idToken string, trusted func(issuer string) bool) (tokens.Claims, error) {
	claimed, err := peek(idToken)
	if err != nil {
		return nil, err
	}
	issuer, _ := claimed["iss"].(string)
	if issuer == "" {
		return nil, refuse("the ID token names no issuer")
	}
	if !trusted(issuer) {
		return nil, refuse("no trust rule is for the ID token's issuer")
	}
	if !v.client.mayAsk(issuer) {
		return nil, fmt.Errorf("%w: %s is not https", tokens.ErrIssuer, issuer)
	}
	k, err := v.keysOf(ctx, issuer, nil)
	if err != nil {
		return nil, err
	}
	claims, err := check(ctx, idToken, issuer, k)
	if err != nil {
		newer, askErr := v.keysOf(ctx, issuer, k)
		if askErr != nil || newer == k {
			return nil, err
		}
		if claims, err = check(ctx, idToken, issuer, newer); err != nil {
			return nil, err
		}
	}
	return claims, checkTimes(claims, time.Now())
}

// peek reads the claims of a token that nobody has checked yet.
func peek(idToken string) (tokens.Claims, error) {
	parts := strings.Split(idToken, ".")
	if len(idToken) > maxToken {
		return nil, refuse("the ID token has %d bytes, more than the %d that one can have", len(idToken), maxToken)
	}
	if len(parts) != 3 {
		return nil, refuse("this is no ID token: it has %d parts, not 3", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, refuse("this is no ID token: its payload is not base64url")
	}
	return parse(payload)
}

// parse reads claims. Numbers stay as they are written.
func parse(payload []byte) (tokens.Claims, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var c tokens.Claims
	if err := d.Decode(&c); err != nil || c == nil || d.More() {
		return nil, refuse("this is no ID token: its payload is not a JSON object")
	}
	return c, nil
}

// check returns the claims of a token that one of the keys signed.
func check(ctx context.Context, idToken, issuer string, k *keys) (tokens.Claims, error) {
	checker := oidc.NewVerifier(issuer, &k.set, &oidc.Config{
		SkipClientIDCheck:    true, // each trust rule has an audience of its own
		SkipExpiryCheck:      true, // checkTimes does that with one leeway for all
		SupportedSigningAlgs: algorithms,
	})
	t, err := checker.Verify(ctx, idToken)
	if err != nil {
		return nil, refuse("the ID token's signature is not one of its issuer's")
	}
	var payload json.RawMessage
	if err := t.Claims(&payload); err != nil {
		return nil, refuse("this is no ID token: its payload is not a JSON object")
	}
	c, err := parse(payload)
	if err == nil && c["iss"] != issuer {
		err = refuse("the ID token is of another issuer")
	}
	return c, err
}

// checkTimes refuses what is over and what is to come.
func checkTimes(c tokens.Claims, now time.Time) error {
	exp, given, err := moment(c, "exp")
	switch {
	case err != nil:
		return err
	case !given:
		return refuse("the ID token does not say when it expires")
	case !now.Before(exp.Add(leeway)):
		return refuse("the ID token expired at %s", exp.UTC().Format(time.RFC3339))
	}
	for _, name := range []string{"nbf", "iat"} {
		t, given, err := moment(c, name)
		if err != nil {
			return err
		}
		if given && t.After(now.Add(leeway)) {
			return refuse("the ID token is from the future: %s is %s; is a clock wrong?", name, t.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// moment reads a claim that is a time.
func moment(c tokens.Claims, name string) (t time.Time, given bool, err error) {
	v, given := c[name]
	if !given {
		return t, false, nil
	}
	n, _ := v.(json.Number)
	seconds, err := n.Float64()
	const year9999 = 253402300799
	if err != nil || math.IsNaN(seconds) || seconds < 0 || seconds > year9999 {
		return t, true, refuse("the ID token's %s is no time", name)
	}
	return time.Unix(int64(seconds), 0), true, nil
}

// refuse returns an error for who presented the token.
func refuse(format string, args ...any) error {
	return &tokens.ExchangeError{Text: fmt.Sprintf(format, args...), Hint: "ask the CI system or the identity provider for a new ID token"}
}

// secure reports whether nobody on the way to a URL can change what is said.
func secure(u *url.URL, plain bool) bool {
	switch u.Scheme {
	case "https":
		return u.Host != "" && u.User == nil
	case "http":
		return plain && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1" || u.Hostname() == "localhost")
	}
	return false
}

var errInsecure = errors.New("not an https address")
