package layercache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

// has reports whether a step is a hit, and does not use it.
func has(t *testing.T, c *layercache.Cache, k layercache.Key) bool {
	t.Helper()
	_, err := c.Peek(t.Context(), k)
	if err != nil {
		wantMiss(t, err)
	}
	return err == nil
}

func TestCeiling(t *testing.T) {
	var told []layercache.Eviction
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root, MaxBytes: 1_000_000, OnEvict: func(e layercache.Eviction) { told = append(told, e) }})
	c := s.Org("acme")
	var keys []layercache.Key
	for i := range 4 {
		ctx, release := leased(t, c)
		k, _ := putLayer(t, ctx, c, "app", fmt.Sprint(i), random(t, 180_000))
		keys = append(keys, k)
		release()
	}
	if _, err := c.Step(t.Context(), keys[0]); err != nil { // used again
		t.Fatal(err)
	}
	if err := c.MarkBuild(t.Context(), "other", keys[1:2], nil); err != nil {
		t.Fatal(err)
	}
	if len(told) != 0 {
		t.Fatalf("evicted below the ceiling: %+v", told)
	}
	ctx, release := leased(t, c)
	defer release()
	held, _ := putLayer(t, ctx, c, "app", "more", random(t, 320_000))

	// The oldest that neither is marked nor was used again went.
	for i, want := range []bool{true, true, false, true} {
		if got := has(t, c, keys[i]); got != want {
			t.Errorf("step %d is there: %v, want %v", i, got, want)
		}
	}
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	if u.Bytes > 1_000_000 || u.Limit != 1_000_000 || u.DiskFree <= 0 {
		t.Errorf("usage %+v", u)
	}
	if len(told) != 2 || len(u.Evictions) != 2 || !strings.HasPrefix(told[0].What, "layer ") || told[0].App != "app" || told[0].Org != "acme" || told[0].Bytes < 180_000 || !strings.Contains(told[0].Reason, "ceiling") {
		t.Errorf("told %+v", told)
	}
	if n := len(blobFiles(t, root)); n != 8 {
		t.Errorf("%d blobs on the disk, want 4 layers and 4 ledgers", n)
	}

	// With more pressure the marked build goes too, and what is held does not.
	last := putBlob(t, ctx, c, random(t, 900_000))
	if !has(t, c, held) {
		t.Error("what a lease holds went")
	}
	if _, err := c.Blob(ctx, last.Digest); err != nil {
		t.Error(err)
	}
	if _, err := c.Step(ctx, keys[1]); err == nil {
		t.Error("the marked build is still there")
	}
	if !has(t, c, keys[1]) {
		t.Error("the marked step cannot be explained any more")
	}
}

// Nothing fails when all is held; the space comes back with the release.
func TestCeilingWithAllHeld(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root, MaxBytes: 1000})
	c := s.Org("acme")
	ctx, release := leased(t, c)
	var ds []digest.Digest
	for range 5 {
		ds = append(ds, putBlob(t, ctx, c, random(t, 900)).Digest)
	}
	for _, d := range ds {
		if _, err := c.Blob(ctx, d); err != nil {
			t.Error(err)
		}
	}
	release()
	putBlob(t, t.Context(), c, random(t, 100))
	if n := len(blobFiles(t, root)); n > 1 {
		t.Errorf("%d blobs after the release, want at most 1", n)
	}
}

func TestMinFree(t *testing.T) {
	s := open(t, layercache.Options{MaxBytes: -1, MinFree: 1 << 60})
	c := s.Org("acme")
	ctx, release := leased(t, c)
	k, _ := putLayer(t, ctx, c, "app", "one", random(t, 1000))
	if !has(t, c, k) {
		t.Error("what is held went")
	}
	release()
	putBlob(t, t.Context(), c, random(t, 1000))
	if has(t, c, k) {
		t.Error("the disk is nearly full and nothing went")
	}
	u := must(s.Usage(t.Context(), "", ""))(t)
	if u.Limit != 0 || len(u.Evictions) == 0 || !strings.Contains(u.Evictions[0].Reason, "free") {
		t.Errorf("usage %+v", u)
	}
}

