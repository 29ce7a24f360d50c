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

func BenchmarkUsage(b *testing.B) {
	upper := manyFiles(b)
	for b.Loop() {
		_, _, err := rootfs.Usage(b.Context(), upper, -1)
		must(b, err)
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
