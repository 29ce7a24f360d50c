package base_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clog "github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// A fake serves one repository, a/b, as a test wants it.
type fake struct {
	*httptest.Server
	blobs     map[digest.Digest][]byte
	manifests map[string][]byte // by tag or digest
	types     map[string]string
	asked     atomic.Int32
	wrap      func(w http.ResponseWriter, r *http.Request) bool // true: answered
}

func serve(t *testing.T) *fake {
	f := &fake{blobs: map[digest.Digest][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.asked.Add(1)
	if f.wrap != nil && f.wrap(w, r) {
		return
	}
	_, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "a/b/")
	kind, ref, _ := strings.Cut(what, "/")
	body, ok := f.manifests[ref]
	if kind == "blobs" {
		body, ok = f.blobs[digest.Digest(ref)]
	} else if ok {
		w.Header().Set("Content-Type", f.types[ref])
	}
	switch {
	case r.URL.Path == "/v2/":
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	default:
		_, _ = w.Write(body)
	}
}

func (f *fake) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fake) ref() string { return f.host() + "/a/b:v1" }

func (f *fake) put(t testing.TB, tag, mediaType string, v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	check(t, err)
	d := digest.FromBytes(raw)
	for _, ref := range []string{tag, d.String()} {
		f.manifests[ref], f.types[ref] = raw, mediaType
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

func (f *fake) blob(b []byte, mediaType string) ocispec.Descriptor {
	d := digest.FromBytes(b)
	f.blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// image puts an image with layers for linux/arch and returns it.
func (f *fake) image(t testing.TB, arch string, layers ...[]byte) (ocispec.Descriptor, ocispec.Manifest) {
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		_, err := zw.Write(l)
		check(t, errors.Join(err, zw.Close()))
		m.Layers = append(m.Layers, f.blob(z.Bytes(), "application/vnd.docker.image.rootfs.diff.tar.gzip"))
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
	}
	raw, err := json.Marshal(cfg)
	check(t, err)
	m.Config = f.blob(raw, ocispec.MediaTypeImageConfig)
	return f.put(t, "v1", ocispec.MediaTypeImageManifest, m), m
}

func layerTar(t testing.TB, size int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(size)}))
	_, err := w.Write(bytes.Repeat([]byte("layer "), size/6+1)[:size])
	check(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func resolver(o base.Options) *base.Resolver {
	o.Pause = time.Nanosecond
	return base.NewResolver(o)
}

func cache(t *testing.T) (context.Context, *layercache.Cache) {
	s, err := layercache.Open(t.Context(), layercache.Options{Root: t.TempDir(), MinFree: -1})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	l, err := s.Org("acme").Lease(t.Context(), "test", 0)
	check(t, err)
	return l.Context(t.Context()), s.Org("acme")
}

func TestPull(t *testing.T) {
	f := serve(t)
	desc, _ := f.image(t, "amd64", layerTar(t, 10), layerTar(t, 1<<20))
	ctx, c := cache(t)
	r := resolver(base.Options{})
	for round := range 2 {
		img, err := r.Resolve(ctx, f.ref(), amd64, func(context.Context, string) (authn.AuthConfig, error) {
			t.Error("credentials asked for without a challenge")
			return authn.AuthConfig{}, nil
		})
		check(t, err)
		before := f.asked.Load()
		layers, err := r.Pull(ctx, c, img, base.PullOptions{})
		if err != nil || len(layers) != 2 || img.Digest != desc.Digest {
			t.Fatalf("%d layers of %s, %v", len(layers), img.Digest, err)
		}
		for i, l := range layers {
			if l.Descriptor.MediaType != ocispec.MediaTypeImageLayerGzip || l.DiffID != img.Config.RootFS.DiffIDs[i] || !l.Cached {
				t.Errorf("layer %+v", l)
			}
		}
		if round == 1 && f.asked.Load() != before {
			t.Error("a cached image is read again")
		}
	}
	f.image(t, "amd64")
	img, err := r.Resolve(ctx, f.ref(), amd64, nil)
	check(t, err)
	if layers, err := r.Pull(ctx, c, img, base.PullOptions{}); err != nil || len(layers) != 0 {
		t.Errorf("no layers: %v, %v", layers, err)
	}
}

func TestImagesThatAreWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, f *fake, m *ocispec.Manifest)
		want   error
	}{
		"layer digest is a tag": {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Layers[0].Digest = "latest" }, base.ErrInvalid},
		"layer size negative":   {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Layers[0].Size = -1 }, base.ErrInvalid},
		"layer longer":          {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Layers[0].Size-- }, base.ErrInvalid},
		"layer shorter":         {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Layers[0].Size++ }, base.ErrInvalid},
		"layer has other bytes": {func(_ *testing.T, f *fake, m *ocispec.Manifest) {
			b := bytes.Clone(f.blobs[m.Layers[0].Digest])
			b[len(b)-9] ^= 1
			f.blobs[m.Layers[0].Digest] = b
		}, base.ErrInvalid},
		"layer missing":    {func(_ *testing.T, f *fake, m *ocispec.Manifest) { delete(f.blobs, m.Layers[0].Digest) }, base.ErrNotFound},
		"config missing":   {func(_ *testing.T, f *fake, m *ocispec.Manifest) { delete(f.blobs, m.Config.Digest) }, base.ErrNotFound},
		"no config":        {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Config.Digest = "" }, base.ErrInvalid},
		"a layer too many": {func(_ *testing.T, _ *fake, m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, base.ErrInvalid},
		"diff ID of another layer": {func(t *testing.T, f *fake, m *ocispec.Manifest) {
			raw := bytes.ReplaceAll(f.blobs[m.Config.Digest], []byte(digest.FromBytes(layerTar(t, 6000))), []byte(digest.FromString("x")))
			m.Config = f.blob(raw, m.Config.MediaType)
		}, base.ErrInvalid},
		"too large": {func(*testing.T, *fake, *ocispec.Manifest) {}, limits.ErrTooLarge},
		"connection breaks, for ever": {func(_ *testing.T, f *fake, m *ocispec.Manifest) {
			f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) {
					return false
				}
				w.Header().Set("Content-Length", "1000000")
				_, _ = w.Write(f.blobs[m.Layers[0].Digest][:20])
				return true
			}
		}, base.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			_, m := f.image(t, "amd64", layerTar(t, 6000))
			tc.change(t, f, &m)
			f.put(t, "v1", ocispec.MediaTypeImageManifest, m)
			ctx, c := cache(t)
			r := resolver(base.Options{})
			img, err := r.Resolve(ctx, f.ref(), amd64, nil)
			if err == nil {
				most := int64(0)
				if name == "too large" {
					most = 4096
				}
				_, err = r.Pull(ctx, c, img, base.PullOptions{Max: most})
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

func TestPlatforms(t *testing.T) {
	f := serve(t)
	one, _ := f.image(t, "amd64")
	two, _ := f.image(t, "arm64")
	one.Platform, two.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	note := two
	note.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	inner := f.put(t, "inner", ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{note, one}})
	bare := one
	bare.Platform = nil
	for name, tc := range map[string]struct {
		list []ocispec.Descriptor
		typ  string
		have string // of the error; "" means found
	}{
		"both":       {[]ocispec.Descriptor{note, two, one}, ocispec.MediaTypeImageIndex, ""},
		"by content": {[]ocispec.Descriptor{two, one}, "text/plain", ""},
		"nested":     {[]ocispec.Descriptor{inner}, ocispec.MediaTypeImageIndex, ""},
		"unnamed":    {[]ocispec.Descriptor{bare, two}, ocispec.MediaTypeImageIndex, ""},
		"other":      {[]ocispec.Descriptor{note, two, two}, ocispec.MediaTypeImageIndex, "has no image for linux/amd64, only for linux/arm64"},
		"none":       {nil, ocispec.MediaTypeImageIndex, "has no image for linux/amd64"},
	} {
		f.put(t, "v1", tc.typ, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: tc.list})
		img, err := resolver(base.Options{}).Resolve(t.Context(), f.ref(), amd64, nil)
		var wrong *base.PlatformError
		switch {
		case tc.have == "" && (err != nil || img.Digest != one.Digest):
			t.Errorf("%s: %v", name, err)
		case tc.have != "" && (!errors.As(err, &wrong) || err.Error() != f.ref()+" "+tc.have):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuth(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		f := serve(t)
		f.image(t, "amd64")
		f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
			user, pass, basic := r.BasicAuth()
			if r.URL.Path == "/token" {
				if user != "u" || pass != "p" {
					w.WriteHeader(http.StatusUnauthorized)
				}
				_, _ = w.Write([]byte(`{"token":"good"}`))
				return true
			}
			if basic && scheme == "Basic" && user == "u" && pass == "p" || r.Header.Get("Authorization") == "Bearer good" {
				return false
			}
			w.Header().Set("WWW-Authenticate", scheme+` realm="`+f.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		lost := errors.New("client lost")
		for pass, want := range map[string]error{"p": nil, "wrong": base.ErrDenied, "lost": lost} {
			_, err := resolver(base.Options{}).Resolve(t.Context(), f.ref(), amd64, func(_ context.Context, host string) (authn.AuthConfig, error) {
				if pass == "lost" {
					return authn.AuthConfig{}, lost
				}
				if host != f.host() {
					t.Errorf("asked for %s", host)
				}
				return authn.AuthConfig{Username: "u", Password: pass}, nil
			})
			if !errors.Is(err, want) {
				t.Errorf("%s, password %s: %v, want %v", scheme, pass, err, want)
			}
		}
	}
}

func TestMirrors(t *testing.T) {
	origin, mirror, down := serve(t), serve(t), serve(t)
	origin.image(t, "amd64")
	down.Close()
	addr := func(f *fake) *url.URL { return &url.URL{Scheme: "http", Host: f.host()} }
	r := resolver(base.Options{Mirrors: map[string][]*url.URL{origin.host(): {addr(down), addr(mirror)}}})
	if _, err := r.Resolve(t.Context(), origin.ref(), amd64, nil); err != nil || mirror.asked.Load() == 0 {
		t.Errorf("from the origin: %v", err)
	}
	asked := origin.asked.Load()
	mirror.image(t, "amd64")
	if _, err := r.Resolve(t.Context(), origin.ref(), amd64, nil); err != nil || origin.asked.Load() != asked {
		t.Errorf("from the mirror: %v", err)
	}
	if _, err := r.Resolve(t.Context(), origin.host()+"/a/b:none", amd64, nil); !errors.Is(err, base.ErrNotFound) {
		t.Errorf("the origin says that there is none, and a mirror is down: %v", err)
	}
	origin.Close()
	if _, err := r.Resolve(t.Context(), origin.host()+"/a/b:none", amd64, nil); !errors.Is(err, base.ErrUnavailable) {
		t.Errorf("the origin is down: %v", err)
	}
}

func TestInsecureMayHaveAnyCertificate(t *testing.T) {
	f := serve(t)
	f.image(t, "amd64")
	s := httptest.NewTLSServer(f)
	defer s.Close()
	s.Config.ErrorLog = nil
	host := strings.TrimPrefix(s.URL, "https://")
	if _, err := resolver(base.Options{Insecure: []string{host}}).Resolve(t.Context(), host+"/a/b:v1", amd64, nil); err != nil {
		t.Error(err)
	}
}
