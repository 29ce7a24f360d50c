package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/registry"
)

const secret = "sa_secret"

// everything lets the one secret do everything.
var everything = decide(func(s, _ string, _ ...string) error {
	if s != secret {
		return fmt.Errorf("%w: token not recognized", registry.ErrUnauthorized)
	}
	return nil
})

// decide is an Access that knows a token's value from its ID.
type decide func(secret, repository string, actions ...string) error

func (f decide) Authenticate(_ context.Context, _, secret string) (string, error) {
	if err := f(secret, ""); err != nil && !errors.Is(err, registry.ErrDenied) {
		return "", err
	}
	return "id of " + secret, nil
}

func (f decide) Authorize(_ context.Context, id, repository string, actions ...string) error {
	return f(strings.TrimPrefix(id, "id of "), repository, actions...)
}

func (f decide) Allowed(ctx context.Context, id, repository string, actions ...string) (out []string, _ error) {
	for _, a := range actions {
		switch err := f.Authorize(ctx, id, repository, a); {
		case err == nil:
			out = append(out, a)
		case !errors.Is(err, registry.ErrDenied):
			return nil, err
		}
	}
	return out, nil
}

type served struct {
	*registry.Registry
	url  string
	host string
}

// open opens a registry and serves it until the test ends, or until stop.
func open(t *testing.T, o registry.Options) (s served, stop func()) {
	t.Helper()
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	if o.Access == nil {
		o.Access = everything
	}
	r, err := registry.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.Handler())
	stop = sync.OnceFunc(func() {
		srv.Close()
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(stop)
	return served{r, srv.URL, strings.TrimPrefix(srv.URL, "http://")}, stop
}

func (s served) ref(t *testing.T, r string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + r)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s served) repository(t *testing.T, name string) *registry.Repository {
	t.Helper()
	r, err := s.Repository(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// do sends a request with the secret, and returns the answer with its body.
func (s served) do(t *testing.T, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = s.url + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("x", secret)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

var basic = remote.WithAuth(&authn.Basic{Username: "anyone", Password: secret})

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(10_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pulled pulls an image over HTTP and checks every byte of it.
func pulled(t *testing.T, s served, ref string) v1.Image {
	t.Helper()
	img, err := remote.Image(s.ref(t, ref), basic)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t *testing.T, i interface{ Digest() (v1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

func TestPushAndPull(t *testing.T) {
	for _, tc := range []struct {
		name string
		auth authn.Authenticator
	}{
		{"basic", &authn.Basic{Username: "whoever", Password: secret}},
		{"bearer", &authn.Bearer{Token: secret}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := open(t, registry.Options{})
			img := randomImage(t)
			if err := remote.Write(s.ref(t, "acme/shop:v1"), img, remote.WithAuth(tc.auth)); err != nil {
				t.Fatal(err)
			}
			want := digestOf(t, img)
			if got := digestOf(t, pulled(t, s, "acme/shop:v1")); got != want {
				t.Errorf("pulled %s, want %s", got, want)
			}
			wantRaw, err := img.RawManifest()
			if err != nil {
				t.Fatal(err)
			}
			repo := s.repository(t, "acme/shop")
			for _, ref := range []string{"v1", want.String()} {
				desc, raw, err := repo.Manifest(t.Context(), ref)
				if err != nil {
					t.Fatal(err)
				}
				if desc.Digest != want || desc.Size != int64(len(raw)) || desc.MediaType != string(types.DockerManifestSchema2) || !bytes.Equal(raw, wantRaw) {
					t.Errorf("Manifest(%s) = %+v, %s", ref, desc, raw)
				}
			}
			tags, err := repo.Tags(t.Context())
			if err != nil || !slices.Equal(tags, []string{"v1"}) {
				t.Errorf("Tags = %v, %v", tags, err)
			}
			names, err := s.Repositories(t.Context())
			if err != nil || !slices.Equal(names, []string{"acme/shop"}) {
				t.Errorf("Repositories = %v, %v", names, err)
			}
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			path, size, err := repo.Blob(t.Context(), digestOf(t, layers[0]))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil || int64(len(b)) != size || digest.FromBytes(b) != digestOf(t, layers[0]) {
				t.Errorf("Blob: %d of %d bytes, %s, error %v", len(b), size, digest.FromBytes(b), err)
			}
		})
	}
}

func TestNotFound(t *testing.T) {
	s, _ := open(t, registry.Options{})
	if err := remote.Write(s.ref(t, "shop:v1"), randomImage(t), basic); err != nil {
		t.Fatal(err)
	}
	absent := digest.FromString("absent")
	shop, other := s.repository(t, "shop"), s.repository(t, "other")
	for _, tc := range []struct {
		name string
		call func() error
	}{
		{"tag", func() error { _, _, err := shop.Manifest(t.Context(), "v2"); return err }},
		{"manifest", func() error { _, _, err := shop.Manifest(t.Context(), absent.String()); return err }},
		{"blob", func() error { _, _, err := shop.Blob(t.Context(), absent); return err }},
		{"tag of no repository", func() error { _, _, err := other.Manifest(t.Context(), "v1"); return err }},
	} {
		if err := tc.call(); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: %v, want %v", tc.name, err, registry.ErrNotFound)
		}
	}
	if tags, err := other.Tags(t.Context()); err != nil || len(tags) != 0 {
		t.Errorf("tags of no repository: %q, %v", tags, err)
	}
	if names, err := s.Repositories(t.Context()); err != nil || !slices.Equal(names, []string{"shop"}) {
		t.Errorf("Repositories = %v, %v", names, err)
	}
}

func TestNames(t *testing.T) {
	s, _ := open(t, registry.Options{})
	for _, name := range []string{"", "/", "..", "a/../b", "/a", "a/", "A", "_a", "a//b", "a:b", "host:5000/a", "a@b", "a b", strings.Repeat("a", 300)} {
		if _, err := s.Repository(name); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Repository(%q): %v, want %v", name, err, registry.ErrInvalid)
		}
	}
	repo := s.repository(t, "acme/my-app.web_1")
	for _, ref := range []string{"", "..", "../../x", "a/b", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e", ":"} {
		if _, _, err := repo.Manifest(t.Context(), ref); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("Manifest(%q): %v, want %v", ref, err, registry.ErrInvalid)
		}
	}
	if _, _, err := repo.Blob(t.Context(), "sha256:../../../../etc/passwd"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("Blob: %v, want %v", err, registry.ErrInvalid)
	}
	if names, err := s.Repositories(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("Repositories of an empty registry = %v, %v", names, err)
	}
}

func TestOpenWantsAccess(t *testing.T) {
	if _, err := registry.Open(t.Context(), registry.Options{Root: t.TempDir()}); err == nil {
		t.Error("opened a registry that lets everybody in")
	}
	if _, err := registry.Open(t.Context(), registry.Options{Access: everything}); err == nil {
		t.Error("opened a registry without a root")
	}
}

func TestPutManifestRefuses(t *testing.T) {
	s, _ := open(t, registry.Options{})
	repo := s.repository(t, "shop")
	img := mutate.MediaType(randomImage(t), types.OCIManifestSchema1)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	good := describe(ocispec.MediaTypeImageManifest, raw)
	with := func(f func(*ocispec.Descriptor)) ocispec.Descriptor { d := good; f(&d); return d }
	huge := bytes.Repeat([]byte(" "), registry.MaxManifest+1)
	for _, tc := range []struct {
		name string
		desc ocispec.Descriptor
		raw  []byte
		tag  string
		want error
	}{
		{"digest", with(func(d *ocispec.Descriptor) { d.Digest = digest.FromString("x") }), raw, "v1", registry.ErrMismatch},
		{"size", with(func(d *ocispec.Descriptor) { d.Size++ }), raw, "v1", registry.ErrMismatch},
		{"too large", describe(good.MediaType, huge), huge, "v1", registry.ErrTooLarge},
		{"no media type", with(func(d *ocispec.Descriptor) { d.MediaType = "" }), raw, "v1", registry.ErrInvalid},
		{"media type", with(func(d *ocispec.Descriptor) { d.MediaType = "text/plain" }), raw, "v1", registry.ErrInvalid},
		{"not JSON", describe(good.MediaType, []byte("{")), []byte("{"), "v1", registry.ErrInvalid},
		{"tag", good, raw, "../v1", registry.ErrInvalid},
		{"nothing linked", good, raw, "v1", registry.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := repo.PutManifest(t.Context(), tc.desc, tc.raw, tc.tag); !errors.Is(err, tc.want) {
				t.Errorf("PutManifest: %v, want %v", err, tc.want)
			}
			if _, _, err := repo.Manifest(t.Context(), "v1"); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("then Manifest: %v, want %v", err, registry.ErrNotFound)
			}
		})
	}
	var missing *registry.MissingError
	if err := repo.PutManifest(t.Context(), good, raw); !errors.As(err, &missing) || len(missing.Digests) != 4 {
		t.Errorf("PutManifest: %v, want a MissingError with 4 digests", err)
	}
}

func describe(mediaType string, raw []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

func TestIndex(t *testing.T) {
	s, _ := open(t, registry.Options{})
	index, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(s.ref(t, "shop:all"), index, basic); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(s.ref(t, "shop:all"), basic)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	desc, _, err := s.repository(t, "shop").Manifest(t.Context(), "all")
	if err != nil || desc.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("Manifest = %+v, %v", desc, err)
	}
	raw, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var missing *registry.MissingError
	err = s.repository(t, "other").PutManifest(t.Context(), describe(ocispec.MediaTypeImageIndex, raw), raw, "all")
	if !errors.As(err, &missing) || len(missing.Digests) != 3 {
		t.Errorf("index without its images: %v, want a MissingError with 3 digests", err)
	}
}

func TestRestart(t *testing.T) {
	root := t.TempDir()
	s, stop := open(t, registry.Options{Root: root})
	img := randomImage(t)
	if err := remote.Write(s.ref(t, "pushed:v1"), img, basic); err != nil {
		t.Fatal(err)
	}
	linked := link(t, s.repository(t, "linked"), randomImage(t), t.TempDir(), "v1")

	content := "first half, second half"
	resp, _ := s.do(t, "POST", "/v2/upload/blobs/uploads/", "")
	resp, body := s.do(t, "PATCH", s.url+resp.Header.Get("Location"), content[:11], "Content-Type", "application/octet-stream")
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("PATCH: %s %s", resp.Status, body)
	}
	location := resp.Header.Get("Location")
	stop()

	s, _ = open(t, registry.Options{Root: root})
	if got, want := digestOf(t, pulled(t, s, "pushed:v1")), digestOf(t, img); got != want {
		t.Errorf("pushed:v1 is %s, want %s", got, want)
	}
	if got := digestOf(t, pulled(t, s, "linked:v1")); got != linked {
		t.Errorf("linked:v1 is %s, want %s", got, linked)
	}
	resp, body = s.do(t, "PUT", location+"&digest="+digest.FromString(content).String(), content[11:])
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("the upload does not go on: %s %s", resp.Status, body)
	}
	if _, got := s.do(t, "GET", "/v2/upload/blobs/"+digest.FromString(content).String(), ""); got != content {
		t.Errorf("uploaded %q, want %q", got, content)
	}
}

