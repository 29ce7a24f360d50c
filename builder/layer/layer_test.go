package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	clog "github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd/compress"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

type store struct {
	*layercache.Cache
	root string
	ctx  context.Context // with a lease
}

func open(t *testing.T) *store {
	t.Helper()
	root := t.TempDir()
	s, err := layercache.Open(t.Context(), layercache.Options{Root: root, MinFree: -1})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	c := s.Org("acme")
	l, err := c.Lease(t.Context(), "test", 0)
	check(t, err)
	return &store{c, root, l.Context(t.Context())}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spools counts the spool files that are left.
func (s *store) spools(t *testing.T) int {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(s.root, "spool"))
	check(t, err)
	return len(left)
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func file(w *layer.Writer, name string, content []byte) error {
	return w.Entry(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}, bytes.NewReader(content))
}

func TestMake(t *testing.T) {
	content := noise(5 << 20)
	for _, typ := range []compress.Type{"", compress.Gzip, compress.Zstd, compress.None} {
		t.Run("type "+string(typ), func(t *testing.T) {
			s := open(t)
			var told *layer.Layer
			m := &layer.Maker{Cache: s.Cache, Compression: compress.Options{Type: typ}, App: "shop", Made: func(l *layer.Layer) { told = l }}
			var raw []byte
			var reading sync.WaitGroup
			var early *layer.Layer
			l, err := m.Make(s.ctx, layer.Spec{
				Origin: limits.Source{Line: 3, Text: "COPY"}, CreatedBy: "COPY", Ledger: limits.NewLedger(0),
				Write: func(_ context.Context, w *layer.Writer) error { return file(w, "big", content) },
				Started: func(p *layer.Pending) {
					if p.Descriptor.MediaType != typ.MediaType() {
						t.Errorf("pending %+v", p)
					}
					reading.Go(func() { // a push that reads while the layer grows
						r, err := p.Blob.Open(t.Context(), 0)
						check(t, err)
						defer r.Close()
						raw, err = io.ReadAll(r)
						check(t, err)
						early, err = p.Wait(t.Context())
						check(t, err)
					})
				},
			})
			check(t, err)
			reading.Wait()
			plain, err := layer.Decompress(bytes.NewReader(raw))
			check(t, err)
			unpacked, err := io.ReadAll(plain)
			check(t, err)
			r := tar.NewReader(bytes.NewReader(unpacked))
			h, err := r.Next()
			check(t, err)
			got, err := io.ReadAll(r)
			if err != nil || h.Name != "big" || !bytes.Equal(got, content) {
				t.Errorf("read %s of %d bytes, %v", h.Name, len(got), err)
			}
			if digest.FromBytes(unpacked) != l.DiffID || int64(len(unpacked)) != l.Uncompressed ||
				digest.FromBytes(raw) != l.Descriptor.Digest || int64(len(raw)) != l.Descriptor.Size || l.Cached || early != l || told != l {
				t.Errorf("layer %+v", l)
			}
			found, err := layer.Lookup(s.ctx, s.Cache, l.DiffID, typ.MediaType())
			if err != nil || found.Descriptor.Digest != l.Descriptor.Digest || !found.Cached {
				t.Errorf("lookup: %+v, %v", found, err)
			}
			if err := layer.Charge(s.ctx, s.Cache, found, limits.NewLedger(0)); err != nil {
				t.Error(err)
			}
			if err := layer.Charge(s.ctx, s.Cache, found, limits.NewLedger(4<<20)); !errors.Is(err, limits.ErrTooLarge) {
				t.Errorf("charged to a small ledger: %v", err)
			}
		})
	}
}

func TestMakeNothing(t *testing.T) {
	s := open(t)
	m := &layer.Maker{Cache: s.Cache}
	l, err := m.Make(s.ctx, layer.Spec{Ledger: limits.NewLedger(0), Write: func(context.Context, *layer.Writer) error { return nil },
		Started: func(*layer.Pending) { t.Error("started") }})
	if l != nil || err != nil || s.spools(t) != 0 {
		t.Errorf("%v, %v, %d spool files", l, err, s.spools(t))
	}
}

