package layercache_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/layercache"
)

// A trail outlives what it explains, and its files go with it.
func TestTrail(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root, MinFree: -1})
	c := s.Org("acme")
	if _, err := c.Trail(t.Context(), "shop", "x"); !errors.Is(err, layercache.ErrNotFound) {
		t.Fatalf("trail of nothing: %v", err)
	}
	ctx, release := leased(t, c)
	key, _ := putLayer(t, ctx, c, "shop", "one", random(t, 1000))
	st := must(c.Step(ctx, key))(t)
	begun := time.Now()
	want := layercache.Trail{App: "shop", Recipe: "x", Time: begun, Steps: []layercache.TrailStep{{Source: "RUN one", Key: key, DiffID: st.DiffID}}}
	want.Files, want.FilesSize = must(c.PutBytes(ctx, []byte("files")))(t), 5
	if err := c.PutTrail(ctx, want); err != nil {
		t.Fatal(err)
	}
	release()
	if _, ok := c.Lost(key, st.DiffID, "", begun); ok {
		t.Error("what is there is called lost")
	}
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}); err != nil {
		t.Fatal(err)
	}
	if has(t, c, key) {
		t.Fatal("the step is still there")
	}
	got := must(c.Trail(t.Context(), "shop", "x"))(t)
	if len(got.Steps) != 1 || got.Steps[0].Key != key {
		t.Errorf("trail %+v", got)
	}
	if files := must(c.TrailFiles(t.Context(), got))(t); string(files) != "files" {
		t.Errorf("files %q", files)
	}
	ev, ok := c.Lost(key, "", "", begun)
	if !ok || !strings.Contains(ev.Reason, "pruned") || ev.Damaged() {
		t.Errorf("lost %v: %+v", ok, ev)
	}
	if _, ok := c.Lost(key, "", "", time.Now()); ok {
		t.Error("an eviction before the trail explains it")
	}
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 0 || len(u.Apps) != 0 {
		t.Errorf("usage %+v after all was pruned", u)
	}

	// What was listed goes with the trail that named it.
	got.Files, got.FilesSize = "", 0
	if err := c.PutTrail(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(blobFiles(t, root)); n != 0 {
		t.Errorf("%d blobs are left, want none", n)
	}
	if _, err := c.TrailFiles(t.Context(), must(c.Trail(t.Context(), "shop", "x"))(t)); !errors.Is(err, layercache.ErrNotFound) {
		t.Errorf("files of a trail that has none: %v", err)
	}
}

// Trails of recipes that nobody builds any more make room for others.
func TestTrailsAreBounded(t *testing.T) {
	s := open(t, layercache.Options{MinFree: -1})
	c := s.Org("acme")
	at := time.Now()
	for i := range 503 {
		tr := layercache.Trail{App: "shop", Recipe: fmt.Sprint(i), Time: at.Add(time.Duration(i) * time.Second)}
		if i == 1 {
			tr.Time = at.Add(time.Hour)
		}
		if err := c.PutTrail(t.Context(), tr); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range map[int]bool{0: false, 1: true, 2: false, 3: false, 4: true, 502: true} {
		if _, err := c.Trail(t.Context(), "shop", fmt.Sprint(i)); (err == nil) != want {
			t.Errorf("trail %d: %v, want it there: %v", i, err, want)
		}
	}
}
