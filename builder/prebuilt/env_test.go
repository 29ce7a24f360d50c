package prebuilt_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clog "github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/prebuilt"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/registry"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A hub is a registry that tests may break.
type hub struct {
	t    *testing.T
	reg  *registry.Registry
	http *httptest.Server
	user string // that it wants; "" lets everybody in

	mu   sync.Mutex
	log  []string                                          // requests: method and path, with the query's keys
	wrap func(w http.ResponseWriter, r *http.Request) bool // true: answered
	sent int64                                             // bytes of blobs
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{t: t}
	reg, err := registry.Open(t.Context(), registry.Options{Root: t.TempDir(), Access: h})
	check(t, err)
	h.reg = reg
	h.http = httptest.NewUnstartedServer(h)
	h.http.Config.ErrorLog = log.New(io.Discard, "", 0) // handlers break on purpose
	h.http.Start()
	t.Cleanup(func() {
		h.http.Close()
		check(t, reg.Close())
	})
	return h
}

const password = "pa:ss word"

// Authenticate implements registry.Access, with Authorize and Allowed.
func (h *hub) Authenticate(_ context.Context, user, secret string) (string, error) {
	if h.user != "" && (user != h.user || secret != password) {
		return "", registry.ErrUnauthorized
	}
	return "one", nil
}

func (h *hub) Authorize(context.Context, string, string, ...string) error { return nil }

func (h *hub) Allowed(_ context.Context, _, _ string, actions ...string) ([]string, error) {
	return actions, nil
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	line := r.Method + " " + r.URL.Path
	if r.Header.Get("Range") != "" && r.Method == http.MethodGet {
		line += " " + r.Header.Get("Range")
	}
	h.mu.Lock()
	h.log = append(h.log, line)
	wrap := h.wrap
	h.mu.Unlock()
	if r.Header.Get("Authorization") == "" && h.user == "" {
		r.SetBasicAuth("nobody", "x")
	}
	if wrap != nil && wrap(w, r) {
		return
	}
	h.serve(w, r)
}

// serve answers as a registry that is whole.
func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	h.reg.Handler().ServeHTTP(&counting{ResponseWriter: w, hub: h, blob: r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")}, r)
}

type counting struct {
	http.ResponseWriter
	hub  *hub
	blob bool
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if c.blob {
		c.hub.mu.Lock()
		c.hub.sent += int64(n)
		c.hub.mu.Unlock()
	}
	return n, err
}

func (h *hub) host() string { return strings.TrimPrefix(h.http.URL, "http://") }

func (h *hub) ref(path string) string { return h.host() + "/" + path }

// breaks sets what answers first.
func (h *hub) breaks(wrap func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrap = wrap
}

// requests returns those that begin with method and hold part, and forgets
// all.
func (h *hub) requests(method, part string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.log), func(l string) bool {
		return !strings.HasPrefix(l, method) || !strings.Contains(l, part)
	})
}

func (h *hub) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log, h.sent = nil, 0
}

func (h *hub) bytesSent() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent
}

func (h *hub) repository(path string) *registry.Repository {
	h.t.Helper()
	repo, err := h.reg.Repository(path)
	check(h.t, err)
	return repo
}

// blob puts bytes into a repository.
func (h *hub) blob(path, mediaType string, raw []byte) ocispec.Descriptor {
	h.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	file := filepath.Join(h.t.TempDir(), "blob")
	check(h.t, os.WriteFile(file, raw, 0o600))
	check(h.t, h.repository(path).Link(h.t.Context(), d, file))
	return d
}

// put puts a manifest or an index into a repository.
func (h *hub) put(path, mediaType string, v any, tags ...string) ocispec.Descriptor {
	h.t.Helper()
	raw, err := json.MarshalIndent(v, "", "   ") // as nobody else would write it
	check(h.t, err)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	check(h.t, h.repository(path).PutManifest(h.t.Context(), d, raw, tags...))
	return d
}

func (h *hub) has(path string, d digest.Digest) bool {
	_, _, err := h.repository(path).Blob(h.t.Context(), d)
	return err == nil
}

// A blob is a layer in some compression.
type blob struct {
	mediaType string
	raw       []byte
	diffID    digest.Digest
}

func tarOf(t testing.TB, files map[string]int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	noise := rand.NewChaCha8([32]byte{byte(len(files))})
	names := []string{}
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		check(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(files[name])}))
		data := make([]byte, files[name])
		_, _ = noise.Read(data)
		_, err := w.Write(data)
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

func plain(raw []byte) blob {
	return blob{ocispec.MediaTypeImageLayer, raw, digest.FromBytes(raw)}
}

