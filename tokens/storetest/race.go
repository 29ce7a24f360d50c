package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/tokens"
)

// raceTests have two stores at one place, and much that happens at once.
var raceTests = map[string]func(*testing.T, func() tokens.Store){
	"50 revocations at once of trees that overlap": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		family(t, stores[0])
		var mu sync.Mutex
		times := map[string]int{}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				by := fmt.Sprint("user", i)
				ids, err := stores[i%2].RevokeTokens(t.Context(), "acme", tokIDs(50-i, 1+i, 60), by, now, did("token.revoke"))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, id := range ids {
					times[id]++
					if got, err := stores[i%2].Token(t.Context(), "acme", id); err != nil || got.RevokedBy != by {
						t.Errorf("token %s was revoked by %s, and %s did it, %v", id, got.RevokedBy, by, err)
					}
				}
			})
		}
		wg.Wait()
		for _, id := range tokIDs(append(numbers(1, 50), 60)...) {
			if times[id] != 1 {
				t.Errorf("token %s was revoked %d times", id, times[id])
			}
		}
		if ids, _, err := stores[1].RevokedAfter(t.Context(), "0"); err != nil || len(ids) != 51 || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 51 {
			t.Errorf("others hear of %d, %v; want 51, each once", len(ids), err)
		}
		if got := strings.Count(actions(t, stores[0]), "token.revoke"); got != 50 {
			t.Errorf("%d decisions, want 50", got)
		}
	},

	"no child outlives a parent that is revoked meanwhile": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		orphans(t, stores, func(s tokens.Store, n int) error {
			_, err := s.RevokeTokens(t.Context(), "acme", tokIDs(n), "bob", now, did("token.revoke"))
			return err
		})
	},

	"no token outlives a user that is removed meanwhile": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		for round := range rounds {
			createUser(t, stores[0], "acme", fmt.Sprint("user", 100*round), tokens.RoleDeveloper)
		}
		orphans(t, stores, func(s tokens.Store, n int) error {
			_, err := s.RemoveUser(t.Context(), "acme", fmt.Sprint("user", n), "bob", now, did("user.remove"))
			return err
		})
	},

	"nothing is deleted under a child that is made meanwhile": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		for round := range rounds {
			n := 10 * round
			create(t, stores[0], n, expiring(now.Add(1)))
			var wg sync.WaitGroup
			var made, deleted error
			wg.Go(func() {
				made = stores[0].CreateToken(t.Context(), token(n+1, childOf(n)), hash(n+1), did("token.create"))
			})
			wg.Go(func() {
				deleted = stores[1].DeleteTokens(t.Context(), "acme", tokIDs(n), now.Add(1e9), did("token.delete"))
			})
			wg.Wait()
			if made == nil && !errors.Is(deleted, tokens.ErrInUse) || deleted == nil && !errors.Is(made, tokens.ErrNotFound) {
				t.Errorf("made a child: %v, deleted the parent: %v", made, deleted)
			}
		}
	},

	"one of many wins": func(t *testing.T, open func() tokens.Store) {
		stores := []tokens.Store{open(), open()}
		for name, f := range map[string]func(s tokens.Store, i int) error{
			"CreateToken": func(s tokens.Store, i int) error {
				return s.CreateToken(t.Context(), token(i), hash(0), did("token.create"))
			},
			"CreateOrg": func(s tokens.Store, _ int) error {
				return s.CreateOrg(t.Context(), tokens.Org{Name: "acme", Created: now})
			},
			"CreateUser": func(s tokens.Store, i int) error {
				return s.CreateUser(t.Context(), tokens.User{Org: "acme", Name: "ann", Created: now}, did("user.create"))
			},
			"Redeem": func(s tokens.Store, _ int) error { return s.Redeem(t.Context(), "jti", now.AddDate(99, 0, 0)) },
			"ClaimApp": func(s tokens.Store, i int) error {
				org := fmt.Sprint("org", i)
				a, err := s.ClaimApp(t.Context(), tokens.App{Name: "shop", Org: org, CreatedBy: org, Created: now})
				if err == nil && a.Org != org {
					return tokens.ErrExists
				}
				return err
			},
		} {
			var wg sync.WaitGroup
			errs := make([]error, 20)
			for i := range errs {
				wg.Go(func() { errs[i] = f(stores[i%2], i) })
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else if !errors.Is(err, tokens.ErrExists) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if won != 1 {
				t.Errorf("%s: %d won", name, won)
			}
		}
		if got := actions(t, stores[0]); got != "token.create user.create" {
			t.Errorf("decisions %q, want one of each", got)
		}
	},
}

// rounds is how often a race is run.
const rounds = 15

// orphans makes a token and lets end end it while children of it are made. Its
// number is that of its user.
func orphans(t *testing.T, stores []tokens.Store, end func(s tokens.Store, n int) error) {
	t.Helper()
	made := 0
	for round := range rounds {
		n := 100 * round
		user := of(fmt.Sprint("user", n))
		create(t, stores[0], n, user)
		var wg sync.WaitGroup
		errs := make([]error, 12)
		for i := range errs {
			wg.Go(func() {
				if i == len(errs)/2 {
					errs[i] = end(stores[1], n)
					return
				}
				child := token(n+1+i, user, childOf(n))
				errs[i] = stores[i%2].CreateToken(t.Context(), child, hash(n+1+i), did("token.create"))
			})
		}
		wg.Wait()
		for i, err := range errs {
			switch {
			case i == len(errs)/2:
				if err != nil {
					t.Error(err)
				}
			case err == nil:
				made++
				if got := get(t, stores[0], n+1+i); got.Revoked.IsZero() {
					t.Errorf("round %d: child %d lives", round, i)
				}
			case !errors.Is(err, tokens.ErrNotFound):
				t.Error(err)
			}
		}
	}
	if made == 0 || made == rounds*11 {
		t.Logf("%d of %d children were made: they did not race", made, rounds*11)
	}
}
