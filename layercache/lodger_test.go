package layercache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

// guests is a lodger: a record is a lease and what that holds. It collects
// whenever it is called, as BuildKit does.
type guests struct {
	t *testing.T
	c *layercache.Cache

	mu      sync.Mutex
	records map[string]layercache.LodgerRecord
	calls   int
	broken  error
}

func lodge(t *testing.T, c *layercache.Cache) (*guests, func()) {
	t.Helper()
	g := &guests{t: t, c: c, records: make(map[string]layercache.LodgerRecord)}
	leave := c.Lodge(g)
	t.Cleanup(leave)
	return g, leave
}

func (g *guests) Records(ctx context.Context) ([]layercache.LodgerRecord, error) {
	if _, err := g.c.Containerd().Collect(ctx); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	var all []layercache.LodgerRecord
	for _, r := range g.records {
		all = append(all, r)
	}
	return all, g.broken
}

func (g *guests) Evict(ctx context.Context, ids []string) (gone []string, err error) {
	ctd := g.c.Containerd()
	for _, id := range ids {
		g.mu.Lock()
		r, ok := g.records[id]
		inTheWay := slices.ContainsFunc(slices.Collect(mapValues(g.records)), func(o layercache.LodgerRecord) bool { return slices.Contains(o.Parents, id) })
		if ok = ok && !r.InUse && !inTheWay; ok {
			delete(g.records, id)
		}
		g.mu.Unlock()
		if !ok {
			continue
		}
		if err := ctd.Leases.Delete(g.context(), leases.Lease{ID: id}); err != nil {
			return gone, err
		}
		gone = append(gone, id)
	}
	_, err = ctd.Collect(ctx)
	return gone, err
}

func mapValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// context is that of calls to containerd's stores.
func (g *guests) context() context.Context {
	return namespaces.WithNamespace(context.Background(), g.c.Containerd().Namespace)
}

// keep records a blob that was used some minutes ago.
func (g *guests) keep(id, app string, ago int, data []byte, parents ...string) digest.Digest {
	g.t.Helper()
	ctd := g.c.Containerd()
	l := must(ctd.Leases.Create(g.context(), leases.WithID(id)))(g.t)
	d := digest.FromBytes(data)
	ctx := leases.WithLease(g.context(), l.ID)
	desc := ocispec.Descriptor{Digest: d, Size: int64(len(data))}
	if err := content.WriteBlob(ctx, ctd.Content, id, bytes.NewReader(data), desc); err != nil {
		g.t.Fatal(err)
	}
	g.put(layercache.LodgerRecord{
		ID: id, What: "guest " + id, Apps: []string{app}, Bytes: int64(len(data)), Parents: parents, Leases: []string{id},
		Used: time.Now().Add(-time.Duration(ago) * time.Minute),
	})
	return d
}

func (g *guests) put(r layercache.LodgerRecord) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.records[r.ID] = r
}

func (g *guests) use(id string, inUse bool) {
	g.mu.Lock()
	r := g.records[id]
	g.mu.Unlock()
	r.InUse = inUse
	g.put(r)
}

func (g *guests) pin(id string) {
	g.mu.Lock()
	r := g.records[id]
	g.mu.Unlock()
	r.Pinned = true
	g.put(r)
}

