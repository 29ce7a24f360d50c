package layercache_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

func open(t testing.TB, opts layercache.Options) *layercache.Store {
	t.Helper()
	if opts.Root == "" {
		opts.Root = t.TempDir()
	}
	if opts.MinFree == 0 {
		opts.MinFree = -1
	}
	s, err := layercache.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// leased returns a context under a lease and a function that releases it.
func leased(t testing.TB, c *layercache.Cache) (context.Context, func()) {
	t.Helper()
	l, err := c.Lease(t.Context(), "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return l.Context(t.Context()), func() {
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func random(t testing.TB, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	return b
}

func putBlob(t testing.TB, ctx context.Context, c *layercache.Cache, data []byte) ocispec.Descriptor {
	t.Helper()
	w, err := c.Create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	desc, err := w.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// putLayer stores a layer of one blob and a step that made it.
func putLayer(t testing.TB, ctx context.Context, c *layercache.Cache, app, name string, data []byte) (layercache.Key, layercache.Layer) {
	t.Helper()
	ledger, err := c.PutBytes(ctx, []byte("ledger of "+name))
	if err != nil {
		t.Fatal(err)
	}
	l := layercache.Layer{
		DiffID:       digest.FromString(name),
		Blobs:        []ocispec.Descriptor{putBlob(t, ctx, c, data)},
		Uncompressed: int64(2 * len(data)),
		Ledger:       ledger,
	}
	if err := c.PutLayer(ctx, l, app); err != nil {
		t.Fatal(err)
	}
	k := layercache.NewKey(layercache.Part{Name: "step", Value: name})
	if err := c.PutStep(ctx, k, layercache.Step{Created: time.Now(), DiffID: l.DiffID, App: app}); err != nil {
		t.Fatal(err)
	}
	return k, l
}

func wantMiss(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, layercache.ErrNotFound) {
		t.Fatalf("error %v, want %v", err, layercache.ErrNotFound)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func read(t testing.TB, r io.ReadCloser) []byte {
	t.Helper()
	defer r.Close()
	return must(io.ReadAll(r))(t)
}

func blobFiles(t testing.TB, root string) []string {
	t.Helper()
	var names []string
	for _, e := range must(os.ReadDir(filepath.Join(root, "content", "blobs", "sha256")))(t) {
		names = append(names, e.Name())
	}
	return names
}

func TestOpenIsQuick(t *testing.T) {
	root := t.TempDir()
	opts := layercache.Options{Root: root, MinFree: -1}
	s := must(layercache.Open(t.Context(), opts))(t)
	c := s.Org("acme")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 250 {
				c.PutStep(t.Context(), layercache.NewKey(layercache.Part{Name: string(rune(w)), Value: string(rune(i))}), layercache.Step{Empty: true})
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 5 { // the machine may be busy; one quick start proves the point
		start := time.Now()
		s := must(layercache.Open(t.Context(), opts))(t)
		best = min(best, time.Since(start))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if best > 50*time.Millisecond {
		t.Errorf("Open took %v, want at most 50ms", best)
	}
	t.Logf("Open took %v", best)
}

func TestBlob(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 1 << 20} {
		s := open(t, layercache.Options{})
		c := s.Org("acme")
		ctx, release := leased(t, c)
		data := random(t, size)
		desc := putBlob(t, ctx, c, data)
		if desc.Digest != digest.FromBytes(data) || desc.Size != int64(size) {
			t.Fatalf("descriptor %v", desc)
		}
		b := must(c.Blob(ctx, desc.Digest))(t)
		if got := read(t, must(b.Open(ctx, 0))(t)); !bytes.Equal(got, data) {
			t.Error("blob has other bytes")
		}
		off := int64(size / 2)
		if got := read(t, must(b.Open(ctx, off))(t)); !bytes.Equal(got, data[off:]) {
			t.Error("blob has other bytes from its middle on")
		}
		st := must(os.Stat(must(b.File(ctx))(t)))(t)
		if st.Size() != int64(size) || st.Mode().Perm() != 0o444 {
			t.Errorf("file has %d bytes, mode %v", st.Size(), st.Mode())
		}
		if left := must(os.ReadDir(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(must(b.File(ctx))(t))))), "spool")))(t); len(left) != 0 {
			t.Errorf("%d spool files left", len(left))
		}
		release()
	}
}

// A reader that follows a blob while it grows sees every byte, in order, and
// the end only after Commit.
func TestBlobTail(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	data := random(t, 3<<20)
	w := must(c.Create(t.Context()))(t)
	type result struct {
		data []byte
		err  error
	}
	results := make(chan result)
	const readers = 4
	for i := range readers {
		r := must(w.Open(t.Context(), int64(i)))(t)
		go func() {
			b, err := io.ReadAll(r)
			r.Close()
			results <- result{b, err}
		}()
	}
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 100_000)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	select {
	case <-results:
		t.Fatal("a reader saw the end before Commit")
	default:
	}
	desc := must(w.Commit(t.Context()))(t)
	for range readers {
		r := <-results
		if r.err != nil || !bytes.HasSuffix(data, r.data) || len(r.data) < len(data)-readers {
			t.Errorf("reader got %d bytes, %v", len(r.data), r.err)
		}
	}
	if got := read(t, must(w.Open(t.Context(), 7))(t)); !bytes.Equal(got, data[7:]) {
		t.Error("opened after Commit, it has other bytes")
	}
	if got := must(w.Descriptor(t.Context()))(t); got.Digest != desc.Digest {
		t.Errorf("descriptor %v, want %v", got, desc)
	}
	if _, err := w.Write(data); err == nil {
		t.Error("Write after Commit succeeded")
	}
	w.Abort(nil) // does nothing any more
	if _, err := c.Blob(t.Context(), desc.Digest); err != nil {
		t.Errorf("after Abort behind Commit: %v", err)
	}
}

func TestBlobAbort(t *testing.T) {
	root := t.TempDir()
	c := open(t, layercache.Options{Root: root}).Org("acme")
	w := must(c.Create(t.Context()))(t)
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	r := must(w.Open(t.Context(), 4))(t)
	done := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		done <- err
	}()
	w.Abort(boom)
	if err := <-done; !errors.Is(err, boom) {
		t.Errorf("Read: %v, want %v", err, boom)
	}
	r.Close()
	if _, err := w.Descriptor(t.Context()); !errors.Is(err, boom) {
		t.Errorf("Descriptor: %v, want %v", err, boom)
	}
	if _, err := w.Open(t.Context(), 0); !errors.Is(err, boom) {
		t.Errorf("Open: %v, want %v", err, boom)
	}
	if _, err := w.File(t.Context()); !errors.Is(err, boom) {
		t.Errorf("File: %v, want %v", err, boom)
	}
	if _, err := w.Commit(t.Context()); err == nil {
		t.Error("Commit after Abort succeeded")
	}
	_, err := c.Blob(t.Context(), digest.FromString("half"))
	wantMiss(t, err)
	if left := must(os.ReadDir(filepath.Join(root, "spool")))(t); len(left) != 0 {
		t.Errorf("%d spool files left", len(left))
	}
}

