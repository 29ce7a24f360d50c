package pushd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard) // distribution logs every 404
	if dir := os.Getenv(registryDir); dir != "" {
		os.Exit(serveRegistry(dir))
	}
	os.Exit(m.Run())
}

const (
	host  = "registry.test"
	other = "storage.test" // the same registry by another name
	repo  = "acme/web"
	chunk = 256 << 10
)

// A registry is a real one, in memory, with faults in front.
type registry struct {
	app     http.Handler
	network *network
	tokens  *tokens // nil: open to all

	mu     sync.Mutex
	seen   []call
	put    []string // tags and digests that manifests were put under
	faults []*fault
}

// A call is a request that the registry got.
type call struct {
	class, host, auth, query string
	bytes                    int64 // of the body that were taken
}

// A fault changes some requests of a class.
type fault struct {
	class string
	from  int // the first is 1
	to    int // 0: only the one; -1: all that follow
	do    func(http.ResponseWriter, *http.Request, http.Handler)
}

// newRegistry must be called outside a synctest bubble.
func newRegistry(t testing.TB) *registry {
	t.Helper()
	return newRegistryOn(t, "inmemory", nil)
}

// newFileRegistry returns a registry for large blobs, and for those that are
// taken up after a break: the other takes bytes twice then, now and then.
func newFileRegistry(t testing.TB) *registry {
	t.Helper()
	return newRegistryOn(t, "filesystem", configuration.Parameters{"rootdirectory": t.TempDir()})
}

func newRegistryOn(t testing.TB, driver string, p configuration.Parameters) *registry {
	t.Helper()
	c := &configuration.Configuration{Storage: configuration.Storage{
		driver:        p,
		"delete":      {"enabled": true},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.HTTP.Secret = "secret of the test"
	c.HTTP.RelativeURLs = true
	app := handlers.NewApp(context.Background(), c)
	t.Cleanup(func() { _ = app.Shutdown() })
	return &registry{app: app}
}

// start serves the registry until the test, or its bubble, ends.
func (g *registry) start(t testing.TB) {
	g.network = &network{hosts: map[string]chan net.Conn{host: make(chan net.Conn), other: make(chan net.Conn)}, closed: make(chan struct{})}
	servers := []*http.Server{{Handler: g}, {Handler: g}}
	var wg sync.WaitGroup
	for i, h := range []string{host, other} {
		wg.Go(func() { _ = servers[i].Serve(&listener{g.network, h}) })
	}
	t.Cleanup(func() {
		close(g.network.closed)
		for _, s := range servers {
			_ = s.Close()
		}
		wg.Wait()
		if time.Now().Year() == 2000 { // in a bubble: let connections linger to their end
			time.Sleep(time.Minute)
		}
	})
}

// target returns a target in the registry.
func (g *registry) target(t testing.TB, o *pushd.HTTPOptions) *pushd.HTTP {
	t.Helper()
	var v pushd.HTTPOptions
	if o != nil {
		v = *o
	}
	tr := pushd.NewTransport()
	tr.Proxy = nil
	tr.DialContext = g.network.dial
	t.Cleanup(tr.CloseIdleConnections)
	v.Transport = tr
	if v.Chunk == 0 {
		v.Chunk, v.MaxChunk = chunk, chunk
	}
	if g.tokens != nil && v.Auth == nil {
		v.Auth = login(user, password)
	}
	h, err := pushd.NewHTTP("http://"+host+"/"+repo, &v)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func class(r *http.Request) string {
	switch {
	case strings.HasPrefix(r.URL.Path, "/token"):
		return "token"
	case r.Method == http.MethodPost && r.URL.Query().Has("mount"):
		return "mount"
	case strings.Contains(r.URL.Path, "/blobs/uploads/"):
		return map[string]string{"POST": "start", "PATCH": "chunk", "PUT": "finish", "GET": "status", "DELETE": "cancel"}[r.Method]
	case strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodPut:
		return "manifest"
	case r.Method == http.MethodHead:
		return "head"
	}
	return r.Method
}

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := class(r)
	counted := &countedBody{ReadCloser: r.Body}
	r = r.WithContext(r.Context()) // the server looks at its own request
	r.Body = counted
	g.mu.Lock()
	g.seen = append(g.seen, call{class: c, host: r.Host, auth: r.Header.Get("Authorization"), query: r.URL.RawQuery})
	if c == "manifest" {
		g.put = append(g.put, path.Base(r.URL.Path))
	}
	at, n := len(g.seen)-1, 0
	for _, s := range g.seen {
		if s.class == c {
			n++
		}
	}
	var hit *fault
	for _, f := range g.faults {
		if f.class == c && n >= f.from && (n == f.from || f.to < 0 || n <= f.to) {
			hit = f
		}
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.seen[at].bytes = counted.n
	}()
	next := g.app
	if g.tokens != nil {
		next = g.tokens.protect(g.app)
	}
	if hit != nil {
		hit.do(w, r, next)
		return
	}
	next.ServeHTTP(w, r)
}

type countedBody struct {
	io.ReadCloser
	n int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// calls returns what the registry got, of the classes if any are given.
func (g *registry) calls(classes ...string) []call {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.seen), func(c call) bool {
		return len(classes) > 0 && !slices.Contains(classes, c.class)
	})
}

// received returns how many bytes of blobs reached the registry.
func (g *registry) received() (n int64) {
	for _, c := range g.calls("chunk", "finish") {
		n += c.bytes
	}
	return n
}

// get reads from the registry behind all faults.
func (g *registry) get(what string) ([]byte, bool) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/v2/"+repo+"/"+what, nil)
	r.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	g.app.ServeHTTP(w, r)
	return w.Body.Bytes(), w.Code == http.StatusOK
}

