package storetest

import (
	"slices"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/tokens"
)

var feedTests = map[string]func(*testing.T, func() tokens.Store){
	"a daemon learns what another one revoked": func(t *testing.T, open func() tokens.Store) {
		s, other := open(), open()
		family(t, s)
		revoke(t, s, 60)
		_, first := after(t, other, "")
		revoke(t, s, 50)
		if ids, same := after(t, other, ""); len(ids) != 0 || same == first {
			t.Errorf("from now on: %v, cursor %q; want none, and another than %q", ids, same, first)
		}
		revoke(t, s, 3)
		revoke(t, s, 50, 3) // news to nobody
		ids, second := after(t, other, first)
		if !slices.Equal(ids, tokIDs(50, 3)) {
			t.Errorf("revoked %v; want 50, then 3", ids)
		}
		if ids, third := after(t, other, second); len(ids) != 0 || third != second {
			t.Errorf("nothing new: %v, cursor %q, want %q", ids, third, second)
		}
		revoke(t, other, 49)
		if err := s.DeleteTokens(t.Context(), "acme", tokIDs(49), now, did("token.delete")); err != nil {
			t.Fatal(err)
		}
		if ids, _ := after(t, open(), second); !slices.Equal(ids, tokIDs(49)) {
			t.Errorf("revoked and deleted: %v, want 49", ids)
		}
		create(t, s, 70, inOrg("globex"))
		_, cursor := after(t, s, "")
		if _, err := s.RevokeTokens(t.Context(), "globex", tokIDs(70), "bob", now.AddDate(-1, 0, 0), did("token.revoke")); err != nil {
			t.Fatal(err)
		}
		if ids, _ := after(t, other, cursor); !slices.Equal(ids, tokIDs(70)) {
			t.Errorf("of another org, by a clock that is late: %v, want 70", ids)
		}
		for _, bad := range []string{"x", "1x", "-", "' or 1=1", "99999999999999999999"} {
			if ids, _, err := s.RevokedAfter(t.Context(), bad); err == nil {
				t.Errorf("cursor %q: %v", bad, ids)
			}
		}
	},

	"none of many revocations is missed": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		const writers, each = 10, 8
		for n := range writers * each {
			create(t, stores[0], n)
		}
		_, cursor := after(t, stores[1], "")
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if _, err := stores[w%2].RevokeTokens(t.Context(), "acme", tokIDs(w*each+i), "bob", now, did("token.revoke")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		heard := map[string]int{}
		read := func() {
			var ids []string
			ids, cursor = after(t, stores[1], cursor)
			for _, id := range ids {
				heard[id]++
			}
		}
		for writing := true; writing; {
			select {
			case <-done:
				writing = false
			default:
			}
			read()
		}
		for n := range writers * each {
			if heard[tokID(n)] != 1 {
				t.Errorf("heard %d times of token %d", heard[tokID(n)], n)
			}
		}
	},
}

func after(t *testing.T, s tokens.Store, cursor string) (ids []string, next string) {
	t.Helper()
	ids, next, err := s.RevokedAfter(t.Context(), cursor)
	if err != nil || next == "" {
		t.Fatalf("RevokedAfter %q: cursor %q, %v", cursor, next, err)
	}
	return ids, next
}
