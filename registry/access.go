package registry

import (
	"context"
	"time"
)

// The actions that a request may need.
const (
	ActionPull    = "pull"
	ActionPush    = "push"
	ActionDelete  = "delete"
	ActionCatalog = "catalog" // list the names of the repositories that it may pull from
)

// An Access knows tokens and decides what they may do. Clients hand in the
// token itself, or a bearer token that the registry made for it and that lives
// for minutes: the registry puts the ID in that one to the Access on each
// request. So an Access must not remember what may be revoked, and a token that
// it revokes is dead at once, bearer tokens and all.
//
// Errors that wrap [ErrUnauthorized], [ErrDenied] or [ErrTooMany] are decisions,
// whose text the client gets to read; on any other the request fails for the
// time being, and the client does not learn why. [RemoteAddr] says who asks. An
// Access is safe for concurrent use.
type Access interface {
	// Authenticate returns the ID of the token that the secret is, given under
	// that user name. The ID is no secret and never changes its meaning. The
	// error wraps ErrUnauthorized for a secret that is no good, and its text
	// says why; ErrTooMany for a client that had better wait.
	Authenticate(ctx context.Context, user, secret string) (id string, err error)

	// Authorize returns nil if the token of that ID may do all of the actions in
	// the repository now. The repository is empty when the request concerns
	// none: then the action is ActionCatalog, or there is none and the question
	// is only whether the token is still good. The error wraps ErrUnauthorized
	// if it is not, and ErrDenied if it does not suffice. It is asked once for
	// each request that names its token.
	Authorize(ctx context.Context, id, repository string, actions ...string) error

	// Allowed returns those of the actions that Authorize would let the token
	// do, maybe none. Nobody tries to do any of them yet: it is asked about what
	// a bearer token or a list should contain, so a no is nothing to report.
	// The error wraps ErrUnauthorized for a token that is no longer good.
	Allowed(ctx context.Context, id, repository string, actions ...string) ([]string, error)
}

// A Watcher is an [Access] that notices when a token dies. Requests that were
// let in and are still under way then, such as the upload of a large blob, are
// cut off.
type Watcher interface {
	// Watch returns a context that ends when ctx does, or as soon as the token
	// of that ID is no longer good: at once if it is not now.
	Watch(ctx context.Context, id string) context.Context
}

// A TooManyError asks a client to wait. It wraps [ErrTooMany].
type TooManyError struct{ After time.Duration }

func (e *TooManyError) Error() string {
	return ErrTooMany.Error() + ": try again in " + e.After.Round(time.Second).String()
}

func (e *TooManyError) Unwrap() error { return ErrTooMany }
