package oidc_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
)

// memory is as much of a store as exchanges need. What it lacks panics.
type memory struct {
	tokens.Store

	mu       sync.Mutex
	users    map[string]tokens.User // by org/name
	apps     map[string]tokens.App
	byHash   map[tokens.Digest]tokens.Token
	trusts   []tokens.Trust
	redeemed map[string]time.Time
	audit    []tokens.Decision
}

// An exchanger is an authority over a memory, and an issuer for it.
type exchanger struct {
	*tokens.Authority
	store  *memory
	issuer *oidctest.Issuer
	admin  tokens.Principal
}

func newExchanger(t *testing.T) *exchanger {
	t.Helper()
	i := oidctest.New(t)
	m := &memory{users: map[string]tokens.User{}, apps: map[string]tokens.App{}, byHash: map[tokens.Digest]tokens.Token{}, redeemed: map[string]time.Time{}}
	var v tokens.Verifier
	v, err := oidc.New(&oidc.Options{CAFile: i.CAFile()})
	if err != nil {
		t.Fatal(err)
	}
	a, err := tokens.Open(t.Context(), tokens.Options{Store: m, Issuer: v})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return &exchanger{a, m, i, adminOf("acme")}
}

func adminOf(org string) tokens.Principal {
	return tokens.Principal{ID: "tok_1", Name: "ann", User: "ann", Org: org, Type: tokens.TypeUser, Role: tokens.RoleAdmin, Scopes: tokens.Scopes(tokens.TypeUser)}
}

// trust makes a rule for the test's issuer.
func (x *exchanger) trust(t *testing.T, r tokens.Trust) tokens.Trust {
	t.Helper()
	if r.Issuer == "" {
		r.Issuer = x.issuer.URL()
	}
	if r.Audience == "" {
		r.Audience = "us"
	}
	made, err := x.CreateTrust(t.Context(), x.admin, r)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (m *memory) CreateToken(_ context.Context, t tokens.Token, hash tokens.Digest, d tokens.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byHash[hash], m.audit = t, append(m.audit, d)
	return nil
}

func (m *memory) TokenByHash(_ context.Context, hash tokens.Digest) (tokens.Token, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.byHash[hash]
	if !ok {
		return t, "", tokens.ErrNotFound
	}
	role := tokens.RoleDeveloper
	if u, ok := m.users[t.Org+"/"+t.User]; ok {
		role = u.Role
	}
	return t, role, nil
}

func (m *memory) RevokedAfter(context.Context, string) ([]string, string, error) { return nil, "", nil }

func (m *memory) TouchTokens(context.Context, []tokens.Use) error { return nil }

func (m *memory) ClaimApp(_ context.Context, a tokens.App) (tokens.App, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if have, ok := m.apps[a.Name]; ok {
		return have, nil
	}
	m.apps[a.Name] = a
	return a, nil
}

func (m *memory) CreateUser(_ context.Context, u tokens.User, d tokens.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.users[u.Org+"/"+u.Name]; ok {
		return tokens.ErrExists
	}
	m.users[u.Org+"/"+u.Name], m.audit = u, append(m.audit, d)
	return nil
}

func (m *memory) User(_ context.Context, org, name string) (tokens.User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.users[org+"/"+name]
	if !ok {
		return u, tokens.ErrNotFound
	}
	return u, nil
}

func (m *memory) CreateTrust(_ context.Context, t tokens.Trust, d tokens.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trusts, m.audit = append(m.trusts, t), append(m.audit, d)
	return nil
}

func (m *memory) Trusts(_ context.Context, org string) ([]tokens.Trust, error) {
	return m.trustsWhere(func(t tokens.Trust) bool { return t.Org == org }), nil
}

func (m *memory) TrustsOf(_ context.Context, issuer string) ([]tokens.Trust, error) {
	return m.trustsWhere(func(t tokens.Trust) bool { return t.Issuer == issuer }), nil
}

func (m *memory) trustsWhere(f func(tokens.Trust) bool) []tokens.Trust {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.trusts), func(t tokens.Trust) bool { return !f(t) })
}

func (m *memory) DeleteTrust(_ context.Context, org, id string, _ tokens.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, t := range m.trusts {
		if t.Org == org && t.ID == id {
			m.trusts = slices.Delete(m.trusts, i, i+1)
			return nil
		}
	}
	return fmt.Errorf("%s: %w", id, tokens.ErrNotFound)
}

func (m *memory) Redeem(_ context.Context, key string, expires time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.redeemed[key]; ok {
		return tokens.ErrExists
	}
	m.redeemed[key] = expires
	return nil
}

func (m *memory) Record(_ context.Context, ds []tokens.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.audit = append(m.audit, ds...)
	return nil
}
