package layercache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/layercache"
)

// take returns a cache mount, which is released at the end of the test.
func take(t *testing.T, c *layercache.Cache, o layercache.MountOptions) *layercache.Mount {
	t.Helper()
	m, err := c.Mount(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Release)
	return m
}

// used leaves a cache mount behind that holds a file of some size.
func used(t *testing.T, c *layercache.Cache, o layercache.MountOptions, size int) {
	t.Helper()
	m := take(t, c, o)
	if err := os.WriteFile(filepath.Join(m.Dir(), "file"), random(t, size), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Release()
}

// size returns how much the file of a cache mount holds, 0 if there is none.
func size(t *testing.T, c *layercache.Cache, o layercache.MountOptions) int64 {
	t.Helper()
	m := take(t, c, o)
	defer m.Release()
	st, err := os.Stat(filepath.Join(m.Dir(), "file"))
	if err != nil {
		return 0
	}
	return st.Size()
}

func TestMountPersists(t *testing.T) {
	opts := layercache.Options{Root: t.TempDir()}
	s := must(layercache.Open(t.Context(), layercache.Options{Root: opts.Root, MinFree: -1}))(t)
	of := layercache.MountOptions{App: "shop", ID: "/root/.cache"}
	used(t, s.Org("acme"), of, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, opts)
	if got := size(t, s.Org("acme"), of); got != 10 {
		t.Errorf("after a restart it has %d bytes, want 10", got)
	}
	for name, other := range map[string]layercache.MountOptions{
		"another app":    {App: "blog", ID: of.ID},
		"another id":     {App: "shop", ID: "/root"},
		"another origin": {App: "shop", ID: of.ID, Origin: "x"},
		"joined":         {App: "shop/", ID: "root/.cache"},
	} {
		if got := size(t, s.Org("acme"), other); got != 0 {
			t.Errorf("%s sees %d bytes", name, got)
		}
	}
	if got := size(t, s.Org("other"), of); got != 0 {
		t.Errorf("another org sees %d bytes", got)
	}
}

func TestMountSharing(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	of := func(s layercache.Sharing) layercache.MountOptions {
		return layercache.MountOptions{App: "a", ID: "id", Sharing: s}
	}
	one := take(t, c, of(layercache.Shared))
	two := take(t, c, of(layercache.Shared))
	if one.Dir() != two.Dir() {
		t.Error("two that share have two directories")
	}
	alone := take(t, c, of(layercache.Private))
	if alone.Dir() == one.Dir() {
		t.Error("a private one is shared")
	}
	if third := take(t, c, of(layercache.Private)); third.Dir() == alone.Dir() || third.Dir() == one.Dir() {
		t.Error("a second private one is shared")
	} else {
		third.Release()
	}
	one.Release()
	one.Release() // again: nothing
	if again := take(t, c, of(layercache.Shared)); again.Dir() != two.Dir() {
		t.Error("it was given away while somebody had it")
	}
	dir := alone.Dir()
	alone.Release()
	mine := take(t, c, layercache.MountOptions{App: "a", ID: "mine", Sharing: layercache.Private})
	if other := take(t, c, layercache.MountOptions{App: "a", ID: "mine"}); other.Dir() == mine.Dir() {
		t.Error("who has it alone has it with one that shares")
	}
	// The free one that was used last, not a new one.
	last := take(t, c, of(layercache.Private))
	if last.Dir() != dir {
		t.Errorf("got %s, want %s", last.Dir(), dir)
	}
}

func TestMountLocked(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	waiting := make(chan struct{})
	of := layercache.MountOptions{App: "a", ID: "id", Sharing: layercache.Locked, Waiting: func() { close(waiting) }}
	first := take(t, c, of)
	got := make(chan *layercache.Mount)
	go func() {
		m, err := c.Mount(context.Background(), of)
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	<-waiting
	select {
	case <-got:
		t.Fatal("two have what is locked")
	default:
	}
	first.Release()
	second := <-got
	if second.Dir() != first.Dir() {
		t.Error("who waited has another directory")
	}

	// Who is told to stop does not wait on.
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	of.Waiting = func() { cancel(stop) }
	if _, err := c.Mount(ctx, of); !errors.Is(err, stop) {
		t.Errorf("cancelled while it waits: %v", err)
	}
	second.Release()
	of.Waiting = nil
	take(t, c, of)
}

// Those that come while a directory is being made get it when it is made, or
// make it themselves when that failed.
func TestMountFill(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	boom := errors.New("boom")
	making, fail := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := c.Mount(context.Background(), layercache.MountOptions{App: "a", ID: "id", Fill: func(_ context.Context, dir string) error {
			if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
				return err
			}
			close(making)
			<-fail
			return boom
		}})
		done <- err
	}()
	<-making
	got := make(chan *layercache.Mount)
	go func() {
		m, err := c.Mount(context.Background(), layercache.MountOptions{App: "a", ID: "id", Fill: func(_ context.Context, dir string) error {
			return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
		}})
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	close(fail)
	if err := <-done; !errors.Is(err, boom) {
		t.Errorf("error %v, want %v", err, boom)
	}
	m := <-got
	defer m.Release()
	if names := must(os.ReadDir(m.Dir()))(t); len(names) != 1 || names[0].Name() != "whole" {
		t.Errorf("it has %v", names)
	}
	if dirs := must(os.ReadDir(filepath.Join(root, "mounts")))(t); len(dirs) != 1 {
		t.Errorf("%d directories, want 1", len(dirs))
	}
}

// What a killed process had not filled goes when the store is opened again.
func TestMountStray(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "mounts", "HALF", "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, layercache.Options{Root: root})
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"mounts", "spool"} {
		if left := must(os.ReadDir(filepath.Join(root, dir)))(t); len(left) > 0 {
			t.Errorf("%s has %v", dir, left)
		}
	}
}

