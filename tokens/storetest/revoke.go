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

// family makes a tree of tokens: 1 has the children 2 and 3, 2 has 4, and 4 is
// the first of a line that ends with 50. 60 is nobody's child.
func family(t *testing.T, s tokens.Store) {
	t.Helper()
	create(t, s, 1)
	create(t, s, 2, childOf(1))
	create(t, s, 3, childOf(1), of("bob"))
	create(t, s, 4, childOf(2))
	for n := 5; n <= 50; n++ {
		create(t, s, n, childOf(n-1))
	}
	create(t, s, 60)
}

func numbers(from, to int) []int {
	var all []int
	for n := from; n <= to; n++ {
		all = append(all, n)
	}
	return all
}

var revokeTests = map[string]func(*testing.T, func() tokens.Store){
	"a token dies with all that descend from it": func(t *testing.T, open func() tokens.Store) {
		s := open()
		family(t, s)
		later := open()
		if got := revoke(t, s, 40, 30, 40); !slices.Equal(got, tokIDs(numbers(30, 50)...)) {
			t.Errorf("revoked %v, want 30 to 50", got)
		}
		if got := revoke(t, s, 30); len(got) != 0 {
			t.Errorf("revoked again %v", got)
		}
		ids, err := later.RevokeTokens(t.Context(), "acme", tokIDs(4, 1), "eve", now.Add(time.Hour), did("token.revoke"))
		if slices.Sort(ids); err != nil || !slices.Equal(ids, tokIDs(numbers(1, 29)...)) {
			t.Errorf("revoked %v, %v; want 1 to 29", ids, err)
		}
		for n := 1; n <= 50; n++ {
			want, by := now.Add(time.Hour), "eve"
			if n >= 30 {
				want, by = now, "bob"
			}
			if got := get(t, s, n); !got.Revoked.Equal(want) || got.RevokedBy != by || got.Status(now) != tokens.StatusRevoked {
				t.Errorf("token %d was revoked %v by %s, want %v by %s", n, got.Revoked, got.RevokedBy, want, by)
			}
		}
		if got := get(t, s, 60); !got.Revoked.IsZero() {
			t.Error("token 60 was revoked with another family")
		}
		if _, _, err := s.TokenByHash(t.Context(), hash(1)); err != nil {
			t.Errorf("by its hash: %v, want it in any status", err)
		}
		if got := strings.Count(actions(t, s), "token.revoke"); got != 3 {
			t.Errorf("%d decisions to revoke, want 3", got)
		}
	},

	"many are revoked, or none": func(t *testing.T, open func() tokens.Store) {
		s := open()
		family(t, s)
		var many []int
		for range 90 { // more than one statement names
			many = append(many, numbers(1, 50)...)
		}
		_, err := s.RevokeTokens(t.Context(), "acme", tokIDs(append(many, 77)...), "bob", now, did("token.revoke"))
		if !errors.Is(err, tokens.ErrNotFound) || !strings.Contains(err.Error(), tokID(77)) {
			t.Errorf("with one that is missing: %v, want %v and its ID", err, tokens.ErrNotFound)
		}
		for n := 1; n <= 50; n++ {
			if got := get(t, s, n); !got.Revoked.IsZero() {
				t.Errorf("token %d was revoked", n)
			}
		}
		if got := actions(t, s); strings.Contains(got, "token.revoke") {
			t.Errorf("decisions %s", got)
		}
		if ids, next, err := s.RevokedAfter(t.Context(), "0"); len(ids) > 0 || err != nil {
			t.Errorf("%v to be told to others up to %s, %v", ids, next, err)
		}
		if got := revoke(t, s, many...); len(got) != 50 {
			t.Errorf("revoked %d, want 50", len(got))
		}
		if got := revoke(t, s); len(got) != 0 {
			t.Errorf("revoked %v of none", got)
		}
	},

	"only what has ended is deleted": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		create(t, s, 2, expiring(now))
		create(t, s, 3, expiring(now.Add(time.Millisecond)))
		create(t, s, 4)
		create(t, s, 5, childOf(4))
		create(t, s, 6, expiring(now.Add(time.Second)))
		create(t, s, 7, childOf(6)) // lives on
		revoke(t, s, 4)
		remove := func(at time.Time, ns ...int) error {
			return s.DeleteTokens(t.Context(), "acme", tokIDs(ns...), at, did("token.delete"))
		}
		for name, tc := range map[string]struct {
			ns  []int
			bad int
		}{"active": {[]int{1}, 1}, "not yet expired": {[]int{3}, 3}, "one of many": {[]int{2, 4, 1}, 1}} {
			if err := remove(now, tc.ns...); !errors.Is(err, tokens.ErrInUse) || !strings.Contains(err.Error(), tokID(tc.bad)) {
				t.Errorf("%s: %v, want %v and %d", name, err, tokens.ErrInUse, tc.bad)
			}
		}
		if err := remove(now.Add(time.Hour), 6); !errors.Is(err, tokens.ErrInUse) || !strings.Contains(err.Error(), tokID(7)) {
			t.Errorf("a living child: %v, want %v and 7", err, tokens.ErrInUse)
		}
		if err := remove(now, 2, 9); !errors.Is(err, tokens.ErrNotFound) || !strings.Contains(err.Error(), tokID(9)) {
			t.Errorf("one is missing: %v, want %v and 9", err, tokens.ErrNotFound)
		}
		if got, err := listed(t, s, tokens.TokenQuery{Org: "acme"}); err != nil || len(got) != 7 {
			t.Errorf("left are %v, %v; want all", got, err)
		}
		if got := actions(t, s); strings.Contains(got, "token.delete") {
			t.Errorf("decisions %s of what did not happen", got)
		}
		for _, ns := range [][]int{{5, 4}, {2}, {}} {
			if err := remove(now, ns...); err != nil {
				t.Errorf("delete %v: %v", ns, err)
			}
		}
		revoke(t, s, 6)
		if err := remove(now, 6); err != nil {
			t.Errorf("delete 6 with its child: %v", err)
		}
		if got, err := listed(t, open(), tokens.TokenQuery{Org: "acme"}); err != nil || fmt.Sprint(got) != fmt.Sprint(tokIDs(3, 1)) {
			t.Errorf("left are %v, %v; want 3 and 1", got, err)
		}
		for _, n := range []int{2, 4, 5, 6, 7} {
			if _, _, err := s.TokenByHash(t.Context(), hash(n)); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("token %d: %v", n, err)
			}
		}
	},

	"a removed user's tokens die with those that descend from them": func(t *testing.T, open func() tokens.Store) {
		s := open()
		for _, u := range []struct{ org, name string }{{"acme", "ann"}, {"acme", "bob"}, {"globex", "ann"}} {
			createUser(t, s, u.org, u.name, tokens.RoleAdmin)
		}
		create(t, s, 1)
		create(t, s, 2, of("bob"), childOf(1))
		create(t, s, 3, of("bob"))
		create(t, s, 4, inOrg("globex"))
		create(t, s, 5, func(t *tokens.Token) { t.Session = true })
		create(t, s, 6)
		revoke(t, s, 6)
		_, cursor, err := s.RevokedAfter(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		remove := func(name string) ([]string, error) {
			ids, err := s.RemoveUser(t.Context(), "acme", name, "bob", now.Add(time.Hour), did("user.remove"))
			slices.Sort(ids)
			return ids, err
		}
		if ids, err := remove("ann"); err != nil || !slices.Equal(ids, tokIDs(1, 2, 5)) {
			t.Errorf("revoked %v, %v; want 1, 2, 5", ids, err)
		}
		if ids, _, err := open().RevokedAfter(t.Context(), cursor); err != nil || !slices.Equal(ids, tokIDs(1, 2, 5)) {
			t.Errorf("others hear of %v, %v; want 1, 2, 5", ids, err)
		}
		for n, want := range map[int]time.Time{1: now.Add(time.Hour), 2: now.Add(time.Hour), 3: {}, 5: now.Add(time.Hour), 6: now} {
			if got := get(t, s, n); !got.Revoked.Equal(want) {
				t.Errorf("token %d revoked %v, want %v", n, got.Revoked, want)
			}
		}
		if got, err := s.Token(t.Context(), "globex", tokID(4)); err != nil || !got.Revoked.IsZero() {
			t.Errorf("the other ann's: %+v, %v", got, err)
		}
		if _, role, err := s.TokenByHash(t.Context(), hash(1)); err != nil || role != tokens.RoleDeveloper {
			t.Errorf("role %q, %v; want %q", role, err, tokens.RoleDeveloper)
		}
		for _, name := range []string{"ann", "nobody"} {
			if ids, err := remove(name); !errors.Is(err, tokens.ErrNotFound) || ids != nil {
				t.Errorf("remove %s: %v, %v", name, ids, err)
			}
			if err := s.SetRole(t.Context(), "acme", name, tokens.RoleAdmin, did("user.role")); !errors.Is(err, tokens.ErrNotFound) {
				t.Errorf("role of %s: %v", name, err)
			}
		}
		if err := s.CreateUser(t.Context(), tokens.User{Org: "acme", Name: "ann", Created: now}, did("user.create")); !errors.Is(err, tokens.ErrExists) {
			t.Errorf("the name again: %v, want %v", err, tokens.ErrExists)
		}
		if u, err := s.User(t.Context(), "acme", "ann"); err != nil || !u.Removed.Equal(now.Add(time.Hour)) {
			t.Errorf("the removed user: %+v, %v", u, err)
		}
		if us, err := s.Users(t.Context(), "acme"); err != nil || len(us) != 1 || us[0].Name != "bob" {
			t.Errorf("users %+v, %v; want bob", us, err)
		}
	},
}
