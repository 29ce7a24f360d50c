package prebuilt_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// index puts an index of images for two platforms, each with an attestation,
// as buildx does.
func index(h *hub, path, tag string) (top ocispec.Descriptor, images, attestations []ocispec.Descriptor) {
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	shared := noisy(h.t, "shared", 50_000)
	for n, arch := range []string{"amd64", "arm64"} {
		img := h.image(path, arch, "", shared, noisy(h.t, "bin", 10_000*(n+1)))
		images = append(images, img)
		a := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		a.Config = h.blob(path, ocispec.MediaTypeImageConfig, []byte(`{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":["`+digest.FromString(arch)+`"]}}`))
		a.Layers = []ocispec.Descriptor{h.blob(path, "application/vnd.in-toto+json", []byte(`{"predicate":"`+arch+`"}`))}
		d := h.put(path, ocispec.MediaTypeImageManifest, a)
		d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		if arch == "arm64" {
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch} // the annotation says what it is
		}
		d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": img.Digest.String()}
		attestations = append(attestations, d)
	}
	// Attestations come first, so that an index's order cannot be what decides.
	x.Manifests = append(append(x.Manifests, attestations...), images...)
	return h.put(path, ocispec.MediaTypeImageIndex, x, tag), images, attestations
}

// Of an index, the platform's image is deployed: its manifest is what it was,
// and its digest is the image's.
func TestIndex(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	top, images, attestations := index(src, "team/shop", "v1")
	for n, arch := range []string{"amd64", "arm64"} {
		res := d.deploy("shop", src.ref("team/shop@"+top.Digest.String()), platform("linux/"+arch))
		if res.Digest != images[n].Digest.String() {
			t.Errorf("%s: digest %s, want %s", arch, res.Digest, images[n].Digest)
		}
		checkImage(t, src, "team/shop", d.own, "shop", images[n].Digest)
	}
	for _, not := range append(attestations, top) {
		if _, _, err := d.own.repository("shop").Manifest(t.Context(), not.Digest.String()); err == nil {
			t.Errorf("%s was pushed too", not.Digest)
		}
	}
	e := d.fails(failure.PlatformMismatch, "only for linux/amd64, linux/arm64", src.ref("team/shop:v1"), platform("linux/s390x")).Error
	if e.Phase != failure.Preflight {
		t.Errorf("%v", e)
	}
}

// An index is deployed whole, attestations and all, if that is asked for.
func TestWholeIndex(t *testing.T) {
	src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
	top, _, _ := index(src, "team/shop", "v1")
	for _, target := range []string{ownHost + "/shop:all", dst.ref("shop:all")} {
		res := d.deploy("shop", src.ref("team/shop:v1"), platform(builder.AllPlatforms), to(target))
		at := d.own
		if strings.HasPrefix(target, dst.host()) {
			at = dst
		}
		checkImage(t, src, "team/shop", at, "shop", top.Digest)
		desc, _, err := at.repository("shop").Manifest(t.Context(), "all")
		if err != nil || desc.Digest != top.Digest || res.Digest != top.Digest.String() {
			t.Errorf("%s is %v, %v; result %v", target, desc, err, res)
		}
		// The largest of the platforms: the root, 13 and 5 blocks.
		if len(res.Layers) != 3 || res.RootfsBytes != 4096*(1+13+5) {
			t.Errorf("%d layers, %d bytes", len(res.Layers), res.RootfsBytes)
		}
	}
	// One of its images is known now.
	src.forget()
	if d.deploy("shop", src.ref("team/shop:v1")); src.bytesSent() > 0 {
		t.Errorf("an image of a known index was read again: %q", src.requests("GET", ""))
	}
	// Too large is each platform for itself.
	small := newDaemon(t, 60_000)
	small.fails(failure.TooLarge, "", src.ref("team/shop:v1"), platform(builder.AllPlatforms))
}

func TestAllPlatformsOfOne(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	img := src.image("team/shop", "s390x", "v1", noisy(t, "a", 1000))
	if res := d.deploy("shop", src.ref("team/shop:v1"), platform(builder.AllPlatforms)); res.Digest != img.Digest.String() {
		t.Errorf("%v", res)
	}
}

