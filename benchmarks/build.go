package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// binaries are the programs under test.
type binaries struct{ dir string }

func (b binaries) path(name string) string { return filepath.Join(b.dir, name) }

var peers = []string{
	"github.com/moby/buildkit/cmd/buildkitd",
	"github.com/moby/buildkit/cmd/buildctl",
	"github.com/distribution/distribution/v3/cmd/registry",
	"github.com/google/go-containerregistry/cmd/crane",
}

// build compiles Slipway and the peers. The go command's own cache makes it
// short the second time.
func build(ctx context.Context, o options) (binaries, error) {
	b := binaries{filepath.Join(o.work, "bin")}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return b, err
	}
	logf("build slipwayd and slipway")
	if err := goBuild(ctx, o.product, b.dir, "./cmd/slipwayd", "./cmd/slipway"); err != nil {
		return b, err
	}
	logf("build the peers")
	return b, goBuild(ctx, ".", b.dir, peers...)
}

func goBuild(ctx context.Context, dir, out string, pkgs ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", out + "/"}, pkgs...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", dir, err, text)
	}
	return nil
}

func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05")+" "+format+"\n", args...)
}
