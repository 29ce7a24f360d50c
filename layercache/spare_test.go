package layercache_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/layercache"
)

// spare makes a spare of an app, and returns what says how often it was dropped.
func spare(c *layercache.Cache, app string, bytes int64) (*layercache.Spare, func() int) {
	dropped := 0
	x := c.Spare(layercache.SpareOptions{App: app, What: "the failed step of " + app, Bytes: bytes, Drop: func(context.Context) { dropped++ }})
	return x, func() int { return dropped }
}

func TestSpareIsCounted(t *testing.T) {
	s := open(t, layercache.Options{})
	x, dropped := spare(s.Org("acme"), "shop", 700)
	spare(s.Org("globex"), "shop", 5)
	u := must(s.Usage(t.Context(), "acme", "shop"))(t)
	if k := u.Kinds[len(u.Kinds)-1]; k.Kind != "failed step" || k.Bytes != 700 || k.Count != 1 || u.Bytes != 700 {
		t.Errorf("usage %+v", u)
	}
	x.Weigh(900)
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 900 || len(u.Apps) != 1 || u.Apps[0].Bytes != 900 {
		t.Errorf("usage %+v after it grew", u)
	}
	x.Drop(t.Context())
	x.Drop(t.Context())
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 0 || dropped() != 1 {
		t.Errorf("usage %+v after it was dropped %d times", u, dropped())
	}
	if _, ok := x.Hold(); ok {
		t.Error("held although it is gone")
	}
}

func TestHeldSpareStays(t *testing.T) {
	s := open(t, layercache.Options{})
	x, dropped := spare(s.Org("acme"), "shop", 1)
	release, ok := x.Hold()
	if !ok {
		t.Fatal("cannot be held")
	}
	must(s.Prune(t.Context(), layercache.PruneOptions{All: true}))(t)
	x.Drop(t.Context())
	if _, ok := x.Hold(); ok {
		t.Error("held although it is about to go")
	}
	if dropped() != 0 {
		t.Error("dropped while it was held")
	}
	release(t.Context())
	release(t.Context())
	if dropped() != 1 {
		t.Errorf("dropped %d times after it was released", dropped())
	}
}

// What is spare goes before what a later build could use.
func TestSparesGoFirst(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	commit(t, c, "", "useful")
	before := must(s.Usage(t.Context(), "acme", ""))(t).Bytes
	_, older := spare(c, "shop", 400)
	held, _ := spare(c, "shop", 400)
	release, _ := held.Hold()
	defer release(t.Context())
	_, newer := spare(c, "shop", 400)
	must(s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true, KeepBytes: before + 800}))(t)
	if older() != 1 || newer() != 0 {
		t.Errorf("dropped: the older one %d times, the newer one %d times", older(), newer())
	}
	ctx, done := leased(t, c)
	defer done()
	if !c.SnapshotExists(ctx, "useful") {
		t.Error("a snapshot was evicted before a spare")
	}
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	if len(u.Evictions) != 1 || u.Evictions[0].What != "the failed step of shop" || u.Evictions[0].Bytes != 400 {
		t.Errorf("evictions %+v", u.Evictions)
	}
}

func TestCeilingDropsSpares(t *testing.T) {
	evicted := make(chan layercache.Eviction, 1)
	s := open(t, layercache.Options{MaxBytes: 1000, MinFree: -1, OnEvict: func(e layercache.Eviction) { evicted <- e }})
	spare(s.Org("acme"), "shop", 2000)
	if e := <-evicted; e.Org != "acme" || e.Bytes != 2000 {
		t.Errorf("evicted %+v", e)
	}
}

func TestHand(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	commit(t, c, "", "below")
	ctx, release := leased(t, c)
	first := must(c.Prepare(ctx, "below"))(t)
	write(t, filepath.Join(first.Upper(), "file"), "mine")
	keeper := must(c.Lease(t.Context(), "keeper", 0))(t)
	kept := must(first.Hand(t.Context(), keeper))(t)
	if err := first.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	release()
	must(s.Prune(t.Context(), layercache.PruneOptions{All: true}))(t)
	for _, file := range []string{filepath.Join(kept.Upper(), "file"), filepath.Join(kept.Lowers()[0], "below")} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	if err := kept.Discard(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(kept.Upper()); err == nil {
		t.Error("there after it was discarded")
	}
	if err := keeper.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a spare has held of a lodger's goes in the same prune.
func TestPruneTakesWhatSparesHeld(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	l := &heldLodger{rec: layercache.LodgerRecord{ID: "one", What: "a record", Bytes: 10, InUse: true}}
	defer c.Lodge(l)()
	c.Spare(layercache.SpareOptions{App: "shop", What: "the failed step", Drop: func(context.Context) { l.rec.InUse = false }})
	must(s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}))(t)
	if !l.evicted {
		t.Error("the record that the spare held is there")
	}
}

// A heldLodger has one record.
type heldLodger struct {
	rec     layercache.LodgerRecord
	evicted bool
}

func (l *heldLodger) Records(context.Context) ([]layercache.LodgerRecord, error) {
	return []layercache.LodgerRecord{l.rec}, nil
}

func (l *heldLodger) Evict(_ context.Context, ids []string) ([]string, error) {
	l.evicted = true
	return ids, nil
}
