package sandbox_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

func BenchmarkRun(b *testing.B) {
	root := b.TempDir()
	r, err := sandbox.New(b.Context(), sandbox.Options{Root: root})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close(b.Context())
	low := filepath.Join(root, "low")
	os.MkdirAll(filepath.Join(low, "bin"), 0755)
	bb, _ := os.ReadFile("/bin/busybox")
	os.WriteFile(filepath.Join(low, "bin/busybox"), bb, 0755)
	for _, m := range []sandbox.Mode{sandbox.Sandbox, sandbox.None, sandbox.Host} {
		for _, v := range []bool{false, true} {
			name := string(m)
			if v {
				name += "-volatile"
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					d := b.TempDir()
					up, wk := filepath.Join(d, "up"), filepath.Join(d, "wk")
					os.Mkdir(up, 0755)
					os.Mkdir(wk, 0755)
					if code, err := r.Run(b.Context(), sandbox.Process{Lowers: []string{low}, Upper: up, Work: wk, Args: []string{"/bin/busybox", "true"}, Network: m, Volatile: v}); code != 0 || err != nil {
						b.Fatal(code, err)
					}
				}
			})
		}
	}
}
