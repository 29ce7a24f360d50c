package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

var principalTests = map[string]func(*testing.T, func() tokens.Store){
	"orgs": func(t *testing.T, open func() tokens.Store) {
		s := open()
		var want []tokens.Org
		for _, name := range []string{"acme", "Zeta", "globex", "a-b", "a_b", "ab", `'; drop table orgs; --`} {
			o := tokens.Org{Name: name, Created: now}
			if err := s.CreateOrg(t.Context(), o); err != nil {
				t.Errorf("CreateOrg %s: %v", name, err)
			}
			want = append(want, o)
		}
		slices.SortFunc(want, func(a, b tokens.Org) int { return strings.Compare(a.Name, b.Name) })
		if err := s.CreateOrg(t.Context(), tokens.Org{Name: "acme", Created: now.Add(time.Hour)}); !errors.Is(err, tokens.ErrExists) {
			t.Errorf("again: %v, want %v", err, tokens.ErrExists)
		}
		got, err := open().Orgs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same(t, "Orgs", got, want)
	},

	"apps": func(t *testing.T, open func() tokens.Store) {
		s := open()
		shop := tokens.App{Name: "shop", Org: "acme", CreatedBy: "ann", Created: now}
		for _, claim := range []tokens.App{shop, {Name: "shop", Org: "globex", CreatedBy: "eve", Created: now.Add(time.Hour)}} {
			got, err := s.ClaimApp(t.Context(), claim)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "ClaimApp", got, shop)
		}
		blog, err := s.ClaimApp(t.Context(), tokens.App{Name: "blog", Org: "acme", CreatedBy: `"ann"`, Created: now})
		if err != nil {
			t.Fatal(err)
		}
		got, err := open().App(t.Context(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "App", got, shop)
		if _, err := s.App(t.Context(), "Shop"); !errors.Is(err, tokens.ErrNotFound) {
			t.Errorf("another app: %v", err)
		}
		all, err := s.Apps(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "Apps", all, []tokens.App{blog, shop})
		if all, err := s.Apps(t.Context(), "globex"); err != nil || len(all) != 0 {
			t.Errorf("apps of another org: %v, %v", all, err)
		}
	},

	"users": func(t *testing.T, open func() tokens.Store) {
		s := open()
		ann := tokens.User{Org: "acme", Name: "ann", Role: tokens.RoleAdmin, Created: now}
		bob := tokens.User{Org: "acme", Name: "Bob", Role: tokens.RoleDeveloper, Created: now}
		for _, u := range []tokens.User{ann, bob, {Org: "globex", Name: "ann", Role: tokens.RoleDeveloper, Created: now}} {
			if err := s.CreateUser(t.Context(), u, did("user.create")); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CreateUser(t.Context(), tokens.User{Org: "acme", Name: "ann", Role: tokens.RoleDeveloper, Created: now}, did("user.create")); !errors.Is(err, tokens.ErrExists) {
			t.Errorf("again: %v, want %v", err, tokens.ErrExists)
		}
		if got, err := s.User(t.Context(), "acme", "ann"); err != nil || got != ann {
			t.Errorf("User: %+v, %v", got, err)
		}
		if _, err := s.User(t.Context(), "globex", "Bob"); !errors.Is(err, tokens.ErrNotFound) {
			t.Errorf("another org's: %v", err)
		}
		if err := s.SetRole(t.Context(), "acme", "Bob", tokens.RoleAdmin, did("user.role")); err != nil {
			t.Error(err)
		}
		bob.Role = tokens.RoleAdmin
		if all, err := open().Users(t.Context(), "acme"); err != nil || !slices.Equal(all, []tokens.User{bob, ann}) {
			t.Errorf("Users: %+v, %v; want them by name", all, err)
		}
		for _, u := range [][2]string{{"acme", "eve"}, {"globex", "Bob"}} {
			if err := s.SetRole(t.Context(), u[0], u[1], tokens.RoleAdmin, did("user.role")); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("role of %v: %v", u, err)
			}
		}
		if got := actions(t, s); got != "user.create user.create user.create user.role" {
			t.Errorf("decisions %s", got)
		}
	},

	"names that are too long for an index are refused": func(t *testing.T, open func() tokens.Store) {
		s := open()
		long := strings.Repeat("0123456789abcdef", 640) // 10 kB
		for i := range 640 {
			long = fmt.Sprint(i) + long
		}
		_, claim := s.ClaimApp(t.Context(), tokens.App{Name: long, Org: "acme", Created: now})
		for name, err := range map[string]error{
			"CreateOrg":  s.CreateOrg(t.Context(), tokens.Org{Name: long, Created: now}),
			"CreateUser": s.CreateUser(t.Context(), tokens.User{Org: "acme", Name: long, Created: now}, did("user.create")),
			"ClaimApp":   claim,
			"ID":         s.CreateToken(t.Context(), token(1, func(t *tokens.Token) { t.ID = long }), hash(1), did("token.create")),
			"user":       s.CreateToken(t.Context(), token(1, of(long)), hash(1), did("token.create")),
			"org":        s.CreateToken(t.Context(), token(1, inOrg(long)), hash(1), did("token.create")),
			"trust":      s.CreateTrust(t.Context(), tokens.Trust{ID: long, Org: "acme", Created: now}, did("trust.create")),
		} {
			if !errors.Is(err, tokens.ErrInvalid) || len(err.Error()) > 1000 {
				t.Errorf("%s: %.2000v, want %v", name, err, tokens.ErrInvalid)
			}
		}
		if _, err := s.Token(t.Context(), "acme", long); !errors.Is(err, tokens.ErrNotFound) || len(err.Error()) > 1000 {
			t.Errorf("look for one: %.2000v", err)
		}
	},

	"trust rules": func(t *testing.T, open func() tokens.Store) {
		s := open()
		full := tokens.Trust{
			ID: "tru_2", Org: "acme", Name: "github", Issuer: "https://token.example.com", Audience: "slipway",
			Claims: map[string]string{"sub": "repo:acme/*", `"; drop`: "<**>"}, Type: tokens.TypeRegistry, App: "shop", Env: "prod",
			Permission: tokens.ReadWrite, Role: tokens.RoleAdmin, TTL: 15*time.Minute + time.Millisecond, CreatedBy: "ann", Created: now,
		}
		bare := tokens.Trust{ID: "tru_1", Org: "acme", Issuer: "https://gitlab.example.com", Created: now}
		foreign := tokens.Trust{ID: "tru_3", Org: "globex", Issuer: full.Issuer, Created: now}
		for _, r := range []tokens.Trust{full, bare, foreign} {
			if err := s.CreateTrust(t.Context(), r, did("trust.create")); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CreateTrust(t.Context(), foreign, did("trust.create")); !errors.Is(err, tokens.ErrExists) {
			t.Errorf("again: %v, want %v", err, tokens.ErrExists)
		}
		check := func(what string, want ...tokens.Trust) func(got []tokens.Trust, err error) {
			return func(got []tokens.Trust, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				same(t, what, got, want)
			}
		}
		check("Trusts", full, bare)(open().Trusts(t.Context(), "acme"))
		check("TrustsOf", foreign, full)(s.TrustsOf(t.Context(), full.Issuer))
		check("TrustsOf another issuer")(s.TrustsOf(t.Context(), "https://token.example.com/"))
		for _, r := range [][2]string{{"globex", "tru_2"}, {"acme", "tru_9"}} {
			if err := s.DeleteTrust(t.Context(), r[0], r[1], did("trust.delete")); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("DeleteTrust %v: %v", r, err)
			}
		}
		if err := s.DeleteTrust(t.Context(), "acme", "tru_2", did("trust.delete")); err != nil {
			t.Error(err)
		}
		check("Trusts", bare)(s.Trusts(t.Context(), "acme"))
		if got := actions(t, s); got != "trust.create trust.create trust.create trust.delete" {
			t.Errorf("decisions %s", got)
		}
	},

	"a one-time thing is used once": func(t *testing.T, open func() tokens.Store) {
		s := open()
		later := time.Now().Add(time.Hour)
		for _, key := range append(odd, "\x00", "\xff", "\xfe") {
			if err := s.Redeem(t.Context(), key, later); err != nil {
				t.Errorf("Redeem %.50q: %v", key, err)
			}
			err := open().Redeem(t.Context(), key, later.Add(time.Hour))
			if !errors.Is(err, tokens.ErrExists) {
				t.Errorf("Redeem %.50q again: %v, want %v", key, err, tokens.ErrExists)
			} else if key == "long" && strings.Contains(err.Error(), key) {
				t.Errorf("%v shows the key", err)
			}
		}
		if err := s.Redeem(t.Context(), "expired", time.Now()); err != nil {
			t.Error(err)
		}
		if err := s.Redeem(t.Context(), "expired", later); !errors.Is(err, tokens.ErrExists) {
			t.Errorf("just expired: %v; another clock may be late", err)
		}
	},
}
