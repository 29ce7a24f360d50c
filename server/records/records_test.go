package records_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
)

var cluster sqldbtest.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

// opener returns what opens a store at a place of its own, and opens it again.
func opener(place func(testing.TB) string) func(*testing.T) (*records.Store, func() *records.Store) {
	return func(t *testing.T) (*records.Store, func() *records.Store) {
		url := place(t)
		open := func() *records.Store {
			s, err := records.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		}
		return open(), open
	}
}

func TestSQLite(t *testing.T) { contract(t, opener(sqldbtest.File)) }

func TestPostgreSQL(t *testing.T) { contract(t, opener(cluster.Database)) }

// What a daemon recorded before it knew of other databases is there.
func TestDatabaseOfBefore(t *testing.T) {
	dump, err := os.ReadFile("testdata/0002.sql")
	if err != nil {
		t.Fatal(err)
	}
	file := sqldbtest.File(t)
	old, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.ExecContext(t.Context(), string(dump)); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := records.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := time.UnixMilli(1_700_000_000_123).UTC()
	want := records.Build{
		ID: "01HF7YAT00A", Org: "default", App: "shop", Status: records.Succeeded, Pipeline: "PIPELINE_CLASSIC", CreatedBy: "admin", IdempotencyKey: "k1",
		Created: at, Started: at.Add(time.Second), Ended: at.Add(time.Minute), Digest: "sha256:1", Tag: "v1", Result: []byte{0, 1, 255},
	}
	if got, err := s.Get(t.Context(), "default", want.ID); err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got := ids(s.List(t.Context(), records.Query{Org: "default", Limit: 9})); got != "[01HF7YAT00B 01HF7YAT00A]" {
		t.Errorf("listed %s", got)
	}
	if got := ids(s.Unfinished(t.Context())); got != "[01HF7YAT00B 01HF7YAT00C]" {
		t.Errorf("unfinished %s", got)
	}
	again := records.Build{ID: "01HF7YAT00D", Org: "default", App: "shop", IdempotencyKey: "k1", Created: at}
	if got, err := s.Create(t.Context(), again); !errors.Is(err, records.ErrExists) || got.ID != want.ID {
		t.Errorf("its key again: %+v, %v", got, err)
	}
	if err := s.CreateEnvironment(t.Context(), records.Environment{Org: "default", Name: "prod", Created: at}); err != nil {
		t.Errorf("what came later: %v", err)
	}
}

