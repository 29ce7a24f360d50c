package limits_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/slipwayhq/slipway/limits"
)

// sparse returns an archive of a file with holes, made by GNU tar.
func sparse(tb testing.TB, format ...string) []byte {
	tb.Helper()
	dir := tb.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for i := range int64(30) { // more than a header has room for
		if _, err := f.WriteAt([]byte("data"), i<<20); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Truncate(50 << 20); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "next"), make([]byte, 5000), 0o600); err != nil {
		tb.Fatal(err)
	}
	args := append([]string{"-C", dir, "--sparse", "-cf", "-"}, format...)
	out, err := exec.Command("tar", append(args, "holes", "next")...).Output()
	if err != nil {
		tb.Skip(err)
	}
	return out
}

func sparseFormats(tb testing.TB) map[string][]byte {
	return map[string][]byte{
		"gnu":     sparse(tb, "--format=gnu"),
		"pax 0.0": sparse(tb, "--format=pax", "--sparse-version=0.0"),
		"pax 0.1": sparse(tb, "--format=pax", "--sparse-version=0.1"),
		"pax 1.0": sparse(tb, "--format=pax", "--sparse-version=1.0"),
	}
}

func TestReaderChargesHoles(t *testing.T) {
	for name, b := range sparseFormats(t) {
		t.Run(name, func(t *testing.T) {
			if len(b) > 1<<20 {
				t.Fatalf("archive of %d bytes is not sparse", len(b))
			}
			l := limits.NewLedger(0)
			y := l.Begin(limits.Source{})
			if _, err := io.Copy(io.Discard, y.Reader(iotest.OneByteReader(bytes.NewReader(b)))); err != nil {
				t.Fatal(err)
			}
			if _, err := y.Close(); err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]int64{"holes": 50 << 20, "next": 5000} {
				if n, ok := l.Stat(path); !ok || n.Type != tar.TypeReg || n.Size != want {
					t.Errorf("%s is %v, want a file of %d", path, n, want)
				}
			}
			if got, want := l.Total(), int64(50<<20+3*block); got != want {
				t.Errorf("total %d, want %d", got, want)
			}
		})
	}
}

// FuzzReader holds the meter to what package tar reads from the same bytes.
func FuzzReader(f *testing.F) {
	for _, b := range sparseFormats(f) {
		f.Add(b, uint16(700))
	}
	small := &script{tb: f}
	small.layer()
	small.file("d/f", 600)
	small.link("l", "d/f")
	small.file("d/.wh.f", 0)
	small.put(tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}})
	f.Add(small.done()[0], uint16(512))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		want, got := limits.NewLedger(0), limits.NewLedger(0)
		y := want.Begin(limits.Source{})
		wantErr := func() error {
			for tr := tar.NewReader(bytes.NewReader(data)); ; {
				h, err := tr.Next()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := y.Entry(h); err != nil {
					return err
				}
			}
		}()
		wantDelta, _ := y.Close()

		y = got.Begin(limits.Source{})
		out, err := io.ReadAll(y.Reader(&pieces{bytes.NewReader(data), int(piece)%2000 + 1}))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, want %v", err, wantErr)
		}
		if !bytes.HasPrefix(data, out) || err == nil && len(out) != len(data) {
			t.Fatal("bytes were changed")
		}
		delta, err := y.Close()
		if wantErr != nil {
			if err == nil {
				t.Fatalf("Close after %v", wantErr)
			}
			return
		}
		if err != nil || !bytes.Equal(delta, wantDelta) || got.Total() != want.Total() {
			t.Fatalf("%v; total %d, want %d", err, got.Total(), want.Total())
		}
		checkLedger(t, got)
	})
}

type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// FuzzReplay replays what may be a delta, twice, on a tree that has something.
func FuzzReplay(f *testing.F) {
	for _, tc := range trees {
		if tc.name == "huge file" || tc.name == "large files" || tc.name == "many small files in one directory" {
			continue
		}
		s := &script{tb: f}
		s.layer()
		tc.write(s)
		l := limits.NewLedger(-1)
		for _, b := range s.done() {
			if d := charge(f, l, limits.Source{}, b); len(d) < 10_000 {
				f.Add([]byte(d[1 : len(d)-4]))
			}
		}
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := append(limits.Delta{1}, ops...)
		d = binary.LittleEndian.AppendUint32(d, crc32.Checksum(d, crc32.MakeTable(crc32.Castagnoli)))
		l := limits.NewLedger(-1)
		base := l.Begin(limits.Source{})
		for _, h := range []*tar.Header{file("n1/n2/n3", 9000), symlink("n2", "n1"), link("n3", "n1/n2/n3"), file("d/f", 1)} {
			if err := base.Entry(h); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 2 {
			err := l.Replay(limits.Source{Line: i}, d)
			if errors.Is(err, limits.ErrDelta) {
				return
			}
		}
		checkLedger(t, l)
	})
}

// checkLedger removes all that there is and sees whether all is credited.
func checkLedger(t *testing.T, l *limits.Ledger) {
	t.Helper()
	r := l.Report()
	var sum int64
	for _, s := range r.Sources {
		sum += s.Bytes
	}
	if sum != l.Total() || l.Peak() < l.Total() {
		t.Fatalf("total %d, sum of sources %d, peak %d", l.Total(), sum, l.Peak())
	}
	_, tree := l.Held("/")
	if tree > l.Total() {
		t.Fatalf("root holds %d of %d", tree, l.Total())
	}
	y := l.Begin(limits.Source{Line: 99})
	if err := y.Entry(file(".wh..wh..opq", 0)); err != nil && !errors.Is(err, limits.ErrTooLarge) {
		t.Fatal(err)
	}
	if root, _ := l.Held("/"); l.Total() != root {
		t.Fatalf("an empty tree holds %d, its root %d", l.Total(), root)
	}
}