func (g *registry) blob(d digest.Digest) ([]byte, bool) { return g.get("blobs/" + d.String()) }

func (g *registry) manifest(ref string) ([]byte, bool) { return g.get("manifests/" + ref) }

func (g *registry) mustHave(t testing.TB, data []byte) {
	t.Helper()
	if got, ok := g.blob(digest.FromBytes(data)); !ok || !bytes.Equal(got, data) {
		t.Errorf("registry has %d bytes (%v), want %d", len(got), ok, len(data))
	}
}

// A network connects by name, in memory.
type network struct {
	hosts  map[string]chan net.Conn
	closed chan struct{}
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	h, _, _ := net.SplitHostPort(addr)
	accept, ok := n.hosts[h]
	if !ok {
		return nil, fmt.Errorf("no host %s", h)
	}
	client, server := net.Pipe()
	select {
	case accept <- server:
		return client, nil
	case <-n.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type listener struct {
	n    *network
	host string
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.n.hosts[l.host]:
		return c, nil
	case <-l.n.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return &net.IPAddr{} }

// Faults.

func answer(status int, code string, header ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if code != "" {
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": "fault of the test"}}})
		}
	}
}

// reset passes n bytes of the body on, then breaks the connection.
func reset(n int64) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, n), errReader{}))
		next.ServeHTTP(httptest.NewRecorder(), r)
		hangUp(w)
	}
}

// mute does what is asked, then breaks the connection without an answer.
func mute(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	hangUp(w)
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection broke") }

// silence takes the connection and says nothing.
func (g *registry) silence(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	<-g.network.closed
	c.Close()
}

// rewriting passes the request on and changes the answer's headers.
func rewriting(change func(http.Header)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&rewriter{w, change}, r)
	}
}

type rewriter struct {
	http.ResponseWriter
	change func(http.Header)
}

func (w *rewriter) WriteHeader(status int) {
	w.change(w.Header())
	w.ResponseWriter.WriteHeader(status)
}

func set(key, value string) func(http.Header) {
	return func(h http.Header) { h.Set(key, value) }
}

// Bearer tokens.

const (
	user     = "deployer"
	password = "hunter2-password"
)

func login(user, password string) func(context.Context, string) (authn.AuthConfig, error) {
	return func(context.Context, string) (authn.AuthConfig, error) {
		return authn.AuthConfig{Username: user, Password: password}, nil
	}
}

// tokens is a token server and the guard in front of the registry.
type tokens struct {
	life  time.Duration
	claim int // seconds the server says that tokens live

	mu     sync.Mutex
	issued map[string]grant
	asked  []url.Values
}

type grant struct {
	scopes []string
	until  time.Time
}

func newTokens(life time.Duration) *tokens {
	return &tokens{life: life, claim: int(life / time.Second), issued: make(map[string]grant)}
}

func (k *tokens) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			k.issue(w, r)
			return
		}
		if r.Host == other { // signed addresses need no token
			next.ServeHTTP(w, r)
			return
		}
		k.mu.Lock()
		g, ok := k.issued[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		k.mu.Unlock()
		need := []string{"repository:" + repo + ":pull,push"}
		if from := r.URL.Query().Get("from"); from != "" {
			need = append(need, "repository:"+from+":pull")
		}
		problem := ""
		switch {
		case !ok || time.Now().After(g.until):
			problem = "invalid_token"
		case slices.ContainsFunc(need, func(s string) bool { return !slices.Contains(g.scopes, s) }):
			problem = "insufficient_scope"
		default:
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="%s",error="%s"`, host, need[0], problem))
		answer(http.StatusUnauthorized, "UNAUTHORIZED")(w, r, nil)
	})
}

func (k *tokens) issue(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, r.URL.Query())
	if u, p, _ := r.BasicAuth(); u != user || p != password {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password %s"}]}`, p)
		return
	}
	t := fmt.Sprintf("token-%d", len(k.asked))
	scopes := slices.DeleteFunc(slices.Clone(r.URL.Query()["scope"]), func(s string) bool { return strings.Contains(s, "forbidden") })
	k.issued[t] = grant{scopes, time.Now().Add(k.life)}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": t, "expires_in": k.claim})
}

// revoke makes all tokens worthless.
func (k *tokens) revoke() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.issued)
}

// A watcher keeps what it is told.
type watcher struct {
	mu      sync.Mutex
	sent    int64
	retries []error
	waits   []time.Duration
}

func (w *watcher) At(int64) {}

func (w *watcher) Sent(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent += n
}

func (w *watcher) Retry(cause error, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retries = append(w.retries, cause)
	w.waits = append(w.waits, wait)
}

func TestHTTPTarget(t *testing.T) {
	targettest.Run(t, func(t *testing.T) targettest.Repository {
		g := newRegistry(t)
		g.start(t)
		return targettest.Repository{Target: g.target(t, nil), Blob: g.blob, Manifest: g.manifest}
	})
}
