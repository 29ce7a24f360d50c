package web_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clog "github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/store"
	"github.com/slipwayhq/slipway/web"
)

func TestMain(m *testing.M) {
	clog.L.Logger.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// everybody may do everything with the registry, which nobody does.
type everybody struct{}

func (everybody) Authenticate(context.Context, string, string) (string, error) { return "anyone", nil }

func (everybody) Authorize(context.Context, string, string, ...string) error { return nil }

func (everybody) Allowed(_ context.Context, _, _ string, do ...string) ([]string, error) {
	return do, nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A daemon is all of slipwayd but what makes images: the pages in front of the
// real API, with real tokens.
type daemon struct {
	t         *testing.T
	authority *tokens.Authority
	store     *store.Store
	records   *records.Store
	engine    fleet.Engine
	grpc      *grpc.Server
	conn      *grpc.ClientConn
	http      *httptest.Server
	issuer    tokens.Verifier
	admin     string // value of the admin token
}

// start runs a daemon whose builds do what the pipeline says; nil for one that
// fails all.
func start(t *testing.T, p builder.Pipeline, tune ...func(*web.Options)) *daemon {
	t.Helper()
	return startWith(t, p, nil, tune...)
}

// startWith runs a daemon that knows ID tokens.
func startWith(t *testing.T, p builder.Pipeline, issuer tokens.Verifier, tune ...func(*web.Options)) *daemon {
	t.Helper()
	d := &daemon{t: t, engine: fleet.NewMemory(nil), issuer: issuer}
	ctx, root := context.Background(), t.TempDir()
	d.openTokens(ctx, root)
	cache, err := layercache.Open(ctx, layercache.Options{Root: filepath.Join(root, "cache"), MinFree: -1})
	check(t, err)
	t.Cleanup(func() { check(t, cache.Close()) })
	reg, err := registry.Open(ctx, registry.Options{Root: filepath.Join(root, "registry"), Access: everybody{}})
	check(t, err)
	t.Cleanup(func() { check(t, reg.Close()) })
	d.records, err = records.Open(ctx, filepath.Join(root, "records.db"))
	check(t, err)
	t.Cleanup(func() { check(t, d.records.Close()) })
	b := builder.New(builder.Options{
		Cache: cache, Engine: pushd.NewEngine(nil), MaxSize: 8e9, Log: slog.New(slog.DiscardHandler),
		Pipelines: map[slipwayv1.Pipeline]builder.Pipeline{slipwayv1.Pipeline_PIPELINE_CLASSIC: p},
		Destination: func(context.Context, builder.Place) (builder.Remote, error) {
			repo, err := reg.Repository("shop")
			return builder.Remote{Target: pushd.NewLocal("reg.test/shop", repo, root), Name: "reg.test/shop"}, err
		},
	})
	srv := server.New(server.Options{
		Version: "test", Auth: d.authority, Tokens: d.authority, Issuer: d.authority, Records: d.records, Cache: cache, Engine: d.engine, Builder: b,
		Registry: "reg.test", Grace: time.Hour,
	})
	d.serve(srv, tune)
	return d
}

func (d *daemon) openTokens(ctx context.Context, root string) {
	db, err := sqldb.Open(ctx, filepath.Join(root, "tokens.db"))
	check(d.t, err)
	d.t.Cleanup(func() { check(d.t, db.Close()) })
	d.store, err = store.New(ctx, db)
	check(d.t, err)
	d.authority, err = tokens.Open(ctx, tokens.Options{Store: d.store, Issuer: d.issuer})
	check(d.t, err)
	d.t.Cleanup(func() { check(d.t, d.authority.Close()) })
	file := filepath.Join(root, "admin.token")
	admin, err := tokens.AdminFile(file)
	check(d.t, err)
	check(d.t, d.authority.Adopt(ctx, admin))
	value, err := os.ReadFile(file)
	check(d.t, err)
	d.admin = strings.TrimSpace(string(value))
}

func (d *daemon) serve(srv *server.Server, tune []func(*web.Options)) {
	d.grpc = grpc.NewServer(srv.ServerOptions()...)
	srv.Register(d.grpc)
	inside := bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.grpc.Serve(inside) })
	var err error
	d.conn, err = grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inside.DialContext(ctx) }))
	check(d.t, err)
	o := web.Options{Conn: d.conn}
	for _, f := range tune {
		f(&o)
	}
	d.http = httptest.NewServer(web.New(o))
	ctx, cancel := context.WithCancel(context.Background())
	var workers sync.WaitGroup
	workers.Go(func() { srv.Run(ctx, 2) })
	d.t.Cleanup(func() {
		srv.Stop()
		cancel()
		workers.Wait()
		d.conn.Close()
		d.grpc.Stop()
		serving.Wait()
		d.http.CloseClientConnections()
		d.http.Close()
	})
}

