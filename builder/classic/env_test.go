package classic_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/classic"
	"github.com/slipwayhq/slipway/builder/classic/casetest"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/registry"
)

// needMeans skips what cannot be tried here; in CI that is a failure.
func needMeans(tb testing.TB) {
	tb.Helper()
	lack := tb.Skipf
	if os.Getenv("CI") == "true" {
		lack = tb.Fatalf
	}
	if os.Getuid() != 0 {
		lack("needs root: runs containers and mounts overlays")
	}
	for _, program := range []string{"runc", "busybox", "bash", "tar", "python3", "git"} {
		if _, err := exec.LookPath(program); err != nil {
			lack("needs %s: %v", program, err)
		}
	}
}

// registryHost is a name that only the resolver under test knows.
const registryHost = "registry.test"

// A world is all that a build needs, real but for the client.
type world struct {
	tb       testing.TB
	root     string
	cache    *layercache.Store
	registry *registry.Registry
	runner   *sandbox.Runner
	scratch  string
	opts     classic.Options
	max      int64
	onEmit   func(*slipwayv1.Event) // hears what builds say; may be nil
	history  []*slipwayv1.Result    // of the app; for forecasts
	log      *bytes.Buffer

	onNeed  func(path string) // hears what is asked for; may be nil
	secrets map[string]string
	agent   func(id string) (io.ReadWriteCloser, error)
}

type anyone struct{}

func (anyone) Authenticate(context.Context, string, string) (string, error) { return "anyone", nil }

func (anyone) Authorize(context.Context, string, string, ...string) error { return nil }

func (anyone) Allowed(_ context.Context, _, _ string, do ...string) ([]string, error) { return do, nil }

// newWorld opens a world with the base image of the cases. It is closed, and
// found clean, at the end of the test.
func newWorld(tb testing.TB) *world {
	tb.Helper()
	needMeans(tb)
	w := &world{tb: tb, root: tb.TempDir(), log: &bytes.Buffer{}}
	w.scratch = filepath.Join(w.root, "views")
	w.must(os.Mkdir(w.scratch, 0o700))
	w.must(os.Mkdir(filepath.Join(w.root, "tmp"), 0o700))
	var err error
	w.cache, err = layercache.Open(tb.Context(), layercache.Options{Root: filepath.Join(w.root, "cache"), MinFree: -1})
	w.must(err)
	w.registry, err = registry.Open(tb.Context(), registry.Options{Root: filepath.Join(w.root, "registry"), Host: registryHost, Access: anyone{}})
	w.must(err)
	w.runner, err = sandbox.New(tb.Context(), sandbox.Options{Root: filepath.Join(w.root, "sandbox"), Network: sandbox.None})
	w.must(err)
	w.opts = w.options()
	tb.Cleanup(w.close)
	w.pushBase()
	return w
}

// on returns the world for a subtest, which fails by itself.
func (w *world) on(t *testing.T) *world {
	own := *w
	own.tb = t
	return &own
}

func (w *world) options() classic.Options {
	mirror := &url.URL{Scheme: "http", Host: registryHost}
	guard := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	git, err := gitfetch.New(gitfetch.Options{Root: filepath.Join(w.root, "git"), Dial: classic.NewDial(guard)})
	w.must(err)
	return classic.Options{
		Bases: base.NewResolver(base.Options{
			Mirrors: map[string][]*url.URL{"docker.io": {mirror}},
			IsLocal: func(host string) bool { return host == registryHost || host == "docker.io" },
			Local: func(_, name string) base.Repository {
				repo, err := w.registry.Repository(name)
				w.must(err)
				return repo
			},
			Denied: func(err error) bool { return errors.Is(err, registry.ErrNotFound) },
		}),
		Unpacker: &layer.Unpacker{}, Runner: w.runner, Network: sandbox.None, Scratch: w.scratch,
		Fetch: classic.NewFetch(guard), Git: git,
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
}

func (w *world) must(err error) {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) close() {
	if err := errors.Join(w.runner.Close(context.Background()), w.registry.Close(), w.cache.Close()); err != nil {
		w.tb.Errorf("close: %v", err)
	}
	for _, dir := range []string{w.scratch, filepath.Join(w.root, "git")} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			w.tb.Errorf("%s holds %v (%v) after the end", dir, left, err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), w.root) {
		w.tb.Errorf("mounted below %s after the end (%v)", w.root, err)
	}
	if strings.Contains(w.log.String(), "unmount") {
		w.tb.Errorf("log: %s", w.log)
	}
}

