package limits_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"testing"
	"time"

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

// shapes of a million paths. Real images mix the first two.
var shapes = []struct {
	name  string
	entry func(i int) *tar.Header
}{
	{"files", func(i int) *tar.Header {
		return file("usr/lib/node_modules/package-"+strconv.Itoa(i/50)+"/lib/module-"+strconv.Itoa(i%50)+".js", 3000)
	}},
	{"directories", func(i int) *tar.Header {
		h := dir("opt/" + strconv.Itoa(i/100) + "/" + strconv.Itoa(i))
		h.Mode, h.ModTime = 0o755, time.Unix(1_700_000_000+int64(i), 0)
		return h
	}},
	{"symbolic links", func(i int) *tar.Header {
		return symlink("usr/share/"+strconv.Itoa(i/100)+"/"+strconv.Itoa(i), "../file-"+strconv.Itoa(i))
	}},
	{"hard links", func(i int) *tar.Header {
		if name := "store/" + strconv.Itoa(i/2); i%2 == 1 {
			return link("modules/"+strconv.Itoa(i/200)+"/"+strconv.Itoa(i/2), name)
		} else {
			return file(name, 3000)
		}
	}},
	{"one directory", func(i int) *tar.Header { return file("var/spool/message-"+strconv.Itoa(i), 3000) }},
}

// TestMemoryOfAMillionPaths counts what stays allocated: the ledger with its
// delta. What a table that grows has beside the old one is not for long.
func TestMemoryOfAMillionPaths(t *testing.T) {
	const paths, most = 1_000_000, 100
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			before := heap()
			l := limits.NewLedger(-1)
			y := l.Begin(limits.Source{Line: 1})
			for i := range paths {
				if err := y.Entry(shape.entry(i)); err != nil {
					t.Fatal(err)
				}
			}
			open := heap() - before
			d, err := y.Close()
			if err != nil {
				t.Fatal(err)
			}
			used := heap() - before
			t.Logf("%d bytes a path, of which the delta has %d; %d before the end of the layer", used/paths, len(d)/paths, open/paths)
			if max(used, open) > paths*most {
				t.Errorf("%d bytes for %d paths, want at most %d a path", max(used, open), paths, most)
			}
			runtime.KeepAlive(l)
			runtime.KeepAlive(d)
		})
	}
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

// BenchmarkMemory reports what a path costs while it is charged.
func BenchmarkMemory(b *testing.B) {
	for _, shape := range shapes {
		b.Run(shape.name, func(b *testing.B) {
			const paths = 1_000_000
			var kept int64
			for b.Loop() {
				before := heap()
				l := limits.NewLedger(-1)
				y := l.Begin(limits.Source{})
				for i := range paths {
					if err := y.Entry(shape.entry(i)); err != nil {
						b.Fatal(err)
					}
				}
				kept = heap() - before
				runtime.KeepAlive(l)
			}
			b.ReportMetric(float64(kept)/paths, "bytes/path")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/paths, "ns/path")
		})
	}
}
