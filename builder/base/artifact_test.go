package base_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
)

const otherType = "application/vnd.example.config"

// artifact puts a manifest that is no image's.
func (f *fake) artifact(t testing.TB, tag, config string, layers ...ocispec.Descriptor) ocispec.Descriptor {
	return f.put(t, tag, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: f.blob([]byte(config), otherType), Layers: layers,
	})
}

func TestArtifacts(t *testing.T) {
	f := serve(t)
	r := resolver(base.Options{})
	desc, m := f.image(t, "amd64", layerTar(t, 100))
	img, err := r.ResolveArtifact(t.Context(), f.ref(), amd64, nil)
	if err != nil || img.Digest != desc.Digest || digest.FromBytes(img.RawConfig) != m.Config.Digest {
		t.Errorf("an image: %+v, %v", img, err)
	}
	want := f.artifact(t, "v1", "not even JSON", m.Layers[0])
	img, err = r.ResolveArtifact(t.Context(), f.ref(), amd64, nil)
	if err != nil || img.Digest != want.Digest || string(img.RawConfig) != "not even JSON" || img.Manifest.Config.MediaType != otherType {
		t.Fatalf("an artifact: %+v, %v", img, err)
	}

	// One of its blobs is pulled like an image's layer, and held to what it
	// is said to be.
	ctx, c := cache(t)
	blob := m.Layers[0]
	blob.MediaType = ocispec.MediaTypeImageLayerGzip
	one, err := img.Layer(blob, digest.FromBytes(layerTar(t, 100)))
	check(t, err)
	layers, err := r.Pull(ctx, c, one, base.PullOptions{})
	if err != nil || len(layers) != 1 || layers[0].Descriptor.Digest != blob.Digest || layers[0].Ledger == "" {
		t.Errorf("pulled %v, %v", layers, err)
	}
	one, err = img.Layer(blob, digest.FromString("something else"))
	check(t, err)
	if _, err := r.Pull(ctx, c, one, base.PullOptions{}); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("another diff ID: %v", err)
	}
	longer := blob
	longer.Size++
	for _, d := range []ocispec.Descriptor{longer, {Digest: digest.FromString("x"), Size: blob.Size}} {
		if _, err := img.Layer(d, ""); !errors.Is(err, base.ErrInvalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}

	// The platform chooses within an index.
	arm := f.artifact(t, "arm", "arm64's")
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{arm, want}}
	index.Manifests[0].Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	index.Manifests[1].Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	f.put(t, "v1", ocispec.MediaTypeImageIndex, index)
	if img, err = r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); err != nil || img.Digest != want.Digest {
		t.Errorf("an index: %+v, %v", img, err)
	}
	index.Manifests = index.Manifests[:1]
	f.put(t, "v1", ocispec.MediaTypeImageIndex, index)
	var wrong *base.PlatformError
	if _, err = r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); !errors.As(err, &wrong) {
		t.Errorf("an index without the platform: %v", err)
	}
}

func TestArtifactsThatAreWrong(t *testing.T) {
	f := serve(t)
	r := resolver(base.Options{})
	if _, err := r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); !errors.Is(err, base.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	f.artifact(t, "v1", "config")
	for d := range f.blobs {
		f.blobs[d] = []byte("changed")
	}
	if _, err := r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); err == nil {
		t.Errorf("config of another digest: %v", err)
	}
	f.artifact(t, "v1", strings.Repeat("x", 9<<20))
	if _, err := r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("config of 9 MB: %v", err)
	}
	nested := f.artifact(t, "v1", "config")
	for range 5 {
		nested = f.put(t, "v1", ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{nested}})
	}
	if _, err := r.ResolveArtifact(t.Context(), f.ref(), amd64, nil); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("indexes in indexes: %v", err)
	}
}
