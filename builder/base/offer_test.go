package base_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/pushd"
)

// A goal is a registry that images go to. It counts the bytes of bodies.
type goal struct {
	*httptest.Server
	got   atomic.Int64
	first chan struct{} // closed when a byte has come
}

func newGoal(t *testing.T) *goal {
	g := &goal{first: make(chan struct{})}
	store := registry.New()
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = counting{r.Body, g}
		store.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

type counting struct {
	io.ReadCloser
	g *goal
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 && c.g.got.Add(int64(n)) == int64(n) {
		close(c.g.first)
	}
	return n, err
}

// push opens a push to the goal and returns what offers layers to it.
func (g *goal) push(t *testing.T) (offer func(*layer.Pending), uploads *[]*pushd.Upload) {
	t.Helper()
	target, err := pushd.NewHTTP(strings.TrimPrefix(g.URL, "http://")+"/shop", nil)
	check(t, err)
	p := pushd.NewEngine(nil).Push(t.Context(), target, nil)
	t.Cleanup(func() { p.Abort(nil) })
	uploads = new([]*pushd.Upload)
	return func(l *layer.Pending) {
		*uploads = append(*uploads, p.Add(pushd.Blob{Descriptor: l.Descriptor, Source: l.Blob}))
	}, uploads
}

// noisyTar is a layer that no compressor makes smaller.
func noisyTar(t *testing.T, seed byte) []byte {
	t.Helper()
	data := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(len(data))}))
	_, err := w.Write(data)
	check(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A push has a layer's bytes while they still come from the base's registry,
// and a whole layer before the next one has come. A connection that breaks on
// the way does not show.
func TestPullOffersWhatComes(t *testing.T) {
	f, g, ctx := serve(t), newGoal(t), within(t)
	_, m := f.image(t, "amd64", noisyTar(t, 1), noisyTar(t, 2))
	offer, uploads := g.push(t)
	var tries atomic.Int32
	f.wrap = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, m.Layers[1].Digest.String()) {
			if _, _, err := (*uploads)[0].Wait(ctx); err != nil {
				t.Errorf("the first layer, before the second has come: %v", err)
			}
		}
		if !strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) || tries.Add(1) > 1 {
			return false
		}
		_, _ = w.Write(f.blobs[m.Layers[0].Digest][:1<<20])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-g.first:
		case <-ctx.Done():
			t.Error("no byte went on while the layer came")
		}
		panic(http.ErrAbortHandler)
	}
	layers, err := pull(t, f, base.Options{Pause: time.Millisecond}, base.PullOptions{Offer: offer})
	check(t, err)
	if len(*uploads) != 2 || tries.Load() != 2 {
		t.Fatalf("%d layers offered, %d tries", len(*uploads), tries.Load())
	}
	for i, u := range *uploads {
		if desc, outcome, err := u.Wait(ctx); err != nil || outcome != pushd.Uploaded || desc.Digest != layers[i].Descriptor.Digest || desc.Digest != m.Layers[i].Digest {
			t.Errorf("layer %d: %s %s, %v", i, desc.Digest, outcome, err)
		}
	}
}

// Layers of the cache need no pull; those that are wrong do not go out whole.
func TestPullOffersNothingThatIsWrong(t *testing.T) {
	ctx, c := cache(t)
	f, g := serve(t), newGoal(t)
	good := noisyTar(t, 1)
	f.image(t, "amd64", good)
	r := resolver(base.Options{})
	img, err := r.Resolve(ctx, f.ref(), amd64, nil)
	check(t, err)
	_, err = r.Pull(ctx, c, img, base.PullOptions{})
	check(t, err)
	one := img.Manifest.Layers[0]

	bad := noisyTar(t, 2)
	m := f.packedImage(t, packed{f.blobs[one.Digest], ocispec.MediaTypeImageLayerGzip, digest.FromBytes(good)},
		packed{bad, ocispec.MediaTypeImageLayer, digest.FromString("other")})
	if img, err = r.Resolve(ctx, f.ref(), amd64, nil); err != nil {
		t.Fatal(err)
	}
	offer, uploads := g.push(t)
	if _, err := r.Pull(ctx, c, img, base.PullOptions{Offer: offer}); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("pull: %v, want %v", err, base.ErrInvalid)
	}
	if _, _, err := (*uploads)[1].Wait(within(t)); !errors.Is(err, base.ErrInvalid) {
		t.Errorf("push: %v, want %v", err, base.ErrInvalid)
	}
	resp, err := http.Head(g.URL + "/v2/shop/blobs/" + m.Layers[1].Digest.String())
	check(t, err)
	if resp.Body.Close(); resp.StatusCode != http.StatusNotFound {
		t.Errorf("the registry has the wrong layer: %s", resp.Status)
	}
}
