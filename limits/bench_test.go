package limits_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"testing"

	"github.com/slipwayhq/slipway/limits"
)

// chargeMany charges a million files in 20 000 directories, as images have.
func chargeMany(tb testing.TB, l *limits.Ledger, paths int) limits.Delta {
	tb.Helper()
	y := l.Begin(limits.Source{Line: 1})
	h := tar.Header{Typeflag: tar.TypeReg, Size: 3000}
	var dir string
	for i := range paths {
		if i%50 == 0 {
			dir = fmt.Sprintf("usr/lib/node_modules/package-%d/lib/module-", i/50)
		}
		h.Name = dir + strconv.Itoa(i%50) + ".js"
		if err := y.Entry(&h); err != nil {
			tb.Fatal(err)
		}
	}
	d, err := y.Close()
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryOfAMillionPaths(t *testing.T) {
	const paths, most = 1_000_000, 100
	before := heap()
	l := limits.NewLedger(-1)
	d := chargeMany(t, l, paths)
	used := heap() - before
	t.Logf("%d bytes a path, of which the delta has %d", used/paths, len(d)/paths)
	if used > paths*most {
		t.Errorf("%d bytes for %d paths, want at most %d a path", used, paths, most)
	}
	runtime.KeepAlive(l)
}

func BenchmarkEntry(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		chargeMany(b, limits.NewLedger(-1), 100_000)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/entry")
}

func BenchmarkReplay(b *testing.B) {
	d := chargeMany(b, limits.NewLedger(-1), 100_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := limits.NewLedger(-1).Replay(limits.Source{}, d); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/entry")
}

func BenchmarkReport(b *testing.B) {
	l := limits.NewLedger(-1)
	chargeMany(b, l, 1_000_000)
	for b.Loop() {
		l.Report()
	}
}

func BenchmarkReader(b *testing.B) {
	for _, size := range []int64{2 << 10, 64 << 10, 16 << 20} {
		b.Run(fmt.Sprintf("files of %d kB", size>>10), func(b *testing.B) {
			var layer bytes.Buffer
			tw := tar.NewWriter(&layer)
			for i := 0; layer.Len() < 64<<20; i++ {
				h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib/dir-%d/file-%d", i/50, i), Size: size}
				if err := tw.WriteHeader(h); err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyN(tw, noise{}, size); err != nil {
					b.Fatal(err)
				}
			}
			if err := tw.Close(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(layer.Len()))
			b.ReportAllocs()
			buf := make([]byte, 128<<10)
			for b.Loop() {
				y := limits.NewLedger(-1).Begin(limits.Source{})
				r := y.Reader(onlyReader{bytes.NewReader(layer.Bytes())})
				if _, err := io.CopyBuffer(onlyWriter{io.Discard}, r, buf); err != nil {
					b.Fatal(err)
				}
				if _, err := y.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
