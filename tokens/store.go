package tokens

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Decisions that callers of a store take.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")

	// ErrInUse means that something may not be deleted: a token that is still
	// good.
	ErrInUse = errors.New("still in use")
)

// A Store keeps tokens and what they are about. What a call acknowledged
// survives a loss of power. It is safe for concurrent use, also by several
// daemons on one database. What is asked for in one org is never answered with
// what belongs to another. Times are kept to the millisecond. A text with a NUL
// byte or that is not UTF-8, and a name that is too long to be found by, is
// refused with [ErrInvalid]; only a [Decision] is kept with such bytes replaced.
// Package tokens/storetest has the suite that each implementation must pass.
type Store interface {
	TokenStore
	PrincipalStore
	AuditStore
}

// A TokenStore keeps tokens.
type TokenStore interface {
	// CreateToken adds a token by the hash of its value, and d to the audit log
	// with it. If it has a parent that is missing, of another org, revoked, or
	// expired when the token is created, or its user was removed, it adds
	// nothing and the error wraps ErrNotFound. An ID or hash that is taken is
	// ErrExists.
	CreateToken(ctx context.Context, t Token, hash Digest, d Decision) error

	// TokenByHash returns the token whose value has that hash, whatever its
	// status, and the role of its user: RoleDeveloper if the user is unknown.
	// A removed user's tokens were revoked with it.
	TokenByHash(ctx context.Context, hash Digest) (t Token, role string, err error)

	// TokenByID is TokenByHash for the ID of a token of any org, for who was
	// let in with the token before.
	TokenByID(ctx context.Context, id string) (t Token, role string, err error)

	// Token returns a token by its ID, of an org. ErrNotFound.
	Token(ctx context.Context, org, id string) (Token, error)

	// Tokens returns the tokens that q selects, newest first.
	Tokens(ctx context.Context, q TokenQuery) ([]Token, error)

	// RevokeTokens revokes tokens of an org and all that descend from them, all
	// or none, and adds d to the audit log. It returns the IDs of those that
	// were not revoked before. One that is revoked keeps the time and name that
	// it has: nothing undoes or changes a revocation. ErrNotFound if one of
	// them does not exist in the org; its text names it.
	RevokeTokens(ctx context.Context, org string, ids []string, by string, at time.Time, d Decision) ([]string, error)

	// DeleteTokens removes the records of tokens of an org, all or none, and
	// adds d to the audit log. ErrNotFound, or ErrInUse for one that is neither
	// revoked nor expired at that time, or has descendants that are not; the
	// text names it. Descendants go with it.
	DeleteTokens(ctx context.Context, org string, ids []string, at time.Time, d Decision) error

	// RevokedAfter returns the tokens of all orgs that were revoked after the
	// cursor, in order, and the cursor after the last of them. An empty cursor
	// means from now on: it returns none. It is how one daemon learns what
	// another one revoked, however close together they were; the clock of
	// neither decides.
	RevokedAfter(ctx context.Context, cursor string) (ids []string, next string, err error)

	// TouchTokens notes when and where from tokens were last used, never an
	// earlier time than the one that is kept. Unknown IDs are ignored.
	TouchTokens(ctx context.Context, uses []Use) error
}

// A Use is when and where from a token was used.
type Use struct {
	ID   string
	At   time.Time
	Addr string
}

// A TokenQuery selects tokens of one org.
type TokenQuery struct {
	Org      string
	App      string // empty means any
	Env      string // empty means any
	Type     string // empty means any
	User     string // made on behalf of; empty means anybody
	Parent   string // derived from; empty means any
	Sessions bool   // signed-in browsers, too
	Before   string // only IDs below this one; empty means all
	Limit    int    // 0 means 1000
}

// A PrincipalStore keeps orgs, apps, users and trust rules.
type PrincipalStore interface {
	CreateOrg(ctx context.Context, o Org) error // ErrExists
	Orgs(ctx context.Context) ([]Org, error)    // by name

	// ClaimApp returns the app of that name, made for a.Org if there was none.
	// It may belong to another org then: the caller looks.
	ClaimApp(ctx context.Context, a App) (App, error)
	App(ctx context.Context, name string) (App, error) // ErrNotFound
	Apps(ctx context.Context, org string) ([]App, error)

	CreateUser(ctx context.Context, u User, d Decision) error              // ErrExists, also for one that was removed
	User(ctx context.Context, org, name string) (User, error)              // ErrNotFound; removed ones are found
	Users(ctx context.Context, org string) ([]User, error)                 // by name, without removed ones
	SetRole(ctx context.Context, org, name, role string, d Decision) error // ErrNotFound; counts for the user's tokens at once

	// RemoveUser marks a user as removed and revokes the user's tokens and
	// their descendants, in one step. It returns the IDs of those that were not
	// revoked before. ErrNotFound, also for one that was removed, of whom
	// SetRole says so too.
	RemoveUser(ctx context.Context, org, name, by string, at time.Time, d Decision) ([]string, error)

	CreateTrust(ctx context.Context, t Trust, d Decision) error        // ErrExists
	Trusts(ctx context.Context, org string) ([]Trust, error)           // newest first
	TrustsOf(ctx context.Context, issuer string) ([]Trust, error)      // of all orgs
	DeleteTrust(ctx context.Context, org, id string, d Decision) error // ErrNotFound

	// Redeem notes that a one-time thing was used, until it expires. ErrExists
	// if it was before: somebody replays it.
	Redeem(ctx context.Context, key string, expires time.Time) error
}

// An AuditStore keeps decisions. Nothing changes or removes them: the database
// itself refuses to.
type AuditStore interface {
	// Record adds decisions, all or none; an ID that is there is skipped, so
	// that a call whose answer was lost can be repeated. Without an ID it is
	// ErrInvalid.
	Record(ctx context.Context, ds []Decision) error

	// Decisions yields the entries that q selects, oldest first, as they are
	// read. It stops at the first error.
	Decisions(ctx context.Context, q AuditQuery) iter.Seq2[Decision, error]
}

// An AuditQuery selects entries of the audit log of an org.
type AuditQuery struct {
	Org          string
	Since, Until time.Time // from Since on, before Until; zero means unbounded
	Token        string    // ID; empty means any
	Denied       bool      // only what was not allowed
	Unknown      bool      // also what nobody's token tried
}
