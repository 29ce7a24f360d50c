package storetest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

var tokenTests = map[string]func(*testing.T, func() tokens.Store){
	"a token is kept as it was": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		full := tokens.Token{
			ID: tokID(2), Org: "acme", Type: tokens.TypeRegistry, Name: "all", App: "shop", Env: "prod", Permission: tokens.ReadWrite,
			Command: []string{"", `a "b"`, "<c>", "d\ne", "ü"}, Session: true, Parent: tokID(1), User: "ann", CreatedBy: "bob",
			Created: now, Expires: now.Add(time.Hour),
		}
		// What is finer than a millisecond is not kept.
		finer := full
		finer.Created, finer.Expires = finer.Created.Add(999*time.Microsecond), finer.Expires.Add(999*time.Microsecond)
		if err := s.CreateToken(t.Context(), finer, hash(2), did("token.create")); err != nil {
			t.Fatal(err)
		}
		for _, s := range []tokens.Store{s, open()} {
			same(t, "Token 1", get(t, s, 1), token(1))
			same(t, "Token 2", get(t, s, 2), full)
			got, _, err := s.TokenByHash(t.Context(), hash(2))
			if err != nil {
				t.Fatal(err)
			}
			same(t, "TokenByHash", got, full)
			byID, _, err := s.TokenByID(t.Context(), full.ID)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "TokenByID", byID, full)
			list, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: "acme", Sessions: true})
			if err != nil {
				t.Fatal(err)
			}
			same(t, "Tokens", list, []tokens.Token{full, token(1)})
		}
	},

	"any text is a name": func(t *testing.T, open func() tokens.Store) {
		s := open()
		for i, name := range odd {
			want := token(i, func(t *tokens.Token) { t.Name, t.CreatedBy, t.LastAddr = name, name, name })
			if len(name) < 500 { // names of what an index has are not long
				want.Org, want.App, want.Env, want.User = name, name, name, name
			}
			if err := s.CreateToken(t.Context(), want, hash(i), did(name)); err != nil {
				t.Errorf("%.50q: %v", name, err)
				continue
			}
			got, err := s.Token(t.Context(), want.Org, want.ID)
			if err != nil {
				t.Errorf("%.50q: %v", name, err)
			}
			same(t, "Token", got, want)
			list, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: want.Org, App: want.App, Env: want.Env, User: want.User})
			if err != nil || !slices.ContainsFunc(list, func(t tokens.Token) bool { return t.ID == want.ID }) || slices.ContainsFunc(list, func(t tokens.Token) bool { return t.Org != want.Org }) {
				t.Errorf("%.50q: listed %.500v, %v", name, list, err)
			}
		}
		if got := decisions(t, s, tokens.AuditQuery{}); len(got) != len(odd) {
			t.Errorf("%d decisions, want %d", len(got), len(odd))
		}
	},

	"what is no text is refused": func(t *testing.T, open func() tokens.Store) {
		s := open()
		for _, bad := range []string{"\x00", "a\x00b", "\xff", "a\xc3"} {
			for i, change := range []func(*tokens.Token){
				func(t *tokens.Token) { t.ID = bad }, func(t *tokens.Token) { t.Org = bad }, func(t *tokens.Token) { t.Type = bad },
				func(t *tokens.Token) { t.Name = bad }, func(t *tokens.Token) { t.App = bad }, func(t *tokens.Token) { t.Env = bad },
				func(t *tokens.Token) { t.Permission = bad }, func(t *tokens.Token) { t.Command = []string{"x", bad} },
				func(t *tokens.Token) { t.Parent = bad }, func(t *tokens.Token) { t.User = bad }, func(t *tokens.Token) { t.CreatedBy = bad },
			} {
				if err := s.CreateToken(t.Context(), token(1, change), hash(1), did("token.create")); !errors.Is(err, tokens.ErrInvalid) {
					t.Errorf("%q in field %d: %v, want %v", bad, i, err, tokens.ErrInvalid)
				}
			}
			_, err := s.Token(t.Context(), "acme", bad)
			_, listErr := s.Tokens(t.Context(), tokens.TokenQuery{Org: bad})
			_, revokeErr := s.RevokeTokens(t.Context(), "acme", []string{bad}, "bob", now, did("token.revoke"))
			_, userErr := s.User(t.Context(), bad, "x")
			_, appErr := s.App(t.Context(), bad)
			_, claimErr := s.ClaimApp(t.Context(), tokens.App{Name: bad, Org: "acme", Created: now})
			_, trustErr := s.TrustsOf(t.Context(), bad)
			for call, err := range map[string]error{
				"Token": err, "Tokens": listErr, "RevokeTokens": revokeErr, "User": userErr, "App": appErr, "ClaimApp": claimErr, "TrustsOf": trustErr,
				"DeleteTokens": s.DeleteTokens(t.Context(), bad, tokIDs(1), now, did("token.delete")),
				"CreateOrg":    s.CreateOrg(t.Context(), tokens.Org{Name: bad, Created: now}),
				"CreateUser":   s.CreateUser(t.Context(), tokens.User{Org: "acme", Name: bad, Created: now}, did("user.create")),
				"CreateTrust":  s.CreateTrust(t.Context(), tokens.Trust{ID: "tru_1", Org: "acme", Claims: map[string]string{"sub": bad}, Created: now}, did("trust.create")),
			} {
				if !errors.Is(err, tokens.ErrInvalid) {
					t.Errorf("%s of %q: %v, want %v", call, bad, err, tokens.ErrInvalid)
				}
			}
		}
		if list, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: "acme"}); err != nil || len(list) != 0 {
			t.Errorf("there are %v, %v", list, err)
		}
		if got := actions(t, s); got != "" {
			t.Errorf("decisions %s of what did not happen", got)
		}
	},

	"an ID or a hash is taken once": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		for name, err := range map[string]error{
			"ID":   s.CreateToken(t.Context(), token(1, inOrg("globex")), hash(2), did("token.create")),
			"hash": s.CreateToken(t.Context(), token(2), hash(1), did("token.create")),
			"both": s.CreateToken(t.Context(), token(1), hash(1), did("token.create")),
		} {
			if !errors.Is(err, tokens.ErrExists) {
				t.Errorf("the same %s: %v, want %v", name, err, tokens.ErrExists)
			}
		}
		same(t, "Token 1", get(t, s, 1), token(1))
		if _, _, err := s.TokenByHash(t.Context(), hash(2)); !errors.Is(err, tokens.ErrNotFound) {
			t.Errorf("hash 2: %v", err)
		}
		if got := actions(t, s); got != "token.create" {
			t.Errorf("decisions %s, want one", got)
		}
	},

	"what is not there is not found": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		create(t, s, 2, inOrg("globex"))
		_, _, byHash := s.TokenByHash(t.Context(), hash(3))
		_, none := s.Token(t.Context(), "acme", tokID(3))
		_, foreign := s.Token(t.Context(), "acme", tokID(2))
		_, empty := s.Token(t.Context(), "", "")
		_, revoke := s.RevokeTokens(t.Context(), "acme", tokIDs(1, 2), "bob", now, did("token.revoke"))
		for name, err := range map[string]error{
			"TokenByHash": byHash, "Token": none, "Token of another org": foreign, "Token without a name": empty, "RevokeTokens": revoke,
			"DeleteTokens": s.DeleteTokens(t.Context(), "acme", tokIDs(2), now.AddDate(99, 0, 0), did("token.delete")),
		} {
			if !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("%s: %v, want %v", name, err, tokens.ErrNotFound)
			}
		}
		for n, org := range map[int]string{1: "acme", 2: "globex"} {
			got, err := s.Token(t.Context(), org, tokID(n))
			if err != nil {
				t.Error(err)
			}
			same(t, "the token", got, token(n, inOrg(org)))
		}
	},

	"a role is the user's": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		role := func(want string) {
			t.Helper()
			if _, got, err := s.TokenByHash(t.Context(), hash(1)); err != nil || got != want {
				t.Errorf("role %q, %v; want %q", got, err, want)
			}
		}
		createUser(t, s, "globex", "ann", tokens.RoleAdmin)
		createUser(t, s, "acme", "bob", tokens.RoleAdmin)
		role(tokens.RoleDeveloper)
		createUser(t, s, "acme", "ann", tokens.RoleAdmin)
		role(tokens.RoleAdmin)
		if err := open().SetRole(t.Context(), "acme", "ann", tokens.RoleDeveloper, did("user.role")); err != nil {
			t.Error(err)
		}
		role(tokens.RoleDeveloper)
	},

	"a child needs a parent that is good": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		create(t, s, 2, expiring(now))
		create(t, s, 3, expiring(now.Add(time.Millisecond)))
		create(t, s, 4)
		create(t, s, 5, inOrg("globex"))
		createUser(t, s, "acme", "eve", tokens.RoleDeveloper)
		if _, err := s.RemoveUser(t.Context(), "acme", "eve", "bob", now, did("user.remove")); err != nil {
			t.Fatal(err)
		}
		revoke(t, s, 4)
		before := actions(t, s)
		for name, c := range map[string]tokens.Token{
			"missing": token(10, childOf(9)), "expired": token(10, childOf(2)), "revoked": token(10, childOf(4)),
			"another org's": token(10, childOf(5)), "itself": token(10, childOf(10)), "removed user's": token(10, of("eve")),
		} {
			if err := s.CreateToken(t.Context(), c, hash(10), did("token.create")); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("%s: %v, want %v", name, err, tokens.ErrNotFound)
			}
			if _, _, err := s.TokenByHash(t.Context(), hash(10)); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("%s: there it is, %v", name, err)
			}
		}
		if got := actions(t, s); got != before {
			t.Errorf("decisions %s of what did not happen, before %s", got, before)
		}
		create(t, s, 11, childOf(1))
		create(t, s, 12, childOf(11))
		create(t, s, 13, childOf(3))
	},

	"uses": func(t *testing.T, open func() tokens.Store) {
		s := open()
		want := map[int]tokens.Token{}
		var uses []tokens.Use
		for n := range 3 {
			create(t, s, n)
			uses = append(uses, tokens.Use{ID: tokID(n), At: now.Add(time.Second), Addr: "10.0.0.1"})
			want[n] = token(n, func(t *tokens.Token) { t.LastUsed, t.LastAddr = now.Add(time.Second), "10.0.0.1" })
		}
		for n := 100; n < 1700; n++ {
			uses = append(uses, tokens.Use{ID: tokID(n), At: now, Addr: "unknown"})
		}
		touch := func(uses ...tokens.Use) {
			t.Helper()
			if err := s.TouchTokens(t.Context(), uses); err != nil {
				t.Fatal(err)
			}
		}
		touch()
		touch(uses...)
		touch(tokens.Use{ID: tokID(0), At: now, Addr: "earlier"},
			tokens.Use{ID: tokID(1), At: now.Add(time.Minute), Addr: "later"}, tokens.Use{ID: tokID(1), At: now.Add(2 * time.Second), Addr: "between"},
			tokens.Use{ID: "' or 1=1 --", At: now.AddDate(1, 0, 0), Addr: "injected"}, tokens.Use{ID: "\x00", At: now, Addr: "\xff"})
		want[1] = token(1, func(t *tokens.Token) { t.LastUsed, t.LastAddr = now.Add(time.Minute), "later" })
		for n, want := range want {
			same(t, "Token", get(t, s, n), want)
		}
		if list, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: "acme"}); err != nil || len(list) != 3 {
			t.Errorf("there are %v, %v", list, err)
		}
	},
}
