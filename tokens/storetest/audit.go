package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

var auditTests = map[string]func(*testing.T, func() tokens.Store){
	"decisions": func(t *testing.T, open func() tokens.Store) {
		s := open()
		at := func(n int, change func(*tokens.Decision)) tokens.Decision {
			d := tokens.Decision{ID: fmt.Sprintf("%026d", n), Time: now.Add(time.Duration(n) * time.Second), Org: "acme", Actor: "ann", Action: "build:write", Allowed: true, Count: 1}
			change(&d)
			return d
		}
		all := []tokens.Decision{
			at(1, func(d *tokens.Decision) { d.Token, d.Resource, d.Addr, d.Count = tokID(1), "app shop", "10.0.0.1", 12 }),
			at(2, func(d *tokens.Decision) { d.Allowed, d.Reason = false, "<b>permission</b> denied" }),
			at(3, func(d *tokens.Decision) { d.Token, d.Allowed, d.Time = tokID(1), false, now.Add(2*time.Second) }),
			at(4, func(d *tokens.Decision) { d.Org = "globex" }),
			at(5, func(d *tokens.Decision) { d.Org, d.Allowed, d.Actor = "", false, "" }),
			at(6, func(d *tokens.Decision) {}),
		}
		if err := s.Record(t.Context(), []tokens.Decision{all[5], all[2], all[4]}); err != nil {
			t.Fatal(err)
		}
		changed := all[5]
		changed.Actor = "eve"
		if err := open().Record(t.Context(), append(all, changed)); err != nil {
			t.Errorf("what is there is skipped: %v", err)
		}
		if err := s.Record(t.Context(), nil); err != nil {
			t.Errorf("nothing: %v", err)
		}
		if err := s.Record(t.Context(), []tokens.Decision{{Org: "acme", Time: now}}); !errors.Is(err, tokens.ErrInvalid) {
			t.Errorf("without an ID: %v, want %v", err, tokens.ErrInvalid)
		}
		for name, tc := range map[string]struct {
			q    tokens.AuditQuery
			want []int
		}{
			"all":            {tokens.AuditQuery{Org: "acme"}, []int{1, 2, 3, 6}},
			"another org":    {tokens.AuditQuery{Org: "globex"}, []int{4}},
			"no org":         {tokens.AuditQuery{Org: "initech"}, nil},
			"denied":         {tokens.AuditQuery{Org: "acme", Denied: true}, []int{2, 3}},
			"unknown":        {tokens.AuditQuery{Org: "acme", Unknown: true}, []int{1, 2, 3, 5, 6}},
			"unknown denied": {tokens.AuditQuery{Org: "acme", Unknown: true, Denied: true}, []int{2, 3, 5}},
			"token":          {tokens.AuditQuery{Org: "acme", Token: tokID(1)}, []int{1, 3}},
			"foreign token":  {tokens.AuditQuery{Org: "globex", Token: tokID(1)}, nil},
			"since":          {tokens.AuditQuery{Org: "acme", Since: now.Add(2 * time.Second)}, []int{2, 3, 6}},
			"until":          {tokens.AuditQuery{Org: "acme", Until: now.Add(2 * time.Second)}, []int{1}},
			"between":        {tokens.AuditQuery{Org: "acme", Since: now.Add(time.Second + 1), Until: now.Add(6 * time.Second)}, []int{1, 2, 3}},
		} {
			var want []tokens.Decision
			for _, n := range tc.want {
				want = append(want, all[n-1])
			}
			same(t, name, decisions(t, s, tc.q), want)
		}
	},

	"a long log is read to its end": func(t *testing.T, open func() tokens.Store) {
		s := open()
		const all = 2345
		ds := make([]tokens.Decision, all)
		for i := range ds {
			ds[i] = tokens.Decision{ID: fmt.Sprintf("%026d", i), Time: now.Add(time.Duration(i/700) * time.Millisecond), Org: []string{"acme", "globex"}[i%2], Allowed: true, Count: 1}
		}
		if err := s.Record(t.Context(), ds); err != nil {
			t.Fatal(err)
		}
		n := 0
		for d, err := range s.Decisions(t.Context(), tokens.AuditQuery{Org: "acme"}) {
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%026d", 2*n); d.ID != want {
				t.Fatalf("entry %d is %s, want %s", n, d.ID, want)
			}
			if n%400 == 0 { // whoever reads may also write
				if err := s.Record(t.Context(), []tokens.Decision{{ID: fmt.Sprint("x", n), Time: now, Org: "globex"}}); err != nil {
					t.Fatal(err)
				}
			}
			n++
		}
		if n != (all+1)/2 {
			t.Errorf("read %d of %d", n, (all+1)/2)
		}
		for range s.Decisions(t.Context(), tokens.AuditQuery{Org: "acme"}) {
			break
		}
	},

	"whatever somebody tried is recorded": func(t *testing.T, open func() tokens.Store) {
		s := open()
		for i, text := range append(odd, "a\x00b", "\xff", "a\xc3(") {
			id := fmt.Sprintf("%026d", i)
			d := tokens.Decision{ID: id, Time: now, Org: "acme", Token: text, Actor: text, Action: text, Resource: text, Addr: text, Reason: text}
			if err := s.Record(t.Context(), []tokens.Decision{d}); err != nil {
				t.Errorf("%.50q: %v", text, err)
				continue
			}
			got := decisions(t, s, tokens.AuditQuery{})
			want := strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "\uFFFD"), "\uFFFD")
			if len(got) != i+1 || got[i].Resource != want || got[i].Reason != want || got[i].Token != want {
				t.Errorf("%.50q: recorded %d, %.500v", text, len(got), got[len(got)-1])
			}
		}
	},
}

