package web

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A visit is one request and its answer. The request's context is that of
// calls: it has the session's token and the browser's address.
type visit struct {
	*site
	w   http.ResponseWriter
	r   *http.Request
	who *slipwayv1.WhoAmIResponse // nil on open routes
}

// clientHeader tells the server from where a browser calls; it believes that
// of connections inside the daemon only.
const clientHeader = "slipway-client"

// serve returns the handler of a route.
func (s *site) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{site: s, w: w, r: r}
		v.call(clientHeader, v.address())
		if err := v.enter(rt); err != nil {
			v.fail(err)
			return
		}
		if err := rt.serve(v); err != nil {
			v.fail(err)
		}
	})
}

// enter finds out who is signed in, where the route wants that.
func (v *visit) enter(rt route) (err error) {
	switch rt.access {
	case open:
		return nil
	case session:
	default:
		return status.Error(codes.PermissionDenied, "nobody may see this page")
	}
	value := v.sessionValue()
	if value == "" {
		return errSignIn
	}
	v.call("authorization", "Bearer "+value)
	v.who, err = v.system.WhoAmI(v.r.Context(), &slipwayv1.WhoAmIRequest{})
	return err
}

// call adds a header to the calls of this visit.
func (v *visit) call(key, value string) {
	v.r = v.r.WithContext(metadata.AppendToOutgoingContext(v.r.Context(), key, value))
}

// address returns from where the browser calls, without a port.
func (v *visit) address() string {
	if v.opts.Proxied {
		if addr, err := netip.ParseAddr(v.forwarded("X-Forwarded-For")); err == nil {
			return addr.String()
		}
	}
	host, _, err := net.SplitHostPort(v.r.RemoteAddr)
	if err != nil {
		return v.r.RemoteAddr
	}
	return host
}

// forwarded returns what the proxy that is nearest says in a header: the last
// word, for the ones before come from whoever called it.
func (v *visit) forwarded(name string) string {
	all := strings.Split(strings.Join(v.r.Header.Values(name), ","), ",")
	return strings.TrimSpace(all[len(all)-1])
}

// may reports whether the session has a scope. It decides what a page offers,
// not what is allowed.
func (v *visit) may(scope string) bool { return slices.Contains(v.who.GetScopes(), scope) }

// A page is what the layout shows around a page's own data.
type page struct {
	Title   string
	Section string // of the navigation
	Who     *slipwayv1.WhoAmIResponse
	Users   bool // the session may look at users
	Notice  *notice
	Data    any
}

// show answers with a page.
func (v *visit) show(code int, name, title string, data any) error {
	p := page{Title: title, Section: name, Who: v.who, Users: v.may("user:read"), Notice: v.takeNotice(), Data: data}
	var b bytes.Buffer
	if err := v.pages[name].ExecuteTemplate(&b, "layout", p); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(code)
	_, err := b.WriteTo(v.w)
	if err != nil {
		v.log.Debug("browser has gone", "err", err)
	}
	return nil
}

// part renders something that is no page of its own.
func (s *site) part(w io.Writer, name string, data any) error {
	return s.parts.ExecuteTemplate(w, name, data)
}

// redirect sends the browser to another page of ours, which says text.
func (v *visit) redirect(to, text string) error {
	if text != "" {
		v.leaveNotice(&notice{Text: text})
	}
	if v.enhanced() {
		v.w.Header().Set("HX-Redirect", to)
		v.w.WriteHeader(http.StatusOK)
		return nil
	}
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

// enhanced reports whether htmx asked, which follows redirects by itself and
// would put a whole page into a part of one.
func (v *visit) enhanced() bool { return v.r.Header.Get("HX-Request") == "true" }

// A problem is an error as a page shows it.
type problem struct {
	Code    string
	Message string
	Hint    string
}

// explain returns what a page may say of an error. The API has taken out what
// is nobody's business; errors of our own say nothing.
func explain(err error) problem {
	st, ok := status.FromError(err)
	if !ok {
		return problem{Code: "internal", Message: "This page could not be made.", Hint: "The daemon's log has more."}
	}
	p := problem{Code: strings.ToLower(st.Code().String()), Message: st.Message()}
	for _, d := range st.Details() {
		if e, ok := d.(*slipwayv1.Error); ok {
			p.Code, p.Message, p.Hint = cmp.Or(e.Code, p.Code), cmp.Or(e.Message, p.Message), e.Hint
		}
	}
	switch st.Code() {
	case codes.Unimplemented:
		p.Message, p.Hint = "This daemon does not do that.", ""
	case codes.Unauthenticated:
		p.Hint = "" // speaks of flags
	case codes.Canceled:
		p.Message = "The request was given up."
	}
	return p
}

// httpStatus says which status of HTTP a code of gRPC is.
func httpStatus(c codes.Code) int {
	switch c {
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusUnprocessableEntity
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.Unimplemented:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

// fail answers with an error. Without a session that is good, that is the way
// to a new one.
func (v *visit) fail(err error) {
	if status.Code(err) == codes.Unauthenticated {
		v.toSignIn(err)
		return
	}
	code := httpStatus(status.Code(err))
	if _, known := status.FromError(err); !known {
		v.log.ErrorContext(v.r.Context(), "web page", "path", v.r.URL.Path, "err", err)
	}
	p := explain(err)
	if err := v.show(code, "error", titleOf(code), p); err != nil {
		v.log.ErrorContext(v.r.Context(), "web page", "err", err)
		http.Error(v.w, p.Message, code)
	}
}

func titleOf(code int) string {
	switch code {
	case http.StatusForbidden:
		return "Not allowed"
	case http.StatusNotFound:
		return "Not found"
	case http.StatusUnprocessableEntity:
		return "That did not work"
	}
	return "Something went wrong"
}

// nowhere answers for addresses that do not exist.
func (v *visit) nowhere() error {
	return status.Error(codes.NotFound, "There is no such page.")
}

// foreign answers for forms that other sites send here.
func (v *visit) foreign() error {
	return status.Error(codes.PermissionDenied, "This request came from another site, so it was refused.")
}

func (v *visit) home() error { return v.redirect("/builds", "") }

// local returns a path of ours, or "/" for anything else that somebody put
// into an address.
func local(path string) string {
	u, err := url.Parse(path)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t") {
		return "/"
	}
	return path
}

// path builds an address of ours from parts that may hold anything.
func path(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}
