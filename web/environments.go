package web

import (
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

type environmentList struct {
	Environments []*slipwayv1.Environment
	Create       bool
}

func (v *visit) listEnvironments() error {
	got, err := v.envs.ListEnvironments(v.r.Context(), &slipwayv1.ListEnvironmentsRequest{})
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "environments", "Environments", environmentList{got.Environments, v.may("env:write")})
}

func (v *visit) createEnvironment() error {
	name := strings.TrimSpace(v.r.PostFormValue("name"))
	got, err := v.envs.CreateEnvironment(v.r.Context(), &slipwayv1.CreateEnvironmentRequest{Name: name})
	if err != nil {
		return err
	}
	if got.Token == "" {
		return v.redirect(path("environments", name), "The environment is created.")
	}
	c := created{What: "environment " + name, Value: got.Token, Type: "registry", Env: name, Back: path("environments", name), Expires: "never"}
	if got.Expires != nil {
		c.Expires = exact(got.Expires)
	}
	return v.keep(c)
}

// historyPage is how much of an environment's history a page shows.
const historyPage = 50

type environmentPage struct {
	*slipwayv1.Environment
	App     string
	History []*slipwayv1.HistoryEntry
	Older   string   // address of the next page; empty for none
	Promote bool     // the session may
	Others  []string // environments to promote to
	Delete  bool
}

func (v *visit) showEnvironment() error {
	ctx, name := v.r.Context(), v.r.PathValue("name")
	got, err := v.envs.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: name, App: v.who.App})
	if err != nil {
		return err
	}
	d := environmentPage{Environment: got.Environment, App: v.app(), Promote: v.may("release:write"), Delete: v.may("env:write")}
	req := &slipwayv1.ListHistoryRequest{Environment: name, App: d.App, Limit: historyPage}
	if t, err := time.Parse(time.RFC3339Nano, v.r.URL.Query().Get("before")); err == nil {
		req.Before = timestamppb.New(t)
	}
	history, err := v.envs.ListHistory(ctx, req)
	if err != nil {
		return err
	}
	d.History = history.Entries
	if n := len(d.History); n == historyPage {
		d.Older = pageAfter(v.r.URL, d.History[n-1].Time.AsTime().Format(time.RFC3339Nano))
	}
	if d.Promote {
		d.Others = v.otherEnvironments(name)
	}
	return v.show(http.StatusOK, "environment", name, d)
}

// otherEnvironments returns the names of those besides one; none if they
// cannot be had.
func (v *visit) otherEnvironments(name string) []string {
	got, err := v.envs.ListEnvironments(v.r.Context(), &slipwayv1.ListEnvironmentsRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range got.Environments {
		if e.Name != name {
			out = append(out, e.Name)
		}
	}
	return out
}

func (v *visit) promote() error {
	from, to, app := v.r.PathValue("name"), v.r.PostFormValue("to"), v.r.PostFormValue("app")
	got, err := v.envs.Promote(v.r.Context(), &slipwayv1.PromoteRequest{App: app, From: from, To: to})
	if err != nil {
		return err
	}
	text := app + " is released to " + to + ", as it is in " + from + "."
	if got.Unchanged {
		text = to + " had this image of " + app + " already."
	}
	return v.redirect(path("environments", to), text)
}

func (v *visit) askDeleteEnvironment() error {
	name := v.r.PathValue("name")
	return v.confirm(confirmation{
		Heading: "Delete " + name + "?", Text: "Its tokens end within a second: what pulls images with them cannot any more. What was recorded of it stays.",
		Action: path("environments", name, "delete"), Button: "Delete environment", Back: path("environments", name),
	})
}

func (v *visit) deleteEnvironment() error {
	name := v.r.PathValue("name")
	got, err := v.envs.DeleteEnvironment(v.r.Context(), &slipwayv1.DeleteEnvironmentRequest{Name: name})
	if err != nil {
		return err
	}
	return v.redirect("/environments", name+" is deleted; "+plural(float64(len(got.Revoked)), "token")+" ended.")
}