func gzipped(t testing.TB, raw []byte) blob {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(raw)
	check(t, errors.Join(err, w.Close()))
	return blob{"application/vnd.docker.image.rootfs.diff.tar.gzip", b.Bytes(), digest.FromBytes(raw)}
}

func zstded(t testing.TB, raw []byte) blob {
	w, err := zstd.NewWriter(nil)
	check(t, err)
	return blob{ocispec.MediaTypeImageLayerZstd, w.EncodeAll(raw, nil), digest.FromBytes(raw)}
}

// noisy is a gzip layer with one file of n bytes that do not compress.
func noisy(t testing.TB, name string, n int) blob {
	return gzipped(t, tarOf(t, map[string]int{name: n}))
}

func configOf(arch string, layers ...blob) []byte {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	for n, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		c.History = append(c.History, ocispec.History{CreatedBy: fmt.Sprintf("COPY %d", n)}, ocispec.History{CreatedBy: "ENV x", EmptyLayer: true})
	}
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return raw
}

// image puts an image into a repository.
func (h *hub) image(path, arch, tag string, layers ...blob) ocispec.Descriptor {
	h.t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.Config = h.blob(path, ocispec.MediaTypeImageConfig, configOf(arch, layers...))
	for _, l := range layers {
		m.Layers = append(m.Layers, h.blob(path, l.mediaType, l.raw))
	}
	var tags []string
	if tag != "" {
		tags = []string{tag}
	}
	d := h.put(path, ocispec.MediaTypeImageManifest, m, tags...)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

// A session answers for a client.
type session struct {
	t     *testing.T
	cache *layercache.Cache
	auth  authn.AuthConfig
	files map[digest.Digest][]byte // that it has, by the digest it says they have

	mu     sync.Mutex
	asked  []string
	needs  []int           // how many each call asked for
	needed []digest.Digest // that travelled
	events []*slipwayv1.Event
}

func (s *session) Manifest(context.Context) (*buildctx.Manifest, error) {
	m := &buildctx.Manifest{}
	for d, raw := range s.files {
		e := buildctx.Entry{Path: d.String(), Type: buildctx.TypeFile, Size: int64(len(raw))}
		sum, err := hex.DecodeString(d.Encoded())
		check(s.t, err)
		e.Digest = [32]byte(sum)
		m.Entries = append(m.Entries, e)
	}
	slices.SortFunc(m.Entries, func(a, b buildctx.Entry) int { return strings.Compare(a.Path, b.Path) })
	return m, nil
}

func (s *session) Need(ctx context.Context, groups ...[]int) error {
	m, err := s.Manifest(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.needs = append(s.needs, len(slices.Concat(groups...)))
	s.mu.Unlock()
	x := s.cache.Contents()
	for _, i := range slices.Concat(groups...) {
		d := m.Entries[i].Content()
		missing, err := x.Missing(ctx, []digest.Digest{d})
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			continue
		}
		w := x.Writer(ctx)
		if err := w.Add(d, m.Entries[i].Size, bytes.NewReader(s.files[d])); err != nil {
			return &failure.Error{Code: failure.ContextChanged, Message: err.Error(), Err: err} // as the server has it
		}
		if err := w.Flush(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		s.needed = append(s.needed, d)
		s.mu.Unlock()
	}
	return nil
}

func (s *session) Credentials(_ context.Context, host string) (authn.AuthConfig, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, host)
	return s.auth, nil
}

func (*session) Secret(context.Context, string) ([]byte, bool, error) { return nil, false, nil }

func (*session) Agent(context.Context, string) (io.ReadWriteCloser, error) { return nil, io.EOF }

func (s *session) Context() *slipwayv1.ContextProgress { return &slipwayv1.ContextProgress{} }

func (s *session) Emit(e *slipwayv1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// A daemon builds, with a registry of its own.
type daemon struct {
	t       *testing.T
	own     *hub
	cache   *layercache.Store
	root    string // of the cache
	builder *builder.Builder
	max     int64
	stall   time.Duration
	session *session // of the last deploy
}

const ownHost = "own.test"

func newDaemon(t *testing.T, max int64) *daemon {
	t.Helper()
	d := &daemon{t: t, own: newHub(t), root: t.TempDir(), max: max, stall: 2 * time.Second}
	store, err := layercache.Open(t.Context(), layercache.Options{Root: d.root, MinFree: -1})
	check(t, err)
	t.Cleanup(func() { check(t, store.Close()) })
	d.cache = store
	d.restart()
	return d
}

// restart forgets what is only in memory.
func (d *daemon) restart() {
	bases := base.NewResolver(base.Options{
		Pause: time.Nanosecond, IsLocal: func(host string) bool { return host == ownHost },
		Local:  func(_, name string) base.Repository { return d.own.repository(name) },
		Denied: func(err error) bool { return errors.Is(err, registry.ErrNotFound) },
	})
	tmp := d.t.TempDir()
	d.builder = builder.New(builder.Options{
		Cache: d.cache, Engine: pushd.NewEngine(nil), MaxSize: d.max,
		Pipelines: map[slipwayv1.Pipeline]builder.Pipeline{
			slipwayv1.Pipeline_PIPELINE_PREBUILT: prebuilt.New(prebuilt.Options{Bases: bases, Pause: time.Nanosecond, Stall: d.stall}),
		},
		Destination: func(_ context.Context, p builder.Place) (builder.Remote, error) {
			name := p.Name
			if name == "" || strings.HasPrefix(name, ownHost+"/") {
				path := strings.TrimPrefix(name, ownHost+"/")
				if path == "" {
					path = p.App
				}
				repo, err := d.own.reg.Repository(path)
				return builder.Remote{Target: pushd.NewLocal(ownHost+"/"+path, repo, tmp), Name: ownHost + "/" + path}, err
			}
			t, err := pushd.NewHTTP(name, &pushd.HTTPOptions{Auth: p.Auth, Insecure: true, Chunk: 64 << 10, MaxChunk: 64 << 10})
			return builder.Remote{Target: t, Name: name}, err
		},
	})
}

// try deploys an image as app.
func (d *daemon) try(app, image string, change ...func(*slipwayv1.Start, *session)) *slipwayv1.Result {
	d.t.Helper()
	start := &slipwayv1.Start{App: app, Image: image, Push: true, Platform: "linux/amd64", Pipeline: slipwayv1.Pipeline_PIPELINE_PREBUILT}
	d.session = &session{t: d.t, cache: d.cache.Org("acme")}
	for _, f := range change {
		f(start, d.session)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 60*time.Second)
	defer cancel()
	return d.builder.Build(ctx, builder.Request{ID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Org: "acme", Start: start}, d.session)
}

func (d *daemon) deploy(app, image string, change ...func(*slipwayv1.Start, *session)) *slipwayv1.Result {
	d.t.Helper()
	res := d.try(app, image, change...)
	if res.Error != nil {
		d.t.Fatalf("deploy %s: %v", image, res.Error)
	}
	return res
}

func (d *daemon) fails(code, text string, image string, change ...func(*slipwayv1.Start, *session)) *slipwayv1.Result {
	d.t.Helper()
	res := d.try("shop", image, change...)
	if res.GetError().GetCode() != code || !strings.Contains(res.Error.Message, text) {
		d.t.Fatalf("deploy %s: %v; want %s with %q", image, res.Error, code, text)
	}
	if res.Image != "" || res.Digest != "" {
		d.t.Errorf("a failure names an image: %v", res)
	}
	return res
}

func to(targets ...string) func(*slipwayv1.Start, *session) {
	return func(s *slipwayv1.Start, _ *session) { s.Targets = targets }
}

func platform(p string) func(*slipwayv1.Start, *session) {
	return func(s *slipwayv1.Start, _ *session) { s.Platform = p }
}

// checkImage makes sure that a hub has the manifest, byte for byte, and all
// blobs that it names.
func checkImage(t *testing.T, from *hub, fromPath string, at *hub, path string, d digest.Digest) {
	t.Helper()
	_, want, err := from.repository(fromPath).Manifest(t.Context(), d.String())
	check(t, err)
	desc, got, err := at.repository(path).Manifest(t.Context(), d.String())
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("manifest %s: %v\n%s", d, err, got)
	}
	var m struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	check(t, json.Unmarshal(got, &m))
	for _, child := range m.Manifests {
		checkImage(t, from, fromPath, at, path, child.Digest)
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, b := range m.Layers {
		file, size, err := at.repository(path).Blob(t.Context(), b.Digest)
		check(t, err)
		raw, err := os.ReadFile(file)
		if err != nil || size != b.Size || digest.FromBytes(raw) != b.Digest {
			t.Errorf("blob %s of %s: %d bytes, %v", b.Digest, desc.Digest, size, err)
		}
	}
}

// stored sums the files of the daemon's cache, its database left out.
func (d *daemon) stored() int64 {
	d.t.Helper()
	var n int64
	check(d.t, filepath.WalkDir(d.root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(e.Name(), ".db") {
			return err
		}
		info, err := e.Info()
		n += info.Size()
		return err
	}))
	return n
}

func outcomes(res *slipwayv1.Result) string {
	var all []string
	for _, l := range res.Layers {
		all = append(all, strings.ToLower(strings.TrimPrefix(l.Pushed.String(), "PUSH_OUTCOME_")))
	}
	return strings.Join(all, " ")
}
