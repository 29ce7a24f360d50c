package pushd

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

const maxTokenAnswer = 1 << 20

// An authorizer knows how a registry wants to be asked, and keeps the bearer
// tokens of one repository. A token is fetched anew shortly before it
// expires and whenever the registry no longer takes it.
type authorizer struct {
	repo name.Repository
	opts HTTPOptions
	turn chan struct{} // held by who fetches a token

	mu        sync.Mutex
	challenge *auth.Challenge
	tokens    map[string]token // by the repository that may be read besides
	secrets   []string         // not to appear in messages
}

type token struct {
	value string
	renew time.Time
}

func newAuthorizer(repo name.Repository, o HTTPOptions) *authorizer {
	return &authorizer{repo: repo, opts: o, turn: make(chan struct{}, 1), tokens: make(map[string]token)}
}

// header returns the Authorization header for a request that pushes to the
// repository and reads from another, if from is not empty.
func (a *authorizer) header(ctx context.Context, scheme, from string) (string, error) {
	a.mu.Lock()
	c := a.challenge
	a.mu.Unlock()
	if c == nil || c.Scheme != auth.BearerAuth {
		cfg, err := a.credentials(ctx)
		if err != nil || c == nil && cfg.RegistryToken == "" {
			return "", err // wait for the challenge
		}
		return plain(cfg), nil
	}
	return a.bearer(ctx, scheme, from)
}

func plain(c authn.AuthConfig) string {
	switch {
	case c.RegistryToken != "":
		return "Bearer " + c.RegistryToken
	case c.Username != "" || c.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
	case c.Auth != "":
		return "Basic " + c.Auth
	}
	return ""
}

func (a *authorizer) credentials(ctx context.Context) (authn.AuthConfig, error) {
	c, err := a.opts.Auth(ctx, a.repo.RegistryStr())
	if err != nil {
		return authn.AuthConfig{}, a.fail(a.repo.RegistryStr(), ErrUnauthorized, "get credentials", err)
	}
	if c.Auth != "" && c.Username == "" && c.Password == "" {
		if raw, err := base64.StdEncoding.DecodeString(c.Auth); err == nil {
			c.Username, c.Password, _ = strings.Cut(string(raw), ":")
		}
	}
	a.hide(c.Password, c.Auth, c.IdentityToken, c.RegistryToken)
	return c, nil
}

