package web

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// tokenPage is how many tokens a page shows.
const tokenPage = 100

// A tokenList is the page of Token Management.
type tokenList struct {
	Tokens   []*slipwayv1.Token
	Self     string // ID of the session
	Sessions bool
	Type     string
	Types    []tokenType
	Create   bool
	Next     string // address of the next page; empty for none
}

func (v *visit) listTokens() error {
	q := v.r.URL.Query()
	d := tokenList{Self: v.who.TokenId, Sessions: q.Get("sessions") != "", Type: q.Get("type"), Types: tokenTypes(), Create: v.may("token:write")}
	got, err := v.tokens.ListTokens(v.r.Context(), &slipwayv1.ListTokensRequest{
		Type: d.Type, Sessions: d.Sessions, BeforeId: q.Get("before"), Limit: tokenPage,
	})
	if err != nil {
		return err
	}
	d.Tokens = got.Tokens
	if n := len(got.Tokens); n == tokenPage {
		d.Next = pageAfter(v.r.URL, got.Tokens[n-1].Id)
	}
	return v.show(http.StatusOK, "tokens", "Token Management", d)
}

// pageAfter is an address with another place to go on from.
func pageAfter(u *url.URL, id string) string {
	q := u.Query()
	q.Set("before", id)
	return u.Path + "?" + q.Encode()
}

// A tokenType is what can be chosen in the form.
type tokenType struct{ Name, Text string }

func tokenTypes() []tokenType {
	return []tokenType{
		{"deploy", "Build, push and read one app. For CI."},
		{"registry", "Pull images, or push them too. For docker login and clusters."},
		{"readonly", "Look at everything of the organization, change nothing."},
		{"org", "All apps of the organization."},
		{"ssh", "Open a shell in a failed build step."},
		{"machine-exec", "Run one command in an app's image."},
	}
}

// A tokenForm is what somebody wants of a token, as typed.
type tokenForm struct {
	Type, Name, App, Env, Permission, Command, Expires string

	Never        bool
	Types        []tokenType
	Environments []string // to choose from; nil if the session may not know
	Admin        bool
	EndsWith     bool // tokens made here end with the session
	Earliest     string
	Problem      *problem
}

func (v *visit) newToken() error {
	return v.showTokenForm(http.StatusOK, tokenForm{
		Type: "deploy", Permission: "read-only", Expires: time.Now().UTC().AddDate(0, 0, 90).Format(time.DateOnly), App: v.who.App, Env: v.who.Environment,
	})
}

func (v *visit) showTokenForm(code int, f tokenForm) error {
	f.Types = tokenTypes()
	f.Admin = v.who.Role == "admin"
	f.EndsWith = v.who.Type != "user" && v.who.Type != "admin"
	f.Earliest = time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	if v.may("env:read") {
		if got, err := v.envs.ListEnvironments(v.r.Context(), &slipwayv1.ListEnvironmentsRequest{}); err == nil {
			for _, e := range got.Environments {
				f.Environments = append(f.Environments, e.Name)
			}
		}
	}
	if f.Env != "" && !slices.Contains(f.Environments, f.Env) {
		f.Environments = append(f.Environments, f.Env)
	}
	return v.show(code, "token-new", "New token", f)
}

// A created is what the page shows that has a value once.
type created struct {
	What    string // "token ci"
	Value   string
	Type    string
	App     string
	Env     string
	Command []string
	Expires string // in words
	Back    string
}

func (v *visit) createToken() error {
	f := tokenForm{
		Type: v.r.PostFormValue("type"), Name: strings.TrimSpace(v.r.PostFormValue("name")), App: strings.TrimSpace(v.r.PostFormValue("app")),
		Env: strings.TrimSpace(v.r.PostFormValue("environment")), Permission: v.r.PostFormValue("permission"), Command: v.r.PostFormValue("command"),
		Expires: v.r.PostFormValue("expires"), Never: v.r.PostFormValue("never") != "",
	}
	req, wrong := f.request(time.Now())
	if wrong != "" {
		f.Problem = &problem{Message: wrong}
		return v.showTokenForm(http.StatusUnprocessableEntity, f)
	}
	made, err := v.tokens.CreateToken(v.r.Context(), req)
	if err != nil {
		if httpStatus(status.Code(err)) == http.StatusUnauthorized {
			return err
		}
		p := explain(err)
		f.Problem = &p
		return v.showTokenForm(httpStatus(status.Code(err)), f)
	}
	t := made.Token
	c := created{What: "token " + t.Name, Value: made.Value, Type: t.Type, App: t.App, Env: t.Environment, Command: t.Command, Back: "/tokens", Expires: "never"}
	if t.Expires != nil {
		c.Expires = exact(t.Expires)
	}
	return v.keep(c)
}

