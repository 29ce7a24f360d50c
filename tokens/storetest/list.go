package storetest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/tokens"
)

var listTests = map[string]func(*testing.T, func() tokens.Store){
	"lists": func(t *testing.T, open func() tokens.Store) {
		s := open()
		create(t, s, 1)
		create(t, s, 2, func(t *tokens.Token) { t.App, t.Env = "blog", "prod" })
		create(t, s, 3, func(t *tokens.Token) { t.Type, t.App = tokens.TypeOrg, "" })
		create(t, s, 4, of("bob"), childOf(1))
		create(t, s, 5, func(t *tokens.Token) { t.Session = true })
		create(t, s, 6, inOrg("globex"))
		revoke(t, s, 2)
		for _, tc := range []struct {
			q    tokens.TokenQuery
			want []int
		}{
			{tokens.TokenQuery{Org: "acme"}, []int{4, 3, 2, 1}},
			{tokens.TokenQuery{Org: "acme", Sessions: true}, []int{5, 4, 3, 2, 1}},
			{tokens.TokenQuery{Org: "globex"}, []int{6}},
			{tokens.TokenQuery{}, nil},
			{tokens.TokenQuery{Org: "acme", App: "blog"}, []int{2}},
			{tokens.TokenQuery{Org: "acme", Env: "prod"}, []int{2}},
			{tokens.TokenQuery{Org: "acme", Env: "prod", App: "shop"}, nil},
			{tokens.TokenQuery{Org: "acme", Type: tokens.TypeOrg}, []int{3}},
			{tokens.TokenQuery{Org: "acme", User: "bob"}, []int{4}},
			{tokens.TokenQuery{Org: "acme", Parent: tokID(1)}, []int{4}},
			{tokens.TokenQuery{Org: "globex", Parent: tokID(1)}, nil},
			{tokens.TokenQuery{Org: "acme", Limit: 2}, []int{4, 3}},
			{tokens.TokenQuery{Org: "acme", Limit: 2, Before: tokID(3)}, []int{2, 1}},
			{tokens.TokenQuery{Org: "acme", Before: tokID(1)}, nil},
		} {
			if got, err := listed(t, s, tc.q); err != nil || fmt.Sprint(got) != fmt.Sprint(tokIDs(tc.want...)) {
				t.Errorf("%+v: %v, %v; want %v", tc.q, got, err, tc.want)
			}
		}
	},

	"a list without a limit has 1000, the rest on more pages": func(t *testing.T, open func() tokens.Store) {
		s := open()
		const all = 1100
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				for n := i; n < all; n += 10 {
					if err := s.CreateToken(t.Context(), token(n), hash(n), did("token.create")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		first, err := listed(t, s, tokens.TokenQuery{Org: "acme"})
		if err != nil || len(first) != 1000 || first[0] != tokID(all-1) {
			t.Fatalf("%d listed, %v", len(first), err)
		}
		more, err := listed(t, s, tokens.TokenQuery{Org: "acme", Before: first[len(first)-1]})
		if err != nil {
			t.Fatal(err)
		}
		for i, id := range append(first, more...) {
			if id != tokID(all-1-i) {
				t.Fatalf("place %d has %s", i, id)
			}
		}
		if len(more) != all-1000 {
			t.Errorf("%d on the second page", len(more))
		}
	},
}

func listed(t *testing.T, s tokens.Store, q tokens.TokenQuery) (ids []string, err error) {
	list, err := s.Tokens(t.Context(), q)
	for _, t := range list {
		ids = append(ids, t.ID)
	}
	return ids, err
}
