package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	if err := makeProduct(ctx, o.product, b.dir); err != nil {
		return b, err
	}
	logf("build the peers")
	return b, goBuild(ctx, ".", b.dir, peers...)
}

// makeProduct builds what users build.
func makeProduct(ctx context.Context, dir, out string) error {
	text, err := exec.CommandContext(ctx, "make", "-s", "-C", dir, "build").CombinedOutput()
	if err != nil {
		return fmt.Errorf("make build in %s: %w\n%s", dir, err, text)
	}
	for _, name := range []string{"slipwayd", "slipway"} {
		if err := copyProgram(filepath.Join(dir, "bin", name), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyProgram replaces a file, which may be running.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
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
