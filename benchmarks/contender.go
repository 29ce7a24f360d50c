package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A contender is one way to get an image built and pushed.
type contender struct {
	name        string
	peer        bool // what Slipway is compared with
	compression string
	open        func(context.Context, setup) (tool, error)
}

// setup is what a contender gets to start from nothing.
type setup struct {
	bin         binaries
	dir         string // empty: all caches are cold
	base        v1.Image
	compression string
}

// A tool is a contender with its daemons running, its caches empty and the
// base image in its registry, not yet pulled.
type tool interface {
	// deploy builds a directory and pushes it as the image app.
	deploy(ctx context.Context, dir, app string) (sample, error)
	// verify pulls the image that was pushed last and checks its digests.
	verify(ctx context.Context) (compressed int64, err error)
	stop()
}

var allContenders = []contender{
	{name: "slipway-gzip", compression: "gzip", open: openSlipway(false)},
	{name: "buildkit-gzip", compression: "gzip", peer: true, open: openBuildKit},
	{name: "slipway-registry-gzip", compression: "gzip", open: openSlipway(true)},
	{name: "slipway-zstd", compression: "zstd", open: openSlipway(false)},
	{name: "buildkit-zstd", compression: "zstd", peer: true, open: openBuildKit},
}

func contenderNames() []string {
	var names []string
	for _, c := range allContenders {
		names = append(names, c.name)
	}
	return names
}

// contenders returns those to run.
func contenders(o options) ([]contender, error) {
	names := strings.Split(o.only, ",")
	switch {
	case o.only == "" && !o.quick:
		return allContenders, nil
	case o.only == "":
		names = []string{"slipway-gzip", "buildkit-gzip"}
	}
	var out []contender
	for _, n := range names {
		i := slices.IndexFunc(allContenders, func(c contender) bool { return c.name == n })
		if i < 0 {
			return nil, fmt.Errorf("no contender %q; there are %s", n, strings.Join(contenderNames(), ", "))
		}
		out = append(out, allContenders[i])
	}
	return out, nil
}

// fresh makes the contender's folder anew and opens it.
func (c contender) fresh(ctx context.Context, b *bench) (tool, error) {
	dir := filepath.Join(b.opts.work, "roots", c.name)
	if err := wipe(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return c.open(ctx, setup{bin: b.bin, dir: dir, base: b.base, compression: c.compression})
}