var contextTests = map[string]func(*testing.T, func() tokens.Store){
	"a call that has ended does nothing": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		create(t, s, 2, expiring(now))
		createUser(t, s, "acme", "ann", tokens.RoleAdmin)
		before := actions(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _, byHash := s.TokenByHash(ctx, hash(1))
		_, one := s.Token(ctx, "acme", tokID(1))
		_, list := s.Tokens(ctx, tokens.TokenQuery{Org: "acme"})
		_, revoke := s.RevokeTokens(ctx, "acme", tokIDs(1), "bob", now, did("token.revoke"))
		_, _, feed := s.RevokedAfter(ctx, "0")
		_, _, cursor := s.RevokedAfter(ctx, "")
		_, orgs := s.Orgs(ctx)
		_, claim := s.ClaimApp(ctx, tokens.App{Name: "shop", Org: "acme", Created: now})
		_, app := s.App(ctx, "shop")
		_, apps := s.Apps(ctx, "acme")
		_, user := s.User(ctx, "acme", "ann")
		_, users := s.Users(ctx, "acme")
		_, remove := s.RemoveUser(ctx, "acme", "ann", "bob", now, did("user.remove"))
		_, trusts := s.Trusts(ctx, "acme")
		_, trustsOf := s.TrustsOf(ctx, "x")
		var log error
		for _, err := range s.Decisions(ctx, tokens.AuditQuery{Org: "acme"}) {
			log = err
		}
		for name, err := range map[string]error{
			"CreateToken": s.CreateToken(ctx, token(3), hash(3), did("token.create")), "TokenByHash": byHash, "Token": one, "Tokens": list,
			"RevokeTokens": revoke, "RevokedAfter": feed, "RevokedAfter, from now": cursor,
			"DeleteTokens": s.DeleteTokens(ctx, "acme", tokIDs(2), now, did("token.delete")),
			"TouchTokens":  s.TouchTokens(ctx, []tokens.Use{{ID: tokID(1), At: now}}),
			"CreateOrg":    s.CreateOrg(ctx, tokens.Org{Name: "x", Created: now}), "Orgs": orgs, "ClaimApp": claim, "App": app, "Apps": apps,
			"CreateUser": s.CreateUser(ctx, tokens.User{Org: "acme", Name: "x", Created: now}, did("user.create")), "User": user, "Users": users,
			"SetRole": s.SetRole(ctx, "acme", "ann", tokens.RoleDeveloper, did("user.role")), "RemoveUser": remove,
			"CreateTrust": s.CreateTrust(ctx, tokens.Trust{ID: "tru_1", Org: "acme", Created: now}, did("trust.create")), "Trusts": trusts, "TrustsOf": trustsOf,
			"DeleteTrust": s.DeleteTrust(ctx, "acme", "tru_1", did("trust.delete")),
			"Redeem":      s.Redeem(ctx, "x", now), "Record": s.Record(ctx, []tokens.Decision{did("x")}), "Decisions": log,
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want %v", name, err, context.Canceled)
			}
		}
		if got := actions(t, s); got != before {
			t.Errorf("decisions %s, before %s", got, before)
		}
		same(t, "Token", get(t, s, 1), token(1))
		same(t, "Token", get(t, s, 2), token(2, expiring(now)))
	},
}