// However a layer fails, readers of it learn why and nothing is left.
func TestMakeFails(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name  string
		max   int64
		write func(stop context.CancelCauseFunc, w *layer.Writer) error
		want  error
	}{
		{"at once", 0, func(_ context.CancelCauseFunc, _ *layer.Writer) error { return boom }, boom},
		{"in the middle", 0, func(_ context.CancelCauseFunc, w *layer.Writer) error {
			return errors.Join(file(w, "a", noise(8<<20)), boom)
		}, boom},
		{"too large", 10 << 20, func(_ context.CancelCauseFunc, w *layer.Writer) error {
			for i := range 10 {
				if err := file(w, fmt.Sprint(i), noise(3<<20)); err != nil {
					return err
				}
			}
			return nil
		}, limits.ErrTooLarge},
		{"content too short", 0, func(_ context.CancelCauseFunc, w *layer.Writer) error {
			if err := file(w, "b", noise(8<<20)); err != nil {
				return err
			}
			return w.Entry(&tar.Header{Name: "a", Size: 100}, bytes.NewReader(nil))
		}, nil},
		{"cancelled between files", 0, func(stop context.CancelCauseFunc, w *layer.Writer) error {
			for {
				if err := file(w, "a", noise(1<<20)); err != nil {
					return err
				}
				stop(boom)
			}
		}, boom},
		{"cancelled within a file", -1, func(stop context.CancelCauseFunc, w *layer.Writer) error {
			return w.Entry(&tar.Header{Name: "a", Size: 1 << 40}, io.MultiReader(bytes.NewReader(noise(4<<20)), stopping{stop, boom}))
		}, boom},
	} {
		for _, typ := range []compress.Type{compress.Gzip, compress.None} {
			t.Run(tc.name+" "+string(typ), func(t *testing.T) {
				s := open(t)
				ctx, stop := context.WithCancelCause(s.ctx)
				defer stop(nil)
				m := &layer.Maker{Cache: s.Cache, Compression: compress.Options{Type: typ}, Made: func(*layer.Layer) { t.Error("made") }}
				var reading sync.WaitGroup
				var pending *layer.Pending
				l, err := m.Make(ctx, layer.Spec{Ledger: limits.NewLedger(tc.max),
					Write: func(_ context.Context, w *layer.Writer) error { return tc.write(stop, w) },
					Started: func(p *layer.Pending) {
						pending = p
						reading.Go(func() {
							r, err := p.Blob.Open(context.Background(), 0)
							if err == nil {
								_, err = io.Copy(io.Discard, r)
								r.Close()
							}
							if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
								t.Errorf("the reader gets %v", err)
							}
						})
					}})
				reading.Wait()
				if l != nil || err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Errorf("made %v, %v; want %v", l, err, tc.want)
				}
				if pending != nil {
					if _, perr := pending.Wait(t.Context()); !errors.Is(perr, err) {
						t.Errorf("pending: %v, want %v", perr, err)
					}
				}
				if n := s.spools(t); n != 0 {
					t.Errorf("%d spool files left", n)
				}
			})
		}
	}
}

// stopping cancels and then goes on without end.
type stopping struct {
	stop context.CancelCauseFunc
	with error
}

func (s stopping) Read(p []byte) (int, error) {
	s.stop(s.with)
	return len(p), nil
}

func make1(t *testing.T, s *store, name string) *layer.Layer {
	t.Helper()
	l, err := (&layer.Maker{Cache: s.Cache}).Make(s.ctx, layer.Spec{Ledger: limits.NewLedger(0),
		Write: func(_ context.Context, w *layer.Writer) error { return file(w, name, []byte(name)) }})
	check(t, err)
	return l
}

func TestSnapshot(t *testing.T) {
	s := open(t)
	u := &layer.Unpacker{}
	a, b := make1(t, s, "a"), make1(t, s, "b")
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			name, err := u.Snapshot(s.ctx, s.Cache, []*layer.Layer{a, b})
			if err != nil || name != layer.ChainID([]*layer.Layer{a, b}) {
				t.Errorf("%q, %v", name, err)
			}
		})
	}
	wg.Wait()
	lowers, err := s.View(s.ctx, layer.ChainID([]*layer.Layer{a, b}))
	check(t, err)
	for i, want := range []string{"b", "a"} {
		if got, err := os.ReadFile(filepath.Join(lowers[i], want)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", want, got, err)
		}
	}
	if name, err := u.Snapshot(s.ctx, s.Cache, nil); name != "" || err != nil {
		t.Errorf("no layers: %q, %v", name, err)
	}
}

// A damaged blob is a miss, and gone afterwards.
func TestSnapshotOfADamagedBlob(t *testing.T) {
	s := open(t)
	l := make1(t, s, "a")
	path := filepath.Join(s.root, "content", "blobs", "sha256", l.Descriptor.Digest.Encoded())
	raw, err := os.ReadFile(path)
	check(t, err)
	raw[len(raw)/2] ^= 1
	check(t, os.Remove(path))
	check(t, os.WriteFile(path, raw, 0o444))
	if _, err := (&layer.Unpacker{}).Snapshot(s.ctx, s.Cache, []*layer.Layer{l}); !errors.Is(err, layercache.ErrNotFound) {
		t.Errorf("unpacked: %v", err)
	}
	if _, err := layer.Lookup(s.ctx, s.Cache, l.DiffID, ""); !errors.Is(err, layercache.ErrNotFound) {
		t.Errorf("the cache still has it: %v", err)
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 0x08})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0})
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := layer.Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		r.Close()
	})
}
