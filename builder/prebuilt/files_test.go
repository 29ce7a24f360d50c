package prebuilt_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A fileSet is what a client has of images.
type fileSet map[digest.Digest][]byte

func (f fileSet) add(mediaType string, raw []byte) ocispec.Descriptor {
	d := digest.FromBytes(raw)
	f[d] = raw
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

func (f fileSet) document(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	raw, err := json.MarshalIndent(v, "", "  ")
	check(t, err)
	return f.add(mediaType, raw)
}

func (f fileSet) image(t *testing.T, arch string, layers ...blob) ocispec.Descriptor {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = f.add(ocispec.MediaTypeImageConfig, configOf(arch, layers...))
	for _, l := range layers {
		m.Layers = append(m.Layers, f.add(l.mediaType, l.raw))
	}
	d := f.document(t, ocispec.MediaTypeImageManifest, m)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

// sent gives a deploy the files.
func (f fileSet) sent(_ *slipwayv1.Start, s *session) { s.files = f }

func withContext(s *slipwayv1.Start, _ *session) { s.Context = &slipwayv1.ContextInfo{} }

// An OCI layout's image keeps its digest; what the daemon has does not travel.
func TestLayout(t *testing.T) {
	d, dst := newDaemon(t, 0), newHub(t)
	small, large := noisy(t, "small", 100_000), zstded(t, tarOf(t, map[string]int{"large": 5_000_000}))
	files := fileSet{}
	img := files.image(t, "amd64", small, large)
	ref := "oci:shop:v1@" + img.Digest.String()
	res := d.deploy("shop", ref, files.sent, withContext)
	if res.Digest != img.Digest.String() || outcomes(res) != "linked linked" || res.RootfsBytes != 4096*(1+25+1221) || len(d.session.needed) != 4 {
		t.Errorf("%v; %d blobs travelled", res, len(d.session.needed))
	}
	checkImage(t, d.own, "shop", d.own, "shop", img.Digest)
	if res = d.deploy("shop", ref, files.sent, withContext); outcomes(res) != "present present" || len(d.session.needed) > 0 {
		t.Errorf("again: %v; %d blobs travelled", res, len(d.session.needed))
	}
	// To another registry, from what has arrived.
	d.deploy("shop", ref, files.sent, withContext, to(dst.ref("shop")))
	checkImage(t, d.own, "shop", dst, "shop", img.Digest)
	if len(d.session.needed) > 0 {
		t.Errorf("%d blobs travelled again", len(d.session.needed))
	}
	// A target that has the layers already needs none of them.
	other := newDaemon(t, 0)
	for _, l := range []blob{small, large} {
		dst.blob("shop", l.mediaType, l.raw)
	}
	first := other.deploy("shop", ref, files.sent, withContext, to(dst.ref("shop")))
	if outcomes(first) != "present present" {
		t.Errorf("%v", first)
	}
}

func TestLayoutIndex(t *testing.T) {
	d, files := newDaemon(t, 0), fileSet{}
	a, b := files.image(t, "amd64", noisy(t, "a", 100_000)), files.image(t, "arm64", noisy(t, "b", 200_000))
	top := files.document(t, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{a, b},
	})
	ref := "oci:shop@" + top.Digest.String()
	if res := d.deploy("shop", ref, files.sent, withContext); res.Digest != a.Digest.String() || slices.ContainsFunc(d.session.needed, func(d digest.Digest) bool { return len(files[d]) > 150_000 }) {
		t.Errorf("%v, %q", res, d.session.needed)
	}
	if res := d.deploy("shop", ref, files.sent, withContext, platform(builder.AllPlatforms)); res.Digest != top.Digest.String() {
		t.Errorf("%v", res)
	}
	checkImage(t, d.own, "shop", d.own, "shop", top.Digest)
	d.fails(failure.PlatformMismatch, "only for linux/amd64, linux/arm64", ref, files.sent, withContext, platform("linux/s390x"))
}

// A detached client sends all that the daemon lacks before it may leave.
func TestLayoutDetached(t *testing.T) {
	d, files := newDaemon(t, 0), fileSet{}
	img := files.image(t, "amd64", noisy(t, "a", 100_000), noisy(t, "b", 200_000))
	d.deploy("shop", "oci:shop@"+img.Digest.String(), files.sent, withContext, func(s *slipwayv1.Start, _ *session) { s.Detach = true })
	if len(d.session.needed) != 4 || len(d.session.needs) == 0 || d.session.needs[0] != 4 {
		t.Errorf("%d blobs travelled, in %v", len(d.session.needed), d.session.needs)
	}
}

// A docker archive's layers are compressed here; its config and its diff IDs
// stay.
func TestArchive(t *testing.T) {
	d, files := newDaemon(t, 0), fileSet{}
	base, app := plain(tarOf(t, map[string]int{"base": 300_000})), noisy(t, "app", 100_000)
	img := files.image(t, "amd64", base, app) // as the client makes it up
	ref := "docker-archive:shop.tar@" + img.Digest.String()
	res := d.deploy("shop", ref, files.sent, withContext)
	if outcomes(res) != "linked linked" || res.RootfsBytes != 4096*(1+74+25) || res.Layers[0].MediaType != ocispec.MediaTypeImageLayerGzip ||
		res.Layers[0].DiffId != base.diffID.String() || res.Layers[1].DiffId != app.diffID.String() {
		t.Errorf("%v", res)
	}
	checkImage(t, d.own, "shop", d.own, "shop", digest.Digest(res.Digest))
	_, raw, err := d.own.repository("shop").Manifest(t.Context(), res.Digest)
	check(t, err)
	var m ocispec.Manifest
	check(t, json.Unmarshal(raw, &m))
	if m.Config.Digest != digest.FromBytes(configOf("amd64", base, app)) || m.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("manifest %s", raw)
	}
	// Again, and with the layers in other compressions: nothing but documents.
	again := d.deploy("shop", ref, files.sent, withContext)
	if again.Digest != res.Digest || outcomes(again) != "present present" || len(d.session.needed) > 0 || !again.Layers[0].Cached {
		t.Errorf("again: %v, %q", again, d.session.needed)
	}
	zst := d.deploy("shop", ref, files.sent, withContext, func(s *slipwayv1.Start, _ *session) {
		s.Compression = &slipwayv1.Compression{Type: slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD}
	})
	if zst.Digest == res.Digest || zst.Layers[0].MediaType != ocispec.MediaTypeImageLayerZstd {
		t.Errorf("zstd: %v", zst)
	}
	small := newDaemon(t, 350_000)
	small.fails(failure.TooLarge, "at /app", ref, files.sent, withContext)
}

