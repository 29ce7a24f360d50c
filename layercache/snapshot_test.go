package layercache_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/layercache"
)

// commit makes a snapshot with one file, named as the snapshot, in it.
func commit(t testing.TB, c *layercache.Cache, parent, name string) {
	t.Helper()
	ctx, release := leased(t, c)
	defer release()
	s := must(c.Prepare(ctx, parent))(t)
	write(t, filepath.Join(s.Upper(), name), name)
	if err := s.Commit(ctx, name); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshot(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	first := must(c.Prepare(ctx, ""))(t)
	if len(first.Lowers()) != 0 || first.Name() != "" {
		t.Errorf("from nothing: lowers %v, name %q", first.Lowers(), first.Name())
	}
	write(t, filepath.Join(first.Upper(), "file"), "one")
	if c.SnapshotExists(ctx, "one") {
		t.Error("exists before Commit")
	}
	if err := first.Commit(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if first.Name() != "one" || !c.SnapshotExists(ctx, "one") {
		t.Error("does not exist after Commit")
	}
	one := must(c.View(ctx, "one"))(t)
	if got := must(os.ReadFile(filepath.Join(one[0], "file")))(t); len(one) != 1 || string(got) != "one" {
		t.Errorf("view %v, file %q", one, got)
	}
	commit(t, c, "one", "two")
	two := must(c.View(ctx, "two"))(t)
	if len(two) != 2 || two[1] != one[0] {
		t.Errorf("view %v, want its own directory and %v", two, one)
	}
	third := must(c.Prepare(ctx, "two"))(t)
	if !slices.Equal(third.Lowers(), two) {
		t.Errorf("lowers %v, want %v", third.Lowers(), two)
	}
	for _, dir := range []string{third.Upper(), third.Work()} {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := third.Discard(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(third.Upper()); !os.IsNotExist(err) {
		t.Errorf("after Discard: %v", err)
	}
	_, err := c.Prepare(ctx, "none")
	wantMiss(t, err)
	_, err = c.View(ctx, "")
	wantMiss(t, err)
}

// Of two builds that make one snapshot, the first wins and both can use it.
func TestSnapshotTwice(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	a, b := must(c.Prepare(ctx, ""))(t), must(c.Prepare(ctx, ""))(t)
	for _, s := range []*layercache.Snapshot{a, b} {
		if err := s.Commit(ctx, "same"); err != nil {
			t.Fatal(err)
		}
		if s.Name() != "same" {
			t.Errorf("name %q", s.Name())
		}
	}
	if dirs := must(c.View(ctx, "same"))(t); dirs[0] != a.Upper() {
		t.Errorf("view %v, want %s", dirs, a.Upper())
	}
	if _, err := os.Stat(b.Upper()); !os.IsNotExist(err) {
		t.Errorf("the second is still there: %v", err)
	}
}

// The directories mount as an overlay, and what is written lands in Upper.
func TestSnapshotMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	commit(t, c, "", "base")
	s := must(c.Prepare(ctx, "base"))(t)
	at := t.TempDir()
	data := "lowerdir=" + s.Lowers()[0] + ",upperdir=" + s.Upper() + ",workdir=" + s.Work()
	if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
		t.Skipf("overlay cannot be mounted here: %v", err)
	}
	err := os.WriteFile(filepath.Join(at, "new"), []byte("new"), 0o600)
	seen, readErr := os.ReadFile(filepath.Join(at, "base"))
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	if err != nil || readErr != nil || string(seen) != "base" {
		t.Fatalf("write %v, read %q, %v", err, seen, readErr)
	}
	if err := s.Commit(ctx, "next"); err != nil {
		t.Fatal(err)
	}
	dirs := must(c.View(ctx, "next"))(t)
	if got := must(os.ReadFile(filepath.Join(dirs[0], "new")))(t); string(got) != "new" {
		t.Errorf("upper has %q", got)
	}
}

// A step whose snapshot is lost is still a hit where there is a layer to
// unpack, and else a miss.
func TestStepWithoutSnapshot(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	_, l := putLayer(t, ctx, c, "app", "one", random(t, 10))
	withLayer := layercache.NewKey(layercache.Part{Name: "with layer"})
	without := layercache.NewKey(layercache.Part{Name: "without"})
	commit(t, c, "", "snap")
	for k, st := range map[layercache.Key]layercache.Step{
		withLayer: {DiffID: l.DiffID, Snapshot: "snap"},
		without:   {Snapshot: "snap"},
	} {
		if err := c.PutStep(ctx, k, st); err != nil {
			t.Fatal(err)
		}
		if st := must(c.Step(ctx, k))(t); st.Snapshot != "snap" {
			t.Errorf("snapshot %q, want snap", st.Snapshot)
		}
	}
	if err := os.RemoveAll(filepath.Dir(must(c.View(ctx, "snap"))(t)[0])); err != nil {
		t.Fatal(err)
	}
	if st := must(c.Step(ctx, withLayer))(t); st.Snapshot != "" || st.DiffID != l.DiffID {
		t.Errorf("step %+v", st)
	}
	_, err := c.Step(ctx, without)
	wantMiss(t, err)
	commit(t, c, "", "snap") // made anew
	if st := must(c.Step(ctx, without))(t); st.Snapshot != "snap" {
		t.Errorf("snapshot %q, want snap", st.Snapshot)
	}
}

// A directory of which the process was killed before it recorded it is not in
// the way of the snapshot that gets its number.
func TestSnapshotStray(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	commit(t, s.Org("acme"), "", "one")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, stray := range []string{"2", "3", "new-1"} {
		if err := os.MkdirAll(filepath.Join(root, "snapshots", "snapshots", stray, "fs", "full"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, layercache.Options{Root: root})
	commit(t, s.Org("acme"), "one", "two")
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]int{"spool": 0, filepath.Join("snapshots", "snapshots"): 2} {
		if left := must(os.ReadDir(filepath.Join(root, dir)))(t); len(left) != want {
			t.Errorf("%s: %v, want %d", dir, left, want)
		}
	}
}
