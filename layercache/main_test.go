package layercache_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

func TestMain(m *testing.M) {
	log.L.Logger.SetOutput(io.Discard) // containerd says at each start that the file system has no fs-verity
	if root := os.Getenv("LAYERCACHE_TEST_VICTIM"); root != "" {
		if err := victim(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// victim works on a store and says on stdout what was acknowledged to it,
// until it is killed.
func victim(root string) error {
	ctx := context.Background()
	s, err := layercache.Open(ctx, layercache.Options{Root: root, MinFree: -1})
	if err != nil {
		return err
	}
	c := s.Org("acme")
	errs := make(chan error)
	lines := make(chan string)
	for g := range 3 {
		go func() {
			for i := 0; ; i++ {
				if err := work(ctx, c, fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i), lines); err != nil {
					errs <- err
				}
			}
		}()
	}
	for {
		select {
		case err := <-errs:
			return err
		case line := <-lines:
			fmt.Println(line)
		}
	}
}

func work(ctx context.Context, c *layercache.Cache, name string, lines chan<- string) error {
	l, err := c.Lease(ctx, name, 0)
	if err != nil {
		return err
	}
	ctx = l.Context(ctx)
	w, err := c.Create(ctx)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, strings.NewReader(strings.Repeat(name, 10_000))); err != nil {
		return err
	}
	desc, err := w.Commit(ctx)
	if err != nil {
		return err
	}
	layer := layercache.Layer{DiffID: digest.FromString(name)}
	layer.Blobs = append(layer.Blobs, desc)
	if err := c.PutLayer(ctx, layer, "app"); err != nil {
		return err
	}
	snap, err := c.Prepare(ctx, "")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(snap.Upper(), "file"), []byte(name), 0o600); err != nil {
		return err
	}
	if err := snap.Commit(ctx, name); err != nil {
		return err
	}
	step := layercache.Step{DiffID: layer.DiffID, Snapshot: name, App: "app"}
	if err := c.PutStep(ctx, layercache.NewKey(layercache.Part{Value: name}), step); err != nil {
		return err
	}
	lines <- "step " + name

	cw := c.Contents().Writer(ctx)
	for i := range 20 {
		data := fmt.Sprintf("%s %d", name, i)
		if err := cw.Add(digest.FromString(data), int64(len(data)), strings.NewReader(data)); err != nil {
			return err
		}
	}
	if err := cw.Flush(ctx); err != nil {
		return err
	}
	lines <- "contents " + name

	if err := lodgeWork(ctx, c, name); err != nil {
		return err
	}
	lines <- "lodged " + name

	m, err := c.Mount(ctx, layercache.MountOptions{App: "app", ID: name, Fill: func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "file"), []byte(name), 0o600)
	}})
	if err != nil {
		return err
	}
	lines <- "mount " + name
	m.Release()
	if _, err := c.Prepare(ctx, name); err != nil { // left behind
		return err
	}
	return l.Release(ctx)
}

