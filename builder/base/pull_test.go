package base_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
)

// A packed layer is a blob as a registry has it, and what it unpacks to.
type packed struct {
	blob      []byte
	mediaType string
	diffID    digest.Digest
}

// packedImage puts an image of finished blobs.
func (f *fake) packedImage(t testing.TB, layers ...packed) ocispec.Manifest {
	t.Helper()
	cfg := ocispec.Image{Platform: amd64}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		m.Layers = append(m.Layers, f.blob(l.blob, l.mediaType))
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
	}
	raw, err := json.Marshal(cfg)
	check(t, err)
	m.Config = f.blob(raw, ocispec.MediaTypeImageConfig)
	f.put(t, "v1", ocispec.MediaTypeImageManifest, m)
	return m
}

// pull resolves and pulls f's image.
func pull(t *testing.T, f *fake, o base.Options, p base.PullOptions) ([]*layer.Layer, error) {
	t.Helper()
	ctx, c := cache(t)
	r := resolver(o)
	img, err := r.Resolve(ctx, f.ref(), amd64, nil)
	if err != nil {
		return nil, err
	}
	return r.Pull(ctx, c, img, p)
}

func zstdOf(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	check(t, err)
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// Layers keep the blobs they came with, whatever those are.
func TestPullAnyCompression(t *testing.T) {
	plain := layerTar(t, 300_000)
	id := digest.FromBytes(plain)
	half := len(plain) / 2
	frames := append(zstdOf(t, plain[:half]), zstdOf(t, plain[half:])...)
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, frames...)
	for name, tc := range map[string]struct {
		packed
		want string // media type
	}{
		"zstd":                        {packed{zstdOf(t, plain), ocispec.MediaTypeImageLayerZstd, id}, ocispec.MediaTypeImageLayerZstd},
		"zstd of Docker":              {packed{zstdOf(t, plain), "application/vnd.docker.image.rootfs.diff.tar.zstd", id}, ocispec.MediaTypeImageLayerZstd},
		"zstd frames":                 {packed{frames, ocispec.MediaTypeImageLayerZstd, id}, ocispec.MediaTypeImageLayerZstd},
		"zstd with a skippable frame": {packed{append(frames[:len(frames):len(frames)], skippable[:11]...), ocispec.MediaTypeImageLayerZstd, id}, ocispec.MediaTypeImageLayerZstd},
		"plain":                       {packed{plain, ocispec.MediaTypeImageLayer, id}, ocispec.MediaTypeImageLayer},
		"plain of Docker":             {packed{plain, "application/vnd.docker.image.rootfs.diff.tar", id}, ocispec.MediaTypeImageLayer},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			f.packedImage(t, tc.packed)
			layers, err := pull(t, f, base.Options{}, base.PullOptions{Line: 3, Origin: "FROM x"})
			check(t, err)
			l := layers[0]
			if l.Descriptor.Digest != digest.FromBytes(tc.blob) || l.Descriptor.MediaType != tc.want || l.DiffID != id || l.Uncompressed != int64(len(plain)) ||
				l.Origin.Line != 3 || len(l.MountFrom) == 0 || l.MountFrom[0] != f.host()+"/a/b" {
				t.Errorf("layer %+v", l)
			}
		})
	}
}

// A layer of nothing is a tar without entries; a blob of nothing is one, too.
func TestPullEmptyLayers(t *testing.T) {
	var none bytes.Buffer
	check(t, tar.NewWriter(&none).Close())
	f := serve(t)
	_, m := f.image(t, "amd64", none.Bytes(), layerTar(t, 5))
	layers, err := pull(t, f, base.Options{}, base.PullOptions{})
	if err != nil || len(layers) != 2 || layers[0].Uncompressed != 1024 || layers[0].Descriptor.Digest != m.Layers[0].Digest {
		t.Errorf("layers %v, %v", layers, err)
	}
	f.packedImage(t, packed{nil, ocispec.MediaTypeImageLayer, digest.FromBytes(nil)})
	layers, err = pull(t, f, base.Options{}, base.PullOptions{})
	if err != nil || len(layers) != 1 || layers[0].Uncompressed != 0 || layers[0].Descriptor.Size != 0 {
		t.Errorf("blob of 0 bytes: %v, %v", layers, err)
	}
	f.packedImage(t, packed{nil, ocispec.MediaTypeImageLayerGzip, digest.FromBytes(none.Bytes())})
	if _, err := pull(t, f, base.Options{}, base.PullOptions{}); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("blob of 0 bytes that should be more: %v", err)
	}
}

