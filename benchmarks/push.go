package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// What is pushed: finished blobs that do not compress.
const (
	pushBlobs = 4
	blobBytes = 250_000_000
)

func workloadP() *workload {
	return &workload{
		key: "P", title: "a push of finished blobs",
		text: "four layers of 250 MB of random bytes, made before. For Slipway seconds are those of a deploy of what is built already, less those of the same deploy without the push " +
			"(median of three); curl puts the four blobs at a time and no manifest; crane and skopeo push an OCI layout",
		tools:   []string{slipwayRegistry, slipwayGzip, curl, crane, skopeo},
		prepare: func(_ context.Context, b *bench) error { return makeBlobs(b, "p", b.opts.scale) },
		open:    openPusher,
		scenarios: []scenario{{
			name: "P push", text: "to distribution's registry; slipway-gzip to the embedded one", before: reads,
			run: func(ctx context.Context, b *bench, t tool, _ int) (sample, error) {
				p, ok := t.(pusher)
				if !ok {
					return sample{}, errNotMeant
				}
				return p.push(ctx, b.dir("p"))
			},
			columns: []column{phaseColumn("start to exit"), phaseColumn("without the push"), phaseColumn("push")},
		}},
	}
}

// A pusher pushes what makeBlobs has made: dir as a build context, or the OCI
// layout beside it.
type pusher interface {
	tool
	push(ctx context.Context, dir string) (sample, error)
}

func layoutOf(dir string) string { return dir + ".oci" }

// makeBlobs makes a build context of files that do not compress, and the image
// of it as an OCI layout.
func makeBlobs(b *bench, name string, scale float64) error {
	dir := b.dir(name)
	logf("generate context %s: %d files of %.0f MB", name, pushBlobs, blobBytes*scale/1e6)
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(layoutOf(dir))); err != nil {
		return err
	}
	dockerfile := "FROM scratch\n"
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i := range pushBlobs {
		file := fmt.Sprintf("%d.bin", i)
		dockerfile += "COPY " + file + " /\n"
		size := int64(blobBytes * scale)
		if err := write(filepath.Join(dir, file), randomBytes(uint64(i), size), 0o644); err != nil {
			return err
		}
		layer, err := storedLayer(filepath.Join(b.opts.work, file+".tar.gz"), file, randomBytes(uint64(i), size), size)
		if err != nil {
			return err
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer}); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return err
	}
	defer func() {
		for i := range pushBlobs {
			_ = os.Remove(filepath.Join(b.opts.work, fmt.Sprintf("%d.bin.tar.gz", i)))
		}
	}()
	to, err := layout.Write(layoutOf(dir), empty.Index)
	if err != nil {
		return err
	}
	return to.AppendImage(image)
}

// storedLayer makes a layer of one file, in the gzip format but not compressed.
func storedLayer(file, name string, r io.Reader, size int64) (v1.Layer, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	zip, _ := gzip.NewWriterLevel(f, gzip.NoCompression) // which is a level
	to := tar.NewWriter(zip)
	err = to.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = io.Copy(to, r)
	}
	if err := errors.Join(err, to.Close(), zip.Close(), f.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
}

// reads is the action that puts into the page cache what curl, crane and skopeo
// push; Slipway's is there because it has just been built.
func reads(_ context.Context, b *bench, _ tool, _ int) (sample, error) {
	return sample{}, filepath.WalkDir(layoutOf(b.dir("p")), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		return errors.Join(err, f.Close())
	})
}

// push implements [pusher]: it builds first, and takes off what a deploy takes
// that has nothing to build and nothing to push.
func (t *slipway) push(ctx context.Context, dir string) (sample, error) {
	build := job{dir: dir, app: "bench-p", local: true}
	if _, err := t.deploy(ctx, build); err != nil {
		return sample{}, err
	}
	var idle []sample
	for range 3 {
		settle()
		s, err := t.deploy(ctx, build)
		if err != nil {
			return s, err
		}
		idle = append(idle, s)
	}
	settle()
	s, err := t.deploy(ctx, job{dir: dir, app: "bench-p"})
	if err != nil {
		return s, err
	}
	s.Phases["start to exit"], s.Phases["without the push"] = s.Wall, median(values(idle, wall))
	s.Wall = max(0, s.Wall-s.Phases["without the push"])
	s.CPU = max(0, s.CPU-median(values(idle, cpu)))
	return s, nil
}

// registryClient is a program that pushes by itself.
type registryClient struct {
	setup
	name     string
	registry *registry
}

func openPusher(ctx context.Context, c contender, s setup) (tool, error) {
	if c.open != nil {
		return c.open(ctx, s)
	}
	r, err := startRegistry(ctx, s)
	if err != nil {
		return nil, err
	}
	return &registryClient{setup: s, name: c.name, registry: r}, nil
}

func (t *registryClient) push(ctx context.Context, dir string) (sample, error) {
	from, to := layoutOf(dir), t.registry.target+"/bench-p:1"
	var cmd *exec.Cmd
	switch t.name {
	case crane:
		cmd = exec.CommandContext(ctx, t.bin.path("crane"), "push", "--insecure", from, to)
	case skopeo:
		cmd = exec.CommandContext(ctx, "skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "oci:"+from, "docker://"+to)
	default:
		script, err := curlScript(from, "http://"+t.registry.target+"/v2/bench-p")
		if err != nil {
			return sample{}, err
		}
		cmd = exec.CommandContext(ctx, "sh", "-c", script)
	}
	cmd.Env = environ("DOCKER_CONFIG="+filepath.Join(t.dir, "docker"), "REGISTRY_AUTH_FILE="+filepath.Join(t.dir, "auth.json"))
	s, _, _, err := gauge{daemons: []*process{t.registry.process}, alone: true, sink: t.registry.process}.measure(ctx, cmd)
	return s, err
}

func (t *registryClient) stop() { t.registry.stop() }

// curlScript uploads the layers of an OCI layout, all at a time.
func curlScript(from, repository string) (string, error) {
	image, err := layout.ImageIndexFromPath(from)
	if err != nil {
		return "", err
	}
	index, err := image.IndexManifest()
	if err != nil {
		return "", err
	}
	m, err := image.Image(index.Manifests[0].Digest)
	if err != nil {
		return "", err
	}
	layers, err := m.Layers()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(`up() {
	at=$(curl -fsS -o /dev/null -D - -X POST "$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
	curl -fsS -o /dev/null -T "$2" -H 'Content-Type: application/octet-stream' "$at&digest=$3"
}
`)
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "up %s %s %s & all=\"$all $!\"\n", repository, filepath.Join(from, "blobs", d.Algorithm, d.Hex), d)
	}
	b.WriteString("for p in $all; do wait $p || exit 1; done\n")
	return b.String(), nil
}
