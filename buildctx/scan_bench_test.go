package buildctx_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/buildctx"
)

// benchTree is the directory that benchmarks scan: SLIPWAY_BENCH_TREE, or the
// sources of Go itself.
func benchTree(b *testing.B) string {
	b.Helper()
	if dir := os.Getenv("SLIPWAY_BENCH_TREE"); dir != "" {
		return dir
	}
	dir, err := goRoot()
	if err != nil {
		b.Skip("no tree to scan: ", err)
	}
	return filepath.Join(dir, "src")
}

func BenchmarkScan(b *testing.B) {
	dir := benchTree(b)
	run := func(b *testing.B, cache *buildctx.HashCache) {
		b.ReportAllocs()
		var last *buildctx.Dir
		for b.Loop() {
			last = scan(b, dir, &buildctx.ScanOptions{HashCache: cache})
		}
		b.SetBytes(last.Bytes())
		b.ReportMetric(float64(last.Files()), "files")
		b.ReportMetric(float64(last.Stats.Hashed), "hashed")
	}
	b.Run("cold", func(b *testing.B) { run(b, nil) })
	b.Run("unchanged", func(b *testing.B) {
		cache := &buildctx.HashCache{File: filepath.Join(b.TempDir(), "hashes")}
		scan(b, dir, &buildctx.ScanOptions{HashCache: cache})
		run(b, cache)
	})
}
