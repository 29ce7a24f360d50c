package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// tokenPath is where clients get bearer tokens.
const tokenPath = "/v2/token"

// maxForm bounds what a client sends to get a bearer token.
const maxForm = 64 << 10

// An order is what a client wants of the token endpoint.
type order struct {
	user, secret string
	scopes       []scope
}

// serveToken gives a bearer token for a token: by GET with Basic, and by POST
// with a form of OAuth 2, where the token is the password or the refresh token.
// It contains what was asked for, less what the token may not do.
func (g *gate) serveToken(w http.ResponseWriter, r *http.Request) {
	_, r = g.arrive(w, r)
	w.Header().Set("Cache-Control", "no-store")
	o, err := readOrder(w, r)
	if err != nil {
		serveJSON(w, http.StatusBadRequest, map[string]any{"error": "invalid_request", "error_description": err.Error()})
		return
	}
	now := time.Now()
	value, scopes, err := g.fill(r, o, now)
	if err != nil {
		(&refusal{gate: g, err: err, basic: true}).serve(w, r)
		return
	}
	serveJSON(w, http.StatusOK, map[string]any{
		"token": value, "access_token": value, "token_type": "Bearer", "scope": joinScopes(scopes),
		"expires_in": int(bearerLife / time.Second), "issued_at": now.UTC().Format(time.RFC3339),
	})
}

func serveJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nothing to tell it
}

// readOrder reads a request for a bearer token.
func readOrder(w http.ResponseWriter, r *http.Request) (order, error) {
	var o order
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	switch r.Method {
	case http.MethodGet:
		o.user, o.secret, _ = r.BasicAuth()
	case http.MethodPost:
		if err := r.ParseForm(); err != nil {
			return o, errors.New("the form cannot be read")
		}
		switch r.PostForm.Get("grant_type") {
		case "password":
			o.user, o.secret = r.PostForm.Get("username"), r.PostForm.Get("password")
		case "refresh_token":
			o.secret = r.PostForm.Get("refresh_token")
		default:
			return o, errors.New("grant_type must be password or refresh_token")
		}
	default:
		return o, errors.New("the method must be GET or POST")
	}
	scopes := r.URL.Query()["scope"]
	if r.Method == http.MethodPost {
		scopes = r.PostForm["scope"]
	}
	var err error
	o.scopes, err = parseScopes(scopes)
	return o, err
}

// fill returns a bearer token as ordered, and what it is good for.
func (g *gate) fill(r *http.Request, o order, now time.Time) (value string, scopes []scope, err error) {
	if o.secret == "" {
		return "", nil, ErrUnauthorized
	}
	id, err := g.access.Authenticate(r.Context(), o.user, o.secret)
	if err != nil {
		return "", nil, err
	}
	if err := g.access.Authorize(r.Context(), id, ""); err != nil {
		return "", nil, err
	}
	scopes = []scope{} // written as a list, not as null
	for _, want := range o.scopes {
		granted, err := g.grant(r, id, want)
		if err != nil {
			return "", nil, err
		}
		if len(granted.Actions) > 0 {
			scopes = append(scopes, granted)
		}
	}
	value, err = g.mint.issue(id, scopes, now)
	if err != nil {
		err = fmt.Errorf("sign a bearer token: %w", err)
	}
	return value, scopes, err
}

// grant returns the part of a scope that the token may have.
func (g *gate) grant(r *http.Request, id string, want scope) (scope, error) {
	name, _ := want.repository()
	actions := want.wanted()
	if len(actions) == 0 {
		return scope{}, nil
	}
	allowed, err := g.access.Allowed(r.Context(), id, name, actions...)
	if err != nil || len(allowed) == 0 {
		return scope{}, err
	}
	return scopeOf(name, allowed...), nil
}

func joinScopes(scopes []scope) string {
	out := make([]string, len(scopes))
	for i, s := range scopes {
		out[i] = s.String()
	}
	return strings.Join(out, " ")
}
