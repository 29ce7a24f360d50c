package web

import (
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

type cachePage struct {
	*slipwayv1.UsageResponse
	App   string
	Prune bool
}

func (v *visit) showCache() error {
	app := v.app()
	got, err := v.cache.Usage(v.r.Context(), &slipwayv1.UsageRequest{App: app})
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "cache", "Cache", cachePage{got, app, v.may("cache:write")})
}

// app is the one that the page is limited to: as its address says, or as the
// session is.
func (v *visit) app() string {
	if app := strings.TrimSpace(v.r.FormValue("app")); app != "" {
		return app
	}
	return v.who.App
}

// ages are how long something must be unused to be pruned; the first is the
// least.
func ages() map[string]time.Duration {
	return map[string]time.Duration{"7d": 7 * 24 * time.Hour, "30d": 30 * 24 * time.Hour, "1d": 24 * time.Hour}
}

func (v *visit) askPrune() error {
	age, app := v.r.FormValue("age"), v.app()
	what := "everything that no running build holds"
	if d, ok := ages()[age]; ok {
		what = "what was not used for " + span(d)
	} else if age != "all" {
		return errAge
	}
	of := "of all apps of your organization"
	if app != "" {
		of = "of " + app
	}
	return v.confirm(confirmation{
		Heading: "Prune the cache?", Text: "This removes " + what + ", " + of + ". Builds that need it again will run those steps.",
		Action: "/cache/prune", Button: "Prune", Back: "/cache", Fields: [][2]string{{"age", age}, {"app", app}},
	})
}

var errAge = status.Error(codes.InvalidArgument, "Choose how old what is pruned must be.")

func (v *visit) prune() error {
	req := &slipwayv1.PruneRequest{App: v.app()}
	age := v.r.PostFormValue("age")
	d, ok := ages()[age]
	switch {
	case ok:
		req.OlderThan = durationpb.New(d)
	case age == "all":
		req.All = true
	default:
		return errAge
	}
	got, err := v.cache.Prune(v.r.Context(), req)
	if err != nil {
		return err
	}
	return v.redirect("/cache", size(float64(got.FreedBytes))+" freed, "+plural(float64(got.Records), "record")+" removed.")
}