// Files that are not an image, or not all of it, are refused by name.
func TestFilesThatAreWrong(t *testing.T) {
	layer := noisy(t, "a", 100_000)
	for _, tc := range []struct {
		name, text string
		kind       string
		make       func(t *testing.T, f fileSet) ocispec.Descriptor
	}{
		{"a layer is missing", "lacks the blob " + digestOf(layer), "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			d := f.image(t, "amd64", layer)
			delete(f, digest.FromBytes(layer.raw))
			return d
		}},
		{"the config is missing", "lacks the blob " + digest.FromBytes(configOf("amd64", layer)).String(), "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			d := f.image(t, "amd64", layer)
			delete(f, digest.FromBytes(configOf("amd64", layer)))
			return d
		}},
		{"the manifest is missing", "lacks the blob", "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			d := f.image(t, "amd64", layer)
			delete(f, d.Digest)
			return d
		}},
		{"a layer is another", "damaged", "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			d := f.image(t, "amd64", layer)
			other := append([]byte{}, layer.raw...)
			other[50_000] ^= 1
			f[digest.FromBytes(layer.raw)] = other
			return d
		}},
		{"a layer is shorter", "bytes, its descriptor says", "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			d := f.image(t, "amd64", layer)
			f[digest.FromBytes(layer.raw)] = layer.raw[:70_000]
			return d
		}},
		{"another diff ID", "the config says", "oci", func(t *testing.T, f fileSet) ocispec.Descriptor {
			lying := layer
			lying.diffID = digest.FromString("x")
			return f.image(t, "amd64", lying)
		}},
		{"another diff ID in an archive", "other content", "docker-archive", func(t *testing.T, f fileSet) ocispec.Descriptor {
			lying := layer
			lying.diffID = digest.FromString("x")
			return f.image(t, "amd64", lying)
		}},
		{"no tar in an archive", "layer", "docker-archive", func(t *testing.T, f fileSet) ocispec.Descriptor {
			return f.image(t, "amd64", plain([]byte(strings.Repeat("no tar", 1000))))
		}},
		{"half a gzip in an archive", "layer", "docker-archive", func(t *testing.T, f fileSet) ocispec.Descriptor {
			half := layer
			half.raw = half.raw[:60_000]
			return f.image(t, "amd64", half)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, dst, files := newDaemon(t, 0), newHub(t), fileSet{}
			img := tc.make(t, files)
			e := d.fails(failure.ImageInvalid, tc.text, tc.kind+":dir@"+img.Digest.String(), files.sent, withContext, to(dst.ref("shop"))).Error
			if e.Hint == "" || e.Blame != slipwayv1.Blame_BLAME_USER || len(dst.requests("PUT", "/manifests/")) > 0 {
				t.Errorf("%v", e)
			}
		})
	}
}

// A layer that was built here is known by its blob, not by what a config says
// of another one.
func TestBuiltLayer(t *testing.T) {
	d, src, files := newDaemon(t, 0), newHub(t), fileSet{}
	small := plain(tarOf(t, map[string]int{"small": 100}))
	img := files.image(t, "amd64", small)
	built := d.deploy("shop", "docker-archive:shop.tar@"+img.Digest.String(), files.sent, withContext)
	if res := d.deploy("other", ownHost+"/shop@"+built.Digest); !res.Layers[0].Cached || res.RootfsBytes != built.RootfsBytes {
		t.Errorf("the layer is not known: %v", res)
	}
	lying := noisy(t, "big", 500_000)
	lying.diffID = small.diffID
	src.image("team/shop", "amd64", "v1", lying)
	d.fails(failure.ImageInvalid, "the config says", src.ref("team/shop:v1"))
}
