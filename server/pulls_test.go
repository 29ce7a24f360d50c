package server_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// A pullTable keeps pulls as a database does.
type pullTable struct {
	mu    sync.Mutex
	rows  map[string]records.Pull
	saved int // of all calls
	fail  error
}

func (s *pullTable) SavePulls(_ context.Context, pulls []records.Pull) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.saved += len(pulls)
	for _, p := range pulls {
		if s.rows == nil {
			s.rows = map[string]records.Pull{}
		}
		s.rows[p.ID] = p
	}
	return nil
}

func (s *pullTable) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// text lists the pulls in the order in which they began: app, digest, tag,
// token, requests, seconds from the first to the last.
func (s *pullTable) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []records.Pull
	for _, p := range s.rows {
		rows = append(rows, p)
	}
	slices.SortFunc(rows, func(a, b records.Pull) int { return strings.Compare(a.ID, b.ID) })
	var out []string
	for _, p := range rows {
		out = append(out, fmt.Sprintf("%s %s %q %s %dx %.0fs", p.App, strings.TrimPrefix(p.Digest, "sha256:"), p.Tag, p.TokenID, p.Count, p.Last.Sub(p.First).Seconds()))
	}
	return strings.Join(out, "; ")
}

// indexes is a registry that has only indexes: what they name, by digest.
type indexes map[string][]string

func (indexes) Resolve(context.Context, string, string) (string, error) { return "", server.ErrNoImage }

func (i indexes) Parts(_ context.Context, _, digest string) ([]string, error) { return i[digest], nil }

var cluster = tokens.Principal{ID: "k8s", Name: "k8s", Org: "acme", Env: "production", Type: tokens.TypeRegistry, Scopes: tokens.Scopes(tokens.TypeRegistry)}

func TestPullLog(t *testing.T) {
	type ask struct {
		after     time.Duration // since the one before
		reference string
		digest    string
		who       tokens.Principal
		app       string
	}
	other, ci, staging := cluster, cluster, cluster
	other.ID, ci.Env, staging.Env = "other", "", "staging"
	signature := "sha256-" + strings.Repeat("a", 64) + ".sig"
	for _, tc := range []struct {
		name string
		asks []ask
		want string
	}{
		{"one", []ask{{reference: "v1", digest: "1"}}, `shop 1 "v1" k8s 1x 0s`},
		{"HEAD by tag, GET by digest", []ask{{reference: "v1", digest: "1"}, {reference: "sha256:1", digest: "1", after: time.Second}}, `shop 1 "v1" k8s 2x 1s`},
		{"platform of an index", []ask{{reference: "v1", digest: "ix"}, {reference: "sha256:amd64", digest: "amd64", after: 2 * time.Second}}, `shop ix "v1" k8s 1x 2s`},
		{"platform of an index by digest", []ask{{reference: "sha256:ix", digest: "ix"}, {reference: "sha256:arm64", digest: "arm64"}}, `shop ix "" k8s 1x 0s`},
		{"platform by itself", []ask{{reference: "sha256:amd64", digest: "amd64"}}, `shop amd64 "" k8s 1x 0s`},
		{"platform too late", []ask{{reference: "v1", digest: "ix"}, {reference: "sha256:amd64", digest: "amd64", after: 61 * time.Second}},
			`shop ix "v1" k8s 1x 0s; shop amd64 "" k8s 1x 0s`},
		{"platform by another token", []ask{{reference: "v1", digest: "ix"}, {reference: "sha256:amd64", digest: "amd64", who: other}},
			`shop ix "v1" k8s 1x 0s; shop amd64 "" other 1x 0s`},
		{"platform of another app", []ask{{reference: "v1", digest: "ix"}, {reference: "sha256:amd64", digest: "amd64", app: "blog"}},
			`shop ix "v1" k8s 1x 0s; blog amd64 "" k8s 1x 0s`},
		{"no platform of it", []ask{{reference: "v1", digest: "ix"}, {reference: "sha256:2", digest: "2"}}, `shop ix "v1" k8s 1x 0s; shop 2 "" k8s 1x 0s`},
		{"two tags", []ask{{reference: "v1", digest: "1"}, {reference: "latest", digest: "1"}}, `shop 1 "v1" k8s 1x 0s; shop 1 "latest" k8s 1x 0s`},
		{"a tag that moved", []ask{{reference: "v1", digest: "1"}, {reference: "v1", digest: "2"}, {reference: "v1", digest: "1"}},
			`shop 1 "v1" k8s 2x 0s; shop 2 "v1" k8s 1x 0s`},
		{"window", []ask{{reference: "v1", digest: "1"}, {reference: "v1", digest: "1", after: time.Minute}, {reference: "v1", digest: "1", after: time.Minute + time.Millisecond}},
			`shop 1 "v1" k8s 2x 60s; shop 1 "v1" k8s 1x 0s`},
		{"another token", []ask{{reference: "v1", digest: "1"}, {reference: "v1", digest: "1", who: other}}, `shop 1 "v1" k8s 1x 0s; shop 1 "v1" other 1x 0s`},
		{"another environment", []ask{{reference: "v1", digest: "1"}, {reference: "v1", digest: "1", who: staging}}, `shop 1 "v1" k8s 1x 0s; shop 1 "v1" k8s 1x 0s`},
		{"a token for no environment", []ask{{reference: "v1", digest: "1", who: ci}}, ``},
		{"no app's repository", []ask{{reference: "v1", digest: "1", app: "library/debian"}}, ``},
		{"a signature, and what it names", []ask{{reference: "v1", digest: "1"}, {reference: signature, digest: "ix"}, {reference: "sha256:amd64", digest: "amd64"}, {reference: "sha256:ix", digest: "ix"}},
			`shop 1 "v1" k8s 1x 0s`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := &pullTable{}
				l := server.StartPullLog(table, indexes{"sha256:ix": {"sha256:amd64", "sha256:arm64"}}, nil)
				for _, a := range tc.asks {
					time.Sleep(a.after)
					if a.who.ID == "" {
						a.who = cluster
					}
					if a.app == "" {
						a.app = "shop"
					}
					l.Saw(a.who, server.PullEvent{Time: time.Now(), App: a.app, Reference: a.reference, Digest: "sha256:" + a.digest})
				}
				check(t, l.Close())
				if got := table.text(); got != tc.want {
					t.Errorf("recorded %s\nwant     %s", got, tc.want)
				}
			})
		})
	}
}

