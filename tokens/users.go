package tokens

import (
	"context"
	"errors"
	"iter"
	"time"
)

// CreateOrg makes an org with a first admin, and returns that one's token and
// its value.
func (a *Authority) CreateOrg(ctx context.Context, by Principal, org, admin string) (Org, Token, string, error) {
	if err := a.AllowIn(ctx, by, ScopeOrgWrite, "", ""); err != nil {
		return Org{}, Token{}, "", err
	}
	if err := errors.Join(CheckName("an organization", org), CheckName("a user", admin)); err != nil {
		return Org{}, Token{}, "", err
	}
	o := Org{Name: org, Created: time.Now()}
	if err := a.store.CreateOrg(ctx, o); err != nil {
		return Org{}, Token{}, "", err
	}
	a.decided(ctx, by, "org.create", "organization "+org, nil)
	inside := by
	inside.Org, inside.User = org, ""
	_, t, value, err := a.createUser(ctx, inside, admin, RoleAdmin, Request{})
	return o, t, value, err
}

// Orgs returns the daemon's orgs.
func (a *Authority) Orgs(ctx context.Context, by Principal) ([]Org, error) {
	if err := a.AllowIn(ctx, by, ScopeOrgWrite, "", ""); err != nil {
		return nil, err
	}
	return a.store.Orgs(ctx)
}

// Apps returns the apps of by's org that by may see builds or images of.
func (a *Authority) Apps(ctx context.Context, by Principal) ([]App, error) {
	all, err := a.store.Apps(ctx, by.Org)
	seen := all[:0]
	for _, app := range all {
		if Allow(by, ScopeBuildRead, app.Name) == nil || Allow(by, ScopeRegistryPull, app.Name) == nil {
			seen = append(seen, app)
		}
	}
	return seen, err
}

// CreateUser adds a user to by's org and makes a token for the user to log in
// with; of r, expiry counts. Without a token, the user signs in by other means.
func (a *Authority) CreateUser(ctx context.Context, by Principal, user, role string, withToken bool, r Request) (User, Token, string, error) {
	if err := a.AllowIn(ctx, by, ScopeUserWrite, "", ""); err != nil {
		return User{}, Token{}, "", err
	}
	if err := errors.Join(CheckName("a user", user), checkRole(role)); err != nil {
		return User{}, Token{}, "", err
	}
	if !withToken {
		u := User{Org: by.Org, Name: user, Role: role, Created: time.Now()}
		return u, Token{}, "", a.store.CreateUser(ctx, u, decision(ctx, by, "user.create", "user "+user+" "+role))
	}
	return a.createUser(ctx, by, user, role, r)
}

func checkRole(role string) error {
	if role != RoleAdmin && role != RoleDeveloper {
		return invalid("use admin or developer", "%q is no role", clip(role))
	}
	return nil
}

func (a *Authority) createUser(ctx context.Context, by Principal, user, role string, r Request) (User, Token, string, error) {
	u := User{Org: by.Org, Name: user, Role: role, Created: time.Now()}
	r.Type, r.Name, r.User = TypeUser, "login of "+user, user
	t, err := a.draft(by, r)
	if err != nil {
		return User{}, Token{}, "", err
	}
	if err := a.store.CreateUser(ctx, u, decision(ctx, by, "user.create", "user "+user+" "+role)); err != nil {
		return User{}, Token{}, "", err
	}
	value := New(Prefix(TypeUser))
	err = a.store.CreateToken(ctx, t, Hash(value), decision(ctx, by, "token.create", "token "+t.ID+" user "+user))
	return u, t, value, err
}

// Users returns the users of by's org.
func (a *Authority) Users(ctx context.Context, by Principal) ([]User, error) {
	if err := a.AllowIn(ctx, by, ScopeUserRead, "", ""); err != nil {
		return nil, err
	}
	return a.store.Users(ctx, by.Org)
}

// SetRole changes what a user, and every token of the user's that has to do
// with it, may do.
func (a *Authority) SetRole(ctx context.Context, by Principal, user, role string) (User, error) {
	if err := a.AllowIn(ctx, by, ScopeUserWrite, "", ""); err != nil {
		return User{}, err
	}
	if err := checkRole(role); err != nil {
		return User{}, err
	}
	if role != RoleAdmin {
		if err := a.notTheLast(ctx, by, user); err != nil {
			return User{}, err
		}
	}
	if err := a.store.SetRole(ctx, by.Org, user, role, decision(ctx, by, "user.role", "user "+user+" "+role)); err != nil {
		return User{}, err
	}
	return a.store.User(ctx, by.Org, user)
}

// RemoveUser removes a user and revokes the tokens made on the user's behalf.
func (a *Authority) RemoveUser(ctx context.Context, by Principal, user string) ([]string, error) {
	if err := a.AllowIn(ctx, by, ScopeUserWrite, "", ""); err != nil {
		return nil, err
	}
	if err := a.notTheLast(ctx, by, user); err != nil {
		return nil, err
	}
	d := decision(ctx, by, "user.remove", "user "+user)
	revoked, err := a.store.RemoveUser(ctx, by.Org, user, by.Actor(), d.Time, d)
	a.ended(revoked)
	return revoked, err
}

// notTheLast refuses what would leave an org without an admin.
func (a *Authority) notTheLast(ctx context.Context, by Principal, user string) error {
	all, err := a.store.Users(ctx, by.Org)
	if err != nil {
		return err
	}
	for _, u := range all {
		if u.Role == RoleAdmin && u.Name != user {
			return nil
		}
	}
	return invalid("make another user an admin first", "%s is the only admin", user)
}

// Decisions yields the audit log of by's org. The daemon's admin also sees the
// attempts of which nobody knows whose they were.
func (a *Authority) Decisions(ctx context.Context, by Principal, q AuditQuery) iter.Seq2[Decision, error] {
	return func(yield func(Decision, error) bool) {
		if err := a.AllowIn(ctx, by, ScopeAuditRead, "", ""); err != nil {
			yield(Decision{}, err)
			return
		}
		if err := a.flushJournal(ctx); err != nil {
			yield(Decision{}, err)
			return
		}
		q.Org, q.Unknown = by.Org, by.Type == TypeAdmin
		a.store.Decisions(ctx, q)(yield)
	}
}