// lodgeWork has a lodger make a snapshot and a blob, as BuildKit does.
func lodgeWork(ctx context.Context, c *layercache.Cache, name string) error {
	ctd := c.Containerd()
	ctx = namespaces.WithNamespace(ctx, ctd.Namespace)
	temporary := func(l *leases.Lease) error {
		l.Labels = map[string]string{"buildkit/lease.temporary": "now"}
		return nil
	}
	passing, err := ctd.Leases.Create(ctx, leases.WithID("passing "+name), temporary)
	if err != nil {
		return err
	}
	for _, id := range []string{"active " + name, "lodged " + name} {
		l, err := ctd.Leases.Create(ctx, leases.WithID(id))
		if err != nil {
			return err
		}
		if err := ctd.Leases.AddResource(ctx, l, leases.Resource{ID: id, Type: "snapshots/" + ctd.Snapshotter}); err != nil {
			return err
		}
	}
	mounts, err := ctd.Snapshots.Prepare(ctx, "active "+name, "")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(mounts[0].Source, "file"), []byte(name), 0o600); err != nil {
		return err
	}
	if err := ctd.Snapshots.Commit(ctx, "lodged "+name, "active "+name); err != nil {
		return err
	}
	if err := ctd.Leases.Delete(ctx, leases.Lease{ID: "active " + name}); err != nil {
		return err
	}
	blob := "blob of " + name
	desc := ocispec.Descriptor{Digest: digest.FromString(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(leases.WithLease(ctx, passing.ID), ctd.Content, name, strings.NewReader(blob), desc); err != nil {
		return err
	}
	l, err := ctd.Leases.Create(ctx, leases.WithID("blob "+name))
	if err != nil {
		return err
	}
	if err := ctd.Leases.AddResource(ctx, l, leases.Resource{ID: desc.Digest.String(), Type: "content"}); err != nil {
		return err
	}
	return ctd.Leases.Delete(ctx, passing)
}

// verifyLodged holds what lodgeWork has made to what it was.
func verifyLodged(t *testing.T, c *layercache.Cache, name string) {
	t.Helper()
	ctd := c.Containerd()
	ctx := namespaces.WithNamespace(t.Context(), ctd.Namespace)
	for _, what := range []string{"lodged ", "blob "} {
		if rs, err := ctd.Leases.ListResources(ctx, leases.Lease{ID: what + name}); err != nil || len(rs) != 1 {
			t.Errorf("the lease of the %s%s holds %v, %v", what, name, rs, err)
		}
	}
	if _, err := ctd.Snapshots.Stat(ctx, "lodged "+name); err != nil {
		t.Errorf("lodged snapshot of %s: %v", name, err)
	}
	if _, err := ctd.Content.Info(ctx, digest.FromString("blob of "+name)); err != nil {
		t.Errorf("lodged blob of %s: %v", name, err)
	}
}

// A process that is killed at any moment loses nothing that was acknowledged.
func TestKill(t *testing.T) {
	root := t.TempDir()
	var acknowledged []string
	for round := range 6 {
		lines := kill(t, root, 3+17*round)
		acknowledged = append(acknowledged, lines...)
		s, err := layercache.Open(t.Context(), layercache.Options{Root: root, MinFree: -1})
		if err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 {
			if err := s.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, line := range acknowledged {
			verify(t, s.Org("acme"), line)
		}
		if left, _ := filepath.Glob(filepath.Join(root, "spool", "[^a]*")); len(left) != 0 { // but what was put aside
			t.Errorf("left in the spool: %v", left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d acknowledgements verified", len(acknowledged))

	// What is left over goes: as many directories stay as there are snapshots.
	s := open(t, layercache.Options{Root: root})
	if err := s.Org("acme").Containerd().Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	u := must(s.Usage(t.Context(), "acme", ""))(t)
	records := make(map[string]int64)
	for _, k := range u.Kinds {
		records[k.Kind] = k.Count
	}
	if dirs := must(os.ReadDir(filepath.Join(root, "snapshots", "snapshots")))(t); int64(len(dirs)) != records["snapshot"] {
		t.Errorf("%d snapshot directories for %d snapshots", len(dirs), records["snapshot"])
	}
	if dirs := must(os.ReadDir(filepath.Join(root, "mounts")))(t); int64(len(dirs)) != records["mount"] {
		t.Errorf("%d directories for %d cache mounts", len(dirs), records["mount"])
	}
}

// kill runs a victim until it has said n lines, then kills it. It returns all
// lines that came out whole.
func kill(t *testing.T, root string, n int) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "LAYERCACHE_TEST_VICTIM="+root)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out := must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		lines = append(lines, strings.TrimSpace(line))
		if len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd.Wait() // it was killed
	if len(lines) < n {
		t.Fatalf("the process ended by itself: %s", stderr.String())
	}
	return lines
}

func verify(t *testing.T, c *layercache.Cache, line string) {
	t.Helper()
	what, name, _ := strings.Cut(line, " ")
	if what == "lodged" {
		verifyLodged(t, c, name)
		return
	}
	if what == "mount" {
		m := must(c.Mount(t.Context(), layercache.MountOptions{App: "app", ID: name}))(t)
		defer m.Release()
		if got := must(os.ReadFile(filepath.Join(m.Dir(), "file")))(t); string(got) != name {
			t.Fatalf("cache mount %s has %q", name, got)
		}
		return
	}
	if what == "contents" {
		for i := range 20 {
			data := fmt.Sprintf("%s %d", name, i)
			if got := read(t, must(c.Contents().Open(t.Context(), digest.FromString(data)))(t)); string(got) != data {
				t.Fatalf("content %q is %q", data, got)
			}
		}
		return
	}
	st := must(c.Step(t.Context(), layercache.NewKey(layercache.Part{Value: name})))(t)
	if st.Snapshot != name {
		t.Fatalf("step %s lost its snapshot", name)
	}
	dirs := must(c.View(t.Context(), name))(t)
	if got := must(os.ReadFile(filepath.Join(dirs[0], "file")))(t); string(got) != name {
		t.Fatalf("snapshot %s has %q", name, got)
	}
	l := must(c.Layer(t.Context(), st.DiffID))(t)
	b := must(c.Blob(t.Context(), l.Blobs[0].Digest))(t)
	if got := read(t, must(b.Open(t.Context(), 0))(t)); string(got) != strings.Repeat(name, 10_000) {
		t.Fatalf("layer %s has other bytes", name)
	}
}
