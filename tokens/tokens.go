// Package tokens says who calls and what they may do.
//
// A token is an opaque value, shown once. An [Authenticator] turns a value into
// a [Principal]; [Allow] is the one place that decides what a principal may do.
// Neither knows where tokens are kept: [AdminFile], the token that a daemon
// makes at its first start, is one Authenticator, a database can be another.
package tokens

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

var (
	// ErrUnauthorized means that nobody has this token: never issued, revoked,
	// or no token at all.
	ErrUnauthorized = errors.New("token not recognized")

	// ErrExpired means that the token was good once.
	ErrExpired = errors.New("token expired")
)

// A Principal is who a token stands for. It holds no secret.
type Principal struct {
	ID   string // of the token, never reused
	Name string // what its maker called it
	Org  string
	Type string // TypeDeploy, …
	App  string // the only app it is for; empty means every app of Org
	Env  string // the only environment it is for; empty means any

	Permission string   // of registry tokens: ReadOnly or ReadWrite
	Command    []string // of machine-exec tokens: the argv they may run, and no other
	User       string   // on whose behalf it acts
	Role       string   // of the user
	Session    bool     // a signed-in browser

	Scopes  []string
	Expires time.Time // zero means never
}

// Has reports whether the principal's token has a scope.
func (p Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

// Actor names who does what the token is used for: the user who logs in with
// it, else the token, or what stands in for one.
func (p Principal) Actor() string {
	if p.User != "" && isLogin(p) && strings.HasPrefix(p.ID, "tok_") {
		return p.User
	}
	return p.Name
}

// Expired reports whether the token is no longer good at that time.
func (p Principal) Expired(now time.Time) bool {
	return !p.Expires.IsZero() && !now.Before(p.Expires)
}

// String names the principal's token by type and app: deploy:shop.
func (p Principal) String() string {
	if p.App == "" {
		return p.Type
	}
	return p.Type + ":" + p.App
}

// An Authenticator knows tokens.
type Authenticator interface {
	// Authenticate returns whom the value stands for now. The error wraps
	// [ErrUnauthorized] or [ErrExpired], and its text is for who called; any
	// other means that it could not find out, and the caller must let nobody
	// in. An error never shows the value. It is safe for concurrent use.
	Authenticate(ctx context.Context, value string) (Principal, error)
}