// Only SHA-256 is stored, so only that can be verified.
func TestDigestsOfOtherAlgorithms(t *testing.T) {
	content := layerTar(t, 100)
	for name, tc := range map[string]func(m *ocispec.Manifest, cfg *ocispec.Image){
		"layer":  func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Digest = digest.SHA512.FromBytes(content) },
		"config": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Config.Digest = digest.SHA512.FromBytes(content) },
		"diff ID": func(_ *ocispec.Manifest, cfg *ocispec.Image) {
			cfg.RootFS.DiffIDs[0] = digest.SHA512.FromBytes(content)
		},
		"short": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Digest = "sha256:12" },
		"path":  func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Digest = "sha256:../../../etc/passwd" },
		"empty": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Digest = "" },
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			cfg := ocispec.Image{Platform: amd64, RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{digest.FromBytes(content)}}}
			m := ocispec.Manifest{Layers: []ocispec.Descriptor{f.blob(content, ocispec.MediaTypeImageLayer)}}
			tc(&m, &cfg)
			raw, err := json.Marshal(cfg)
			check(t, err)
			if d := f.blob(raw, ocispec.MediaTypeImageConfig); m.Config.Digest == "" {
				m.Config = d
			}
			f.put(t, "v1", ocispec.MediaTypeImageManifest, m)
			if _, err := pull(t, f, base.Options{}, base.PullOptions{}); !errors.Is(err, base.ErrInvalid) {
				t.Errorf("%v, want %v", err, base.ErrInvalid)
			}
		})
	}
	f := serve(t)
	one, _ := f.image(t, "amd64")
	one.Digest, one.Platform = digest.SHA512.FromString("x"), &amd64
	f.put(t, "v1", ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{one}})
	if _, err := pull(t, f, base.Options{}, base.PullOptions{}); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("in an index: %v, want %v", err, base.ErrInvalid)
	}
}

// Blobs may lie elsewhere. Credentials do not go there.
func TestPullFollowsRedirects(t *testing.T) {
	f := serve(t)
	_, m := f.image(t, "amd64", layerTar(t, 100_000))
	var fetched atomic.Int32
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Errorf("credentials at the store: %v", r.Header)
		}
		if r.URL.Query().Get("signature") != "secret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fetched.Add(1)
		_, _ = w.Write(f.blobs[digest.Digest(strings.TrimPrefix(r.URL.Path, "/"))])
	}))
	defer store.Close()
	var loop atomic.Bool
	f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user != "u" || pass != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		_, blob, ok := strings.Cut(r.URL.Path, "/blobs/")
		if loop.Load() && blob == m.Layers[0].Digest.String() {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		if ok {
			http.Redirect(w, r, store.URL+"/"+blob+"?signature=secret", http.StatusTemporaryRedirect)
		}
		return ok
	}
	auth := func(context.Context, string) (authn.AuthConfig, error) {
		return authn.AuthConfig{Username: "u", Password: "p"}, nil
	}
	ctx, c := cache(t)
	r := resolver(base.Options{})
	img, err := r.Resolve(ctx, f.ref(), amd64, auth)
	check(t, err)
	loop.Store(true)
	if _, err := r.Pull(ctx, c, img, base.PullOptions{}); !errors.Is(err, base.ErrUnavailable) {
		t.Errorf("redirects without end: %v", err)
	}
	loop.Store(false)
	if _, err := r.Pull(ctx, c, img, base.PullOptions{}); err != nil || fetched.Load() != 2 { // config and layer
		t.Errorf("%v; %d blobs fetched", err, fetched.Load())
	}
	store.Close()
	_, err = r.Resolve(ctx, f.ref(), amd64, auth)
	if !errors.Is(err, base.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("the store is down: %v", err)
	}
}

// A source that falls silent is asked again; one that stays so is unavailable.
func TestPullOfASilentSource(t *testing.T) {
	for _, silent := range []int32{1, 100} {
		f := serve(t)
		_, m := f.image(t, "amd64", layerTar(t, 1<<20))
		quit := make(chan struct{})
		var asked atomic.Int32
		f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) || asked.Add(1) > silent {
				return false
			}
			blob := f.blobs[m.Layers[0].Digest]
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			_, _ = w.Write(blob[:len(blob)/2])
			_ = http.NewResponseController(w).Flush()
			select { // until the client leaves
			case <-r.Context().Done():
			case <-quit:
			}
			return true
		}
		_, err := pull(t, f, base.Options{Stall: 150 * time.Millisecond}, base.PullOptions{})
		close(quit)
		switch {
		case silent == 1 && err != nil:
			t.Errorf("silent once: %v", err)
		case silent > 1 && !errors.Is(err, base.ErrUnavailable):
			t.Errorf("silent for ever: %v", err)
		}
	}
}

// A source that is slow, but never silent, is left alone.
func TestPullOfASlowSource(t *testing.T) {
	f := serve(t)
	_, m := f.image(t, "amd64", layerTar(t, 1<<20))
	var asked atomic.Int32
	f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) {
			return false
		}
		asked.Add(1)
		blob := f.blobs[m.Layers[0].Digest]
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := range 40 {
			_, _ = w.Write(blob[len(blob)*i/40 : len(blob)*(i+1)/40])
			_ = http.NewResponseController(w).Flush()
			<-tick.C
		}
		return true
	}
	if _, err := pull(t, f, base.Options{Stall: 400 * time.Millisecond}, base.PullOptions{}); err != nil || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
}

// A shelf is a repository of the daemon's own registry.
type shelf struct {
	*fake
	dir string
}

var errNoSuch = errors.New("no such image")