// request is what the form asks for, or what is wrong with it. What belongs to
// another type than the one that is chosen does not count.
func (f *tokenForm) request(now time.Time) (_ *slipwayv1.CreateTokenRequest, wrong string) {
	req := &slipwayv1.CreateTokenRequest{Type: f.Type, Name: f.Name, App: f.App, Environment: f.Env, Never: f.Never}
	switch f.Type {
	case "registry":
		req.Permission = f.Permission
	case "org":
		req.App = ""
	case "machine-exec":
		req.Command = words(f.Command)
	}
	if f.Never {
		return req, ""
	}
	end, err := time.Parse(time.DateOnly, f.Expires)
	if err != nil {
		return nil, "Choose the day on which the token expires."
	}
	in := end.AddDate(0, 0, 1).Sub(now).Truncate(time.Second) // the end of that day, in UTC
	if in <= 0 {
		return nil, "The token would have expired already: choose a later day."
	}
	req.ExpiresIn = durationpb.New(in)
	return req, ""
}

// words returns a command's arguments, which are typed one a line.
func words(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// keep leads to the page that shows a value once.
func (v *visit) keep(c created) error {
	key := v.shown.put(v.who.TokenId, c)
	if key == "" { // far more are made than anybody reads
		return v.show(http.StatusCreated, "created", c.What, c)
	}
	return v.redirect(path("created", key), "")
}

func (v *visit) showCreated() error {
	c, ok := v.shown.take(v.who.TokenId, v.r.PathValue("key")).(created)
	if !ok {
		return v.show(http.StatusGone, "error", "Shown already", problem{
			Message: "The value was shown once and is kept nowhere.", Hint: "If it was lost, revoke the token and create another one.",
		})
	}
	return v.show(http.StatusOK, "created", "New "+c.What, c)
}

// A confirmation is a page that asks before it acts.
type confirmation struct {
	Heading, Text, Action, Button, Back string

	Fields [][2]string // hidden
}

func (v *visit) confirm(c confirmation) error { return v.show(http.StatusOK, "confirm", c.Heading, c) }

func (v *visit) token() (*slipwayv1.Token, error) {
	got, err := v.tokens.GetToken(v.r.Context(), &slipwayv1.GetTokenRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return nil, err
	}
	return got.Token, nil
}

func (v *visit) askRevoke() error {
	t, err := v.token()
	if err != nil {
		return err
	}
	text := "Everything that uses it stops within a second, and so do tokens that were derived from it. This cannot be undone."
	if t.Id == v.who.TokenId {
		text = "This is the session of this browser: you will be signed out."
	}
	return v.confirm(confirmation{Heading: "Revoke " + t.Name + "?", Text: text, Action: path("tokens", t.Id, "revoke"), Button: "Revoke token", Back: "/tokens"})
}

func (v *visit) revokeToken() error {
	id := v.r.PathValue("id")
	got, err := v.tokens.RevokeTokens(v.r.Context(), &slipwayv1.RevokeTokensRequest{Ids: []string{id}})
	if err != nil {
		return err
	}
	text := "The token is revoked."
	switch n := len(got.Revoked); {
	case n == 0:
		text = "The token had ended before."
	case n > 1:
		text = plural(float64(n), "token") + " are revoked: it and what was derived from it."
	}
	return v.redirect("/tokens", text)
}

func (v *visit) askDelete() error {
	t, err := v.token()
	if err != nil {
		return err
	}
	return v.confirm(confirmation{
		Heading: "Delete the record of " + t.Name + "?", Text: "The token has ended. Its record goes from this list; the audit log keeps what it did.",
		Action: path("tokens", t.Id, "delete"), Button: "Delete record", Back: "/tokens",
	})
}

func (v *visit) deleteToken() error {
	if _, err := v.tokens.DeleteTokens(v.r.Context(), &slipwayv1.DeleteTokensRequest{Ids: []string{v.r.PathValue("id")}}); err != nil {
		return err
	}
	return v.redirect("/tokens", "The record is deleted.")
}
