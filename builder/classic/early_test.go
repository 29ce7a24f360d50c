package classic_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// serveBase serves an image of two layers at a registry that speaks HTTP. Hold
// is called with the digest of each blob before it is given away.
func (w *world) serveBase(hold func(digest string)) (ref string, layers []string) {
	w.tb.Helper()
	img, err := random.Image(64<<10, 2)
	w.must(err)
	cfg, err := img.ConfigFile()
	w.must(err)
	cfg.OS, cfg.Architecture = "linux", goarch
	img, err = mutate.ConfigFile(img, cfg)
	w.must(err)
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, blob, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet && slices.Contains(layers, blob) {
			hold(blob)
		}
		store.ServeHTTP(rw, r)
	}))
	w.tb.Cleanup(srv.Close)
	at, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/fid/early:1")
	w.must(err)
	w.must(remote.Write(at, img))
	m, err := img.Manifest()
	w.must(err)
	for _, l := range m.Layers {
		layers = append(layers, l.Digest.String())
	}
	return at.Name(), layers
}

// The registry is asked for base layers before a byte of them has come. The
// image has them in their order, however they came.
func TestBaseLayersGoOutEarly(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var mu sync.Mutex
	asked := map[string]chan struct{}{}
	of := func(d string) chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		if asked[d] == nil {
			asked[d] = make(chan struct{})
		}
		return asked[d]
	}
	ref, layers := w.serveBase(func(d string) {
		select {
		case <-of(d):
		case <-ctx.Done():
			t.Errorf("the push does not know of %s", d)
		}
	})
	w.onEmit = func(e *slipwayv1.Event) {
		if p := e.GetPush(); p.GetDigest() != "" {
			c := of(p.Digest)
			select {
			case <-c:
			default:
				close(c)
			}
		}
	}
	w.opts.Bases = base.NewResolver(base.Options{})
	res := w.build(ctx, request{dockerfile: "FROM " + ref + "\nLABEL a=b\n"})
	if res.Error != nil {
		t.Fatal(res.Error)
	}
	for i, l := range res.Layers {
		if len(res.Layers) != len(layers) || l.Digest != layers[i] || l.Pushed != slipwayv1.PushOutcome_PUSH_OUTCOME_LINKED {
			t.Errorf("layer %d: %v", i, l)
		}
	}
}

// A base image that turns out to be too large leaves no image, though its
// layers may have gone out.
func TestBaseLayersGoOutButNoImage(t *testing.T) {
	w := newWorld(t)
	w.max = 60 << 10
	w.opts.Bases = base.NewResolver(base.Options{})
	ref, _ := w.serveBase(func(string) {})
	res := w.build(t.Context(), request{dockerfile: "FROM " + ref + "\nLABEL a=b\n"})
	if res.GetError().GetCode() != failure.TooLarge {
		t.Fatalf("result %v", res.Result)
	}
	repo, err := w.registry.Repository("fid/case")
	w.must(err)
	if desc, _, err := repo.Manifest(t.Context(), "latest"); err == nil {
		t.Errorf("an image is there: %s", desc.Digest)
	}
}
