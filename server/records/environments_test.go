package records_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/server/records"
)

// hostile are names that a statement must take as they are.
var hostile = []string{`'; drop table releases; --`, `a' or '1'='1`, `%`, `_`, `production" --`, "ü\n"}

// environments holds a database to what Store promises of environments,
// releases and pulls.
func environments(t *testing.T, open func(*testing.T) (*records.Store, func() *records.Store)) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	check := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	env := func(name string) records.Environment {
		return records.Environment{Org: "acme", Name: name, CreatedBy: "ci", Created: at}
	}
	release := func(env, digest string) records.Release {
		return records.Release{Org: "acme", App: "shop", Env: env, Digest: digest, Tag: "v1", CreatedBy: "ci", Created: at}
	}
	t.Run("life of an environment", func(t *testing.T) {
		s, again := open(t)
		ctx := t.Context()
		check(t, s.CreateEnvironment(ctx, env("staging")))
		check(t, s.CreateEnvironment(ctx, env("production")))
		other := env("production")
		other.Org = "globex"
		check(t, s.CreateEnvironment(ctx, other))
		if err := s.CreateEnvironment(ctx, env("staging")); !errors.Is(err, records.ErrEnvironmentExists) {
			t.Errorf("again: %v", err)
		}
		check(t, s.DeleteEnvironment(ctx, "acme", "staging", at.Add(time.Hour)))
		for _, key := range [][2]string{{"acme", "staging"}, {"acme", "qa"}, {"initech", "production"}} {
			if err := s.DeleteEnvironment(ctx, key[0], key[1], at); !errors.Is(err, records.ErrNoEnvironment) {
				t.Errorf("delete %v: %v", key, err)
			}
		}
		check(t, s.Close())
		s = again()
		if got := names(s.Environments(ctx, "acme")); got != "[production]" {
			t.Errorf("left: %s", got)
		}
		got, err := s.Environment(ctx, "acme", "staging")
		if err != nil || got != (records.Environment{Org: "acme", Name: "staging", CreatedBy: "ci", Created: at, Deleted: at.Add(time.Hour)}) {
			t.Errorf("deleted: %+v, %v", got, err)
		}
		if _, err := s.Environment(ctx, "globex", "staging"); !errors.Is(err, records.ErrNoEnvironment) {
			t.Errorf("of another org: %v", err)
		}
		anew := env("staging")
		anew.CreatedBy, anew.Created = "admin", at.Add(2*time.Hour)
		check(t, s.CreateEnvironment(ctx, anew))
		if got, err := s.Environment(ctx, "acme", "staging"); err != nil || got != anew {
			t.Errorf("made again: %+v, %v", got, err)
		}
	})
	t.Run("one of many makes an environment", func(t *testing.T) {
		s, _ := open(t)
		var won sync.Map
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := s.CreateEnvironment(t.Context(), env("qa")); err == nil {
					won.Store(i, true)
				} else if !errors.Is(err, records.ErrEnvironmentExists) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := 0
		won.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Errorf("%d made it", n)
		}
	})
	t.Run("versions have no gaps", func(t *testing.T) {
		s, _ := open(t)
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				r := release([]string{"production", "staging", ""}[i%3], fmt.Sprint("sha256:", i/15))
				if _, _, err := s.ReleaseNew(t.Context(), r); err != nil {
					t.Error(err)
				}
				if _, err := s.Release(t.Context(), r); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, env := range []string{"production", "staging", ""} {
			list, err := s.Releases(t.Context(), records.ReleaseQuery{Org: "acme", App: "shop", Env: &env, Limit: 100})
			check(t, err)
			if len(list) < 10 {
				t.Errorf("environment %q has %d releases", env, len(list))
			}
			for i, r := range list {
				if want := int64(len(list) - i); r.Version != want || r.Env != env {
					t.Errorf("environment %q: %+v is number %d", env, r, want)
				}
			}
		}
	})
	t.Run("releases", func(t *testing.T) {
		s, again := open(t)
		ctx := t.Context()
		made := map[string]records.Release{}
		for i, r := range []records.Release{release("production", "sha256:1"), release("production", "sha256:2"), release("", "sha256:3"), release("production", "sha256:1"), release("staging", "sha256:9")} {
			r.Created = at.Add(time.Duration(i) * time.Minute)
			if i == 4 {
				r.App, r.PromotedFrom, r.BuildID, r.Tag = "blog", "qa", "b", ""
			}
			got, err := s.Release(ctx, r)
			check(t, err)
			r.ID, r.Version = got.ID, []int64{1, 2, 1, 3, 1}[i]
			if got != r {
				t.Errorf("recorded %+v, want %+v", got, r)
			}
			made[fmt.Sprint(i)] = got
		}
		elsewhere := release("production", "sha256:5")
		elsewhere.Org = "globex"
		for v := range int64(5) {
			if r, err := s.Release(ctx, elsewhere); err != nil || r.Version != v+1 {
				t.Errorf("of another org: %+v, %v", r, err)
			}
		}
		check(t, s.Close())
		s = again()
		production, none := "production", ""
		for _, tc := range []struct {
			q    records.ReleaseQuery
			want string
		}{
			{records.ReleaseQuery{}, "4 3 2 1 0"},
			{records.ReleaseQuery{Limit: 2}, "4 3"},
			{records.ReleaseQuery{App: "shop"}, "3 2 1 0"},
			{records.ReleaseQuery{Env: &production}, "3 1 0"},
			{records.ReleaseQuery{Env: &none}, "2"},
			{records.ReleaseQuery{Env: &production, Version: 2}, "1"},
			{records.ReleaseQuery{Before: made["3"].ID}, "2 1 0"},
			{records.ReleaseQuery{Earlier: at.Add(2 * time.Minute)}, "1 0"},
			{records.ReleaseQuery{App: "sho_"}, ""},
		} {
			tc.q.Org, tc.q.Limit = "acme", cmp.Or(tc.q.Limit, 10)
			list, err := s.Releases(ctx, tc.q)
			check(t, err)
			var got []string
			for _, r := range list {
				for name, m := range made {
					if m == r {
						got = append(got, name)
					}
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%+v: %v, want %s", tc.q, got, tc.want)
			}
		}
		last, err := s.LastReleases(ctx, "acme", "production", "")
		if err != nil || len(last) != 1 || last[0] != made["3"] {
			t.Errorf("last: %+v, %v", last, err)
		}
		if r, err := s.ReleaseOf(ctx, "acme", "production", "shop", "sha256:1"); err != nil || r != made["3"] {
			t.Errorf("last of an image: %+v, %v", r, err)
		}
		if r, err := s.ReleaseNumber(ctx, "acme", "production", "shop", 2); err != nil || r != made["1"] {
			t.Errorf("by number: %+v, %v", r, err)
		}
		for _, err := range []error{
			second(s.ReleaseOf(ctx, "acme", "staging", "shop", "sha256:1")), second(s.ReleaseNumber(ctx, "globex", "production", "shop", 6)),
		} {
			if !errors.Is(err, records.ErrNoRelease) {
				t.Errorf("not there: %v", err)
			}
		}
		r, anew, err := s.ReleaseNew(ctx, release("production", "sha256:1"))
		if err != nil || anew || r != made["3"] {
			t.Errorf("the same again: %+v, %v, %v", r, anew, err)
		}
		if r, anew, err = s.ReleaseNew(ctx, release("production", "sha256:2")); err != nil || !anew || r.Version != 4 {
			t.Errorf("another one: %+v, %v, %v", r, anew, err)
		}
	})
	t.Run("a build ends with its release", func(t *testing.T) {
		s, _ := open(t)
		ctx := t.Context()
		_, err := s.Create(ctx, records.Build{ID: "a", Org: "acme", App: "shop", CreatedBy: "dev", Created: at})
		check(t, err)
		end := records.Build{ID: "a", Status: records.Succeeded, Ended: at, Digest: "sha256:1", Tag: "v1"}
		var wg sync.WaitGroup
		var ended sync.Map
		for i := range 8 {
			wg.Go(func() {
				r, err := s.EndReleased(ctx, end, release("production", "sha256:1"), func(r records.Release) []byte { return fmt.Append(nil, r.ID, r.Version) })
				if err == nil {
					ended.Store(i, r)
				} else if !errors.Is(err, records.ErrEnded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var all []records.Release
		ended.Range(func(_, r any) bool { all = append(all, r.(records.Release)); return true })
		list, err := s.Releases(ctx, records.ReleaseQuery{Org: "acme", Limit: 10})
		check(t, err)
		if len(all) != 1 || len(list) != 1 || list[0] != all[0] || all[0].Version != 1 || all[0].BuildID != "a" || all[0].CreatedBy != "dev" {
			t.Fatalf("%d ends, %d releases: %+v", len(all), len(list), list)
		}
		b, err := s.Get(ctx, "acme", "a")
		if err != nil || b.Status != records.Succeeded || string(b.Result) != fmt.Sprint(all[0].ID, "1") {
			t.Errorf("the build: %+v, %v", b, err)
		}
		if id, tag, err := s.BuildOf(ctx, "acme", "shop", "sha256:1"); err != nil || id != "a" || tag != "v1" {
			t.Errorf("build of the image: %s, %s, %v", id, tag, err)
		}
		if id, _, err := s.BuildOf(ctx, "globex", "shop", "sha256:1"); err != nil || id != "" {
			t.Errorf("build of another org: %s, %v", id, err)
		}
		if _, err := s.EndReleased(ctx, records.Build{ID: "none"}, release("production", "sha256:1"), func(records.Release) []byte { return nil }); err == nil {
			t.Error("a build that is not there was released")
		}
		if r, err := s.Release(ctx, release("production", "sha256:2")); err != nil || r.Version != 2 {
			t.Errorf("refused releases were counted: %+v, %v", r, err)
		}
	})
	t.Run("pulls", func(t *testing.T) {
		s, again := open(t)
		ctx := t.Context()
		minute := func(n int) time.Time { return at.Add(time.Duration(n) * time.Minute) }
		pull := func(id, app, digest string, first, last int) records.Pull {
			return records.Pull{ID: id, Org: "acme", Env: "production", App: app, Digest: digest, Tag: "v1", TokenID: "tok_1", TokenName: "k8s",
				Address: "10.0.0.1", UserAgent: "containerd", First: minute(first), Last: minute(last), Count: 1}
		}
		all := []records.Pull{
			pull("1", "shop", "sha256:1", 0, 9), pull("2", "shop", "sha256:2", 10, 10), pull("3", "blog", "sha256:7", 11, 11),
			pull("4", "shop", "sha256:1", 12, 12), pull("5", "shop", "sha256:2", 13, 20), pull("6", "shop", "sha256:2", 21, 21),
		}
		staging, foreign := pull("7", "shop", "sha256:3", 30, 30), pull("8", "shop", "sha256:4", 31, 31)
		staging.Env, foreign.Org = "staging", "globex"
		check(t, s.SavePulls(ctx, append(slices.Clone(all), staging, foreign)))
		all[5].Last, all[5].Count, all[5].Address, all[5].UserAgent = minute(25), 7, "10.0.0.2", "docker"
		check(t, s.SavePulls(ctx, all[5:6]))
		check(t, s.SavePulls(ctx, nil))
		check(t, s.Close())
		s = again()
		for _, tc := range []struct {
			q    records.PullQuery
			want string
		}{
			{records.PullQuery{Limit: 10}, "6 5 4 3 2 1"},
			{records.PullQuery{Limit: 2}, "6 5"},
			{records.PullQuery{App: "blog", Limit: 10}, "3"},
			{records.PullQuery{Before: minute(12), Limit: 10}, "3 2 1"},
			{records.PullQuery{Since: minute(12), Limit: 10}, "6 5 4"},
		} {
			tc.q.Org, tc.q.Env = "acme", "production"
			got, err := s.Pulls(ctx, tc.q)
			check(t, err)
			var ids []string
			for _, p := range got {
				ids = append(ids, p.ID)
				if want := all[int(p.ID[0]-'1')]; p != want {
					t.Errorf("got %+v, want %+v", p, want)
				}
			}
			if strings.Join(ids, " ") != tc.want {
				t.Errorf("%+v: %v, want %s", tc.q, ids, tc.want)
			}
		}
		last, err := s.LastPulls(ctx, "acme", "production", "")
		if err != nil || len(last) != 2 || last[0] != all[2] || last[1] != all[5] {
			t.Errorf("last: %+v, %v", last, err)
		}
		if last, err := s.LastPulls(ctx, "acme", "production", "blog"); err != nil || len(last) != 1 {
			t.Errorf("last of one app: %+v, %v", last, err)
		}
		for digest, want := range map[string]time.Time{"sha256:2": minute(13), "sha256:1": {}, "sha256:5": {}} {
			if got, err := s.PulledSince(ctx, "acme", "production", "shop", digest); err != nil || !got.Equal(want) {
				t.Errorf("%s since %v, want %v: %v", digest, got, want, err)
			}
		}
	})
	t.Run("names are only names", func(t *testing.T) {
		s, _ := open(t)
		ctx := t.Context()
		check(t, s.CreateEnvironment(ctx, env("production")))
		_, err := s.Release(ctx, release("production", "sha256:1"))
		check(t, err)
		for _, name := range hostile {
			if list, err := s.LastReleases(ctx, "acme", name, name); err != nil || len(list) != 0 {
				t.Errorf("%q: %v, %v", name, list, err)
			}
			if list, err := s.Releases(ctx, records.ReleaseQuery{Org: name, App: name, Env: &name, Before: name, Limit: 9}); err != nil || len(list) != 0 {
				t.Errorf("%q: %v, %v", name, list, err)
			}
			if _, err := s.Environment(ctx, "acme", name); !errors.Is(err, records.ErrNoEnvironment) {
				t.Errorf("%q: %v", name, err)
			}
			if err := s.DeleteEnvironment(ctx, "acme", name, at); !errors.Is(err, records.ErrNoEnvironment) {
				t.Errorf("delete %q: %v", name, err)
			}
			check(t, s.CreateEnvironment(ctx, env(name)))
			if got, err := s.Environment(ctx, "acme", name); err != nil || got.Name != name {
				t.Errorf("%q: %+v, %v", name, got, err)
			}
			check(t, s.SavePulls(ctx, []records.Pull{{ID: name, Org: "acme", Env: name, App: name, Digest: name, UserAgent: name, First: at, Last: at}}))
			if list, err := s.Pulls(ctx, records.PullQuery{Org: "acme", Env: name, App: name, Limit: 9}); err != nil || len(list) != 1 || list[0].UserAgent != name {
				t.Errorf("%q: %v, %v", name, list, err)
			}
		}
		if r, err := s.Release(ctx, release("production", "sha256:1")); err != nil || r.Version != 2 {
			t.Errorf("after all that: %+v, %v", r, err)
		}
	})
	t.Run("an ended context records nothing", func(t *testing.T) {
		s, _ := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, err := range []error{
			s.CreateEnvironment(ctx, env("qa")), second(s.Release(ctx, release("qa", "sha256:1"))), s.SavePulls(ctx, []records.Pull{{ID: "1"}}),
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func names(list []records.Environment, err error) string {
	out := []string{}
	for _, e := range list {
		out = append(out, e.Name)
	}
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(out)
}
