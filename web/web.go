// Package web serves the daemon's pages for people with a browser.
//
// It is a client of the daemon's own gRPC API and imports nothing of ours but
// the protocol: who may do what is decided there and nowhere else. A browser
// holds a session, which is a token made for it, in a cookie; each page calls
// the API with that token. Pages work without JavaScript, but for a log that
// moves. Read routes.go first, then session.go.
package web

import (
	"embed"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Options are what the pages need.
type Options struct {
	// Conn reaches the daemon's API from inside the daemon: the server believes
	// what its calls say of the browser's address.
	Conn grpc.ClientConnInterface

	// URL is by which browsers reach the pages, needed for OIDC and where
	// something in front of the daemon does the TLS. Nil: as each request says.
	URL *url.URL

	// Proxied says that requests come through a proxy which sets
	// X-Forwarded-For and X-Forwarded-Proto: they are believed.
	Proxied bool

	OIDC *OIDC        // how people sign in besides with tokens; nil means only so
	Log  *slog.Logger // nil means none
}

// A site is all pages.
type site struct {
	opts   Options
	log    *slog.Logger
	pages  map[string]*template.Template
	parts  *template.Template
	assets map[string]asset
	shown  *once
	oidc   *provider // nil without Options.OIDC

	builds slipwayv1.BuildServiceClient
	cache  slipwayv1.CacheServiceClient
	system slipwayv1.SystemServiceClient
	tokens slipwayv1.TokenServiceClient
	orgs   slipwayv1.OrgServiceClient
	envs   slipwayv1.EnvironmentServiceClient
}

// New returns the handler of all pages, which wants to be at the root of its
// host. It is safe for concurrent use and has nothing to close.
func New(o Options) http.Handler { return newSite(o).handler() }

func newSite(o Options) *site {
	s := &site{
		opts: o, log: o.Log, shown: newOnce(time.Now),
		builds: slipwayv1.NewBuildServiceClient(o.Conn), cache: slipwayv1.NewCacheServiceClient(o.Conn),
		system: slipwayv1.NewSystemServiceClient(o.Conn), tokens: slipwayv1.NewTokenServiceClient(o.Conn),
		orgs: slipwayv1.NewOrgServiceClient(o.Conn), envs: slipwayv1.NewEnvironmentServiceClient(o.Conn),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.assets = readAssets()
	s.parts, s.pages = parsePages(s.assetURL)
	if o.OIDC != nil {
		s.oidc = &provider{config: *o.OIDC}
	}
	return s
}

//go:embed pages/*.html assets/*
var files embed.FS

// parsePages returns the parts that all pages share, and each page with them.
func parsePages(asset func(string) string) (parts *template.Template, pages map[string]*template.Template) {
	parts = template.Must(template.New("").Funcs(functions()).Funcs(template.FuncMap{"asset": asset}).
		ParseFS(files, "pages/layout.html", "pages/parts.html", "pages/log.html"))
	pages = map[string]*template.Template{}
	names, err := fs.Glob(files, "pages/*.html")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	for _, name := range names {
		pages[name[len("pages/"):len(name)-len(".html")]] = template.Must(template.Must(parts.Clone()).ParseFS(files, name))
	}
	return parts, pages
}
