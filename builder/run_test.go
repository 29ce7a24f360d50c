package builder_test

import (
	"archive/tar"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clog "github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	gcr "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

type session struct{}

func (session) Manifest(context.Context) (*buildctx.Manifest, error) {
	return &buildctx.Manifest{}, nil
}
func (session) Need(context.Context, ...[]int) error { return nil }
func (session) Credentials(context.Context, string) (authn.AuthConfig, error) {
	return authn.AuthConfig{}, nil
}

func (session) Secret(context.Context, string) ([]byte, bool, error) { return nil, false, nil }

func (session) Agent(context.Context, string) (io.ReadWriteCloser, error) { return nil, io.EOF }
func (session) Context() *slipwayv1.ContextProgress                       { return &slipwayv1.ContextProgress{} }
func (session) Emit(*slipwayv1.Event)                                     {}

// A script is a pipeline and its plan.
type script struct {
	job   *builder.Job
	wait  bool                                      // for the end of the build, after the first layer
	first func(context.Context, *builder.Job) error // may be nil
}

func (s *script) Plan(_ context.Context, job *builder.Job) (builder.Plan, error) {
	return &script{job, s.wait, s.first}, nil
}

func (*script) Detail() string { return "" }

func (*script) Writes() int64 { return 0 }

func (s *script) Build(ctx context.Context) (*builder.Image, error) {
	img := &builder.Image{}
	img.Config.Platform = s.job.Platform
	if s.first != nil {
		if err := s.first(ctx, s.job); err != nil {
			return nil, err
		}
	}
	l, err := s.job.Maker.Make(ctx, layer.Spec{Ledger: limits.NewLedger(0), Started: s.job.Layer,
		Write: func(_ context.Context, w *layer.Writer) error {
			return w.Entry(&tar.Header{Name: "f", Mode: 0o644, Size: 4}, strings.NewReader("text"))
		}})
	if err != nil {
		return nil, err
	}
	if s.wait {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	img.Layers = []*layer.Layer{l}
	return img, nil
}

// remote is a registry that may refuse uploads; it counts its manifests.
func remote(t *testing.T, refuse int) (*httptest.Server, *atomic.Int32) {
	var manifests, posts atomic.Int32
	real := registry.New()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && posts.Add(1) > 1 && refuse != 0 { // the first is the probe
			w.WriteHeader(refuse)
			return
		}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			manifests.Add(1)
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s, &manifests
}

func run(t *testing.T, s *script, targets ...string) (*slipwayv1.Result, *layercache.Store) {
	t.Helper()
	c := openCache(t, t.TempDir())
	return runOn(t, c, s, session{}, targets...), c
}

func openCache(t *testing.T, dir string) *layercache.Store {
	t.Helper()
	c, err := layercache.Open(t.Context(), layercache.Options{Root: filepath.Join(dir, "c"), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func runOn(t *testing.T, c *layercache.Store, s *script, client builder.Session, targets ...string) *slipwayv1.Result {
	t.Helper()
	b := newBuilder(c, map[slipwayv1.Pipeline]builder.Pipeline{slipwayv1.Pipeline_PIPELINE_CLASSIC: s})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return b.Build(ctx, builder.Request{ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Org: "acme", Start: &slipwayv1.Start{App: "shop", Push: len(targets) > 0, Targets: targets}}, client)
}

func newBuilder(c *layercache.Store, pipelines map[slipwayv1.Pipeline]builder.Pipeline) *builder.Builder {
	return builder.New(builder.Options{Cache: c, Engine: pushd.NewEngine(nil), Pipelines: pipelines,
		Destination: func(_ context.Context, p builder.Place) (builder.Remote, error) {
			target, err := pushd.NewHTTP(p.Name, &pushd.HTTPOptions{Auth: p.Auth, Insecure: true})
			if err != nil {
				return builder.Remote{}, err
			}
			return builder.Remote{Target: target, Name: p.Name}, nil
		}})
}

func host(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") + "/shop" }

func TestPushToForeignRegistries(t *testing.T) {
	a, am := remote(t, 0)
	b, bm := remote(t, 0)
	res, c := run(t, &script{}, host(a)+":v1", host(b))
	if res.Error != nil || res.Image != host(a)+":v1" || am.Load() == 0 || bm.Load() == 0 || res.Layers[0].Pushed != slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED {
		t.Errorf("result %v", res)
	}
	last, err := c.Org("acme").LastBuild(t.Context(), "shop")
	if err != nil || len(last.Layers) != 1 {
		t.Errorf("last build %v, %v", last, err)
	}
	// What a build used is held no longer than the build.
	if _, err := c.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(t.Context(), "acme", ""); err != nil || u.Bytes != 0 {
		t.Errorf("%d bytes are left after a prune, %v", u.Bytes, err)
	}
}

// A registry that refuses a layer stops the build; no other gets a manifest.
func TestRefusedPushStopsTheBuild(t *testing.T) {
	for _, wait := range []bool{true, false} {
		good, gm := remote(t, 0)
		bad, bm := remote(t, http.StatusForbidden)
		res, _ := run(t, &script{wait: wait}, host(good), host(bad))
		if res.GetError().GetCode() != failure.RegistryDenied || res.Error.Phase != failure.Push || gm.Load()+bm.Load() != 0 || res.Image != "" {
			t.Errorf("waiting %v: result %v, %d manifests", wait, res, gm.Load()+bm.Load())
		}
	}
}

func TestTargetsThatAreNone(t *testing.T) {
	for _, target := range []string{"reg.test/UPPER", "reg.test/a:b c", "reg.test/a@sha256:123"} {
		if res, _ := run(t, &script{}, target); res.GetError().GetCode() != failure.InvalidArgument {
			t.Errorf("%s: %v", target, res.GetError())
		}
	}
}

// nothing is a pipeline whose builds leave no image.
type nothing struct{ script }

func (n *nothing) Plan(context.Context, *builder.Job) (builder.Plan, error) { return n, nil }

func (*nothing) Build(context.Context) (*builder.Image, error) { return nil, nil }

func TestBuildWith(t *testing.T) {
	store := openCache(t, t.TempDir())
	b := newBuilder(store, nil)
	build := func(p builder.Pipeline, byDigest bool, targets ...string) *slipwayv1.Result {
		return b.BuildWith(t.Context(), builder.Request{ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Org: "acme", ByDigest: byDigest,
			Start: &slipwayv1.Start{App: "shop", Push: true, Targets: targets}}, session{}, p)
	}
	reg, manifests := remote(t, 0)
	if res := build(&nothing{}, false, host(reg)); res.Error != nil || res.Digest != "" || manifests.Load() != 0 {
		t.Errorf("no image: %v", res)
	}
	if _, err := store.Org("acme").LastBuild(t.Context(), "shop"); err == nil {
		t.Error("a build without an image is the app's last")
	}
	if res := build(&script{}, true, host(reg)); res.Error != nil || res.Image != host(reg) || manifests.Load() != 1 || len(tagsOf(t, reg)) != 0 {
		t.Errorf("by digest: %v, tags %v", res, tagsOf(t, reg))
	}
	if res := build(&script{}, false, host(reg)+":a", host(reg)+":b"); res.Error != nil || manifests.Load() != 4 || strings.Join(tagsOf(t, reg), " ") != "a b" {
		t.Errorf("two tags: %v, tags %v", res, tagsOf(t, reg))
	}
	if res := b.Build(t.Context(), builder.Request{Org: "acme", Start: &slipwayv1.Start{App: "shop"}}, session{}); res.GetError().GetCode() != failure.NotSupported {
		t.Errorf("a pipeline that the daemon lacks: %v", res)
	}
}

func tagsOf(t *testing.T, s *httptest.Server) []string {
	t.Helper()
	repo, err := name.NewRepository(host(s), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := gcr.List(repo)
	if err != nil && !strings.Contains(err.Error(), "NAME_UNKNOWN") {
		t.Fatal(err)
	}
	return slices.DeleteFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "sha256:") })
}