// principal returns whom a token's value stands for.
func (d *daemon) principal(value string) tokens.Principal {
	d.t.Helper()
	p, err := d.authority.Authenticate(context.Background(), value)
	check(d.t, err)
	return p
}

// user makes a user of the default org and returns the value of the login.
func (d *daemon) user(name, role string) string {
	d.t.Helper()
	_, _, value, err := d.authority.CreateUser(context.Background(), d.principal(d.admin), name, role, true, tokens.Request{})
	check(d.t, err)
	return value
}

// otherOrg makes an org with an admin and returns that one's login.
func (d *daemon) otherOrg(name string) string {
	d.t.Helper()
	_, _, value, err := d.authority.CreateOrg(context.Background(), d.principal(d.admin), name, "boss")
	check(d.t, err)
	return value
}

// A browser keeps cookies and does not follow redirects by itself.
type browser struct {
	t    *testing.T
	base string
	http *http.Client
	addr string // that a proxy tells of; empty for none
}

func (d *daemon) browser() *browser {
	jar, err := cookiejar.New(nil)
	check(d.t, err)
	return &browser{t: d.t, base: d.http.URL, http: &http.Client{Jar: jar, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// An answer is a response that has been read.
type answer struct {
	*http.Response
	text string
}

func (b *browser) do(r *http.Request) answer {
	b.t.Helper()
	resp, err := b.http.Do(r)
	check(b.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(b.t, err)
	return answer{resp, string(text)}
}

func (b *browser) request(method, path string, form url.Values) *http.Request {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, strings.NewReader(form.Encode()))
	check(b.t, err)
	if b.addr != "" {
		r.Header.Set("X-Forwarded-For", "198.51.100.1, "+b.addr)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return r
}

func (b *browser) get(path string) answer { b.t.Helper(); return b.do(b.request("GET", path, nil)) }

// post sends a form of pairs of names and values.
func (b *browser) post(path string, pairs ...string) answer {
	b.t.Helper()
	form := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return b.do(b.request("POST", path, form))
}

// follow goes where an answer leads.
func (b *browser) follow(a answer) answer {
	b.t.Helper()
	to := a.Header.Get("Location")
	if a.StatusCode != http.StatusSeeOther || to == "" {
		b.t.Fatalf("%s %s: status %d, no redirect:\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.text)
	}
	return b.get(to)
}

// session returns the value of the browser's session, "" for none.
func (b *browser) session() string {
	u, err := url.Parse(b.base)
	check(b.t, err)
	for _, c := range b.http.Jar.Cookies(u) {
		if c.Name == "slipway" {
			return c.Value
		}
	}
	return ""
}

func (b *browser) setSession(value string) {
	u, err := url.Parse(b.base)
	check(b.t, err)
	b.http.Jar.SetCookies(u, []*http.Cookie{{Name: "slipway", Value: value, Path: "/"}})
}

// signedIn returns a browser with a session of a token.
func (d *daemon) signedIn(value string) *browser {
	d.t.Helper()
	b := d.browser()
	if a := b.post("/signin", "token", value); a.StatusCode != http.StatusSeeOther || b.session() == "" {
		d.t.Fatalf("sign in: status %d:\n%s", a.StatusCode, a.text)
	}
	return b
}

// want checks status and parts of the text of an answer.
func (a answer) want(t *testing.T, code int, parts ...string) {
	t.Helper()
	if a.StatusCode != code {
		t.Errorf("%s %s: status %d, want %d:\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, code, a.text)
	}
	for _, p := range parts {
		if !strings.Contains(a.text, p) {
			t.Errorf("%s %s lacks %q:\n%s", a.Request.Method, a.Request.URL.Path, p, a.text)
		}
	}
}
