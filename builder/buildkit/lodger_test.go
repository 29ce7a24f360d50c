package buildkit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/log"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/leaseutil"

	"github.com/slipwayhq/slipway/layercache"
)

func TestMain(m *testing.M) {
	log.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// A keeper is what an org's worker has for its cache: a manager on layercache's
// store.
type keeper struct {
	cache.Manager
	Lodger
	root string
	c    *layercache.Cache

	released atomic.Int64 // calls of ReleaseUnreferenced
	leave    func()
	close    func()

	// BuildKit's DiskUsage reads without a lock what making a ref final writes,
	// which the race detector reports: under it the two take turns.
	final sync.RWMutex
}

// Records takes the place of the Lodger's.
func (w *keeper) Records(ctx context.Context) ([]layercache.LodgerRecord, error) {
	if raceDetector {
		w.final.Lock()
		defer w.final.Unlock()
	}
	return w.Lodger.Records(ctx)
}

func (w *keeper) Evict(ctx context.Context, ids []string) ([]string, error) {
	return w.Lodger.Evict(ctx, ids)
}

func openStore(t testing.TB, opts layercache.Options) *layercache.Store {
	t.Helper()
	if opts.Root == "" {
		opts.Root = t.TempDir()
	}
	opts.MinFree = -1
	s, err := layercache.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fatal(t, s.Close()) }) // again does nothing
	return s
}

func openWorker(t testing.TB, c *layercache.Cache, root string) *keeper {
	t.Helper()
	ctd := c.Containerd()
	md, err := metadata.NewStore(filepath.Join(root, "metadata_v2.db"))
	fatal(t, err)
	blobs := containerdsnapshot.NewContentStore(ctd.Content, ctd.Namespace)
	cm, err := cache.NewManager(cache.ManagerOpt{
		Snapshotter:    containerdsnapshot.NewSnapshotter(ctd.Snapshotter, ctd.Snapshots, ctd.Namespace, nil),
		ContentStore:   blobs,
		LeaseManager:   leaseutil.WithNamespace(ctd.Leases, ctd.Namespace),
		GarbageCollect: ctd.Collect,
		Applier:        apply.NewFileSystemApplier(blobs),
		Differ:         walking.NewWalkingDiff(blobs),
		MetadataStore:  md,
		Root:           root,
		MountPoolRoot:  filepath.Join(root, "cachemounts"),
	})
	fatal(t, err)
	w := &keeper{Manager: cm, root: root, c: c}
	w.Lodger = Lodger{Manager: cm, Metadata: md, ReleaseUnreferenced: func(context.Context) error {
		w.released.Add(1)
		return nil
	}}
	w.leave = c.Lodge(w)
	w.close = sync.OnceFunc(func() {
		w.leave()
		fatal(t, w.Manager.Close())
	})
	t.Cleanup(w.close)
	return w
}

// layer makes a ref with one file on top of parent, which may be nil. The
// caller releases it.
func (w *keeper) layer(ctx context.Context, parent cache.ImmutableRef, app, name, data string) (cache.ImmutableRef, error) {
	w.final.RLock()
	defer w.final.RUnlock()
	m, err := w.New(ctx, parent, nil, cache.CachePolicyRetain, cache.WithDescription("layer "+name))
	if err != nil {
		return nil, err
	}
	if err := setApp(m, app); err != nil {
		return nil, err
	}
	if err := mounted(ctx, m, false, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600)
	}); err != nil {
		return nil, errors.Join(err, m.Release(ctx))
	}
	ref, err := m.Commit(ctx)
	if err != nil {
		return nil, errors.Join(err, m.Release(ctx))
	}
	return ref, setApp(ref, app)
}

func (w *keeper) mustLayer(t testing.TB, parent cache.ImmutableRef, app, name, data string) cache.ImmutableRef {
	t.Helper()
	ref, err := w.layer(t.Context(), parent, app, name, data)
	fatal(t, err)
	return ref
}

func (w *keeper) finalize(ctx context.Context, ref cache.ImmutableRef) error {
	w.final.RLock()
	defer w.final.RUnlock()
	return ref.Finalize(ctx)
}

// merge makes a ref with the files of all.
func (w *keeper) merge(ctx context.Context, refs ...cache.ImmutableRef) (cache.ImmutableRef, error) {
	w.final.RLock()
	defer w.final.RUnlock()
	ref, err := w.Merge(ctx, refs, nil, cache.CachePolicyRetain)
	if err != nil {
		return nil, err
	}
	return ref, ref.Extract(ctx, nil)
}

