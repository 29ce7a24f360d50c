package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
)

// CreateOrg implements [tokens.PrincipalStore].
func (s *Store) CreateOrg(ctx context.Context, o tokens.Org) error {
	if err := checkKeys(o.Name); err != nil {
		return err
	}
	n, err := s.db.Exec(ctx, `insert into orgs (name, created) values ($1, $2) on conflict do nothing`, o.Name, o.Created.UnixMilli())
	if err == nil && n == 0 {
		return exists("organization", o.Name)
	}
	return explained(err)
}

// Orgs implements [tokens.PrincipalStore].
func (s *Store) Orgs(ctx context.Context) ([]tokens.Org, error) {
	return sqldb.Collect(s.db.Query(ctx, `select name, created from orgs order by name`), func(r sqldb.Row) (o tokens.Org, err error) {
		return o, r.Scan(&o.Name, when{&o.Created})
	})
}

// ClaimApp implements [tokens.PrincipalStore]. Most apps are there: only a new
// one is written.
func (s *Store) ClaimApp(ctx context.Context, a tokens.App) (tokens.App, error) {
	if err := checkKeys(a.Name, a.Org); err != nil {
		return tokens.App{}, err
	}
	got, err := s.App(ctx, a.Name)
	if !errors.Is(err, tokens.ErrNotFound) {
		return got, err
	}
	_, err = s.db.Exec(ctx, `insert into apps (name, org, created_by, created) values ($1, $2, $3, $4) on conflict do nothing`,
		a.Name, a.Org, a.CreatedBy, a.Created.UnixMilli())
	if err != nil {
		return tokens.App{}, explained(err)
	}
	return s.App(ctx, a.Name)
}

const selectApp = `select name, org, created_by, created from apps where `

func scanApp(r sqldb.Row) (a tokens.App, err error) {
	return a, r.Scan(&a.Name, &a.Org, &a.CreatedBy, when{&a.Created})
}

// App implements [tokens.PrincipalStore].
func (s *Store) App(ctx context.Context, name string) (tokens.App, error) {
	a, err := scanApp(s.db.QueryRow(ctx, selectApp+`name = $1`, name))
	return a, found(err, "app", name)
}

// Apps implements [tokens.PrincipalStore].
func (s *Store) Apps(ctx context.Context, org string) ([]tokens.App, error) {
	all, err := sqldb.Collect(s.db.Query(ctx, selectApp+`org = $1 order by name`, org), scanApp)
	return all, explained(err)
}

// CreateUser implements [tokens.PrincipalStore].
func (s *Store) CreateUser(ctx context.Context, u tokens.User, d tokens.Decision) error {
	if err := checkKeys(u.Org, u.Name); err != nil {
		return err
	}
	return s.change(ctx, d, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(ctx, `insert into users (org, name, role, created) values ($1, $2, $3, $4) on conflict do nothing`,
			u.Org, u.Name, u.Role, u.Created.UnixMilli())
		if err == nil && n == 0 {
			return exists("user", u.Name)
		}
		return err
	})
}

const selectUser = `select org, name, role, created, removed from users where `

func scanUser(r sqldb.Row) (u tokens.User, err error) {
	return u, r.Scan(&u.Org, &u.Name, &u.Role, when{&u.Created}, when{&u.Removed})
}

// User implements [tokens.PrincipalStore].
func (s *Store) User(ctx context.Context, org, name string) (tokens.User, error) {
	u, err := scanUser(s.db.QueryRow(ctx, selectUser+`org = $1 and name = $2`, org, name))
	return u, found(err, "user", name)
}

// Users implements [tokens.PrincipalStore].
func (s *Store) Users(ctx context.Context, org string) ([]tokens.User, error) {
	all, err := sqldb.Collect(s.db.Query(ctx, selectUser+`org = $1 and removed is null order by name`, org), scanUser)
	return all, explained(err)
}

