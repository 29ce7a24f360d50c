package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/auth"
)

// The actions that a request may need.
const (
	ActionPull    = "pull"
	ActionPush    = "push"
	ActionDelete  = "delete"
	ActionCatalog = "catalog" // list the names of all repositories
)

// An Access decides who may do what.
type Access interface {
	// Authorize returns nil if the secret, given under that user name, allows
	// the actions in the repository. The repository is empty when the request
	// concerns none: then the action is ActionCatalog, or there is none and
	// the question is only whether the secret is good.
	//
	// It returns an error that wraps ErrUnauthorized for a secret it does not
	// know, and ErrDenied for one that does not suffice; the client gets to
	// read either. On any other error the request fails for the time being,
	// and the client does not learn why. Authorize is called at least once for
	// each request and must not remember what may be revoked.
	Authorize(ctx context.Context, user, secret, repository string, actions ...string) error
}

// An AccessFunc is a function that is an [Access].
type AccessFunc func(ctx context.Context, user, secret, repository string, actions ...string) error

// Authorize calls f.
func (f AccessFunc) Authorize(ctx context.Context, user, secret, repository string, actions ...string) error {
	return f(ctx, user, secret, repository, actions...)
}

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
	access Access
	realm  string
	log    *slog.Logger
}

// Authorized implements distribution's auth.AccessController. The user name
// of the grant stays empty: people paste tokens there, and it would be logged.
func (g *gate) Authorized(r *http.Request, wanted ...auth.Access) (*auth.Grant, error) {
	user, secret, ok := credentials(r)
	if !ok {
		return nil, &refusal{gate: g, err: ErrUnauthorized}
	}
	repositories, actions := group(wanted)
	if len(repositories) == 0 {
		repositories = []string{""}
	}
	for _, name := range repositories {
		if err := g.access.Authorize(r.Context(), user, secret, name, actions[name]...); err != nil {
			return nil, &refusal{gate: g, err: err}
		}
	}
	return &auth.Grant{}, nil
}

// group sorts what a request wants by repository, in order of appearance.
func group(wanted []auth.Access) (repositories []string, actions map[string][]string) {
	actions = make(map[string][]string)
	for _, a := range wanted {
		name, action := a.Name, a.Action
		if a.Type != "repository" {
			name, action = "", ActionCatalog
		}
		if _, seen := actions[name]; !seen {
			repositories = append(repositories, name)
		}
		actions[name] = append(actions[name], action)
	}
	return repositories, actions
}

// credentials returns what the request proves itself with: Basic, where the
// password is the secret, or the bare secret as Bearer.
func credentials(r *http.Request) (user, secret string, ok bool) {
	if user, secret, ok = r.BasicAuth(); ok {
		return user, secret, secret != ""
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	return "", secret, strings.EqualFold(scheme, "bearer") && secret != ""
}

// enter prepares a request for distribution: refusals get their own status,
// and a mount from a repository that the client may not read becomes an
// ordinary upload, as the specification of OCI wants it, where distribution
// would refuse the push.
func (g *gate) enter(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	a := &answer{ResponseWriter: w}
	r = r.WithContext(context.WithValue(r.Context(), answerKey{}, a))
	if r.Method != http.MethodPost || r.URL.RawQuery == "" {
		return a, r
	}
	query := r.URL.Query()
	from := query.Get("from")
	user, secret, ok := credentials(r)
	if from == "" || !ok || g.access.Authorize(r.Context(), user, secret, from, ActionPull) == nil {
		return a, r
	}
	query.Del("from")
	query.Del("mount")
	u := *r.URL
	u.RawQuery = query.Encode()
	r.URL = &u
	return a, r
}

// A refusal is why a request may not go on. To distribution it is a challenge,
// which it would always answer with 401.
type refusal struct {
	gate *gate
	err  error
}

func (f *refusal) Error() string { return f.err.Error() }
func (f *refusal) Unwrap() error { return f.err }

// SetHeaders answers the request, in place of what distribution will try to
// write after it.
func (f *refusal) SetHeaders(r *http.Request, w http.ResponseWriter) {
	var code errcode.Error
	switch {
	case errors.Is(f.err, ErrDenied):
		code = errcode.ErrorCodeDenied.WithMessage(f.err.Error())
	case errors.Is(f.err, ErrUnauthorized):
		code = errcode.ErrorCodeUnauthorized.WithMessage(f.err.Error())
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", f.gate.realm))
	default:
		code = errcode.ErrorCodeUnavailable.WithMessage("access cannot be checked at the moment")
		w.Header().Set("Retry-After", "1")
		if r.Context().Err() == nil {
			f.gate.log.Error("registry: access check failed", "error", f.err)
		}
	}
	if a, ok := r.Context().Value(answerKey{}).(*answer); ok {
		_ = errcode.ServeJSON(a, code) // the client is gone: nothing to tell it
		a.sealed = true
	}
}

// An answer drops what is written once it is sealed.
type answer struct {
	http.ResponseWriter
	sealed bool
}

type answerKey struct{}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if !a.sealed {
		a.ResponseWriter.WriteHeader(status)
	}
}

func (a *answer) Write(p []byte) (int, error) {
	if a.sealed {
		return len(p), nil
	}
	return a.ResponseWriter.Write(p)
}
