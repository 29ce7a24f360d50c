package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
)

// What is copied: an image of some 500 MB as a registry has it.
const (
	copyLayers     = 5
	copyLayerBytes = 220_000_000 // unpacked
)

func workloadI() *workload {
	const source, other = "bench/source:1", "bench/other:1"
	return &workload{
		key: "I", title: "an existing image",
		text: "five layers, 1.1 GB unpacked. Slipway copies with `slipway deploy --image` and counts every layer against its limit; crane and skopeo copy. " +
			"All copy into slipwayd's embedded registry, from distribution's and from the embedded one itself",
		tools: []string{slipwayGzip, crane, skopeo},
		prepare: func(ctx context.Context, b *bench) error {
			for n := range 2 {
				if _, err := copiedImage(ctx, b, n); err != nil {
					return err
				}
			}
			return nil
		},
		open: openCopier,
		scenarios: []scenario{
			{name: "I foreign, first", text: "from distribution's registry, nothing known of it", run: copies(true, source), before: loads(0, true, source)},
			{name: "I foreign, again", text: "the same image to the same place", run: copies(true, source), times: 3},
			{name: "I embedded, first", text: "from another repository of the embedded registry, nothing known of it", run: copies(false, other), before: loads(1, false, other)},
			{name: "I embedded, again", text: "the same image to the same place", run: copies(false, other), times: 3},
		},
	}
}

// copiedImage is the nth image to copy, made once for a scale.
func copiedImage(ctx context.Context, b *bench, n int) (v1.Image, error) {
	image := v1.Image(empty.Image)
	for i := range copyLayers {
		file := filepath.Join(b.opts.work, fmt.Sprintf("image%d-%d-%v.tar.gz", n, i, b.opts.scale))
		if _, err := os.Stat(file); err != nil {
			if err := makeLayer(ctx, file, uint64(n*copyLayers+i), int64(copyLayerBytes*b.opts.scale)); err != nil {
				return nil, err
			}
		}
		var err error
		if image, err = imageOf(image, file, fmt.Sprintf("layer %d", i)); err != nil {
			return nil, err
		}
	}
	return image, nil
}

// makeLayer writes a compressed layer of files that compress as programs do.
func makeLayer(ctx context.Context, file string, seed uint64, size int64) error {
	logf("make %s (once)", filepath.Base(file))
	blocks, err := programBlocks(ctx)
	if err != nil {
		return err
	}
	f, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	zip, _ := gzip.NewWriterLevel(f, gzip.BestSpeed) // which is a level
	to := tar.NewWriter(zip)
	random := rand.New(rand.NewPCG(2, seed)) //nolint:gosec // the same each time is the point
	const fileBlocks = 8
	for i := 0; err == nil && int64(i)*fileBlocks*blockSize < size; i++ {
		err = to.WriteHeader(&tar.Header{Name: fmt.Sprintf("layer%d/%05d.bin", seed, i), Mode: 0o644, Size: fileBlocks * blockSize, Typeflag: tar.TypeReg})
		for j := 0; err == nil && j < fileBlocks; j++ {
			_, err = to.Write(blocks[random.IntN(len(blocks))])
		}
	}
	if err := errors.Join(err, to.Close(), zip.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// programBlocks are pieces of the Go tools.
func programBlocks(ctx context.Context) ([][]byte, error) {
	goroot, err := goroot(ctx)
	if err != nil {
		return nil, err
	}
	var blocks [][]byte
	for _, dir := range []string{"bin", "pkg"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(goroot, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			for ; len(data) >= blockSize && len(blocks) < 2048; data = data[blockSize:] {
				blocks = append(blocks, data[:blockSize])
			}
			return err
		}))
	}
	if len(blocks) == 0 {
		err = errors.Join(err, errors.New("the Go tree has no programs"))
	}
	return blocks, err
}

// copier copies images into the embedded registry of a slipwayd.
type copier struct {
	*slipway
	name string
}

func openCopier(ctx context.Context, c contender, s setup) (tool, error) {
	t, err := startSlipway(ctx, s, true, false)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, t.web, base64.StdEncoding.EncodeToString([]byte("x:"+t.token)))
	if err := write(filepath.Join(t.dir, "docker", "config.json"), strings.NewReader(config), 0o600); err != nil {
		t.stop()
		return nil, err
	}
	return &copier{t, c.name}, nil
}

// host returns a registry and what it wants to know.
func (t *copier) host(foreign bool) (string, authn.Authenticator) {
	if foreign {
		return t.foreign.host, authn.Anonymous
	}
	return t.web, t.auth
}

// loads returns the action that puts the nth image where it is copied from.
func loads(n int, foreign bool, name string) action {
	return func(ctx context.Context, b *bench, t tool, _ int) (sample, error) {
		c, ok := t.(*copier)
		if !ok {
			return sample{}, errNotMeant
		}
		image, err := copiedImage(ctx, b, n)
		if err != nil {
			return sample{}, err
		}
		host, auth := c.host(foreign)
		return sample{}, pushImage(ctx, image, host+"/"+name, auth)
	}
}

// copies returns the action that copies an image.
func copies(foreign bool, name string) action {
	return func(ctx context.Context, _ *bench, t tool, _ int) (sample, error) {
		c, ok := t.(*copier)
		if !ok {
			return sample{}, errNotMeant
		}
		app := "bench-embedded"
		if foreign {
			app = "bench-foreign"
		}
		host, _ := c.host(foreign)
		return c.copy(ctx, host+"/"+name, app)
	}
}

func (t *copier) copy(ctx context.Context, from, app string) (sample, error) {
	to := t.web + "/" + app + ":1"
	var cmd *exec.Cmd
	switch t.name {
	case crane:
		cmd = exec.CommandContext(ctx, t.bin.path("crane"), "copy", "--insecure", from, to)
	case skopeo:
		cmd = exec.CommandContext(ctx, "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+from, "docker://"+to)
	default:
		return t.run(ctx, "--image", from, "-a", app)
	}
	config := filepath.Join(t.dir, "docker")
	cmd.Env = environ("DOCKER_CONFIG="+config, "REGISTRY_AUTH_FILE="+filepath.Join(config, "config.json"))
	s, _, _, err := gauge{daemons: t.daemons(), alone: true, sink: t.daemon}.measure(ctx, cmd)
	return s, err
}