// Snapshots go from the top of a chain down, and a held one keeps what it
// stands on.
func TestEvictSnapshots(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	commit(t, c, "", "base")
	commit(t, c, "base", "left")
	commit(t, c, "base", "right")
	ctx, release := leased(t, c)
	if !c.SnapshotExists(ctx, "left") {
		t.Fatal("no snapshot")
	}
	active := must(c.Prepare(ctx, "left"))(t)
	prune := func() {
		t.Helper()
		if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	prune()
	for name, want := range map[string]bool{"base": true, "left": true, "right": false} {
		if got := c.SnapshotExists(ctx, name); got != want {
			t.Errorf("%s exists: %v, want %v", name, got, want)
		}
	}
	if _, err := os.Stat(active.Upper()); err != nil {
		t.Errorf("the snapshot in the making: %v", err)
	}
	if err := active.Commit(ctx, "top"); err != nil {
		t.Fatal(err)
	}
	prune()
	if got := must(c.View(ctx, "top"))(t); len(got) != 3 {
		t.Errorf("view %v", got)
	}
	release()
	prune()
	if dirs := must(os.ReadDir(filepath.Join(root, "snapshots", "snapshots")))(t); len(dirs) != 0 {
		t.Errorf("%d directories left", len(dirs))
	}
}

func TestPrune(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	var keys []layercache.Key
	for i := range 3 {
		k, l := putLayer(t, t.Context(), c, []string{"a", "b", "a"}[i], fmt.Sprint(i), random(t, 1000))
		keys = append(keys, k)
		if i == 2 { // of both apps
			if err := c.PutLayer(t.Context(), l, "b"); err != nil {
				t.Fatal(err)
			}
		}
	}
	prune := func(opts layercache.PruneOptions, want ...bool) layercache.Pruned {
		t.Helper()
		p := must(s.Prune(t.Context(), opts))(t)
		for i, k := range keys {
			if got := has(t, c, k); got != want[i] {
				t.Errorf("%+v: step %d is there: %v", opts, i, got)
			}
		}
		return p
	}
	prune(layercache.PruneOptions{Org: "acme", OlderThan: time.Hour}, true, true, true)
	prune(layercache.PruneOptions{Org: "none", All: true}, true, true, true)
	prune(layercache.PruneOptions{All: true, KeepBytes: 1 << 20}, true, true, true)
	if p := prune(layercache.PruneOptions{Org: "acme", App: "a", All: true}, false, true, false); p.Bytes < 1000 || p.Records != 3 {
		t.Errorf("pruned %+v", p) // the step of the third is a's, its layer is not
	}
	if _, err := c.Layer(t.Context(), digest.FromString("2")); err != nil {
		t.Errorf("the layer of both apps: %v", err)
	}
	if err := c.MarkBuild(t.Context(), "b", keys[1:2], nil); err != nil {
		t.Fatal(err)
	}
	prune(layercache.PruneOptions{}, false, true, false)
	if _, err := c.Layer(t.Context(), digest.FromString("2")); !errors.Is(err, layercache.ErrNotFound) {
		t.Errorf("the unmarked layer: %v", err)
	}
	prune(layercache.PruneOptions{All: true}, false, false, false)
}

// Oldest first, and no more than asked for.
func TestPruneKeepsBytes(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	var keys []layercache.Key
	for i := range 5 {
		k, _ := putLayer(t, t.Context(), c, "app", fmt.Sprint(i), random(t, 10_000))
		keys = append(keys, k)
	}
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true, KeepBytes: 25_000}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, false, false, true, true} {
		if got := has(t, c, keys[i]); got != want {
			t.Errorf("step %d is there: %v, want %v", i, got, want)
		}
	}
}

func TestUsage(t *testing.T) {
	s := open(t, layercache.Options{MaxBytes: -1})
	c := s.Org("acme")
	fill(t, c) // app "app": the layer of 9 bytes, ledger of 13, content of 4
	other, _ := putLayer(t, t.Context(), c, "other", "two", random(t, 100))
	if err := c.MarkBuild(t.Context(), "third", []layercache.Key{other}, nil); err != nil {
		t.Fatal(err)
	}
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	kinds := make(map[string]layercache.KindUsage)
	for _, k := range u.Kinds {
		kinds[k.Kind] = k
	}
	if k := kinds["layer"]; k.Bytes != 109 || k.Count != 2 {
		t.Errorf("layers %+v", k)
	}
	if k := kinds["ledger"]; k.Bytes != int64(len("ledger of one")+len("ledger of two")) || k.Count != 2 {
		t.Errorf("ledgers %+v", k)
	}
	if k := kinds["context"]; k.Bytes != 4 || k.Count != 1 {
		t.Errorf("context %+v", k)
	}
	if k := kinds["snapshot"]; k.Count != 1 {
		t.Errorf("snapshots %+v", k)
	}
	var apps []string
	for _, a := range u.Apps {
		apps = append(apps, a.App)
		if a.Records == 0 || time.Since(a.LastUsed) > time.Minute {
			t.Errorf("app %+v", a)
		}
	}
	if !slices.Equal(apps, []string{"app", "other", "third"}) {
		t.Errorf("apps %v", apps)
	}
	one := must(s.Usage(t.Context(), "acme", "third"))(t)
	if len(one.Apps) != 1 || one.Bytes != one.Apps[0].Bytes || one.Bytes < 100 || one.Bytes >= u.Bytes {
		t.Errorf("usage of one app %+v", one)
	}
}