// A request is what a test builds. Zero fields are a client's defaults.
type request struct {
	org        string // "" is "acme"
	dir        string // the context; "" is an empty one
	dockerfile string // text
	start      *slipwayv1.Start
}

// build runs one build and pushes to the repository fid/case, tag latest,
// unless start says otherwise.
func (w *world) build(ctx context.Context, r request) *outcome {
	w.tb.Helper()
	if r.org == "" {
		r.org = "acme"
	}
	if r.dir == "" {
		r.dir = w.tb.TempDir()
	}
	start := r.start
	if start == nil {
		start = &slipwayv1.Start{}
	}
	start.App, start.Push = "case", true
	if len(start.Targets) == 0 {
		start.Targets = []string{registryHost + "/fid/case:latest"}
	}
	if start.Dockerfile == nil {
		start.Dockerfile = &slipwayv1.Dockerfile{Name: "Dockerfile", Content: []byte(r.dockerfile)}
	}
	s := newSession(w, r.org, r.dir)
	defer s.close()
	b := builder.New(builder.Options{
		Cache: w.cache, Engine: pushd.NewEngine(nil), Destination: w.destination, MaxSize: w.max, Log: w.opts.Log,
		Pipelines: map[slipwayv1.Pipeline]builder.Pipeline{slipwayv1.Pipeline_PIPELINE_CLASSIC: classic.New(w.opts)},
		History:   func(context.Context, string, string) ([]*slipwayv1.Result, error) { return w.history, nil },
	})
	result := b.Build(ctx, builder.Request{ID: "build-" + digest.FromString(time.Now().String()).Encoded()[:20], Org: r.org, Start: start}, s)
	return &outcome{world: w, Result: result, events: s.events, needed: s.needed, repository: start.Targets[0]}
}

func (w *world) destination(_ context.Context, p builder.Place) (builder.Remote, error) {
	repo, err := w.registry.Repository(strings.TrimPrefix(p.Name, registryHost+"/"))
	if err != nil {
		return builder.Remote{}, err
	}
	return builder.Remote{Target: pushd.NewLocal(p.Name, repo, filepath.Join(w.root, "tmp")), Name: p.Name}, nil
}

// pushBase puts fid/base:1 into the registry, as docker import makes it.
func (w *world) pushBase() {
	raw, plain := casetest.Base(w.tb, casesDir)
	var config dockerspec.DockerOCIImage
	w.must(json.Unmarshal(raw, &config))
	w.push("fid/base", "1", config, plain)
}

// push puts an image of uncompressed layers into the registry.
func (w *world) push(name, tag string, config dockerspec.DockerOCIImage, layers ...[]byte) {
	w.tb.Helper()
	repo, err := w.registry.Repository(name)
	w.must(err)
	ctx := w.tb.Context()
	p := pushd.NewEngine(nil).Push(ctx, pushd.NewLocal(name, repo, filepath.Join(w.root, "tmp")), nil)
	defer p.Abort(nil)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	add := func(mediaType string, data []byte) ocispec.Descriptor {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		p.Add(pushd.Blob{Descriptor: desc, Source: pushd.Bytes(data)})
		return desc
	}
	config.RootFS.Type = "layers"
	for _, plain := range layers {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, err := z.Write(plain)
		w.must(errors.Join(err, z.Close()))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		m.Layers = append(m.Layers, add(ocispec.MediaTypeImageLayerGzip, packed.Bytes()))
	}
	raw, err := json.Marshal(config)
	w.must(err)
	m.Config = add(ocispec.MediaTypeImageConfig, raw)
	raw, err = json.Marshal(m)
	w.must(err)
	w.must(p.Manifest(ctx, ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, tag))
}