func TestBlobWaitEndsWithContext(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	w := must(c.Create(t.Context()))(t)
	defer w.Abort(nil)
	gone := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := must(w.Open(ctx, 0))(t)
	defer r.Close()
	done := make(chan error, 2)
	go func() {
		_, err := r.Read(make([]byte, 1))
		done <- err
	}()
	go func() {
		_, err := w.Descriptor(ctx)
		done <- err
	}()
	cancel(gone)
	for range 2 {
		if err := <-done; !errors.Is(err, gone) {
			t.Errorf("error %v, want %v", err, gone)
		}
	}
}

func TestBytes(t *testing.T) {
	c := open(t, layercache.Options{}).Org("acme")
	ctx, release := leased(t, c)
	defer release()
	d := must(c.PutBytes(ctx, []byte("hello")))(t)
	if again := must(c.PutBytes(ctx, []byte("hello")))(t); again != d {
		t.Errorf("second PutBytes: %s, want %s", again, d)
	}
	if got := must(c.GetBytes(ctx, d, 5))(t); string(got) != "hello" {
		t.Errorf("GetBytes: %q", got)
	}
	var large *layercache.TooLargeError
	if _, err := c.GetBytes(ctx, d, 4); !errors.As(err, &large) || large.Size != 5 {
		t.Errorf("GetBytes of more than max: %v", err)
	}
	_, err := c.GetBytes(ctx, digest.FromString("other"), 5)
	wantMiss(t, err)
	_, err = c.GetBytes(ctx, "no digest", 5)
	wantMiss(t, err)
}

