package layercache_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/slipwayhq/slipway/layercache"
)

func blobPath(root string, d digest.Digest) string {
	return filepath.Join(root, "content", "blobs", "sha256", d.Encoded())
}

func truncate(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	st := must(os.Stat(path))(t)
	if err := os.Truncate(path, st.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	data := must(os.ReadFile(path))(t)
	data[len(data)/2] ^= 1
	remove(t, path)
	if err := os.WriteFile(path, data, 0o444); err != nil {
		t.Fatal(err)
	}
}

// A blob that is not whole is a miss for everything that needs it, and can be
// made again.
func TestDamagedBlob(t *testing.T) {
	for name, hurt := range map[string]func(*testing.T, string){"truncated": truncate, "deleted": remove} {
		t.Run(name, func(t *testing.T) {
			var told []layercache.Eviction
			root := t.TempDir()
			s := open(t, layercache.Options{Root: root, OnEvict: func(e layercache.Eviction) { told = append(told, e) }})
			c := s.Org("acme")
			ctx, release := leased(t, c)
			defer release()
			data := random(t, 1000)
			k, l := putLayer(t, ctx, c, "app", "one", data)
			blob := l.Blobs[0].Digest
			hurt(t, blobPath(root, blob))
			_, err := c.Step(ctx, k)
			wantMiss(t, err)
			_, err = c.Layer(ctx, l.DiffID)
			wantMiss(t, err)
			_, err = c.Blob(ctx, blob)
			wantMiss(t, err)
			if _, err := os.Stat(blobPath(root, blob)); !os.IsNotExist(err) {
				t.Errorf("its file is still there: %v", err)
			}
			if u := must(s.Usage(ctx, "acme", ""))(t); u.Kinds[0].Count != 0 || len(u.Evictions) != len(told) || len(told) == 0 || !strings.Contains(told[0].Reason, "damaged") {
				t.Errorf("usage %+v, told %+v", u, told)
			}
			putLayer(t, ctx, c, "app", "one", data)
			if _, err := c.Step(ctx, k); err != nil {
				t.Errorf("made again: %v", err)
			}
			if got := read(t, must(must(c.Blob(ctx, blob))(t).Open(ctx, 0))(t)); !bytes.Equal(got, data) {
				t.Error("made again, it has other bytes")
			}
		})
	}
}

// A layer that lost one compression is still there in the other.
func TestDamagedBlobOfTwo(t *testing.T) {
	root := t.TempDir()
	c := open(t, layercache.Options{Root: root}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	k, l := putLayer(t, ctx, c, "app", "one", random(t, 100))
	l.Blobs = []ocispec.Descriptor{putBlob(t, ctx, c, random(t, 200))}
	if err := c.PutLayer(ctx, l, "app"); err != nil {
		t.Fatal(err)
	}
	truncate(t, blobPath(root, l.Blobs[0].Digest))
	if _, err := c.Step(ctx, k); err != nil {
		t.Error(err)
	}
	if left := must(c.Layer(ctx, l.DiffID))(t); len(left.Blobs) != 1 || left.Blobs[0].Size != 100 {
		t.Errorf("layer %+v", left)
	}
}

func TestDamagedLedger(t *testing.T) {
	root := t.TempDir()
	c := open(t, layercache.Options{Root: root}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	k, l := putLayer(t, ctx, c, "app", "one", random(t, 100))
	flip(t, blobPath(root, l.Ledger))
	_, err := c.GetBytes(ctx, l.Ledger, 1000)
	wantMiss(t, err)
	_, err = c.Step(ctx, k)
	wantMiss(t, err)
}

func TestReject(t *testing.T) {
	root := t.TempDir()
	c := open(t, layercache.Options{Root: root}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	d := putBlob(t, ctx, c, random(t, 100)).Digest
	if err := c.Reject(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(ctx, d); err != nil {
		t.Errorf("rejected though it is whole: %v", err)
	}
	flip(t, blobPath(root, d))
	if err := c.Reject(ctx, d); err != nil {
		t.Fatal(err)
	}
	_, err := c.Blob(ctx, d)
	wantMiss(t, err)
}

func TestDamagedPack(t *testing.T) {
	for name, hurt := range map[string]func(*testing.T, string){"truncated": truncate, "deleted": remove} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			x := open(t, layercache.Options{Root: root}).Org("acme").Contents()
			var ds []digest.Digest
			add := func() {
				w := x.Writer(t.Context())
				for _, data := range []string{"one", "two"} {
					if err := w.Add(digest.FromString(data), 3, strings.NewReader(data)); err != nil {
						t.Fatal(err)
					}
					ds = append(ds, digest.FromString(data))
				}
				if err := w.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			add()
			for _, look := range []func(){
				func() {
					if missing := must(x.Missing(t.Context(), ds[:2]))(t); len(missing) != 2 {
						t.Errorf("missing %v", missing)
					}
				},
				func() {
					_, err := x.Open(t.Context(), ds[0])
					wantMiss(t, err)
				},
				add, // finds it out by itself
			} {
				for _, f := range blobFiles(t, root) {
					hurt(t, filepath.Join(root, "content", "blobs", "sha256", f))
				}
				look()
				add()
				if got := read(t, must(x.Open(t.Context(), ds[1]))(t)); string(got) != "two" {
					t.Errorf("made again, it is %q", got)
				}
				// A pack that is open is not looked at again: close it.
				reopen(t, x, ds[1])
			}
		})
	}
}

// reopen pushes a pack out of those that are kept open.
func reopen(t *testing.T, x *layercache.Contents, d digest.Digest) {
	t.Helper()
	for i := range 70 {
		data := strings.Repeat("x", i+1)
		w := x.Writer(t.Context())
		if err := w.Add(digest.FromString(data), int64(len(data)), strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		must(x.Open(t.Context(), digest.FromString(data)))(t).Close()
	}
}

// A lost directory is a miss for the snapshot and all that stand on it.
func TestDamagedSnapshot(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	for range 2 { // it can be made again, and lost again
		commit(t, c, "", "one")
		commit(t, c, "one", "two")
		commit(t, c, "two", "three")
		dirs := must(c.View(ctx, "two"))(t)
		if err := os.RemoveAll(filepath.Dir(dirs[1])); err != nil {
			t.Fatal(err)
		}
		_, err := c.Prepare(ctx, "three")
		wantMiss(t, err)
		_, err = c.View(ctx, "two")
		wantMiss(t, err)
		if c.SnapshotExists(ctx, "one") {
			t.Error("it exists")
		}
	}
	commit(t, c, "", "one")
	if !c.SnapshotExists(ctx, "one") {
		t.Error("made again, it does not exist")
	}
}

// spoil changes every value of a bucket of Slipway's.
func spoil(t *testing.T, root, bucket string, change func([]byte) []byte) {
	t.Helper()
	db := must(bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil))(t)
	defer db.Close()
	n := 0
	err := db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("slipway")).Bucket([]byte("orgs")).Bucket([]byte("acme")).Bucket([]byte(bucket))
		vals := make(map[string][]byte)
		b.ForEach(func(k, v []byte) error {
			vals[string(k)] = change(bytes.Clone(v))
			return nil
		})
		for k, v := range vals {
			n++
			if err := b.Put([]byte(k), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Fatalf("spoiled %d values of %s: %v", n, bucket, err)
	}
}

func TestGarbageRecords(t *testing.T) {
	changes := map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":   func([]byte) []byte { return nil },
		"other":   func([]byte) []byte { return []byte("garbage") },
	}
	for _, bucket := range []string{"steps", "layers", "snapshots", "packs", "packed", "contents", "mounts", "builds", "used"} {
		for name, change := range changes {
			t.Run(bucket+" "+name, func(t *testing.T) {
				opts := layercache.Options{Root: t.TempDir(), MinFree: -1}
				s := must(layercache.Open(t.Context(), opts))(t)
				fill(t, s.Org("acme"))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				spoil(t, opts.Root, bucket, change)

				s = open(t, opts)
				c := s.Org("acme")
				look(t, c, bucket)
				if _, err := s.Usage(t.Context(), "acme", ""); err != nil {
					t.Error(err)
				}
				k, data := fill(t, c)
				if st, err := c.Step(t.Context(), k); err != nil || st.Snapshot != "snap" {
					t.Errorf("made again: %+v, %v", st, err)
				}
				if got := read(t, must(c.Contents().Open(t.Context(), digest.FromString(data)))(t)); string(got) != data {
					t.Errorf("made again, it is %q", got)
				}
				if _, err := s.Prune(t.Context(), layercache.PruneOptions{All: true}); err != nil {
					t.Error(err)
				}
				if u := must(s.Usage(t.Context(), "", ""))(t); u.Bytes != 0 {
					t.Errorf("%d bytes left after prune: %+v", u.Bytes, u)
				}
				if files := blobFiles(t, opts.Root); len(files) != 0 {
					t.Errorf("%d blobs left after prune", len(files))
				}
			})
		}
	}
}

// fill puts one record of each kind into a cache.
func fill(t *testing.T, c *layercache.Cache) (layercache.Key, string) {
	t.Helper()
	ctx, release := leased(t, c)
	defer release()
	k, l := putLayer(t, ctx, c, "app", "one", []byte("the layer"))
	if !c.SnapshotExists(ctx, "snap") {
		commit(t, c, "", "snap")
	}
	st := layercache.Step{DiffID: l.DiffID, Snapshot: "snap", App: "app"}
	if err := c.PutStep(ctx, k, st); err != nil {
		t.Fatal(err)
	}
	w := c.Contents().For("app").Writer(ctx)
	if err := w.Add(digest.FromString("data"), 4, strings.NewReader("data")); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	must(c.Mount(ctx, layercache.MountOptions{App: "app", ID: "id"}))(t).Release()
	if err := c.MarkBuild(ctx, "app", []layercache.Key{k}, nil); err != nil {
		t.Fatal(err)
	}
	return k, "data"
}

// look asks for what the spoiled bucket had: a miss.
func look(t *testing.T, c *layercache.Cache, bucket string) {
	t.Helper()
	ctx := t.Context()
	k := layercache.NewKey(layercache.Part{Name: "step", Value: "one"})
	var err error
	switch bucket {
	case "steps":
		if _, err = c.Peek(ctx, k); err != nil {
			wantMiss(t, err)
		}
		_, err = c.Step(ctx, k)
	case "layers":
		_, err = c.Step(ctx, k)
	case "snapshots":
		if c.SnapshotExists(ctx, "snap") {
			t.Error("the snapshot exists")
		}
		return
	case "packs", "contents":
		_, err = c.Contents().Open(ctx, digest.FromString("data"))
	case "builds":
		_, err = c.LastBuild(ctx, "app")
	default:
		return
	}
	wantMiss(t, err)
}

// A database that is no database any more is put aside: the cache is empty.
func TestGarbageDatabase(t *testing.T) {
	for _, file := range []string{"meta.db", "snapshots/metadata.db"} {
		t.Run(file, func(t *testing.T) {
			opts := layercache.Options{Root: t.TempDir(), MinFree: -1}
			s := must(layercache.Open(t.Context(), opts))(t)
			k, _ := fill(t, s.Org("acme"))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(opts.Root, file), bytes.Repeat([]byte("garbage "), 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, opts)
			_, err := s.Org("acme").Step(t.Context(), k)
			wantMiss(t, err)
			fill(t, s.Org("acme"))
			if err := s.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := must(os.ReadDir(filepath.Join(opts.Root, "spool")))(t); len(left) != 0 {
				t.Errorf("what was put aside is still there")
			}
		})
	}
}

// When the machine went down, blobs stay and snapshots do not.
func TestMachineCrash(t *testing.T) {
	opts := layercache.Options{Root: t.TempDir(), MinFree: -1}
	s := must(layercache.Open(t.Context(), opts))(t)
	k, _ := fill(t, s.Org("acme"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The file that says "open" names another start of the machine.
	if err := os.WriteFile(filepath.Join(opts.Root, "open"), []byte("another start"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, opts)
	c := s.Org("acme")
	if c.SnapshotExists(t.Context(), "snap") {
		t.Error("the snapshot was kept")
	}
	st := must(c.Step(t.Context(), k))(t)
	if st.DiffID == "" || st.Snapshot != "" {
		t.Errorf("step %+v", st)
	}
	fill(t, c)
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !c.SnapshotExists(t.Context(), "snap") {
		t.Error("made again, it does not exist")
	}
	if dirs := must(os.ReadDir(filepath.Join(opts.Root, "snapshots", "snapshots")))(t); len(dirs) != 1 {
		t.Errorf("%d snapshot directories, want 1", len(dirs))
	}
}

// Files that no org has registered go: a process was killed before it could.
func TestOrphanBlob(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	_, l := putLayer(t, t.Context(), s.Org("acme"), "app", "one", random(t, 10))
	if err := os.WriteFile(blobPath(root, digest.FromString("orphan")), []byte("orphan"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(blobPath(root, digest.FromString("orphan"))); !os.IsNotExist(err) {
		t.Errorf("the orphan: %v", err)
	}
	if _, err := os.Stat(blobPath(root, l.Blobs[0].Digest)); err != nil {
		t.Errorf("the layer: %v", err)
	}
}