// bearer returns a token that is good for a while.
func (a *authorizer) bearer(ctx context.Context, scheme, from string) (string, error) {
	if v := a.cached(from); v != "" {
		return v, nil
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if v := a.cached(from); v != "" {
		return v, nil // another request was faster
	}
	cfg, err := a.credentials(ctx)
	if err != nil {
		return "", err
	}
	if cfg.RegistryToken != "" {
		return "Bearer " + cfg.RegistryToken, nil
	}
	value, life, err := a.fetch(ctx, scheme, from, cfg)
	if err != nil {
		return "", err
	}
	a.hide(value)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[from] = token{value: value, renew: time.Now().Add(life - min(life/4, 30*time.Second))}
	return "Bearer " + value, nil
}

func (a *authorizer) cached(from string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.tokens[from]; t.value != "" && time.Now().Before(t.renew) {
		return "Bearer " + t.value
	}
	return ""
}

// fetch asks the token server that the challenge names.
func (a *authorizer) fetch(ctx context.Context, scheme, from string, cfg authn.AuthConfig) (string, time.Duration, error) {
	a.mu.Lock()
	c := *a.challenge
	a.mu.Unlock()
	realm, err := url.Parse(c.Parameters["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && (realm.Scheme != "http" || scheme != "http") {
		return "", 0, a.fail(a.repo.RegistryStr(), ErrRefused, "get token", errors.New("registry names no usable token server"))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.opts.Timeout, errNoAnswer)
	defer cancel()
	to := auth.TokenOptions{
		Realm: realm.String(), Service: c.Parameters["service"], Scopes: a.scopes(c, from),
		Username: cfg.Username, Secret: cfg.Password,
	}
	client := &http.Client{Transport: bounded{a.opts.Transport}, CheckRedirect: sameHost}
	agent := http.Header{"User-Agent": {"slipway"}}
	if cfg.IdentityToken != "" {
		to.Username, to.Secret = "", cfg.IdentityToken
		t, err := auth.FetchTokenWithOAuth(ctx, client, agent, "slipway", to)
		if err != nil {
			return "", 0, a.tokenError(ctx, realm.Host, err)
		}
		return t.AccessToken, life(t.ExpiresInSeconds), nil
	}
	t, err := auth.FetchToken(ctx, client, agent, to)
	if err != nil {
		return "", 0, a.tokenError(ctx, realm.Host, err)
	}
	return t.Token, life(t.ExpiresInSeconds), nil
}

// life is how long a token holds; without word of it the protocol says 60 s.
func life(seconds int) time.Duration {
	if seconds <= 0 {
		seconds = 60
	}
	return time.Duration(min(seconds, 24*3600)) * time.Second
}

// scopes returns what to ask for. What the registry itself names is added if
// it is about something else: some know repositories by other names.
func (a *authorizer) scopes(c auth.Challenge, from string) []string {
	s := []string{"repository:" + a.repo.RepositoryStr() + ":pull,push"}
	if from != "" {
		s = append(s, "repository:"+from+":pull")
	}
	for _, named := range strings.Fields(c.Parameters["scope"]) {
		i := strings.LastIndex(named, ":")
		if i < 0 {
			continue
		}
		if !slices.ContainsFunc(s, func(have string) bool { return strings.HasPrefix(have, named[:i+1]) }) {
			s = append(s, named)
		}
	}
	return s
}

// challenged learns from a 401 and reports whether the same request may do
// better now. Used is the header that was refused.
func (a *authorizer) challenged(h http.Header, used, from string) bool {
	c := auth.ParseAuthHeader(h)
	if len(c) == 0 || c[0].Scheme == auth.DigestAuth {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	first := a.challenge == nil
	a.challenge = &c[0]
	if c[0].Scheme == auth.BearerAuth {
		if t := a.tokens[from]; "Bearer "+t.value == used {
			delete(a.tokens, from)
		}
		return true
	}
	return first || used == ""
}

// insufficient reports whether a 401 means that the token is good but not
// for this.
func insufficient(h http.Header) bool {
	for _, c := range auth.ParseAuthHeader(h) {
		if c.Parameters["error"] == "insufficient_scope" {
			return true
		}
	}
	return false
}

// tokenError says what a token server refused.
func (a *authorizer) tokenError(ctx context.Context, host string, err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	switch {
	case errors.As(err, &status):
		e := a.fail(host, ErrUnauthorized, "get token", nil)
		e.Status = status.StatusCode
		e.Code, e.Message = message(http.Header{}, status.Body)
		e.Message = a.scrub(e.Message)
		switch {
		case passes(e.Status):
			e.Kind = ErrUnavailable
		case e.Status == http.StatusForbidden:
			e.Kind = ErrDenied
		}
		return e
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), errNoAnswer):
		return context.Cause(ctx)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		// An url.Error holds the address, and that may hold secrets.
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
	}
	return a.fail(host, ErrUnavailable, "get token", err)
}

func (a *authorizer) fail(host string, kind error, op string, err error) *Error {
	return &Error{Kind: kind, Op: op, Host: host, Repository: a.repo.RepositoryStr(), Err: err}
}

// hide remembers secrets that must not appear in messages.
func (a *authorizer) hide(secrets ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range secrets {
		if len(s) >= 4 && !slices.Contains(a.secrets, s) {
			a.secrets = append(a.secrets, s)
		}
	}
	if n := len(a.secrets); n > 32 {
		a.secrets = slices.Clone(a.secrets[n-32:])
	}
}

// scrub takes secrets out of a message: a registry may echo what it got.
func (a *authorizer) scrub(s string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, secret := range a.secrets {
		s = strings.ReplaceAll(s, secret, "***")
	}
	return s
}

// sameHost lets a token server redirect only within itself: the request
// carries credentials.
func sameHost(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) >= maxHops || req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		return errors.New("token server redirects elsewhere")
	}
	return nil
}

// bounded keeps answers of a token server small.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxTokenAnswer), resp.Body}
	}
	return resp, err
}
