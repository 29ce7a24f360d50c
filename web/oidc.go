package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// OIDC says how people sign in with an OpenID Connect provider. A trust rule of
// the API decides who they are then.
type OIDC struct {
	Name     string // what the button says; empty means "single sign-on"
	Issuer   string
	ClientID string
	Secret   string       // of the client; empty for a public one
	Scopes   []string     // besides openid; nil means profile and email
	HTTP     *http.Client // to the issuer; nil means one with a time limit
}

func (o OIDC) name() string { return cmp.Or(o.Name, "single sign-on") }

// signInLife is how long somebody may be at the issuer.
const signInLife = 10 * time.Minute

// A provider knows an issuer once it has asked it.
type provider struct {
	config OIDC

	mu    sync.Mutex
	known *oidc.Provider
}

func (p *provider) client(ctx context.Context) context.Context {
	return oidc.ClientContext(ctx, cmp.Or(p.config.HTTP, &http.Client{Timeout: 15 * time.Second}))
}

// discover asks the issuer for its addresses and keys, once it has worked never
// again. Two may ask at the same time; the lock is not held meanwhile.
func (p *provider) discover(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	known := p.known
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	known, err := oidc.NewProvider(p.client(ctx), p.config.Issuer)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = known
	return known, nil
}

func (p *provider) oauth(known *oidc.Provider, base *url.URL) *oauth2.Config {
	scopes := p.config.Scopes
	if scopes == nil {
		scopes = []string{"profile", "email"}
	}
	return &oauth2.Config{
		ClientID: p.config.ClientID, ClientSecret: p.config.Secret, Endpoint: known.Endpoint(),
		RedirectURL: base.JoinPath("/signin/oidc/callback").String(), Scopes: append([]string{oidc.ScopeOpenID}, slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == oidc.ScopeOpenID })...),
	}
}

// base is by which the browser reaches these pages.
func (v *visit) base() *url.URL {
	if v.opts.URL != nil {
		return v.opts.URL
	}
	u := &url.URL{Scheme: "http", Host: v.r.Host}
	if v.secure() {
		u.Scheme = "https"
	}
	return u
}

// An attempt is a sign-in under way. The browser keeps it, so that only the
// browser that began it can finish it.
type attempt struct {
	State, Nonce, Verifier, Next string

	Expires int64
}

// errIssuer says that the issuer did not answer as it should; the log has why.
var errIssuer = status.Error(codes.Unavailable, "The sign-in provider cannot be used now. Try again, or sign in with a token.")

func (v *visit) startOIDC() error {
	if v.oidc == nil {
		return v.nowhere()
	}
	known, err := v.oidc.discover(v.r.Context())
	if err != nil {
		v.log.ErrorContext(v.r.Context(), "oidc: discovery", "issuer", v.oidc.config.Issuer, "err", err)
		return v.refuse(errIssuer, "")
	}
	a := attempt{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Next: local(v.r.FormValue("next")), Expires: time.Now().Add(signInLife).Unix()}
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	v.setCookie(oidcCookie, base64.RawURLEncoding.EncodeToString(text), time.Now().Add(signInLife))
	to := v.oidc.oauth(known, v.base()).AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier))
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

// attempt returns the sign-in that this browser began, and forgets it.
func (v *visit) attempt() (attempt, bool) {
	var a attempt
	text, err := base64.RawURLEncoding.DecodeString(v.cookie(oidcCookie))
	v.dropCookie(oidcCookie)
	if err != nil || json.Unmarshal(text, &a) != nil || a.State == "" || time.Now().Unix() > a.Expires {
		return attempt{}, false
	}
	return a, true
}

func (v *visit) finishOIDC() error {
	if v.oidc == nil {
		return v.nowhere()
	}
	a, ok := v.attempt()
	q := v.r.URL.Query()
	if !ok || subtle.ConstantTimeCompare([]byte(a.State), []byte(q.Get("state"))) != 1 {
		return v.refuse(status.Error(codes.PermissionDenied, "This sign-in was not begun in this browser, or too long ago. Try again."), "")
	}
	if q.Get("error") != "" {
		v.log.InfoContext(v.r.Context(), "oidc: refused by the issuer", "error", q.Get("error"))
		return v.refuse(status.Error(codes.PermissionDenied, "The sign-in provider did not let you in."), a.Next)
	}
	idToken, err := v.idToken(a, q.Get("code"))
	if err != nil {
		v.log.WarnContext(v.r.Context(), "oidc: sign-in", "err", err)
		return v.refuse(errIssuer, a.Next)
	}
	made, err := v.tokens.ExchangeToken(v.r.Context(), &slipwayv1.ExchangeTokenRequest{
		IdToken: idToken, Nonce: a.Nonce, Session: true, ExpiresIn: durationpb.New(sessionLife),
	})
	if err != nil {
		return v.refuse(err, a.Next)
	}
	return v.begin(made.Token, made.Value, a.Next)
}

// refuse shows the sign-in page with a reason.
func (v *visit) refuse(err error, next string) error {
	p := explain(err)
	return v.showSignIn(httpStatus(status.Code(err)), next, &p)
}

// errNonce means that an ID token was made for another sign-in.
var errNonce = status.Error(codes.PermissionDenied, "the ID token was made for another sign-in")

// idToken gets the ID token that a code stands for. It is good: from the
// issuer, for us, for this very sign-in.
func (v *visit) idToken(a attempt, code string) (string, error) {
	known, err := v.oidc.discover(v.r.Context())
	if err != nil {
		return "", err
	}
	ctx := v.oidc.client(v.r.Context())
	got, err := v.oidc.oauth(known, v.base()).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return "", err
	}
	raw, _ := got.Extra("id_token").(string)
	checked, err := known.Verifier(&oidc.Config{ClientID: v.oidc.config.ClientID}).Verify(ctx, raw)
	if err != nil {
		return "", err
	}
	if subtle.ConstantTimeCompare([]byte(checked.Nonce), []byte(a.Nonce)) != 1 {
		return "", errNonce
	}
	return raw, nil
}