func TestMountUsage(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	used(t, c, layercache.MountOptions{App: "shop", ID: "npm"}, 100_000)
	used(t, c, layercache.MountOptions{App: "blog", ID: "go"}, 50_000)
	kind := func(u layercache.Usage) layercache.KindUsage {
		for _, k := range u.Kinds {
			if k.Kind == "mount" {
				return k
			}
		}
		return layercache.KindUsage{}
	}
	if k := kind(must(s.Usage(t.Context(), "acme", ""))(t)); k.Count != 2 || k.Bytes < 150_000 || k.Bytes > 180_000 {
		t.Errorf("usage %+v", k)
	}
	u := must(s.Usage(t.Context(), "acme", "shop"))(t)
	if k := kind(u); k.Count != 1 || k.Bytes < 100_000 || u.Bytes != k.Bytes || len(u.Apps) != 1 || u.Apps[0].App != "shop" {
		t.Errorf("usage of one app %+v", u)
	}
	p := must(s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", App: "shop", OlderThan: time.Hour}))(t)
	if p.Records != 0 {
		t.Errorf("pruned what was just used: %+v", p)
	}
	busy := take(t, c, layercache.MountOptions{App: "blog", ID: "go"})
	if p = must(s.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}))(t); p.Records != 1 || p.Bytes < 100_000 {
		t.Errorf("pruned %+v, want what nobody has", p)
	}
	if dirs := must(os.ReadDir(filepath.Join(root, "mounts")))(t); len(dirs) != 1 || dirs[0].Name() != filepath.Base(busy.Dir()) {
		t.Errorf("directories %v", dirs)
	}
	if ev := must(s.Usage(t.Context(), "acme", ""))(t).Evictions; len(ev) != 1 || ev[0].What != "cache mount npm" || ev[0].App != "shop" {
		t.Errorf("evictions %+v", ev)
	}
}

// Cache mounts count for the ceiling: the one used least recently goes when
// another grows, and one that is in use stays.
func TestMountEviction(t *testing.T) {
	s := open(t, layercache.Options{MaxBytes: 1_000_000})
	c := s.Org("acme")
	of := func(id string) layercache.MountOptions { return layercache.MountOptions{App: "a", ID: id} }
	used(t, c, of("old"), 300_000)
	busy := take(t, c, of("busy"))
	used(t, c, of("new"), 300_000)
	must(s.Usage(t.Context(), "", ""))(t) // all is counted
	if err := os.WriteFile(filepath.Join(busy.Dir(), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	used(t, c, of("last"), 500_000)
	must(s.Usage(t.Context(), "", ""))(t)
	if _, err := os.Stat(filepath.Join(busy.Dir(), "file")); err != nil {
		t.Errorf("what somebody has went: %v", err)
	}
	for id, want := range map[string]int64{"old": 0, "new": 300_000, "last": 500_000} {
		if got := size(t, c, of(id)); got != want {
			t.Errorf("%s has %d bytes, want %d", id, got, want)
		}
	}
}

// A directory that is gone, or whose record does not read back, is a new one.
func TestDamagedMount(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, root, dir string){
		"directory": func(t *testing.T, _, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"record": func(t *testing.T, root, _ string) {
			spoil(t, root, "mounts", func([]byte) []byte { return []byte("garbage") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			of := layercache.MountOptions{App: "a", ID: "id"}
			s := must(layercache.Open(t.Context(), layercache.Options{Root: root, MinFree: -1}))(t)
			used(t, s.Org("acme"), of, 10)
			m := take(t, s.Org("acme"), of)
			m.Release()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, root, m.Dir())
			s = open(t, layercache.Options{Root: root})
			if got := size(t, s.Org("acme"), of); got != 0 {
				t.Errorf("it has %d bytes", got)
			}
			u := must(s.Usage(t.Context(), "acme", ""))(t)
			for _, k := range u.Kinds {
				if k.Kind == "mount" && k.Count != 1 {
					t.Errorf("%d cache mounts are counted, want 1", k.Count)
				}
			}
			if len(u.Evictions) != 1 || !strings.Contains(u.Evictions[0].Reason, "damaged") {
				t.Errorf("evictions %+v", u.Evictions)
			}
		})
	}
}

// When the machine went down, nobody knows what of a cache mount reached the disk.
func TestMountMachineCrash(t *testing.T) {
	root := t.TempDir()
	of := layercache.MountOptions{App: "a", ID: "id"}
	s := must(layercache.Open(t.Context(), layercache.Options{Root: root, MinFree: -1}))(t)
	used(t, s.Org("acme"), of, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "open"), []byte("another start"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := size(t, open(t, layercache.Options{Root: root}).Org("acme"), of); got != 0 {
		t.Errorf("it has %d bytes", got)
	}
}
