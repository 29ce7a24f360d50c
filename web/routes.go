package web

import (
	"net/http"
)

// access says who gets to a route.
type access int

const (
	_       access = iota // nobody: a route must say
	open                  // everybody
	session               // who is signed in; the API decides what they may
)

// A route is one method of one address.
type route struct {
	method  string
	pattern string // of http.ServeMux
	access  access
	serve   func(*visit) error
}

// routes has all there is. The test of this table visits each with every kind
// of bad session.
func (s *site) routes() []route {
	return []route{
		{"GET", "/assets/{file}", open, (*visit).asset},
		{"GET", "/signin", open, (*visit).signInPage},
		{"POST", "/signin", open, (*visit).signIn},
		{"GET", "/signin/oidc", open, (*visit).startOIDC},
		{"GET", "/signin/oidc/callback", open, (*visit).finishOIDC},
		{"POST", "/signout", open, (*visit).signOut},

		{"GET", "/{$}", session, (*visit).home},
		{"GET", "/builds", session, (*visit).listBuilds},
		{"GET", "/builds/{id}", session, (*visit).showBuild},
		{"GET", "/builds/{id}/events", session, (*visit).streamBuild},
		{"GET", "/builds/{id}/log", session, (*visit).textLog},
		{"GET", "/builds/{id}/cancel", session, (*visit).askCancel},
		{"POST", "/builds/{id}/cancel", session, (*visit).cancelBuild},

		{"GET", "/cache", session, (*visit).showCache},
		{"GET", "/cache/prune", session, (*visit).askPrune},
		{"POST", "/cache/prune", session, (*visit).prune},

		{"GET", "/environments", session, (*visit).listEnvironments},
		{"POST", "/environments", session, (*visit).createEnvironment},
		{"GET", "/environments/{name}", session, (*visit).showEnvironment},
		{"POST", "/environments/{name}/promote", session, (*visit).promote},
		{"GET", "/environments/{name}/delete", session, (*visit).askDeleteEnvironment},
		{"POST", "/environments/{name}/delete", session, (*visit).deleteEnvironment},

		{"GET", "/tokens", session, (*visit).listTokens},
		{"POST", "/tokens", session, (*visit).createToken},
		{"GET", "/tokens/new", session, (*visit).newToken},
		{"GET", "/created/{key}", session, (*visit).showCreated},
		{"GET", "/tokens/{id}/revoke", session, (*visit).askRevoke},
		{"POST", "/tokens/{id}/revoke", session, (*visit).revokeToken},
		{"GET", "/tokens/{id}/delete", session, (*visit).askDelete},
		{"POST", "/tokens/{id}/delete", session, (*visit).deleteToken},

		{"GET", "/users", session, (*visit).listUsers},
		{"POST", "/users", session, (*visit).createUser},
		{"POST", "/users/{name}/role", session, (*visit).setRole},
		{"GET", "/users/{name}/remove", session, (*visit).askRemoveUser},
		{"POST", "/users/{name}/remove", session, (*visit).removeUser},
	}
}

// handler joins the routes, and what each answer has.
func (s *site) handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range s.routes() {
		mux.Handle(rt.method+" "+rt.pattern, s.serve(rt))
	}
	mux.Handle("/", s.serve(route{access: open, serve: (*visit).nowhere}))
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(s.serve(route{access: open, serve: (*visit).foreign}))
	return headers(sameOrigin.Handler(http.MaxBytesHandler(mux, maxForm)))
}

// maxForm bounds what a browser may send.
const maxForm = 256 << 10

// policy lets a page load nothing but what this daemon serves, run no script
// or style of its own text, and be in no frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store") // pages are somebody's; assets say otherwise
		next.ServeHTTP(w, r)
	})
}
