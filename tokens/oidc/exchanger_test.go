package oidc_test

import (
	"fmt"
	"testing"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
	"github.com/slipwayhq/slipway/tokens/store"
)

// An exchanger is an authority, and an issuer for it.
type exchanger struct {
	*tokens.Authority
	db     *sqldb.DB
	store  *store.Store
	issuer *oidctest.Issuer
	admin  tokens.Principal
}

func newExchanger(t *testing.T) *exchanger {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldbtest.File(t))
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	s, err := store.New(t.Context(), db)
	check(t, err)
	for _, org := range []string{"acme", "other", tokens.DefaultOrg} {
		check(t, s.CreateOrg(t.Context(), tokens.Org{Name: org}))
	}
	i := oidctest.New(t)
	v, err := oidc.New(&oidc.Options{CAFile: i.CAFile()})
	check(t, err)
	a, err := tokens.Open(t.Context(), tokens.Options{Store: s, Issuer: v})
	check(t, err)
	t.Cleanup(func() { check(t, a.Close()) })
	return &exchanger{a, db, s, i, adminOf("acme")}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func adminOf(org string) tokens.Principal {
	return tokens.Principal{ID: "ann", Name: "ann", User: "ann", Org: org, Type: tokens.TypeUser, Role: tokens.RoleAdmin, Scopes: tokens.Scopes(tokens.TypeUser)}
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
	check(t, err)
	return made
}

// audit returns what the admin gets to read.
func (x *exchanger) audit(t *testing.T) string {
	t.Helper()
	log := ""
	for d, err := range x.Decisions(t.Context(), x.admin, tokens.AuditQuery{}) {
		check(t, err)
		log += fmt.Sprintf("%+v\n", d)
	}
	return log
}