func mounted(ctx context.Context, m cache.Mountable, readonly bool, use func(dir string) error) error {
	mnt, err := m.Mount(ctx, readonly, nil)
	if err != nil {
		return err
	}
	lm := snapshot.LocalMounter(mnt)
	dir, err := lm.Mount()
	if err != nil {
		return err
	}
	return errors.Join(use(dir), lm.Unmount())
}

// whole reads all files of a ref and all blobs of its chain.
func (w *keeper) whole(ctx context.Context, ref cache.ImmutableRef, files map[string]string) error {
	w.final.RLock()
	defer w.final.RUnlock()
	err := mounted(ctx, ref, true, func(dir string) error {
		for name, data := range files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != data {
				return fmt.Errorf("file %s of %s has %d bytes: %v", name, ref.ID(), len(got), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	remotes, err := ref.GetRemotes(ctx, true, config.RefConfig{Compression: compression.New(compression.Gzip)}, false, nil)
	if err != nil {
		return err
	}
	for _, d := range remotes[0].Descriptors {
		if _, err := content.ReadBlob(ctx, remotes[0].Provider, d); err != nil {
			return fmt.Errorf("blob %s of %s: %w", d.Digest, ref.ID(), err)
		}
	}
	return nil
}

func (w *keeper) byName(t testing.TB) map[string]layercache.LodgerRecord {
	t.Helper()
	recs, err := w.Records(t.Context())
	fatal(t, err)
	named := make(map[string]layercache.LodgerRecord)
	for _, r := range recs {
		named[strings.TrimPrefix(r.What, "buildkit layer ")] = r
	}
	return named
}

func (w *keeper) want(t testing.TB, names ...string) {
	t.Helper()
	var got []string
	for name := range w.byName(t) {
		got = append(got, name)
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Errorf("the manager has %q, want %q", got, names)
	}
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func release(t testing.TB, refs ...cache.ImmutableRef) {
	t.Helper()
	for _, ref := range refs {
		fatal(t, ref.Release(t.Context()))
	}
}

func TestRecords(t *testing.T) {
	s := openStore(t, layercache.Options{})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	base := w.mustLayer(t, nil, "shop", "base", strings.Repeat("b", 50_000))
	fatal(t, setApp(base, "blog"))
	fatal(t, setApp(base, "blog")) // twice is once
	top := w.mustLayer(t, base, "shop", "top", strings.Repeat("t", 90_000))

	recs := w.byName(t)
	b, u := recs["base"], recs["top"]
	if !b.InUse || !slices.Equal(b.Apps, []string{"blog", "shop"}) || b.Loose != 0 || b.Bytes < 50_000 {
		t.Errorf("base %+v", b)
	}
	if !u.InUse || !slices.Equal(u.Apps, []string{"shop"}) || u.Bytes < 90_000 || u.Loose != u.Bytes || !slices.Equal(u.Parents, []string{b.ID}) {
		t.Errorf("top %+v", u)
	}
	release(t, base, top)
	recs = w.byName(t)
	b, u = recs["base"], recs["top"]
	if b.InUse || u.InUse || u.Loose != u.Bytes || time.Since(u.Used) > time.Minute || !slices.Equal(u.Apps, []string{"shop"}) {
		t.Errorf("released: base %+v, top %+v", b, u)
	}

	usage, err := s.Usage(t.Context(), "acme", "")
	fatal(t, err)
	for _, a := range usage.Apps {
		if want := map[string]int64{"blog": b.Bytes, "shop": b.Bytes + u.Bytes}[a.App]; a.Bytes != want {
			t.Errorf("app %+v, want %d bytes", a, want)
		}
	}
	if usage.Bytes != b.Bytes+u.Bytes || len(usage.Apps) != 2 {
		t.Errorf("usage %+v", usage)
	}
}

// An app that was noted of a ref before its Commit is there until the ref is
// final, whichever of the two is counted.
func TestAppOfUncommitted(t *testing.T) {
	s := openStore(t, layercache.Options{})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	m, err := w.New(t.Context(), nil, nil, cache.CachePolicyRetain, cache.WithDescription("layer one"))
	fatal(t, err)
	fatal(t, setApp(m, "shop"))
	ref, err := m.Commit(t.Context())
	fatal(t, err)
	fatal(t, setApp(ref, "blog"))
	fatal(t, setApp(ref, ""))
	for _, inUse := range []bool{true, false} {
		if r := w.byName(t)["one"]; r.InUse != inUse || !slices.Equal(r.Apps, []string{"blog", "shop"}) || r.Loose != r.Bytes {
			t.Errorf("in use %v: %+v", inUse, r)
		}
		if inUse {
			release(t, ref)
		}
	}
}

// Of each app, the image of the last build is pinned, committed or not.
func TestLastImageIsPinned(t *testing.T) {
	s := openStore(t, layercache.Options{})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	refs := map[string]cache.ImmutableRef{}
	for _, name := range []string{"base", "old", "new", "other", "none"} {
		refs[name] = w.mustLayer(t, nil, "shop", name, name)
	}
	for _, of := range [][3]string{{"old", "shop", "01"}, {"new", "shop", "02"}, {"old", "blog", "01"}, {"other", "wiki", "01"}, {"other", "wiki", "03"}, {"base", "blog", "00"}} {
		fatal(t, setImage(refs[of[0]], of[1], of[2]))
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		recs := w.byName(t)
		for name := range refs {
			if recs[name].Pinned != want[name] {
				t.Errorf("%s: %s is pinned: %v", when, name, recs[name].Pinned)
			}
		}
	}
	check("before", map[string]bool{"old": true, "new": true, "other": true})
	fatal(t, setImage(refs["base"], "blog", "02"))
	fatal(t, setImage(refs["none"], "wiki", "02"))
	check("after", map[string]bool{"base": true, "new": true, "other": true})
	for _, ref := range refs {
		release(t, ref)
	}
	check("released", map[string]bool{"base": true, "new": true, "other": true})
}

// What is evicted is what was asked for, unless it is in use or stood on.
func TestEvict(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, layercache.Options{Root: root})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	base := w.mustLayer(t, nil, "shop", "base", "base")
	top := w.mustLayer(t, base, "shop", "top", "top")
	other := w.mustLayer(t, nil, "blog", "other", "other")
	kept := w.mustLayer(t, base, "blog", "kept", "kept")
	release(t, base, other, kept)
	recs := w.byName(t)
	evict := func(want int, names ...string) {
		t.Helper()
		var ids []string
		for _, n := range names {
			ids = append(ids, recs[n].ID)
		}
		gone, err := w.Evict(t.Context(), ids)
		if err != nil || len(gone) != want {
			t.Errorf("evicted %q, %v; want %d", gone, err, want)
		}
	}
	evict(0)
	evict(0, "top", "base")
	if w.released.Load() != 0 {
		t.Error("the solver was told though nothing went")
	}
	evict(1, "base", "other")
	w.want(t, "base", "kept", "top")
	fatal(t, w.whole(t.Context(), top, map[string]string{"base": "base", "top": "top"}))
	release(t, top)
	recs = w.byName(t)
	evict(3, "base", "kept", "top")
	w.want(t)
	if w.released.Load() != 2 {
		t.Errorf("the solver was told %d times, want 2", w.released.Load())
	}
	fatal(t, s.Collect(t.Context()))
	wantEmpty(t, root)
}

// wantEmpty checks that a store has nothing on the disk.
func wantEmpty(t *testing.T, root string) {
	t.Helper()
	for _, dir := range []string{"content/blobs/sha256", "content/ingest", "snapshots/snapshots"} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range left {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
}

// Every id that a filter names is taken for what it is.
func TestAnyOf(t *testing.T) {
	for _, ids := range [][]string{{"a"}, {"a", "b"}, {"a.c", `a"c`, "a,b", "a|c", `a\c`, "a c"}} {
		f, err := filters.ParseAll(anyOf(ids)...)
		fatal(t, err)
		for _, id := range []string{"a", "b", "ab", "abc", "a.c", `a"c`, "a,b", "a|c", `a\c`, "a c", ""} {
			got := f.Match(filters.AdapterFunc(func(path []string) (string, bool) { return id, path[0] == "id" }))
			if got != slices.Contains(ids, id) {
				t.Errorf("%q matches %q: %v", anyOf(ids), id, got)
			}
		}
	}
}

func TestWhat(t *testing.T) {
	for description, want := range map[string]string{
		"":                           "buildkit id",
		"mount / from exec /bin/sh":  "buildkit mount / from exec /bin/sh",
		"http https://me:pw@h/p?k=v": "buildkit http https://h/p",
		"git git@github.com:me/repo": "buildkit git git@github.com:me/repo",
		"http https://h/%zz?pw":      "buildkit http …",
		strings.Repeat("ü", 200):     "buildkit " + strings.Repeat("ü", 120) + "…",
	} {
		if got := what(&client.UsageInfo{ID: "id", Description: description}); got != want {
			t.Errorf("%q is %q, want %q", description, got, want)
		}
	}
}

func TestPrune(t *testing.T) {
	s := openStore(t, layercache.Options{})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	theirs := openWorker(t, s.Org("other"), t.TempDir())
	base := w.mustLayer(t, nil, "shop", "base", strings.Repeat("b", 40_000))
	shop := w.mustLayer(t, base, "shop", "shop", strings.Repeat("s", 40_000))
	blog := w.mustLayer(t, base, "blog", "blog", strings.Repeat("g", 40_000))
	release(t, base, shop, blog)
	release(t, theirs.mustLayer(t, nil, "shop", "theirs", "theirs"))

	prune := func(opts layercache.PruneOptions, records int64) {
		t.Helper()
		p, err := s.Prune(t.Context(), opts)
		if err != nil || p.Records != records || p.Bytes < 40_000*records {
			t.Errorf("pruned %+v, %v; want %d records", p, err, records)
		}
	}
	prune(layercache.PruneOptions{Org: "acme", OlderThan: time.Hour}, 0)
	prune(layercache.PruneOptions{Org: "acme", App: "shop", All: true}, 1) // the base is the blog's too
	w.want(t, "base", "blog")
	prune(layercache.PruneOptions{Org: "acme", All: true, KeepBytes: 50_000}, 1)
	w.want(t, "base")
	prune(layercache.PruneOptions{Org: "acme", All: true}, 1)
	w.want(t)
	theirs.want(t, "theirs")
	u, err := s.Usage(t.Context(), "acme", "")
	if err != nil || len(u.Evictions) != 3 || u.Evictions[2].What != "buildkit layer shop" || u.Evictions[2].App != "shop" {
		t.Errorf("evictions %+v, %v", u.Evictions, err)
	}
}

// BuildKit's own writes keep to the ceiling, and so do snapshots that it has not
// committed yet.
func TestCeiling(t *testing.T) {
	evicted := make(chan string, 100)
	s := openStore(t, layercache.Options{MaxBytes: 3_000_000, OnEvict: func(e layercache.Eviction) { evicted <- e.What }})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	held := w.mustLayer(t, nil, "shop", "held", strings.Repeat("h", 500_000))
	first := w.mustLayer(t, nil, "shop", "first", strings.Repeat("1", 500_000))
	release(t, first)
	for i := range 6 {
		ref := w.mustLayer(t, nil, "shop", fmt.Sprint("more ", i), strings.Repeat("m", 500_000))
		fatal(t, w.finalize(t.Context(), ref))
		release(t, ref)
	}
	select {
	case what := <-evicted:
		if what != "buildkit layer first" {
			t.Errorf("evicted %s", what)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing was evicted")
	}
	fatal(t, w.whole(t.Context(), held, map[string]string{"held": strings.Repeat("h", 500_000)}))
	release(t, held)
}

// What a merged ref has by links to others is on the disk once, and counted so.
func TestMergedCountsOnce(t *testing.T) {
	s := openStore(t, layercache.Options{})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	base := w.mustLayer(t, nil, "shop", "base", "base")
	side := w.mustLayer(t, nil, "shop", "side", strings.Repeat("s", 1_000_000))
	merged, err := w.merge(t.Context(), base, side)
	fatal(t, err)
	release(t, base, side, merged)
	p, err := s.Prune(t.Context(), layercache.PruneOptions{All: true})
	if err != nil || p.Records != 3 || p.Bytes < 1_000_000 || p.Bytes > 1_100_000 {
		t.Errorf("pruned %+v, %v; want 3 records of 1 MB", p, err)
	}
}

// A ref that is written to again and again, such as a cache mount, counts and
// goes with its directory.
func TestMutable(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, layercache.Options{Root: root})
	w := openWorker(t, s.Org("acme"), t.TempDir())
	m, err := w.New(t.Context(), nil, nil, cache.CachePolicyRetain, cache.WithRecordType(client.UsageRecordTypeCacheMount), cache.WithDescription("layer mount"))
	fatal(t, err)
	fatal(t, setApp(m, "shop"))
	for _, size := range []int{100_000, 500_000} {
		fatal(t, mounted(t.Context(), m, false, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0o600)
		}))
		if r := w.byName(t)["mount"]; !r.InUse {
			t.Errorf("%+v is not in use", r)
		}
		fatal(t, m.Release(t.Context()))
		if r := w.byName(t)["mount"]; r.InUse || r.Bytes < int64(size) || r.Loose != r.Bytes || !slices.Equal(r.Apps, []string{"shop"}) {
			t.Errorf("with %d bytes: %+v", size, r)
		}
		m, err = w.GetMutable(t.Context(), m.ID())
		fatal(t, err)
	}
	fatal(t, m.Release(t.Context()))
	p, err := s.Prune(t.Context(), layercache.PruneOptions{App: "shop", All: true})
	if err != nil || p.Records != 1 || p.Bytes < 500_000 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	wantEmpty(t, root)
}

// After the machine went down the worker's databases are void. Once they are
// thrown away nothing of before is left.
func TestNewGeneration(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	s := openStore(t, layercache.Options{Root: root})
	before := s.Generation()
	w := openWorker(t, s.Org("acme"), dir)
	ref := w.mustLayer(t, nil, "shop", "layer", "layer")
	fatal(t, w.whole(t.Context(), ref, map[string]string{"layer": "layer"}))
	release(t, ref)
	w.close()
	fatal(t, s.Close())
	fatal(t, os.WriteFile(filepath.Join(root, "open"), []byte("another start"), 0o600))

	s = openStore(t, layercache.Options{Root: root})
	if s.Generation() == before {
		t.Fatal("the generation is the one of before")
	}
	c := s.Org("acme")
	fatal(t, os.Remove(filepath.Join(dir, "metadata_v2.db")))
	fatal(t, c.Containerd().Forget(t.Context()))
	w = openWorker(t, c, dir)
	w.want(t)
	fatal(t, s.Collect(t.Context()))
	wantEmpty(t, root)
	ref = w.mustLayer(t, nil, "shop", "again", "again")
	fatal(t, w.whole(t.Context(), ref, map[string]string{"again": "again"}))
	release(t, ref)
}

// No ref that somebody holds loses a file or a blob, whatever is collected,
// pruned and evicted meanwhile.
func TestHeldStaysWhole(t *testing.T) {
	t.Run("ceiling", func(t *testing.T) {
		var evicted atomic.Int64
		sweepWhileBuilding(t, layercache.Options{MaxBytes: 300_000, OnEvict: func(e layercache.Eviction) {
			if strings.Contains(e.Reason, "ceiling") && strings.HasPrefix(e.What, "buildkit ") {
				evicted.Add(1)
			}
		}})
		if evicted.Load() == 0 {
			t.Error("the ceiling was never met: this shows less than it says")
		}
	})
	t.Run("prune", func(t *testing.T) {
		sweepWhileBuilding(t, layercache.Options{}, func(s *layercache.Store, _ *keeper) error {
			_, err := s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true})
			return err
		}, func(_ *layercache.Store, w *keeper) error { // BuildKit's own
			return w.Manager.Prune(t.Context(), nil, client.PruneInfo{All: true})
		})
	})
}

// sweepWhileBuilding builds while the store is collected, looked at, used by the
// classic pipeline, and swept by all sweeps.
func sweepWhileBuilding(t *testing.T, opts layercache.Options, sweeps ...func(*layercache.Store, *keeper) error) {
	opts.Root = t.TempDir()
	s := openStore(t, opts)
	w := openWorker(t, s.Org("acme"), t.TempDir())
	sweeps = append(sweeps,
		func(*layercache.Store, *keeper) error { return s.Collect(t.Context()) },
		func(*layercache.Store, *keeper) error {
			_, err := s.Usage(t.Context(), "acme", "")
			return err
		},
		func(*layercache.Store, *keeper) error { return classic(t.Context(), s.Org("acme")) },
	)
	var builds, sweeping sync.WaitGroup
	built := make(chan struct{})
	for g := range 3 {
		builds.Go(func() {
			for i := range 3 {
				if err := w.build(t.Context(), fmt.Sprintf("%d-%d", g, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, sweep := range sweeps {
		sweeping.Go(func() {
			for {
				select {
				case <-built:
					return
				default:
				}
				if err := sweep(s, w); err != nil {
					t.Error(err)
				}
			}
		})
	}
	builds.Wait()
	close(built)
	sweeping.Wait()
	_, err := s.Prune(t.Context(), layercache.PruneOptions{All: true})
	fatal(t, err)
	w.want(t)
	wantEmpty(t, opts.Root)
}

// build makes a chain of refs and one merged of it, checks after each step
// all that it holds, and lets go.
func (w *keeper) build(ctx context.Context, name string) (err error) {
	var parent cache.ImmutableRef
	files := make(map[string]string)
	defer func() {
		if parent != nil {
			err = errors.Join(err, parent.Release(ctx))
		}
	}()
	for i := range 3 {
		file := fmt.Sprintf("%s-%d", name, i)
		files[file] = strings.Repeat(file, 10_000)
		ref, err := w.layer(ctx, parent, "app "+name, file, files[file])
		if err != nil {
			return fmt.Errorf("layer %s: %w", file, err)
		}
		if parent != nil {
			if err := parent.Release(ctx); err != nil {
				return errors.Join(err, ref.Release(ctx))
			}
		}
		parent = ref
		if err := w.whole(ctx, ref, files); err != nil {
			return err
		}
	}
	side, err := w.unpacked(ctx, "app "+name, "side", name)
	if err != nil {
		return fmt.Errorf("side of %s: %w", name, err)
	}
	merged, err := w.merge(ctx, parent, side)
	if err := errors.Join(err, side.Release(ctx)); err != nil {
		return fmt.Errorf("merge %s: %w", name, err)
	}
	files["side"] = name
	return errors.Join(w.whole(ctx, merged, files), merged.Release(ctx))
}

// unpacked makes a ref as a pull does: of a blob that a lease holds.
func (w *keeper) unpacked(ctx context.Context, app, name, data string) (cache.ImmutableRef, error) {
	ctd := w.c.Containerd()
	lm := leaseutil.WithNamespace(ctd.Leases, ctd.Namespace)
	lease, err := lm.Create(ctx, leases.WithRandomID())
	if err != nil {
		return nil, err
	}
	defer lm.Delete(context.WithoutCancel(ctx), lease)
	ref, err := w.layer(ctx, nil, app, name, data)
	if err != nil {
		return nil, err
	}
	w.final.RLock()
	defer w.final.RUnlock()
	remotes, err := ref.GetRemotes(ctx, true, config.RefConfig{Compression: compression.New(compression.Gzip)}, false, nil)
	if err != nil {
		return nil, errors.Join(err, ref.Release(ctx))
	}
	desc := remotes[0].Descriptors[0]
	if err := lm.AddResource(ctx, lease, leases.Resource{Type: "content", ID: desc.Digest.String()}); err != nil {
		return nil, errors.Join(err, ref.Release(ctx))
	}
	if err := ref.Release(ctx); err != nil {
		return nil, err
	}
	if _, err := w.Evict(ctx, []string{ref.ID()}); err != nil {
		return nil, err
	}
	of, err := w.GetByBlob(ctx, desc, nil, cache.CachePolicyRetain)
	if err != nil {
		return nil, err
	}
	return of, of.Extract(ctx, nil)
}

// classic keeps a layer and a snapshot of its own, and lets go.
func classic(ctx context.Context, c *layercache.Cache) error {
	n := rand.Text()
	l, err := c.Lease(ctx, "classic", 0)
	if err != nil {
		return err
	}
	in := l.Context(ctx)
	data := []byte(strings.Repeat(fmt.Sprint("classic ", n), 1000))
	d, err := c.PutBytes(in, data)
	if err != nil {
		return err
	}
	snap, err := c.Prepare(in, "")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(snap.Upper(), "file"), data, 0o600); err != nil {
		return err
	}
	if err := snap.Commit(in, fmt.Sprint("classic ", n)); err != nil {
		return err
	}
	if _, err := c.GetBytes(in, d, int64(len(data))); err != nil {
		return err
	}
	if _, err := c.View(in, snap.Name()); err != nil {
		return err
	}
	return l.Release(ctx)
}