func TestTwoRegistries(t *testing.T) {
	other := decide(func(string, string, ...string) error {
		return registry.ErrDenied
	})
	a, _ := open(t, registry.Options{})
	b, _ := open(t, registry.Options{Access: other})
	if resp, _ := a.do(t, "GET", "/v2/", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("first registry: %s", resp.Status)
	}
	if resp, _ := b.do(t, "GET", "/v2/", ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("second registry: %s", resp.Status)
	}
}

// records collects what is logged.
type records struct {
	mu    sync.Mutex
	lines []string
	watch string // closes seen once a line contains it
	seen  chan struct{}
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }

func (r *records) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Level.String() + " " + rec.Message
	rec.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	if r.watch != "" && strings.Contains(line, r.watch) {
		r.watch = ""
		close(r.seen)
	}
	return nil
}

func (r *records) with(s string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l, s) {
			n++
		}
	}
	return n
}

func TestLog(t *testing.T) {
	var std bytes.Buffer
	logrus.SetOutput(&std)
	t.Cleanup(func() { logrus.SetOutput(os.Stderr) })
	rec := new(records)
	s, stop := open(t, registry.Options{Log: slog.New(rec)})
	s.do(t, "GET", "/v2/shop/manifests/absent", "")
	s.do(t, "GET", "/v2/shop/manifests/sha256:1", "")
	if err := remote.Write(s.ref(t, "shop:v1"), randomImage(t), basic); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.repository(t, "shop").Manifest(t.Context(), "absent"); err == nil {
		t.Fatal("found what is absent")
	}
	stop()
	if std.Len() > 0 {
		t.Errorf("logged outside of slog: %s", &std)
	}
	if rec.with("registry: ") < 3 || rec.with("reference=absent") == 0 {
		t.Errorf("too little is logged for who debugs: %q", rec.lines)
	}
	for _, level := range []string{"INFO", "WARN", "ERROR"} {
		if rec.with(level) > 0 {
			t.Errorf("noise: %q", rec.lines)
		}
	}
	if rec.with(secret) > 0 || rec.with("_state") > 0 {
		t.Errorf("a secret is logged: %q", rec.lines)
	}
}