// What goes on for hours is recorded while it does, hour by hour.
func TestPullLogOfAPoller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &pullTable{}
		l := server.StartPullLog(table, nil, nil)
		for range 241 {
			l.Saw(cluster, server.PullEvent{Time: time.Now(), App: "shop", Reference: "v1", Digest: "sha256:1"})
			time.Sleep(30 * time.Second)
		}
		if got, want := table.text(), `shop 1 "v1" k8s 121x 3600s; shop 1 "v1" k8s 120x 3570s`; got != want {
			t.Errorf("recorded %s, want %s", got, want)
		}
		check(t, l.Close())
		if table.saved != 241 {
			t.Errorf("241 requests were written %d times", table.saved)
		}
	})
}

// A database that fails for a while loses nothing, and nothing counts twice.
func TestPullLogOutlastsTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &pullTable{fail: errors.New("database is locked")}
		l := server.StartPullLog(table, nil, nil)
		see := func() {
			l.Saw(cluster, server.PullEvent{Time: time.Now(), App: "shop", Reference: "v1", Digest: "sha256:1", Address: "10.0.0.7:4711", UserAgent: "containerd/2\x00\n\xff"})
		}
		see()
		time.Sleep(10 * time.Minute)
		see()
		if err := l.Flush(t.Context()); err == nil {
			t.Error("flush says nothing of a database that fails")
		}
		table.broken(nil)
		time.Sleep(2 * time.Second)
		if got, want := table.text(), `shop 1 "v1" k8s 1x 0s; shop 1 "v1" k8s 1x 0s`; got != want {
			t.Errorf("recorded %s, want %s", got, want)
		}
		for _, p := range table.rows {
			if p.Address != "10.0.0.7" || p.UserAgent != "containerd/2" || p.Env != "production" || p.TokenName != "k8s" {
				t.Errorf("recorded %+v", p)
			}
		}
		check(t, l.Close())
	})
}

func TestPullLogIsShared(t *testing.T) {
	table := &pullTable{}
	l := server.StartPullLog(table, nil, nil)
	var wg sync.WaitGroup
	at := time.Now()
	for i := range 20 {
		wg.Go(func() {
			for range 50 {
				l.Saw(cluster, server.PullEvent{Time: at, App: fmt.Sprint("app", i%4), Reference: "v1", Digest: "sha256:1"})
			}
			if err := l.Flush(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, l.Close())
	total := int64(0)
	for _, p := range table.rows {
		total += p.Count
	}
	if len(table.rows) != 4 || total != 1000 {
		t.Errorf("%d pulls of %d requests, want 4 of 1000", len(table.rows), total)
	}
}
