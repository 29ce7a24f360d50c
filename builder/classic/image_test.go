package classic_test

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/classic/casetest"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const goarch = runtime.GOARCH

// An outcome is what became of a build.
type outcome struct {
	world *world
	*slipwayv1.Result
	events     []*slipwayv1.Event
	needed     map[string]bool // files whose content was asked for
	repository string
}

// exitCode is what slipway deploy's exit code follows from: a RUN step's own,
// or 1 for all else.
func (o *outcome) exitCode() int {
	switch {
	case o.Error == nil:
		return 0
	case o.Error.ExitCode != 0:
		return int(o.Error.ExitCode)
	}
	return 1
}

type node = casetest.Node

// An image is one read back from the registry.
type image struct {
	raw    []byte
	config dockerspec.DockerOCIImage
	layers [][]node
	tree   map[string]node
}

// pull reads the build's image back from the registry.
func (o *outcome) pull() *image {
	w := o.world
	w.tb.Helper()
	if o.Error != nil {
		w.tb.Fatalf("build failed: %s: line %d: %s", o.Error.Code, o.Error.Line, o.Error.Message)
	}
	name, tag, _ := strings.Cut(strings.TrimPrefix(o.repository, registryHost+"/"), ":")
	return w.pull(name, tag)
}

func (w *world) pull(name, tag string) *image {
	w.tb.Helper()
	got := w.read(name, tag)
	img := &image{raw: got.Config, layers: got.Layers, tree: got.Tree}
	w.must(json.Unmarshal(img.raw, &img.config))
	return img
}

// read reads an image that the registry has.
func (w *world) read(name, tag string) *casetest.Image {
	w.tb.Helper()
	ctx := w.tb.Context()
	repo, err := w.registry.Repository(name)
	w.must(err)
	_, raw, err := repo.Manifest(ctx, tag)
	w.must(err)
	var m ocispec.Manifest
	w.must(json.Unmarshal(raw, &m))
	blob := func(d digest.Digest) []byte {
		file, _, err := repo.Blob(ctx, d)
		w.must(err)
		content, err := os.ReadFile(file)
		w.must(err)
		return content
	}
	img := casetest.NewImage(blob(m.Config.Digest))
	for _, l := range m.Layers {
		w.must(img.Add(bytes.NewReader(blob(l.Digest))))
	}
	return img
}