func TestLogServerFault(t *testing.T) {
	rec := new(records)
	root := t.TempDir()
	s, _ := open(t, registry.Options{Root: root, Log: slog.New(rec)})
	if err := remote.Write(s.ref(t, "shop:v1"), randomImage(t), basic); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(root, "docker/registry/v2/repositories/shop/_manifests/tags/v1/current/link")
	if err := os.WriteFile(link, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if resp, _ := s.do(t, "GET", "/v2/shop/manifests/v1", ""); resp.StatusCode != http.StatusInternalServerError {
		t.Fatalf("a damaged tag: %s", resp.Status)
	}
	if rec.with("ERROR registry: ") != 1 || rec.with("repository=shop") == 0 {
		t.Errorf("want one error about repository shop: %q", rec.lines)
	}
}

func TestAbandonedUploads(t *testing.T) {
	root := t.TempDir()
	s, stop := open(t, registry.Options{Root: root})
	for range 2 {
		if resp, body := s.do(t, "POST", "/v2/acme/shop/blobs/uploads/", ""); resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s %s", resp.Status, body)
		}
	}
	stop()
	dir := filepath.Join(root, "docker/registry/v2/repositories/acme/shop/_uploads")
	uploads, err := os.ReadDir(dir)
	if err != nil || len(uploads) != 2 {
		t.Fatalf("%v, %v", uploads, err)
	}
	old := filepath.Join(dir, uploads[0].Name())
	err = filepath.WalkDir(old, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(p, time.Time{}, time.Now().Add(-25*time.Hour)))
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := &records{watch: "removed an abandoned upload", seen: make(chan struct{})}
	_, stop = open(t, registry.Options{Root: root, Log: slog.New(rec)})
	select {
	case <-rec.seen:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is removed")
	}
	stop()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != uploads[1].Name() {
		t.Errorf("left %v, %v; want only %s", left, err, uploads[1].Name())
	}
}