// Foreign layers are copied if the registry has them.
func TestForeignLayer(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	l := noisy(t, "a", 1000)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = src.blob("team/shop", ocispec.MediaTypeImageConfig, configOf("amd64", l))
	desc := src.blob("team/shop", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", l.raw)
	desc.URLs = []string{"https://example.com/layer"}
	m.Layers = []ocispec.Descriptor{desc}
	img := src.put("team/shop", ocispec.MediaTypeImageManifest, m, "v1")
	d.deploy("shop", src.ref("team/shop:v1"))
	checkImage(t, src, "team/shop", d.own, "shop", img.Digest)

	other := noisy(t, "b", 2000)
	m.Config = src.blob("team/shop", ocispec.MediaTypeImageConfig, configOf("amd64", other))
	desc.Digest, desc.Size = digest.FromBytes(other.raw), int64(len(other.raw))
	m.Layers = []ocispec.Descriptor{desc}
	src.put("team/shop", ocispec.MediaTypeImageManifest, m, "v2")
	d.fails(failure.BaseNotFound, desc.Digest.String(), src.ref("team/shop:v2"))
}

// A layer that comes twice is sent and counted once, in both its places.
func TestLayerTwice(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	a, b := noisy(t, "a", 10_000), noisy(t, "b", 1000)
	img := src.image("team/shop", "amd64", "v1", a, b, a)
	res := d.deploy("shop", src.ref("team/shop:v1"))
	checkImage(t, src, "team/shop", d.own, "shop", img.Digest)
	if res.RootfsBytes != 4096*5 {
		t.Errorf("%d bytes", res.RootfsBytes)
	}
	if again := d.deploy("shop", src.ref("team/shop:v1")); again.RootfsBytes != res.RootfsBytes {
		t.Errorf("again: %d bytes", again.RootfsBytes)
	}
}

// Images that are wrong are refused by name, and no manifest goes out.
func TestImagesThatAreWrong(t *testing.T) {
	small := noisy(t, "small", 100)
	for _, tc := range []struct {
		name, code, text string
		make             func(h *hub)
		change           func(w http.ResponseWriter, r *http.Request) bool
	}{
		{name: "unknown tag", code: failure.BaseNotFound, text: "image not found", make: func(*hub) {}},
		{name: "another diff ID", code: failure.ImageInvalid, text: "the config says", make: func(h *hub) {
			lying := noisy(h.t, "big", 200_000)
			lying.diffID = small.diffID
			h.image("team/shop", "amd64", "v1", lying)
		}},
		{name: "not a tar", code: failure.ImageInvalid, text: "layer", make: func(h *hub) {
			h.image("team/shop", "amd64", "v1", gzipped(h.t, bytes.Repeat([]byte("no tar"), 1000)))
		}},
		{name: "not compressed as it says", code: failure.ImageInvalid, text: "layer", make: func(h *hub) {
			broken := noisy(h.t, "a", 1000)
			broken.raw = broken.raw[:len(broken.raw)-10]
			h.image("team/shop", "amd64", "v1", broken)
		}},
		{name: "fewer diff IDs", code: failure.ImageInvalid, text: "2 layers but 1 diff IDs", make: func(h *hub) {
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
			m.Config = h.blob("team/shop", ocispec.MediaTypeImageConfig, configOf("amd64", small))
			l := h.blob("team/shop", small.mediaType, small.raw)
			m.Layers = []ocispec.Descriptor{l, l}
			h.put("team/shop", ocispec.MediaTypeImageManifest, m, "v1")
		}},
		{name: "bytes that changed", code: failure.ImageInvalid, text: "has the content of", make: func(h *hub) {
			h.image("team/shop", "amd64", "v1", plain(tarOf(h.t, map[string]int{"a": 100_000})))
			h.breaks(onlyLayers(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				h.serve(&flipping{ResponseWriter: w}, r)
				return true
			}))
		}},
		{name: "version 1", code: failure.ImageInvalid, text: "version 1 of Docker's format", make: func(h *hub) {
			h.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
				w.Header().Set("Docker-Content-Digest", digest.FromString("payload").String())
				_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 1, "fsLayers": []any{}, "signatures": []any{}})
				return true
			})
		}},
		{name: "a chart", code: failure.ImageInvalid, text: "diff IDs", make: func(h *hub) {
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
			m.Config = h.blob("team/shop", "application/vnd.cncf.helm.config.v1+json", []byte(`{"name":"shop"}`))
			m.Layers = []ocispec.Descriptor{h.blob("team/shop", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", small.raw)}
			h.put("team/shop", ocispec.MediaTypeImageManifest, m, "v1")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src, dst, d := newHub(t), newHub(t), newDaemon(t, 0)
			// The small layer is known, as part of a good image.
			src.image("good/one", "amd64", "v1", small)
			d.deploy("good", src.ref("good/one:v1"))
			tc.make(src)
			e := d.fails(tc.code, tc.text, src.ref("team/shop:v1"), to(dst.ref("shop"))).Error
			if e.Blame != slipwayv1.Blame_BLAME_USER || e.Hint == "" {
				t.Errorf("%v", e)
			}
			if puts := dst.requests("PUT", "/manifests/"); len(puts) > 0 {
				t.Errorf("a manifest went out: %q", puts)
			}
		})
	}
}

// flipping changes a byte in the middle.
type flipping struct {
	http.ResponseWriter
	n int
}

func (f *flipping) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	if at := 60_000 - f.n; at >= 0 && at < len(p) {
		p[at] ^= 1
	}
	f.n += len(p)
	return f.ResponseWriter.Write(p)
}

// What would make another image is refused.
func TestOptionsThatDoNotFit(t *testing.T) {
	d := newDaemon(t, 0)
	for _, change := range []func(*slipwayv1.Start, *session){
		func(s *slipwayv1.Start, _ *session) { s.Labels = map[string]string{"a": "b"} },
		func(s *slipwayv1.Start, _ *session) { s.BuildArgs = map[string]string{"a": "b"} },
		func(s *slipwayv1.Start, _ *session) { s.Target = "stage" },
		func(s *slipwayv1.Start, _ *session) { s.Dockerfile = &slipwayv1.Dockerfile{Content: []byte("FROM x")} },
		func(s *slipwayv1.Start, _ *session) { s.Image = "" },
		func(s *slipwayv1.Start, _ *session) { s.Image = "oci:dir" },
		func(s *slipwayv1.Start, _ *session) { s.Platform = "not/a/plat/form" },
	} {
		d.fails(failure.InvalidArgument, "", "127.0.0.1:1/a/b", change)
	}
}