// Nothing of one org is there for another, even where bytes are the same.
func TestOrgsDoNotMeet(t *testing.T) {
	s := open(t, layercache.Options{})
	for _, names := range [][2]string{{"a", "b"}, {"org one", "org two"}, {"x/../y", "y"}, {strings.Repeat("n", 100), strings.Repeat("n", 101)}} {
		a, b := s.Org(names[0]), s.Org(names[1])
		ctx, release := leased(t, a)
		k, l := putLayer(t, ctx, a, "app", "layer of "+names[0], random(t, 100))
		snap := must(a.Prepare(ctx, ""))(t)
		if err := snap.Commit(ctx, "chain"); err != nil {
			t.Fatal(err)
		}
		file := []byte("content of " + names[0])
		w := a.Contents().Writer(ctx)
		if err := w.Add(digest.FromBytes(file), int64(len(file)), bytes.NewReader(file)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if err := a.MarkBuild(ctx, "app", []layercache.Key{k}, nil); err != nil {
			t.Fatal(err)
		}

		other, releaseOther := leased(t, b)
		_, err := b.Step(other, k)
		wantMiss(t, err)
		_, err = b.Layer(other, l.DiffID)
		wantMiss(t, err)
		_, err = b.Blob(other, l.Blobs[0].Digest)
		wantMiss(t, err)
		_, err = b.View(other, "chain")
		wantMiss(t, err)
		_, err = b.Prepare(other, "chain")
		wantMiss(t, err)
		_, err = b.Contents().Open(other, digest.FromBytes(file))
		wantMiss(t, err)
		_, err = b.LastBuild(other, "app")
		wantMiss(t, err)
		if missing := must(b.Contents().Missing(other, []digest.Digest{digest.FromBytes(file)}))(t); len(missing) != 1 {
			t.Error("the other org has the content")
		}
		wantMiss(t, b.PutLayer(other, l, "app"))

		if u := must(s.Usage(t.Context(), names[1], ""))(t); u.Bytes != 0 {
			t.Errorf("the other org uses %d bytes", u.Bytes)
		}
		if _, err := s.Prune(t.Context(), layercache.PruneOptions{Org: names[1], All: true}); err != nil {
			t.Fatal(err)
		}
		release()
		if _, err := a.Step(t.Context(), k); err != nil {
			t.Errorf("after the other org's prune: %v", err)
		}
		releaseOther()
	}
}

// The same bytes of two orgs are on the disk once, and stay for the one when
// the other's go.
func TestOrgsShareBytes(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	a, b := s.Org("a"), s.Org("b")
	data := random(t, 1000)
	_, la := putLayer(t, t.Context(), a, "app", "same", data)
	_, lb := putLayer(t, t.Context(), b, "app", "same", data)
	if n := len(blobFiles(t, root)); n != 2 { // blob and ledger
		t.Fatalf("%d blob files, want 2", n)
	}
	if _, err := s.Prune(t.Context(), layercache.PruneOptions{Org: "a", All: true}); err != nil {
		t.Fatal(err)
	}
	_, err := a.Layer(t.Context(), la.DiffID)
	wantMiss(t, err)
	if _, err := b.Layer(t.Context(), lb.DiffID); err != nil {
		t.Error(err)
	}
	if got := read(t, must(must(b.Blob(t.Context(), lb.Blobs[0].Digest))(t).Open(t.Context(), 0))(t)); !bytes.Equal(got, data) {
		t.Error("the blob has other bytes")
	}
}

func TestStep(t *testing.T) {
	s := open(t, layercache.Options{})
	c := s.Org("acme")
	ctx, release := leased(t, c)
	defer release()
	k, l := putLayer(t, ctx, c, "app", "one", random(t, 10))
	st := must(c.Step(ctx, k))(t)
	if st.DiffID != l.DiffID || st.App != "app" {
		t.Errorf("step %+v", st)
	}
	_, err := c.Step(ctx, layercache.NewKey())
	wantMiss(t, err)

	empty := layercache.NewKey(layercache.Part{Name: "step", Value: "empty"})
	put := layercache.Step{Empty: true, RootFS: 5, Peak: 6, Parts: []layercache.Part{{Name: "a", Value: "b"}}, Extra: []byte(`{"x":1}`)}
	if err := c.PutStep(ctx, empty, put); err != nil {
		t.Fatal(err)
	}
	got := must(c.Step(ctx, empty))(t)
	if !got.Empty || got.RootFS != 5 || got.Peak != 6 || !slices.Equal(got.Parts, put.Parts) || string(got.Extra) != string(put.Extra) {
		t.Errorf("step %+v, want %+v", got, put)
	}

	// A second compression joins the first.
	second := l
	second.Blobs = []ocispec.Descriptor{putBlob(t, ctx, c, random(t, 20))}
	if err := c.PutLayer(ctx, second, "other"); err != nil {
		t.Fatal(err)
	}
	if both := must(c.Layer(ctx, l.DiffID))(t); len(both.Blobs) != 2 {
		t.Errorf("%d blobs, want 2", len(both.Blobs))
	}
	wantMiss(t, c.PutLayer(ctx, layercache.Layer{DiffID: l.DiffID, Blobs: []ocispec.Descriptor{{Digest: digest.FromString("none"), Size: 4}}}, "app"))
}

func TestKey(t *testing.T) {
	p := func(name, value string) layercache.Part { return layercache.Part{Name: name, Value: value} }
	lists := [][]layercache.Part{nil, {p("", "")}, {p("a", "b")}, {p("ab", "")}, {p("", "ab")}, {p("a", "b"), p("c", "d")}, {p("a", "b1:c1:d")}, {p("c", "d"), p("a", "b")}}
	seen := make(map[layercache.Key]int)
	for i, l := range lists {
		k := layercache.NewKey(l...)
		if j, ok := seen[k]; ok {
			t.Errorf("lists %d and %d have one key", i, j)
		}
		seen[k] = i
		if k != layercache.NewKey(l...) {
			t.Error("the key is another each time")
		}
		var back layercache.Key
		text, _ := k.MarshalText()
		if err := back.UnmarshalText(text); err != nil || back != k {
			t.Errorf("key %s came back as %s, %v", k, back, err)
		}
		if err := back.UnmarshalText(text[1:]); err == nil {
			t.Error("half a key was read")
		}
	}
}

func TestLastBuild(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root})
	c := s.Org("acme")
	_, err := c.LastBuild(t.Context(), "app")
	wantMiss(t, err)
	keys := []layercache.Key{layercache.NewKey(), layercache.NewKey(layercache.Part{Name: "x"})}
	if err := c.MarkBuild(t.Context(), "app", keys, []digest.Digest{digest.FromString("base")}); err != nil {
		t.Fatal(err)
	}
	b := must(c.LastBuild(t.Context(), "app"))(t)
	if !slices.Equal(b.Steps, keys) || len(b.Layers) != 1 || time.Since(b.Time) > time.Minute {
		t.Errorf("last build %+v", b)
	}
	_, err = c.LastBuild(t.Context(), "")
	wantMiss(t, err)
}

