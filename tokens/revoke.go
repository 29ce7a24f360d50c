package tokens

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxIDs bounds the tokens of one call.
const maxIDs = 10_000

// Revoke ends tokens of by's org and their descendants at once and for ever,
// all or none, and returns the IDs of those that were good until then. Admins
// revoke any, developers those made on their behalf, and every token itself and
// what it made. The error wraps [ErrNotFound], also for what by may not know
// of, or [ErrDenied].
func (a *Authority) Revoke(ctx context.Context, by Principal, ids ...string) ([]string, error) {
	ids, err := a.mayEnd(ctx, by, "revoke", ids)
	if err != nil {
		return nil, err
	}
	d := decision(ctx, by, "token.revoke", tokenList(ids))
	revoked, err := a.store.RevokeTokens(ctx, by.Org, ids, by.Actor(), d.Time, d)
	if err != nil {
		return nil, err
	}
	a.ended(revoked)
	return revoked, nil
}

// Delete removes the records of tokens that are expired or revoked, with the
// same rights as Revoke, all or none. The error wraps [ErrInUse] for one that is
// still good.
func (a *Authority) Delete(ctx context.Context, by Principal, ids ...string) error {
	ids, err := a.mayEnd(ctx, by, "delete", ids)
	if err != nil {
		return err
	}
	d := decision(ctx, by, "token.delete", tokenList(ids))
	return a.store.DeleteTokens(ctx, by.Org, ids, d.Time, d)
}

func tokenList(ids []string) string {
	if len(ids) == 1 {
		return "token " + ids[0]
	}
	return fmt.Sprintf("%d tokens %v", len(ids), ids)
}

func (a *Authority) mayEnd(ctx context.Context, by Principal, verb string, ids []string) ([]string, error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	switch {
	case len(ids) == 0:
		return nil, invalid("name one; slipway tokens list shows them", "there is no token to %s", verb)
	case len(ids) > maxIDs:
		return nil, invalid("name fewer", "%d tokens at once, %d are allowed", len(ids), maxIDs)
	}
	for _, id := range ids {
		t, err := a.store.Token(ctx, by.Org, id)
		if errors.Is(err, ErrNotFound) || err == nil && !sees(by, &t) {
			return nil, missing(id)
		}
		if err != nil {
			return nil, err
		}
		if !mayEnd(by, &t) {
			err := &forbidden{fmt.Sprintf("token %s was made on behalf of %s, and only admins %s what is not their own", t.ID, t.User, verb)}
			a.decided(ctx, by, "token."+verb, "token "+t.ID, err)
			return nil, err
		}
	}
	return ids, nil
}

func missing(id string) error { return fmt.Errorf("token %q: %w", clip(id), ErrNotFound) }

// sees reports whether by may know of a token: admins of all, people of their
// own, other tokens of themselves and what they made.
func sees(by Principal, t *Token) bool {
	switch {
	case t.Org != by.Org:
		return false
	case t.ID == by.ID || t.Parent == by.ID:
		return true
	case !isLogin(by) || !by.Has(ScopeTokenRead):
		return false
	}
	return by.Role == RoleAdmin || by.User != "" && t.User == by.User
}

// mayEnd reports whether by may revoke a token, or delete it once it has ended.
func mayEnd(by Principal, t *Token) bool {
	return sees(by, t) && (t.ID == by.ID || t.Parent == by.ID || by.Has(ScopeTokenWrite))
}

// Rights says what by may do with a token now.
func Rights(by Principal, t *Token) (revoke, remove bool) {
	if !mayEnd(by, t) {
		return false, false
	}
	good := t.Status(time.Now()) == StatusActive
	return t.Status(time.Now()) != StatusRevoked, !good
}

// Get returns one token that by may know of. The error wraps [ErrNotFound].
func (a *Authority) Get(ctx context.Context, by Principal, id string) (Token, error) {
	t, err := a.store.Token(ctx, by.Org, id)
	if errors.Is(err, ErrNotFound) || err == nil && !sees(by, &t) {
		return Token{}, missing(id)
	}
	a.uses.fill(&t)
	return t, err
}

// List returns the tokens of by's org that q selects and by may know of, newest
// first. What q says of org and user does not count.
func (a *Authority) List(ctx context.Context, by Principal, q TokenQuery) ([]Token, error) {
	q.Org, q.User, q.Parent = by.Org, "", ""
	switch {
	case !isLogin(by):
		q.Parent = by.ID
	case by.Role != RoleAdmin:
		q.User = by.User
	}
	list, err := a.store.Tokens(ctx, q)
	for i := range list {
		a.uses.fill(&list[i])
	}
	return list, err
}

// RevokeEnv ends the tokens of an environment. The caller has checked that by
// may.
func (a *Authority) RevokeEnv(ctx context.Context, by Principal, env string) ([]string, error) {
	var ids []string
	q := TokenQuery{Org: by.Org, Env: env, Sessions: true}
	for {
		list, err := a.store.Tokens(ctx, q)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			break
		}
		for _, t := range list {
			if t.Revoked.IsZero() {
				ids = append(ids, t.ID)
			}
		}
		q.Before = list[len(list)-1].ID
	}
	if len(ids) == 0 {
		return nil, nil
	}
	d := decision(ctx, by, "token.revoke", "tokens of environment "+env)
	revoked, err := a.store.RevokeTokens(ctx, by.Org, ids, by.Actor(), d.Time, d)
	a.ended(revoked)
	return revoked, err
}