func (s *shelf) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	raw, ok := s.manifests[ref]
	if !ok {
		return ocispec.Descriptor{}, nil, errNoSuch
	}
	return ocispec.Descriptor{MediaType: s.types[ref], Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, nil
}

func (s *shelf) Blob(_ context.Context, d digest.Digest) (string, int64, error) {
	b, ok := s.blobs[d]
	if !ok {
		return "", 0, errNoSuch
	}
	return filepath.Join(s.dir, d.Encoded()), int64(len(b)), nil
}

func TestPullFromTheOwnRegistry(t *testing.T) {
	f := serve(t)
	desc, m := f.image(t, "amd64", layerTar(t, 100_000), layerTar(t, 20))
	s := &shelf{f, t.TempDir()}
	for d, b := range f.blobs {
		check(t, os.WriteFile(filepath.Join(s.dir, d.Encoded()), b, 0o444))
	}
	f.Close() // no byte comes over the network
	const host = "slipway.test:7071"
	var mu sync.Mutex
	var opened []string
	r := resolver(base.Options{
		IsLocal: func(h string) bool { return h == host },
		Local: func(_, name string) base.Repository {
			mu.Lock()
			defer mu.Unlock()
			opened = append(opened, name)
			return s
		},
		Denied:  func(err error) bool { return errors.Is(err, errNoSuch) },
		Mirrors: map[string][]*url.URL{"docker.io": {{Scheme: "http", Host: host}}},
	})
	ctx, c := cache(t)
	img, err := r.Resolve(ctx, host+"/team/app:v1", amd64, nil)
	check(t, err)
	var told atomic.Int32
	layers, err := r.Pull(ctx, c, img, base.PullOptions{Progress: func(_ digest.Digest, n, total int64, done bool) {
		if done && n == total {
			told.Add(1)
		}
	}})
	if err != nil || len(layers) != 2 || img.Digest != desc.Digest || img.Name() != host+"/team/app@"+desc.Digest.String() || told.Load() != 2 {
		t.Errorf("%d layers of %s, %d told, %v", len(layers), img.Name(), told.Load(), err)
	}
	if img, err := r.Resolve(ctx, "debian:v1", amd64, nil); err != nil || img.Digest != desc.Digest {
		t.Errorf("as a mirror: %v", err)
	}
	if strings.Join(opened, " ") != "team/app library/debian" {
		t.Errorf("opened %q", opened)
	}
	if _, err := r.Resolve(ctx, host+"/team/app:none", amd64, nil); !errors.Is(err, base.ErrNotFound) {
		t.Errorf("no such tag: %v", err)
	}
	// What the registry has lost, or lies about, is named.
	for name, harm := range map[string]func(file string) error{
		"gone": os.Remove,
		"changed": func(file string) error {
			b, err := os.ReadFile(file)
			if err == nil {
				b[len(b)-9] ^= 1
				err = errors.Join(os.Remove(file), os.WriteFile(file, b, 0o444))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(s.dir, m.Layers[0].Digest.Encoded())
			check(t, harm(file))
			defer os.WriteFile(file, f.blobs[m.Layers[0].Digest], 0o444)
			want := map[string]error{"gone": base.ErrNotFound, "changed": base.ErrInvalid}[name]
			ctx, c := cache(t)
			if _, err := r.Pull(ctx, c, img, base.PullOptions{}); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

// The lowest layer of an image that a step will run on is unpacked while it
// arrives; one whose content is another than promised leaves nothing.
func TestPullUnpacks(t *testing.T) {
	ctx, c := cache(t)
	f := serve(t)
	f.image(t, "amd64", layerTar(t, 5000), layerTar(t, 10))
	r := resolver(base.Options{})
	img, err := r.Resolve(ctx, f.ref(), amd64, nil)
	check(t, err)
	for _, unpack := range []bool{false, true} {
		ctx, c := cache(t)
		layers, err := r.Pull(ctx, c, img, base.PullOptions{Unpack: unpack})
		check(t, err)
		if got := c.SnapshotExists(ctx, layer.ChainID(layers[:1])); got != unpack {
			t.Errorf("Unpack %t: snapshot %t", unpack, got)
		}
		if !unpack {
			continue
		}
		dirs, err := c.View(ctx, layer.ChainID(layers[:1]))
		check(t, err)
		if st, err := os.Stat(filepath.Join(dirs[0], "f")); err != nil || st.Size() != 5000 {
			t.Errorf("unpacked file: %v, %v", st, err)
		}
	}
	wrong := *img
	wrong.Config.RootFS.DiffIDs = slices.Clone(img.Config.RootFS.DiffIDs)
	wrong.Config.RootFS.DiffIDs[0] = digest.FromString("other")
	if _, err := r.Pull(ctx, c, &wrong, base.PullOptions{Unpack: true}); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("another diff ID: %v", err)
	}
	for _, id := range []digest.Digest{wrong.Config.RootFS.DiffIDs[0], img.Config.RootFS.DiffIDs[0]} {
		if c.SnapshotExists(ctx, layer.ChainID([]*layer.Layer{{DiffID: id}})) {
			t.Errorf("a snapshot is left for %s", id)
		}
	}
}
