package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/auth"
)

// gateName is the name under which distribution knows how to find a gate.
const gateName = "slipway"

// registerGate makes gates known to distribution, which keeps its access
// controllers in one table for the process. The gate itself comes with each
// configuration, so registries in one process stay apart.
var registerGate = sync.OnceValue(func() error {
	return auth.Register(gateName, func(options map[string]any) (auth.AccessController, error) {
		g, ok := options["gate"].(*gate)
		if !ok {
			return nil, errors.New("no gate configured")
		}
		return g, nil
	})
})

// A gate asks an Access about each request, on behalf of distribution.
type gate struct {
	access  Access
	mint    *mint
	proxied bool
	log     *slog.Logger
}

// errScope is why a bearer token does not suffice where another one, made for
// the same token, would.
var errScope = errors.New("the bearer token was made for something else")

// Authorized implements distribution's auth.AccessController. The user name
// of the grant stays empty: people paste tokens there, and it would be logged.
func (g *gate) Authorized(r *http.Request, wanted ...auth.Access) (*auth.Grant, error) {
	c := callerOf(r.Context())
	if c == nil {
		return nil, errors.New("the request did not come through the gate")
	}
	repositories, actions := group(wanted, cancels(r))
	for _, name := range repositories {
		if err := g.may(r.Context(), c, name, actions[name]); err != nil {
			return nil, &refusal{gate: g, err: err, scopes: scopesOf(repositories, actions)}
		}
	}
	g.watch(r.Context(), c)
	return &auth.Grant{}, nil
}

// cancels reports whether a request gives up an upload. Distribution takes that
// for a deletion; but who may begin an upload may end it.
func cancels(r *http.Request) bool {
	return r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/blobs/uploads/")
}

// group sorts what a request wants by repository, in order of appearance.
// There is at least one: the empty one, when it concerns none.
func group(wanted []auth.Access, cancels bool) (repositories []string, actions map[string][]string) {
	actions = make(map[string][]string)
	for _, a := range wanted {
		name, action := a.Name, a.Action
		if a.Type != "repository" {
			name, action = "", ActionCatalog
		}
		if cancels && action == ActionDelete {
			action = ActionPush
		}
		if !slices.Contains(repositories, name) {
			repositories = append(repositories, name)
		}
		actions[name] = append(actions[name], action)
	}
	if len(repositories) == 0 {
		repositories = []string{""}
	}
	return repositories, actions
}

func scopesOf(repositories []string, actions map[string][]string) []scope {
	var out []scope
	for _, name := range repositories {
		if len(actions[name]) > 0 {
			out = append(out, scopeOf(name, actions[name]...))
		}
	}
	return out
}

// unmounted returns the request without its wish to mount a blob from a
// repository that the caller may not read: it is an ordinary upload then, as
// the specification of OCI wants it, where distribution would refuse the push.
func (g *gate) unmounted(r *http.Request, c *caller) *http.Request {
	if r.Method != http.MethodPost || r.URL.RawQuery == "" || c.err != nil {
		return r
	}
	query := r.URL.Query()
	from := query.Get("from")
	if from == "" {
		return r
	}
	if ok, err := g.sees(r.Context(), c, from); err == nil && ok && (!c.minted || covers(c.scopes, from, []string{ActionPull})) {
		return r
	}
	query.Del("from")
	query.Del("mount")
	u := *r.URL
	u.RawQuery = query.Encode()
	r = r.WithContext(r.Context())
	r.URL = &u
	return r
}

// sees reports whether the caller's token may pull from a repository.
func (g *gate) sees(ctx context.Context, c *caller, repository string) (bool, error) {
	allowed, err := g.access.Allowed(ctx, c.id, repository, ActionPull)
	return slices.Contains(allowed, ActionPull), err
}

// A refusal is why a request may not go on. To distribution it is a challenge,
// which it would always answer with 401.
type refusal struct {
	gate   *gate
	err    error
	scopes []scope // that the request needs
	basic  bool    // whether it is bearer tokens that the client asked for
}

func (f *refusal) Error() string { return f.err.Error() }
func (f *refusal) Unwrap() error { return f.err }

// SetHeaders answers the request, in place of what distribution will try to
// write after it.
func (f *refusal) SetHeaders(r *http.Request, _ http.ResponseWriter) {
	c := callerOf(r.Context())
	f.serve(c.answer, r)
	c.answer.sealed = true
}

// serve answers the request.
func (f *refusal) serve(w http.ResponseWriter, r *http.Request) {
	var code errcode.Error
	var wait *TooManyError
	switch {
	case errors.Is(f.err, ErrDenied):
		code = errcode.ErrorCodeDenied.WithMessage(f.err.Error())
	case errors.Is(f.err, ErrUnauthorized), errors.Is(f.err, errScope):
		code = errcode.ErrorCodeUnauthorized.WithMessage(whyNot(f.err))
		w.Header().Set("WWW-Authenticate", f.challenge(callerOf(r.Context())))
	case errors.Is(f.err, ErrTooMany):
		code = errcode.ErrorCodeTooManyRequests.WithMessage(f.err.Error())
		after := 1.0
		if errors.As(f.err, &wait) {
			after = max(after, math.Ceil(wait.After.Seconds()))
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(after)))
	default:
		code = errcode.ErrorCodeUnavailable.WithMessage("the registry cannot find out at the moment what you may do")
		w.Header().Set("Retry-After", "1")
		if r.Context().Err() == nil {
			f.gate.log.Error("registry: a request could not be decided on", "error", f.err)
		}
	}
	_ = errcode.ServeJSON(w, code) // the client is gone: nothing to tell it
}

// whyNot says what is wrong with a token, without what the code says anyway.
func whyNot(err error) string {
	if err == ErrUnauthorized {
		return "log in with any user name, and a token as password"
	}
	return strings.TrimPrefix(err.Error(), ErrUnauthorized.Error()+": ")
}

// challenge says where a client gets a bearer token, for what, and what is
// wrong with the one it has.
func (f *refusal) challenge(c *caller) string {
	if f.basic {
		return fmt.Sprintf("Basic realm=%q", f.gate.mint.name)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Bearer realm=%q,service=%q", c.origin.scheme+"://"+c.origin.host+tokenPath, f.gate.mint.name)
	if len(f.scopes) > 0 {
		names := make([]string, len(f.scopes))
		for i, s := range f.scopes {
			names[i] = s.String()
		}
		fmt.Fprintf(&b, ",scope=%q", strings.Join(names, " "))
	}
	switch {
	case errors.Is(f.err, errScope):
		b.WriteString(`,error="insufficient_scope"`)
	case c.bearer:
		b.WriteString(`,error="invalid_token"`)
	}
	return b.String()
}

// An answer drops what is written once it is sealed, and a second header:
// distribution writes one when a client goes away in the middle.
type answer struct {
	http.ResponseWriter
	headed, sealed bool
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.sealed || a.headed {
		return
	}
	a.headed = status >= 200
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.sealed {
		return len(p), nil
	}
	a.headed = true
	return a.ResponseWriter.Write(p)
}