func TestEvictionsAreBounded(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	for round := range 3 {
		for i := range 400 {
			if err := c.PutStep(t.Context(), layercache.NewKey(layercache.Part{Value: fmt.Sprint(round, i)}), layercache.Step{Empty: true}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(must(s.Usage(t.Context(), "", ""))(t).Evictions); n != 1000 {
		t.Errorf("%d evictions are remembered, want 1000", n)
	}
}

// A lease with a ttl outlives its process, one without does not.
func TestLeaseOutlives(t *testing.T) {
	for _, tc := range []struct {
		name    string
		ttl     time.Duration
		release bool
		want    bool
	}{
		{"ttl, killed", time.Hour, false, true},
		{"ttl, released", time.Hour, true, true},
		{"ttl over", time.Nanosecond, true, false},
		{"no ttl, killed", 0, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := layercache.Options{Root: t.TempDir(), MinFree: -1}
			s := must(layercache.Open(t.Context(), opts))(t)
			c := s.Org("acme")
			l := must(c.Lease(t.Context(), "context", tc.ttl))(t)
			ctx := l.Context(t.Context())
			k, _ := putLayer(t, ctx, c, "app", "one", random(t, 100))
			if err := s.Collect(t.Context()); err != nil { // the database learns of the lease
				t.Fatal(err)
			}
			d := putBlob(t, ctx, c, random(t, 200)).Digest
			if tc.release {
				if err := l.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if tc.ttl == time.Nanosecond {
				untilNextSecond(t) // expiry has a resolution of a second
			}
			s = open(t, opts)
			c = s.Org("acme")
			if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
				t.Fatal(err)
			}
			if got := has(t, c, k); got != tc.want {
				t.Errorf("the step is there: %v, want %v", got, tc.want)
			}
			if _, err := c.Blob(t.Context(), d); (err == nil) != tc.want {
				t.Errorf("the blob: %v", err)
			}
		})
	}
}

func untilNextSecond(t *testing.T) {
	t.Helper()
	for start := time.Now().Unix(); time.Now().Unix() == start; {
		<-time.After(time.Until(time.Unix(start+1, 0)))
	}
}

// What is looked up under a lease is held as what is made is.
func TestLeaseHoldsWhatIsFound(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	k, l := putLayer(t, t.Context(), c, "app", "one", random(t, 100))
	blob := putBlob(t, t.Context(), c, random(t, 300)).Digest
	commit(t, c, "", "snap")
	data := "data"
	w := c.Contents().Writer(t.Context())
	if err := w.Add(digest.FromString(data), 4, strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	find := map[string]func(context.Context) error{
		"step":     func(ctx context.Context) error { _, err := c.Step(ctx, k); return err },
		"layer":    func(ctx context.Context) error { _, err := c.Layer(ctx, l.DiffID); return err },
		"blob":     func(ctx context.Context) error { _, err := c.Blob(ctx, blob); return err },
		"snapshot": func(ctx context.Context) error { _, err := c.View(ctx, "snap"); return err },
		"content": func(ctx context.Context) error {
			m, err := c.Contents().Missing(ctx, []digest.Digest{digest.FromString(data)})
			if len(m) > 0 {
				return layercache.ErrNotFound
			}
			return err
		},
	}
	ctx, release := leased(t, c)
	for name, look := range find {
		if err := look(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	for name, look := range find {
		if err := look(t.Context()); err != nil {
			t.Errorf("%s, held: %v", name, err)
		}
	}
	release()
	release() // does nothing
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	for name, look := range find {
		if err := look(t.Context()); !errors.Is(err, layercache.ErrNotFound) {
			t.Errorf("%s, released: %v", name, err)
		}
	}
}
