package web

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// sessionLife is how long a browser stays signed in.
const sessionLife = 12 * time.Hour

// errSignIn sends somebody without a session to the sign-in page.
var errSignIn = status.Error(codes.Unauthenticated, "")

// secure reports whether the browser speaks TLS, to us or to what is in front.
func (v *visit) secure() bool {
	return v.r.TLS != nil || v.opts.URL != nil && v.opts.URL.Scheme == "https" ||
		v.opts.Proxied && v.forwarded("X-Forwarded-Proto") == "https"
}

// cookieName returns the name of a cookie that, with TLS, no other host can
// set.
func (v *visit) cookieName(name string) string {
	if v.secure() {
		return "__Host-" + name
	}
	return name
}

// setCookie sets a cookie that scripts do not see; a zero time lets it end
// with the browser.
func (v *visit) setCookie(name, value string, expires time.Time) {
	http.SetCookie(v.w, &http.Cookie{
		Name: v.cookieName(name), Value: value, Path: "/", Expires: expires,
		HttpOnly: true, Secure: v.secure(), SameSite: http.SameSiteLaxMode,
	})
}

func (v *visit) dropCookie(name string) {
	http.SetCookie(v.w, &http.Cookie{
		Name: v.cookieName(name), Path: "/", MaxAge: -1, HttpOnly: true, Secure: v.secure(), SameSite: http.SameSiteLaxMode,
	})
}

func (v *visit) cookie(name string) string {
	c, err := v.r.Cookie(v.cookieName(name))
	if err != nil {
		return ""
	}
	return c.Value
}

// Names of cookies.
const (
	sessionCookie = "slipway"
	noticeCookie  = "slipway-notice"
	oidcCookie    = "slipway-oidc"
)

// sessionValue returns the token that the browser signed in with; "" for none,
// or what can be none.
func (v *visit) sessionValue() string {
	value := v.cookie(sessionCookie)
	if len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return value
}

// begin makes a token the browser's session.
func (v *visit) begin(t *slipwayv1.Token, value, next string) error {
	expires := time.Now().Add(sessionLife)
	if e := t.GetExpires(); e != nil && e.AsTime().Before(expires) {
		expires = e.AsTime()
	}
	v.setCookie(sessionCookie, value, expires)
	return v.redirect(local(next), "")
}

// A signIn is the sign-in page.
type signIn struct {
	Next    string
	OIDC    string // what the other way in is called; empty for none
	Problem *problem
}

func (v *visit) signInPage() error {
	return v.showSignIn(http.StatusOK, v.r.FormValue("next"), nil)
}

func (v *visit) showSignIn(code int, next string, p *problem) error {
	data := signIn{Next: local(next), Problem: p}
	if v.oidc != nil {
		data.OIDC = v.oidc.config.name()
	}
	return v.show(code, "signin", "Sign in", data)
}

// signIn makes a session of a token. The token itself is kept nowhere.
func (v *visit) signIn() error {
	next := v.r.PostFormValue("next")
	value := strings.TrimSpace(v.r.PostFormValue("token"))
	if value == "" || len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return v.showSignIn(http.StatusUnprocessableEntity, next, &problem{Message: "Paste a whole token: it is one word, such as su_…"})
	}
	ctx := metadata.AppendToOutgoingContext(v.r.Context(), "authorization", "Bearer "+value)
	made, err := v.tokens.DeriveToken(ctx, &slipwayv1.DeriveTokenRequest{
		Name: sessionName(v.r.UserAgent()), ExpiresIn: durationpb.New(sessionLife), Session: true,
	})
	if err != nil {
		p := explain(err)
		return v.showSignIn(httpStatus(status.Code(err)), next, &p)
	}
	return v.begin(made.Token, made.Value, next)
}

// signOut ends the session at the server, and in the browser whatever the
// server says.
func (v *visit) signOut() error {
	text := "You have signed out."
	if value := v.sessionValue(); value != "" {
		if err := v.revokeSelf(value); err != nil {
			text = "This browser has forgotten the session, but the daemon could not end it: " + explain(err).Message
		}
	}
	v.dropCookie(sessionCookie)
	return v.redirect("/signin", text)
}

func (v *visit) revokeSelf(value string) error {
	v.call("authorization", "Bearer "+value)
	ctx := v.r.Context()
	who, err := v.system.WhoAmI(ctx, &slipwayv1.WhoAmIRequest{})
	if status.Code(err) == codes.Unauthenticated {
		return nil // it has ended by itself
	}
	if err != nil {
		return err
	}
	_, err = v.tokens.RevokeTokens(ctx, &slipwayv1.RevokeTokensRequest{Ids: []string{who.TokenId}})
	return err
}

// toSignIn sends the browser to the sign-in page, which says why and leads
// back to where it was.
func (v *visit) toSignIn(err error) {
	if !errors.Is(err, errSignIn) {
		v.leaveNotice(&notice{Text: "Your session has ended: " + explain(err).Message + ". Sign in again to go on.", Bad: true})
	}
	v.dropCookie(sessionCookie)
	to := "/signin"
	if v.r.Method == http.MethodGet && v.r.URL.Path != "/" {
		to += "?next=" + url.QueryEscape(v.returnTo())
	}
	switch {
	case v.wantsStream() || v.enhanced():
		v.w.Header().Set("HX-Redirect", to)
		http.Error(v.w, "sign in again", http.StatusUnauthorized)
	default:
		http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	}
}

// returnTo is the page to be at after a new sign-in: a stream belongs to one.
func (v *visit) returnTo() string {
	return strings.TrimSuffix(v.r.URL.RequestURI(), "/events")
}

func (v *visit) wantsStream() bool { return strings.HasSuffix(v.r.URL.Path, "/events") }

// A notice is a sentence for the next page that is shown.
type notice struct {
	Text string `json:"t"`
	Bad  bool   `json:"b,omitempty"`
}

func (v *visit) leaveNotice(n *notice) {
	if r := []rune(n.Text); len(r) > 500 {
		n.Text = string(r[:500]) + "…"
	}
	text, err := json.Marshal(n)
	if err != nil {
		return // a string and a flag
	}
	v.setCookie(noticeCookie, base64.RawURLEncoding.EncodeToString(text), time.Time{})
}

// takeNotice returns what an earlier answer left for this page, nil if nothing.
func (v *visit) takeNotice() *notice {
	text, err := base64.RawURLEncoding.DecodeString(v.cookie(noticeCookie))
	if err != nil || len(text) == 0 || v.enhanced() {
		return nil
	}
	v.dropCookie(noticeCookie)
	var n notice
	if json.Unmarshal(text, &n) != nil {
		return nil
	}
	return &n
}

// sessionName names a session after its browser, which may call itself
// anything.
func sessionName(agent string) string {
	system := ""
	for _, s := range []struct{ mark, name string }{
		{"Android", "Android"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Mac OS", "macOS"}, {"Windows", "Windows"}, {"CrOS", "ChromeOS"}, {"Linux", "Linux"},
	} {
		if strings.Contains(agent, s.mark) {
			system = " on " + s.name
			break
		}
	}
	for _, b := range []struct{ mark, name string }{
		{"Firefox/", "Firefox"}, {"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"},
	} {
		if strings.Contains(agent, b.mark) {
			return "web: " + b.name + system
		}
	}
	return "web" + system
}
