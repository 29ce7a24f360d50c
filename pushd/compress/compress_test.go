package compress_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/slipwayhq/slipway/pushd/compress"
)

// text returns n bytes that compress somewhat, the same for the same n.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	words := strings.Fields("func return error the layer of an image goes out to sea while it is built 0 1 2 3 { } ( )")
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
		b = append(b, byte(r.IntN(256)))
	}
	return b[:n]
}

func pack(t testing.TB, o compress.Options, data []byte, step int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := compress.New(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(step, len(data))
		if m, err := w.Write(data[:n]); m != n || err != nil {
			t.Fatalf("Write: %d of %d, %v", m, n, err)
		}
		data = data[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack decodes with decoders that know nothing of members.
func unpack(t testing.TB, typ compress.Type, data []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(data)
	switch typ {
	case compress.Gzip:
		z, err := stdgzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		r = z
	case compress.Zstd:
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var types = []compress.Type{compress.Gzip, compress.Zstd, compress.None}

func TestRoundTrip(t *testing.T) {
	for _, typ := range types {
		for _, n := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 9<<20 + 77} {
			t.Run(fmt.Sprintf("%s/%d", typ, n), func(t *testing.T) {
				data := text(n)
				got := unpack(t, typ, pack(t, compress.Options{Type: typ}, data, 64<<10))
				if !bytes.Equal(got, data) {
					t.Errorf("%d bytes came back as %d other bytes", n, len(got))
				}
			})
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	data := text(3<<20 + 3)
	for _, typ := range types {
		for _, level := range []int{1, 6} {
			want := pack(t, compress.Options{Type: typ, Level: level, Parallel: 1}, data, len(data))
			for _, tc := range []struct{ parallel, step int }{{1, 1000}, {2, 32 << 10}, {12, 1<<20 + 1}, {100, 4099}} {
				got := pack(t, compress.Options{Type: typ, Level: level, Parallel: tc.parallel}, data, tc.step)
				if !bytes.Equal(got, want) {
					t.Errorf("%s level %d: %d goroutines, writes of %d: other bytes", typ, level, tc.parallel, tc.step)
				}
			}
		}
	}
}

// A change must leave the members apart from it as they were.
func TestMembersAreIndependent(t *testing.T) {
	a := text(4 << 20)
	b := bytes.Clone(a)
	b[3<<20] ^= 0xff // first byte of the fourth member
	x := pack(t, compress.Options{}, a, 1<<20)
	y := pack(t, compress.Options{}, b, 1<<20)
	same := 0
	for same < min(len(x), len(y)) && x[same] == y[same] {
		same++
	}
	if same < len(x)*7/10 || same == len(x) {
		t.Errorf("first %d of %d bytes equal, want about three quarters", same, len(x))
	}
}

// A brokenWriter fails once it has taken n bytes.
type brokenWriter struct {
	n   int
	err error
}

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.n -= len(p); b.n < 0 {
		return 0, b.err
	}
	return len(p), nil
}

func TestFirstErrorSticks(t *testing.T) {
	boom := errors.New("disk full")
	for _, typ := range types {
		w, err := compress.New(&brokenWriter{1 << 20, boom}, compress.Options{Type: typ})
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		var werr error
		for range 64 {
			if _, werr = w.Write(data); werr != nil {
				break
			}
		}
		if !errors.Is(werr, boom) {
			t.Errorf("%s: Write: %v, want %v", typ, werr, boom)
		}
		if err := w.Close(); !errors.Is(err, boom) {
			t.Errorf("%s: Close: %v, want %v", typ, err, boom)
		}
		if _, err := w.Write(data); err == nil {
			t.Errorf("%s: a closed writer took bytes", typ)
		}
	}
}

func TestCloseAloneReportsTheError(t *testing.T) {
	boom := errors.New("gone")
	w, _ := compress.New(&brokenWriter{0, boom}, compress.Options{})
	if _, err := w.Write([]byte("small")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); !errors.Is(err, boom) {
		t.Errorf("Close: %v, want %v", err, boom)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []compress.Options{{Type: "lzma"}, {Level: 10}, {Level: -1}, {Type: compress.Zstd, Level: 23}} {
		if _, err := compress.New(io.Discard, o); err == nil {
			t.Errorf("New took %+v", o)
		}
	}
}

func TestMediaType(t *testing.T) {
	for typ, want := range map[compress.Type]string{
		"":            "application/vnd.oci.image.layer.v1.tar+gzip",
		compress.Gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
		compress.Zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
		compress.None: "application/vnd.oci.image.layer.v1.tar",
		"lzma":        "",
	} {
		if got := typ.MediaType(); got != want {
			t.Errorf("%q: %s, want %s", typ, got, want)
		}
	}
}

// Many cores must not mean much memory.
func TestMemoryIsBounded(t *testing.T) {
	data := text(1 << 20)
	for _, o := range []compress.Options{{Parallel: 64}, {Type: compress.Zstd, Parallel: 64}, {Type: compress.Zstd, Level: 9, Parallel: 64}, {Type: compress.Zstd, Level: 19, Parallel: 64}} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		w, err := compress.New(io.Discard, o)
		if err != nil {
			t.Fatal(err)
		}
		for range min(24, 72/max(1, o.Level)) {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		_ = w.Close()
		if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 64_000_000 {
			t.Errorf("%+v holds %d bytes", o, held)
		}
	}
}

func FuzzWriter(f *testing.F) {
	f.Add([]byte("layer"), uint16(3), true)
	f.Fuzz(func(t *testing.T, data []byte, step uint16, boundary bool) {
		data = bytes.Repeat(data, 1+len(data)*40)
		for _, typ := range types {
			var out bytes.Buffer
			w, err := compress.New(&out, compress.Options{Type: typ, Parallel: 2})
			if err != nil {
				t.Fatal(err)
			}
			for rest := data; len(rest) > 0; {
				n := min(int(step)*16+1, len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				if boundary {
					w.End()
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := unpack(t, typ, out.Bytes()); !bytes.Equal(got, data) {
				t.Fatalf("%s: %d bytes came back as %d", typ, len(data), len(got))
			}
		}
	})
}

// BenchmarkWriter compresses 32 MiB of made-up text, or the file that
// BENCH_INPUT names.
func BenchmarkWriter(b *testing.B) {
	data := text(32 << 20)
	if name := os.Getenv("BENCH_INPUT"); name != "" {
		var err error
		if data, err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	for _, o := range []compress.Options{
		{Level: 1}, {Level: 2}, {Level: 3}, {Level: 5}, {Level: 6}, {Level: 9},
		{Type: compress.Zstd, Level: 1}, {Type: compress.Zstd, Level: 3}, {Type: compress.Zstd, Level: 9}, {Type: compress.None},
	} {
		b.Run(fmt.Sprintf("%s-%d", cmpType(o.Type), o.Level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			var n counter
			for b.Loop() {
				n = 0
				w, err := compress.New(&n, o)
				if err != nil {
					b.Fatal(err)
				}
				for p := data; len(p) > 0; p = p[min(len(p), 256<<10):] {
					if _, err := w.Write(p[:min(len(p), 256<<10)]); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/float64(len(data)), "ratio")
		})
	}
}

func cmpType(t compress.Type) compress.Type {
	if t == "" {
		return compress.Gzip
	}
	return t
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
