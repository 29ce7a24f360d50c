package rootfs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
)

// manyFiles makes 10 000 files of 8 kB in 200 directories.
func manyFiles(b *testing.B) string {
	upper := b.TempDir()
	content := bytes.Repeat([]byte("slipway."), 1<<10)
	for i := range 10_000 {
		dir := filepath.Join(upper, fmt.Sprintf("usr/lib/package-%d", i/50))
		if i%50 == 0 {
			must(b, os.MkdirAll(dir, 0o755))
		}
		must(b, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o644))
	}
	return upper
}

func BenchmarkWriteUpper(b *testing.B) {
	upper := manyFiles(b)
	b.SetBytes(80 << 20)
	for b.Loop() {
		must(b, rootfs.WriteUpper(b.Context(), tar.NewWriter(io.Discard), upper, nil))
	}
}

func BenchmarkApply(b *testing.B) {
	layer := write(b, manyFiles(b))
	dir := b.TempDir()
	b.SetBytes(int64(len(layer)))
	for i := 0; b.Loop(); i++ {
		upper := filepath.Join(dir, fmt.Sprint(i))
		must(b, os.Mkdir(upper, 0o755))
		must(b, rootfs.Apply(b.Context(), bytes.NewReader(layer), rootfs.Dirs{Upper: upper}))
	}
}

// manyMore makes 100 000 small files in 2 000 directories.
func manyMore(tb testing.TB) string {
	tb.Helper()
	upper := tb.TempDir()
	for i := range 100_000 {
		dir := filepath.Join(upper, fmt.Sprintf("usr/lib/package-%d", i/50))
		if i%50 == 0 {
			must(tb, os.MkdirAll(dir, 0o755))
		}
		must(tb, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("slipway"), 0o644))
	}
	return upper
}

func BenchmarkWatch(b *testing.B) {
	upper := manyMore(b)
	ledger := limits.NewLedger(-1)
	charge(b, ledger, write(b, upper)) // all of it is in the image below, too
	b.Run("first look", func(b *testing.B) {
		for b.Loop() {
			_, _, err := rootfs.NewGauge(upper).Look(b.Context(), 0)
			must(b, err)
		}
	})
	b.Run("look", func(b *testing.B) {
		g := rootfs.NewGauge(upper)
		for b.Loop() {
			_, _, err := g.Look(b.Context(), 0)
			must(b, err)
		}
	})
	b.Run("credit", func(b *testing.B) {
		for b.Loop() {
			_, err := rootfs.Credit(b.Context(), upper, ledger.Held)
			must(b, err)
		}
	})
}

// BenchmarkWatchAMillion looks at a million files, in one directory and in a
// thousand, while one is added between two looks.
func BenchmarkWatchAMillion(b *testing.B) {
	if testing.Short() {
		b.Skip("makes a million files")
	}
	for _, each := range []int{1_000_000, 1000} {
		b.Run(fmt.Sprintf("%d a directory", each), func(b *testing.B) {
			upper := b.TempDir()
			for i := range 1_000_000 {
				dir := filepath.Join(upper, fmt.Sprint("d", i/each))
				if i%each == 0 {
					must(b, os.Mkdir(dir, 0o755))
				}
				must(b, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o644))
			}
			g := rootfs.NewGauge(upper)
			_, _, err := g.Look(b.Context(), 0)
			must(b, err)
			for i := 0; b.Loop(); i++ {
				must(b, os.WriteFile(filepath.Join(upper, "d0", fmt.Sprint("more", i)), []byte("x"), 0o644))
				_, _, err := g.Look(b.Context(), 0)
				must(b, err)
			}
		})
	}
}
