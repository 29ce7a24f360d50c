package sandbox_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// BenchmarkRun is the price of a step that does nothing.
func BenchmarkRun(b *testing.B) {
	needRoot(b)
	r := newRunner(b, sandbox.Options{})
	base := tree(b)
	for _, bc := range []struct {
		name     string
		network  sandbox.Mode
		volatile bool
		mounts   []sandbox.Mount
	}{
		{"sandbox", sandbox.Sandbox, true, nil},
		{"sandbox-flushed", sandbox.Sandbox, false, nil},
		{"none", sandbox.None, true, nil},
		{"mounts", sandbox.None, true, []sandbox.Mount{{Target: "/run/secrets/key", Data: []byte("x")}, {Target: "/root/.cache/c", Source: b.TempDir()}}},
		{"host", sandbox.Host, true, nil},
	} {
		b.Run(bc.name, func(b *testing.B) {
			dir := b.TempDir()
			p := sandbox.Process{
				Lowers:   []string{base},
				Upper:    filepath.Join(dir, "upper"),
				Work:     filepath.Join(dir, "work"),
				Args:     []string{"/bin/busybox", "true"},
				Network:  bc.network,
				Volatile: bc.volatile,
				Mounts:   bc.mounts,
			}
			for _, d := range []string{p.Upper, p.Work} {
				if err := os.Mkdir(d, 0o755); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if code, err := r.Run(b.Context(), p); code != 0 || err != nil {
					b.Fatal(code, err)
				}
			}
		})
	}
}