func (g *guests) ids() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var ids []string
	for id := range g.records {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (g *guests) want(ids ...string) {
	g.t.Helper()
	if got := g.ids(); !slices.Equal(got, ids) {
		g.t.Errorf("the lodger has %v, want %v", got, ids)
	}
}

func kindOf(u layercache.Usage, kind string) layercache.KindUsage {
	i := slices.IndexFunc(u.Kinds, func(k layercache.KindUsage) bool { return k.Kind == kind })
	return u.Kinds[i]
}

func TestLodgerUsage(t *testing.T) {
	s := open(t, layercache.Options{})
	g, leave := lodge(t, s.Org("acme"))
	other, _ := lodge(t, s.Org("other"))
	g.keep("base", "", 5, random(t, 1000))
	g.keep("top", "shop", 2, random(t, 200), "base")
	g.keep("blog", "blog", 3, random(t, 30), "base")
	other.keep("theirs", "shop", 1, random(t, 5000))

	u := must(s.Usage(t.Context(), "acme", ""))(t)
	if k := kindOf(u, "buildkit"); k.Bytes != 1230 || k.Count != 3 || u.Bytes != 1230 {
		t.Errorf("kind %+v of %d bytes", k, u.Bytes)
	}
	var apps []string
	for _, a := range u.Apps {
		apps = append(apps, fmt.Sprint(a.App, " ", a.Records, " ", a.Bytes))
	}
	if want := []string{"blog 2 1030", "shop 2 1200"}; !slices.Equal(apps, want) { // each with what it stands on
		t.Errorf("apps %v, want %v", apps, want)
	}
	if u := must(s.Usage(t.Context(), "acme", "shop"))(t); u.Bytes != 1200 {
		t.Errorf("shop has %d bytes", u.Bytes)
	}

	// Who looks all the time asks nobody.
	must(s.Usage(t.Context(), "other", ""))(t)
	asked := g.calls
	if u := must(s.Usage(t.Context(), "", ""))(t); u.Bytes != 6230 || g.calls != asked {
		t.Errorf("all have %d bytes; asked %d times for that", u.Bytes, g.calls-asked)
	}
	g.broken = errors.New("broken")
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 0 {
		t.Errorf("%d bytes of a lodger that fails", u.Bytes)
	}
	leave()
	asked = g.calls
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 0 || g.calls != asked {
		t.Errorf("%d bytes after it left; asked %d times", u.Bytes, g.calls-asked)
	}
}

// A blob of a layer that a lodger has as well is counted once, and goes when
// both go.
func TestLodgerSharesBlob(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	g, _ := lodge(t, c)
	data := random(t, 10_000)
	_, l := putLayer(t, t.Context(), c, "shop", "one", data)
	g.keep("same", "shop", 1, data)
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	if k := kindOf(u, "buildkit"); k.Count != 1 || k.Bytes != 0 || kindOf(u, "layer").Bytes != 10_000 {
		t.Errorf("kinds %+v", u.Kinds)
	}

	g.use("same", true)
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(t.Context(), l.Blobs[0].Digest); err != nil {
		t.Errorf("the blob of a record in use: %v", err)
	}
	g.use("same", false)
	p := must(s.Prune(t.Context(), layercache.PruneOptions{All: true}))(t)
	if left := blobFiles(t, root); len(left) != 0 || p.Bytes < 10_000 {
		t.Errorf("left %v, pruned %+v", left, p)
	}
}

// Least recently used first across both, no parent before its child, nothing
// that is in use.
func TestLodgerCeiling(t *testing.T) {
	var told []string
	s := open(t, layercache.Options{MaxBytes: 1_000_000, OnEvict: func(e layercache.Eviction) { told = append(told, e.What+" of "+e.App) }})
	c := s.Org("acme")
	g, _ := lodge(t, c)
	g.keep("parent", "shop", 50, random(t, 100_000))
	g.keep("busy", "shop", 40, random(t, 100_000))
	g.use("busy", true)
	g.keep("child", "shop", 30, random(t, 100_000), "parent")
	g.keep("young", "shop", 0, random(t, 100_000))
	g.keep("orphan", "", 60, random(t, 10), "gone")
	k, _ := putLayer(t, t.Context(), c, "app", "one", random(t, 400_000))
	ctx, release := leased(t, c)
	defer release()
	g.keep("last", "shop", 0, random(t, 100_000))
	if len(told) != 0 {
		t.Fatalf("evicted below the ceiling: %v", told)
	}
	putBlob(t, ctx, c, random(t, 150_000)) // 1.05 MB: 150 kB are to go

	g.want("busy", "last", "young")
	if !has(t, c, k) {
		t.Error("the layer went before what is older")
	}
	if want := []string{"guest orphan of ", "guest child of shop", "guest parent of shop"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	if len(u.Evictions) != 3 || !strings.Contains(u.Evictions[0].Reason, "ceiling") || u.Evictions[0].Bytes != 100_000 {
		t.Errorf("evictions %+v", u.Evictions)
	}

	putBlob(t, ctx, c, random(t, 300_000))
	if has(t, c, k) {
		t.Error("the layer stays though only one is younger")
	}
	g.want("busy", "last")
}

// What the last build of an app needs goes last, whoever keeps it.
func TestLodgerPinned(t *testing.T) {
	s := open(t, layercache.Options{MaxBytes: 1_000_000})
	c := s.Org("acme")
	g, _ := lodge(t, c)
	g.keep("base", "shop", 60, random(t, 100_000))
	g.keep("image", "shop", 50, random(t, 100_000), "base")
	g.pin("image")
	g.keep("young", "shop", 1, random(t, 300_000))
	k, _ := putLayer(t, t.Context(), c, "app", "one", random(t, 300_000))
	ctx, release := leased(t, c)
	defer release()
	putBlob(t, ctx, c, random(t, 350_000)) // 1.15 MB
	g.want("base", "image")
	if !has(t, c, k) {
		t.Error("the layer went, though what is gone is enough")
	}
	putBlob(t, ctx, c, random(t, 300_000))
	g.want("base", "image")
	if has(t, c, k) {
		t.Error("the layer stays in the place of what a last build needs")
	}
	p := must(s.Prune(t.Context(), layercache.PruneOptions{OlderThan: time.Minute}))(t)
	if g.want("base", "image"); p.Records != 0 {
		t.Errorf("pruned %+v", p)
	}
}

// What a lodger writes itself brings the eviction too.
func TestLodgerFillsCache(t *testing.T) {
	evicted := make(chan layercache.Eviction, 100)
	s := open(t, layercache.Options{MaxBytes: 1_000_000, OnEvict: func(e layercache.Eviction) { evicted <- e }})
	g, _ := lodge(t, s.Org("acme"))
	must(s.Usage(t.Context(), "", ""))(t)
	for i := range 10 {
		g.keep(fmt.Sprint(i), "shop", 60-i, random(t, 99_000))
	}
	g.keep("more", "shop", 0, random(t, 99_000))
	select {
	case e := <-evicted:
		if e.What != "guest 0" {
			t.Errorf("evicted %s", e.What)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing was evicted")
	}
}

// Bytes in snapshots that are not committed count, also while nobody tells.
func TestLodgerLoose(t *testing.T) {
	opts := layercache.Options{Root: t.TempDir(), MinFree: -1, MaxBytes: 1_000_000}
	s := must(layercache.Open(t.Context(), opts))(t)
	g, leave := lodge(t, s.Org("acme"))
	g.put(layercache.LodgerRecord{ID: "mount", Bytes: 900_000, Loose: 900_000, Used: time.Now(), InUse: true})
	if u := must(s.Usage(t.Context(), "acme", ""))(t); u.Bytes != 900_000 {
		t.Errorf("%d bytes", u.Bytes)
	}
	leave()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	opened := 0
	opts.OpenLodgers = func(_ context.Context, org string) error {
		if opened++; opened == 1 {
			g.use("mount", false)
			g.put(layercache.LodgerRecord{ID: "old", Bytes: 1, Loose: 1})
			g.c.Lodge(g)
		}
		if org != "" {
			t.Errorf("org %q was asked for", org)
		}
		return nil
	}
	s = open(t, opts)
	c := s.Org("acme")
	g.c = c
	ctx, release := leased(t, c)
	defer release()
	putBlob(t, ctx, c, random(t, 50_000))
	if opened != 0 {
		t.Error("lodgers were opened below the ceiling")
	}
	for _, id := range []string{"mount", "old"} {
		if _, err := c.Containerd().Leases.Create(g.context(), leases.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	putBlob(t, ctx, c, random(t, 60_000))
	if opened == 0 {
		t.Fatal("lodgers were not opened to evict")
	}
	g.want()
	opened = 0
	putBlob(t, ctx, c, random(t, 800_000))
	if opened != 0 {
		t.Error("what went counts still")
	}
}

func TestLodgerPrune(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts layercache.PruneOptions
		want []string
	}{
		{"old", layercache.PruneOptions{OlderThan: 25 * time.Minute}, []string{"b", "busy", "c"}},
		{"all", layercache.PruneOptions{All: true}, []string{"busy"}},
		{"app", layercache.PruneOptions{App: "shop", All: true}, []string{"b", "busy"}},
		{"org", layercache.PruneOptions{Org: "acme", All: true}, []string{"busy"}},
		{"another org", layercache.PruneOptions{Org: "other", All: true}, []string{"a", "b", "busy", "c"}},
		{"keep", layercache.PruneOptions{All: true, KeepBytes: 2500}, []string{"b", "busy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var opened []string
			s := open(t, layercache.Options{OpenLodgers: func(_ context.Context, org string) error {
				opened = append(opened, org)
				return errors.New("one does not open")
			}})
			g, _ := lodge(t, s.Org("acme"))
			g.keep("a", "shop", 30, random(t, 1000))
			g.keep("b", "blog", 10, random(t, 1000))
			g.keep("c", "shop", 20, random(t, 1000))
			g.keep("busy", "shop", 60, random(t, 1000))
			g.use("busy", true)
			p := must(s.Prune(t.Context(), tc.opts))(t)
			g.want(tc.want...)
			if n := int64(4 - len(tc.want)); p.Records != n || p.Bytes != 1000*n {
				t.Errorf("pruned %+v, want %d records", p, n)
			}
			if !slices.Equal(opened, []string{tc.opts.Org}) {
				t.Errorf("opened lodgers of %q", opened)
			}
		})
	}
}

// A lodger's lost records hold nothing for ever; what is layercache's own stays.
func TestForget(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	g, leave := lodge(t, c)
	d := g.keep("lost", "shop", 1, random(t, 1000))
	theirs, _ := lodge(t, s.Org("other"))
	kept := theirs.keep("kept", "shop", 1, random(t, 1000))
	k, _ := fill(t, c)
	l := must(c.Lease(t.Context(), "context", time.Hour))(t)
	held := putBlob(t, l.Context(t.Context()), c, random(t, 100)).Digest
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	leave()

	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(blobFiles(t, root), d.Encoded()) {
		t.Fatal("what a lease holds went")
	}
	if err := c.Containerd().Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := blobFiles(t, root)
	if slices.Contains(left, d.Encoded()) {
		t.Error("the blob is still there")
	}
	for _, d := range []digest.Digest{held, kept} {
		if !slices.Contains(left, d.Encoded()) {
			t.Errorf("%s went, which was not meant", d)
		}
	}
	if !has(t, c, k) || !c.SnapshotExists(t.Context(), "snap") {
		t.Error("the cache lost a step or its snapshot")
	}
	if err := s.Org("nobody").Containerd().Forget(t.Context()); err != nil {
		t.Errorf("an org without anything: %v", err)
	}
}

// The generation is another one whenever snapshots have gone.
func TestGeneration(t *testing.T) {
	opts := layercache.Options{Root: t.TempDir(), MinFree: -1}
	var last string
	reopen := func(other bool) *layercache.Store {
		t.Helper()
		s := must(layercache.Open(t.Context(), opts))(t)
		if now := s.Generation(); now == "" || (now != last) != other {
			t.Errorf("generation %q after %q, want another one: %v", now, last, other)
		}
		last = s.Generation()
		return s
	}
	s := reopen(true)
	g, leave := lodge(t, s.Org("acme"))
	ctd := g.c.Containerd()
	d := g.keep("one", "shop", 1, random(t, 1000))
	ctx := leases.WithLease(g.context(), "one")
	if _, err := ctd.Snapshots.Prepare(ctx, "active", ""); err != nil {
		t.Fatal(err)
	}
	if err := ctd.Snapshots.Commit(ctx, "committed", "active"); err != nil {
		t.Fatal(err)
	}
	leave()
	fatal(t, s.Close())
	fatal(t, reopen(false).Close())

	// The machine goes down. The lodger's org has no record of Slipway's.
	write(t, filepath.Join(opts.Root, "open"), "another start")
	s = reopen(true)
	err := s.Org("acme").Containerd().Snapshots.Walk(g.context(), func(_ context.Context, i snapshots.Info) error {
		t.Errorf("snapshot %s was kept", i.Name)
		return nil
	})
	fatal(t, err)
	fatal(t, s.Collect(t.Context()))
	if left := blobFiles(t, opts.Root); slices.Contains(left, d.Encoded()) {
		t.Error("a blob is held by a record that is void")
	}
	fatal(t, s.Close())
	fatal(t, reopen(false).Close())

	fatal(t, os.WriteFile(filepath.Join(opts.Root, "meta.db"), bytes.Repeat([]byte("garbage "), 4096), 0o600))
	fatal(t, reopen(true).Close())
}
