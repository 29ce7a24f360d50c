package tokens

import (
	"crypto/sha256"
	"time"
)

// Statuses of a token.
const (
	StatusActive  = "Active"
	StatusExpired = "Expired"
	StatusRevoked = "Revoked"
)

// A Token is the record of a token: everything but its value, of which only the
// hash is kept.
type Token struct {
	ID         string // tok_ and a ULID, never reused
	Org        string
	Type       string // TypeDeploy, …
	Name       string // what its maker called it; need not be unique
	App        string // the only app it is for; empty means every app of Org
	Env        string // the only environment it is for; empty means any
	Permission string // of registry tokens: ReadOnly or ReadWrite; else empty
	Command    []string
	Session    bool   // a signed-in browser, not something to copy
	Parent     string // ID of the token that it was derived from; it dies with it
	User       string // on whose behalf it was made, and whose role counts
	CreatedBy  string // name of the token or user that made it

	Created   time.Time
	Expires   time.Time // zero means never
	Revoked   time.Time // zero means not
	RevokedBy string
	LastUsed  time.Time // zero means not yet
	LastAddr  string    // where it was last used from
}

// Status says whether the token is good at that time. Revoked wins over expired.
func (t *Token) Status(now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return StatusRevoked
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return StatusExpired
	}
	return StatusActive
}

// Principal returns whom the token stands for if its user has that role, which
// only counts where a person logs in with it.
func (t *Token) Principal(role string) Principal {
	if t.Type != TypeUser && t.Type != TypeAdmin {
		role = RoleDeveloper
	}
	return Principal{
		ID: t.ID, Name: t.Name, Org: t.Org, Type: t.Type, App: t.App, Env: t.Env, Permission: t.Permission, Command: t.Command,
		User: t.User, Role: role, Scopes: scopesOf(t.Type, t.Permission, role), Expires: t.Expires, Session: t.Session,
	}
}

// A Digest is the SHA-256 of a token's value, all that is kept of it.
type Digest = [sha256.Size]byte

// Roles of users.
const (
	RoleAdmin     = "admin"     // everything in the org, also what others made
	RoleDeveloper = "developer" // builds, environments, and tokens of their own
)

// A User is a person or a machine on whose behalf tokens are made.
type User struct {
	Org     string
	Name    string // unique in the org
	Role    string
	Created time.Time
	Removed time.Time // zero means not; the name is not free again
}

// An Org is what builds, caches and tokens of are apart from all others.
type Org struct {
	Name    string
	Created time.Time
}

// An App is what is built and deployed. Its name is that of a repository of the
// registry, so it is unique among all orgs.
type App struct {
	Name      string
	Org       string
	CreatedBy string
	Created   time.Time
}

// A Trust says which tokens of an OIDC issuer are exchanged for tokens of ours.
type Trust struct {
	ID       string // tru_ and a ULID
	Org      string
	Name     string
	Issuer   string            // URL, as the iss claim has it
	Audience string            // what the aud claim must contain
	Claims   map[string]string // each must match; * stands for any text without a slash or colon, ** for any

	// What it gives.
	Type       string // TypeDeploy, TypeReadOnly, TypeRegistry, TypeOrg or TypeUser
	App        string
	Env        string
	Permission string
	Role       string        // of users
	TTL        time.Duration // how long tokens live at most

	CreatedBy string
	Created   time.Time
}

// A Decision is an entry of the audit log.
type Decision struct {
	ID       string // ULID: entries are in order of time
	Time     time.Time
	Org      string // empty if nobody knows who called
	Token    string // ID of the token; empty if it was not recognized
	Actor    string // name of its user or token
	Action   string // the scope that was needed, or token.create, login, …
	Resource string // what it was done to: app shop, token tok_…
	Addr     string // of the caller
	Allowed  bool
	Reason   string // why not
	Count    int64  // how many like it there were within the second
}
