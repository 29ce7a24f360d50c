// Package storetest holds stores to the contract of [tokens.Store].
package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/tokens"
)

// Run tests stores. Each test gets a place for one, empty, by place; each call
// of open opens one more store there, as another daemon does, or the same one
// after a restart. place has them closed after the test.
func Run(t *testing.T, place func(t *testing.T) (open func() tokens.Store)) {
	for _, tests := range []map[string]func(*testing.T, func() tokens.Store){
		tokenTests, listTests, revokeTests, raceTests, feedTests, principalTests, auditTests, contextTests,
	} {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { test(t, place(t)) })
		}
	}
}

// now is when tests take place. A millisecond has a thousand microseconds that
// are not kept.
var now = time.UnixMilli(1_700_000_000_123).UTC()

// tokID is the ID of token n. Later ones sort later.
func tokID(n int) string { return fmt.Sprintf("tok_%026d", n) }

func hash(n int) tokens.Digest { return tokens.Hash(tokID(n)) }

// token returns an active token of the org acme.
func token(n int, change ...func(*tokens.Token)) tokens.Token {
	t := tokens.Token{ID: tokID(n), Org: "acme", Type: tokens.TypeDeploy, Name: "ci", App: "shop", User: "ann", CreatedBy: "ann", Created: now}
	for _, c := range change {
		c(&t)
	}
	return t
}

func childOf(n int) func(*tokens.Token) { return func(t *tokens.Token) { t.Parent = tokID(n) } }

func expiring(at time.Time) func(*tokens.Token) { return func(t *tokens.Token) { t.Expires = at } }

func inOrg(org string) func(*tokens.Token) { return func(t *tokens.Token) { t.Org = org } }

func of(user string) func(*tokens.Token) { return func(t *tokens.Token) { t.User = user } }

// did returns a decision of the org acme that is like no other.
func did(action string) tokens.Decision {
	return tokens.Decision{ID: ulid.Make().String(), Time: now, Org: "acme", Actor: "ann", Action: action, Resource: "it", Allowed: true, Count: 1}
}

// create makes token n.
func create(t *testing.T, s tokens.Store, n int, change ...func(*tokens.Token)) {
	t.Helper()
	if err := s.CreateToken(t.Context(), token(n, change...), hash(n), did("token.create")); err != nil {
		t.Fatalf("CreateToken %d: %v", n, err)
	}
}

func createUser(t *testing.T, s tokens.Store, org, name, role string) {
	t.Helper()
	if err := s.CreateUser(t.Context(), tokens.User{Org: org, Name: name, Role: role, Created: now}, did("user.create")); err != nil {
		t.Fatalf("CreateUser %s: %v", name, err)
	}
}

func tokIDs(ns ...int) []string {
	ids := make([]string, len(ns))
	for i, n := range ns {
		ids[i] = tokID(n)
	}
	return ids
}

// revoke revokes tokens of acme and returns which of them it were, in order.
func revoke(t *testing.T, s tokens.Store, ns ...int) []string {
	t.Helper()
	ids, err := s.RevokeTokens(t.Context(), "acme", tokIDs(ns...), "bob", now, did("token.revoke"))
	if err != nil {
		t.Fatalf("RevokeTokens %v: %v", ns, err)
	}
	slices.Sort(ids)
	return ids
}

func get(t *testing.T, s tokens.Store, n int) tokens.Token {
	t.Helper()
	got, err := s.Token(t.Context(), "acme", tokID(n))
	if err != nil {
		t.Fatalf("Token %d: %v", n, err)
	}
	return got
}

// same reports two values that are not the same in any field.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", want); g != w {
		t.Errorf("%s: got\n%.2000s\nwant\n%.2000s", what, g, w)
	}
}

// decisions reads the audit log of acme.
func decisions(t *testing.T, s tokens.Store, q tokens.AuditQuery) []tokens.Decision {
	t.Helper()
	if q.Org == "" {
		q.Org = "acme"
	}
	var all []tokens.Decision
	for d, err := range s.Decisions(t.Context(), q) {
		if err != nil {
			t.Fatalf("Decisions: %v", err)
		}
		all = append(all, d)
	}
	return all
}

// actions are what the audit log of acme says was done.
func actions(t *testing.T, s tokens.Store) string {
	t.Helper()
	var all []string
	for _, d := range decisions(t, s, tokens.AuditQuery{}) {
		all = append(all, d.Action)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// odd are names that are text like any other.
var odd = []string{
	`'; drop table tokens; --`, `"`, `'`, "`", `\`, `$1`, `%`, `_`, `%s%d`, `<script>alert(1)</script>`, `&lt;`, "new\nline", "\r\n", "\t", " ", "",
	"ünï — 日本語 🚢", "\u202e", "null", "NULL", "0", strings.Repeat("long ", 2000),
}