func TestConcurrentUse(t *testing.T) {
	s := open(t, layercache.Options{MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	shared := random(t, 50_000)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			c := s.Org([]string{"a", "b"}[g%2])
			for i := range 12 {
				ctx, release := leased(t, c)
				k, l := putLayer(t, ctx, c, "app", string(rune('a'+g))+string(rune('a'+i)), random(t, 60_000))
				putBlob(t, ctx, c, shared)
				if _, err := c.Step(ctx, k); err != nil {
					t.Errorf("a step that is held: %v", err)
				}
				b, err := c.Blob(ctx, l.Blobs[0].Digest)
				if err != nil {
					t.Errorf("a blob that is held: %v", err)
				} else if r, err := b.Open(ctx, 0); err != nil {
					t.Error(err)
				} else if digest.FromBytes(read(t, r)) != l.Blobs[0].Digest {
					t.Error("a blob that is held has other bytes")
				}
				release()
			}
		})
	}
	wg.Wait()
	if u := must(s.Usage(t.Context(), "", ""))(t); u.Bytes > 2<<20 {
		t.Errorf("%d bytes of at most 1 MiB", u.Bytes)
	}
}

func FuzzKeyText(f *testing.F) {
	f.Add([]byte(layercache.NewKey().String()))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var k layercache.Key
		if k.UnmarshalText(text) != nil {
			return
		}
		if !strings.EqualFold(k.String(), string(text)) {
			t.Errorf("%q was read as %s", text, k)
		}
	})
}