// contract holds a database to what Store promises. open returns a store, and
// what opens it again.
func contract(t *testing.T, open func(*testing.T) (*records.Store, func() *records.Store)) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	build := func(id string) records.Build {
		return records.Build{ID: id, Org: "acme", App: "shop", Pipeline: "P", CreatedBy: "ci", Created: at}
	}
	check := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Run("life of a build", func(t *testing.T) {
		s, again := open(t)
		ctx := t.Context()
		_, err := s.Create(ctx, build("a"))
		check(t, err)
		got, err := s.Get(ctx, "acme", "a")
		if err != nil || got.Status != records.Queued || !got.Created.Equal(at) || !got.Started.IsZero() || got.Done() {
			t.Errorf("queued: %+v, %v", got, err)
		}
		check(t, s.Start(ctx, "a", at.Add(time.Second)))
		end := records.Build{ID: "a", Status: records.Succeeded, Ended: at.Add(time.Minute), Digest: "sha256:1", Tag: "v1", Result: []byte{0, 1}}
		check(t, s.End(ctx, end))
		end.Status = records.Failed
		check(t, s.End(ctx, end))
		check(t, s.Start(ctx, "a", at))
		check(t, s.Close())
		got, err = again().Get(ctx, "acme", "a")
		if err != nil || got.Status != records.Succeeded || !got.Started.Equal(at.Add(time.Second)) || !got.Ended.Equal(at.Add(time.Minute)) ||
			got.Digest != "sha256:1" || got.Tag != "v1" || string(got.Result) != "\x00\x01" || !got.Done() {
			t.Errorf("ended, after a restart: %+v, %v", got, err)
		}
	})
	t.Run("plans", func(t *testing.T) {
		s, _ := open(t)
		plan := build("b")
		plan.Plan = true
		for _, b := range []records.Build{build("a"), plan, build("c")} {
			_, err := s.Create(t.Context(), b)
			check(t, err)
		}
		check(t, s.End(t.Context(), records.Build{ID: "a", Status: records.Succeeded, Ended: at}))
		for _, q := range []struct {
			status string
			want   string
		}{{"", "c a"}, {records.Succeeded, "a"}, {records.Queued, "c"}} {
			list, err := s.List(t.Context(), records.Query{Org: "acme", Status: q.status, Limit: 9})
			check(t, err)
			var got []string
			for _, b := range list {
				got = append(got, b.ID)
			}
			if strings.Join(got, " ") != q.want {
				t.Errorf("status %q: %v, want %s", q.status, got, q.want)
			}
		}
		if b, err := s.Get(t.Context(), "acme", "b"); err != nil || !b.Plan {
			t.Errorf("the plan itself: %+v, %v", b, err)
		}
		if left, err := s.Unfinished(t.Context()); err != nil || len(left) != 2 {
			t.Errorf("unfinished: %d, %v; want the plan too", len(left), err)
		}
	})
	t.Run("not there", func(t *testing.T) {
		s, _ := open(t)
		_, err := s.Create(t.Context(), build("a"))
		check(t, err)
		for _, key := range [][2]string{{"acme", "b"}, {"globex", "a"}, {"", "a"}, {"acme", ""}} {
			if _, err := s.Get(t.Context(), key[0], key[1]); !errors.Is(err, records.ErrNotFound) {
				t.Errorf("%v: %v", key, err)
			}
		}
		if _, err := s.Create(t.Context(), build("a")); err == nil || errors.Is(err, records.ErrExists) {
			t.Errorf("the same id again: %v", err)
		}
	})
	t.Run("idempotency key", func(t *testing.T) {
		s, _ := open(t)
		var wg sync.WaitGroup
		made := make([]*records.Build, 10)
		errs := make([]error, 10)
		for i := range made {
			wg.Go(func() {
				b := build(fmt.Sprint("x", i))
				b.IdempotencyKey = "k"
				made[i], errs[i] = s.Create(t.Context(), b)
			})
		}
		wg.Wait()
		won := 0
		for i := range made {
			if errs[i] == nil {
				won++
			} else if !errors.Is(errs[i], records.ErrExists) {
				t.Fatal(errs[i])
			}
			if made[i].ID != made[0].ID {
				t.Errorf("builds %s and %s have one key", made[i].ID, made[0].ID)
			}
		}
		if won != 1 {
			t.Errorf("%d builds were made", won)
		}
		for i, change := range []func(*records.Build){
			func(b *records.Build) { b.Org = "globex" }, func(b *records.Build) { b.App = "blog" },
			func(b *records.Build) { b.IdempotencyKey = "" }, func(b *records.Build) { b.IdempotencyKey = "" },
		} {
			b := build(fmt.Sprint("y", i))
			b.IdempotencyKey = "k"
			change(&b)
			if _, err := s.Create(t.Context(), b); err != nil {
				t.Errorf("%+v: %v", b, err)
			}
		}
		check(t, s.Free(t.Context(), made[0].ID))
		b := build("z")
		b.IdempotencyKey = "k"
		if _, err := s.Create(t.Context(), b); err != nil {
			t.Errorf("a freed key: %v", err)
		}
	})
	t.Run("list", func(t *testing.T) {
		s, _ := open(t)
		for i := range 6 {
			b := build(fmt.Sprint("b", i))
			b.App = []string{"shop", "blog"}[i%2]
			if i == 5 {
				b.Org = "globex"
			}
			_, err := s.Create(t.Context(), b)
			check(t, err)
		}
		check(t, s.End(t.Context(), records.Build{ID: "b0", Status: records.Cancelled, Ended: at}))
		for _, tc := range []struct {
			q    records.Query
			want string
		}{
			{records.Query{Org: "acme", Limit: 10}, "[b4 b3 b2 b1 b0]"},
			{records.Query{Org: "acme", Limit: 2}, "[b4 b3]"},
			{records.Query{Org: "acme", Before: "b3", Limit: 2}, "[b2 b1]"},
			{records.Query{Org: "acme", App: "blog", Limit: 10}, "[b3 b1]"},
			{records.Query{Org: "initech", Limit: 10}, "[]"},
		} {
			if got := ids(s.List(t.Context(), tc.q)); got != tc.want {
				t.Errorf("%+v: %s, want %s", tc.q, got, tc.want)
			}
		}
		if got := ids(s.Unfinished(t.Context())); got != "[b1 b2 b3 b4 b5]" {
			t.Errorf("unfinished: %s", got)
		}
	})
	t.Run("tag of a digest", func(t *testing.T) {
		s, _ := open(t)
		for i, status := range []string{records.Succeeded, records.Succeeded, records.Failed} {
			b := build(fmt.Sprint("b", i))
			_, err := s.Create(t.Context(), b)
			check(t, err)
			b.Status, b.Digest, b.Tag, b.Ended = status, "sha256:1", fmt.Sprint("v", i), at
			check(t, s.End(t.Context(), b))
		}
		for _, tc := range []struct{ org, app, digest, want string }{
			{"acme", "shop", "sha256:1", "v1"}, {"acme", "shop", "sha256:2", ""}, {"acme", "blog", "sha256:1", ""}, {"globex", "shop", "sha256:1", ""},
		} {
			if got, err := s.TagOf(t.Context(), tc.org, tc.app, tc.digest); err != nil || got != tc.want {
				t.Errorf("%v: %q, %v", tc, got, err)
			}
		}
	})
	t.Run("ended context", func(t *testing.T) {
		s, _ := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Create(ctx, build("a")); !errors.Is(err, context.Canceled) {
			t.Errorf("create: %v", err)
		}
	})
	environments(t, open)
}

func ids(list []*records.Build, err error) string {
	out := []string{}
	for _, b := range list {
		out = append(out, b.ID)
	}
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(out)
}
