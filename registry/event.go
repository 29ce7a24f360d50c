package registry

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Event says that a client fetched, checked or stored a manifest. A machine
// that has an image already only checks it (HEAD), so all three are evidence of
// what runs where.
type Event struct {
	Time       time.Time
	Method     string // GET, HEAD or PUT
	Repository string
	Reference  string        // the tag or digest that was asked for
	Digest     digest.Digest // what it stands for
	Token      string        // ID of the token, as the Access knows it
	UserAgent  string
	Remote     string // IP address of the client
}

// observed returns w, telling f when it starts a good answer about a manifest.
func observed(w http.ResponseWriter, r *http.Request, token string, f func(context.Context, Event)) http.ResponseWriter {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut:
	default:
		return w
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	i := strings.LastIndex(path, "/manifests/")
	if !ok || i < 0 {
		return w
	}
	return &observer{ResponseWriter: w, report: func() {
		f(r.Context(), Event{
			Time:       time.Now(),
			Method:     r.Method,
			Repository: path[:i],
			Reference:  path[i+len("/manifests/"):],
			Digest:     digest.Digest(w.Header().Get("Docker-Content-Digest")),
			Token:      token,
			UserAgent:  r.UserAgent(),
			Remote:     RemoteAddr(r.Context()),
		})
	}}
}

type observer struct {
	http.ResponseWriter
	report func() // nil once the header is written
}

func (o *observer) Unwrap() http.ResponseWriter { return o.ResponseWriter }

func (o *observer) WriteHeader(status int) {
	if o.report != nil && status >= 200 && status < 300 {
		o.report()
	}
	o.report = nil
	o.ResponseWriter.WriteHeader(status)
}

func (o *observer) Write(p []byte) (int, error) {
	if o.report != nil {
		o.WriteHeader(http.StatusOK)
	}
	return o.ResponseWriter.Write(p)
}