// SetRole implements [tokens.PrincipalStore].
func (s *Store) SetRole(ctx context.Context, org, name, role string, d tokens.Decision) error {
	return s.change(ctx, d, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(ctx, `update users set role = $1 where org = $2 and name = $3 and removed is null`, role, org, name)
		if err == nil && n == 0 {
			return notFound("user", name)
		}
		return err
	})
}

// CreateTrust implements [tokens.PrincipalStore].
func (s *Store) CreateTrust(ctx context.Context, t tokens.Trust, d tokens.Decision) error {
	if err := checkKeys(t.ID); err != nil {
		return err
	}
	for name, pattern := range t.Claims {
		if err := checkText(name, pattern); err != nil {
			return err
		}
	}
	claims, err := json.Marshal(t.Claims)
	if err != nil {
		return err
	}
	return s.change(ctx, d, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(ctx, `insert into trusts (id, org, name, issuer, audience, claims, type, app, env, permission, role, ttl, created_by, created)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) on conflict do nothing`,
			t.ID, t.Org, t.Name, t.Issuer, t.Audience, string(claims), t.Type, t.App, t.Env, t.Permission, t.Role, t.TTL.Milliseconds(), t.CreatedBy, t.Created.UnixMilli())
		if err == nil && n == 0 {
			return exists("trust rule", t.ID)
		}
		return err
	})
}

const selectTrust = `select id, org, name, issuer, audience, claims, type, app, env, permission, role, ttl, created_by, created from trusts where `

func scanTrust(r sqldb.Row) (t tokens.Trust, err error) {
	var claims string
	var ttl int64
	err = r.Scan(&t.ID, &t.Org, &t.Name, &t.Issuer, &t.Audience, &claims, &t.Type, &t.App, &t.Env, &t.Permission, &t.Role, &ttl, &t.CreatedBy, when{&t.Created})
	if err != nil {
		return t, err
	}
	t.TTL = time.Duration(ttl) * time.Millisecond
	if err := json.Unmarshal([]byte(claims), &t.Claims); err != nil {
		return t, fmt.Errorf("claims of trust rule %s: %w", t.ID, err)
	}
	return t, nil
}

// Trusts implements [tokens.PrincipalStore].
func (s *Store) Trusts(ctx context.Context, org string) ([]tokens.Trust, error) {
	all, err := sqldb.Collect(s.db.Query(ctx, selectTrust+`org = $1 order by id desc`, org), scanTrust)
	return all, explained(err)
}

// TrustsOf implements [tokens.PrincipalStore].
func (s *Store) TrustsOf(ctx context.Context, issuer string) ([]tokens.Trust, error) {
	all, err := sqldb.Collect(s.db.Query(ctx, selectTrust+`issuer = $1 order by id desc`, issuer), scanTrust)
	return all, explained(err)
}

// DeleteTrust implements [tokens.PrincipalStore].
func (s *Store) DeleteTrust(ctx context.Context, org, id string, d tokens.Decision) error {
	return s.change(ctx, d, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(ctx, `delete from trusts where org = $1 and id = $2`, org, id)
		if err == nil && n == 0 {
			return notFound("trust rule", id)
		}
		return err
	})
}

// forgetAfter is how long past its end a one-time thing is remembered: longer
// than clocks differ, so that nobody takes for good what is forgotten here.
const forgetAfter = time.Hour

// Redeem implements [tokens.PrincipalStore]. It keeps a hash: a key may be of
// any length, and is nobody's business.
func (s *Store) Redeem(ctx context.Context, key string, expires time.Time) error {
	hash := sha256.Sum256([]byte(key))
	return s.db.Update(ctx, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(ctx, `insert into redeemed (hash, expires) values ($1, $2) on conflict do nothing`, hex.EncodeToString(hash[:]), expires.UnixMilli())
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("this one-time value was used before: %w", tokens.ErrExists)
		}
		_, err = tx.Exec(ctx, `delete from redeemed where expires < $1`, time.Now().Add(-forgetAfter).UnixMilli())
		return err
	})
}
