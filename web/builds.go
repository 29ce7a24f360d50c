package web

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// buildPage is how many builds a page shows.
const buildPage = 30

type buildList struct {
	Builds []*slipwayv1.Build
	App    string
	Apps   []string
	First  bool   // nothing newer is before this page
	Self   string // address of this page
	Next   string // address of the next page; empty for none
}

func (v *visit) listBuilds() error {
	q := v.r.URL.Query()
	d := buildList{App: q.Get("app"), First: q.Get("before") == "", Self: v.r.URL.RequestURI()}
	got, err := v.builds.ListBuilds(v.r.Context(), &slipwayv1.ListBuildsRequest{App: d.App, Limit: buildPage, BeforeId: q.Get("before")})
	if err != nil {
		return err
	}
	d.Builds = got.Builds
	if n := len(got.Builds); n == buildPage {
		d.Next = pageAfter(v.r.URL, got.Builds[n-1].Id)
	}
	if apps, err := v.orgs.ListApps(v.r.Context(), &slipwayv1.ListAppsRequest{}); err == nil {
		for _, a := range apps.Apps {
			d.Apps = append(d.Apps, a.Name)
		}
	}
	return v.show(http.StatusOK, "builds", "Builds", d)
}

func ended(b *slipwayv1.Build) bool {
	return b.Status != slipwayv1.BuildStatus_BUILD_STATUS_QUEUED && b.Status != slipwayv1.BuildStatus_BUILD_STATUS_RUNNING
}

// A buildView is the page of one build.
type buildView struct {
	*progress
	Build  *slipwayv1.Build
	Live   bool // the page goes on
	Cancel bool
}

func (v *visit) showBuild() error {
	ctx, id := v.r.Context(), v.r.PathValue("id")
	got, err := v.builds.GetBuild(ctx, &slipwayv1.GetBuildRequest{Id: id})
	if err != nil {
		return err
	}
	p := newProgress(true)
	if err := v.replay(id, func(e *slipwayv1.Event) error { p.apply(e); return nil }); err != nil {
		return err
	}
	b := got.Build
	if p.Result == nil {
		p.Result = b.Result
	} else if !ended(b) { // it ended after we had asked
		b.Status = statusOf(p.Result)
	}
	d := buildView{progress: p, Build: b, Live: p.Result == nil && !ended(b)}
	d.Cancel = d.Live && v.may("build:write")
	return v.show(http.StatusOK, "build", b.App+" "+short(b.Id), d)
}

func statusOf(r *slipwayv1.Result) slipwayv1.BuildStatus {
	switch r.Status {
	case slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED:
		return slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED
	case slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED:
		return slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED
	}
	return slipwayv1.BuildStatus_BUILD_STATUS_FAILED
}

// replay calls f for each event that a build has had.
func (v *visit) replay(id string, f func(*slipwayv1.Event) error) error {
	stream, err := v.builds.WatchBuild(v.r.Context(), &slipwayv1.WatchBuildRequest{Id: id, ReplayOnly: true})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(m.Event); err != nil {
			return err
		}
	}
}

// textLog writes all output of a build as plain text.
func (v *visit) textLog() error {
	id := v.r.PathValue("id")
	if _, err := v.builds.GetBuild(v.r.Context(), &slipwayv1.GetBuildRequest{Id: id}); err != nil {
		return err
	}
	p := newProgress(false)
	v.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err := v.replay(id, func(e *slipwayv1.Event) error {
		p.apply(e)
		return writeText(v.w, p, e)
	})
	if err != nil { // the answer has begun
		_, _ = fmt.Fprintf(v.w, "\nslipway: the log could not be read to its end: %s\n", explain(err).Message)
	}
	return nil
}

func writeText(w io.Writer, p *progress, e *slipwayv1.Event) (err error) {
	switch m := e.Event.(type) {
	case *slipwayv1.Event_StepStarted:
		s := p.step(m.StepStarted.Step)
		_, err = fmt.Fprintf(w, "== %s %s\n", s.Label, s.Source)
	case *slipwayv1.Event_StepLog:
		_, err = io.WriteString(w, clean(m.StepLog.Data))
	case *slipwayv1.Event_StepDone:
		s := p.step(m.StepDone.Step)
		_, err = fmt.Fprintf(w, "== %s %s %s\n", s.Label, s.State.Word, s.Took)
	case *slipwayv1.Event_Result:
		if f := m.Result.Error; f != nil {
			_, err = fmt.Fprintf(w, "error: %s: %s\n%s\n", f.Code, f.Message, f.Hint)
		}
	}
	return err
}

func (v *visit) askCancel() error {
	got, err := v.builds.GetBuild(v.r.Context(), &slipwayv1.GetBuildRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	id := got.Build.Id
	return v.confirm(confirmation{
		Heading: "Cancel this build of " + got.Build.App + "?", Text: "Nothing is pushed. Finished steps stay cached.",
		Action: path("builds", id, "cancel"), Button: "Cancel build", Back: path("builds", id),
	})
}

func (v *visit) cancelBuild() error {
	id := v.r.PathValue("id")
	got, err := v.builds.CancelBuild(v.r.Context(), &slipwayv1.CancelBuildRequest{Id: id})
	if err != nil {
		return err
	}
	text := "The build is being cancelled."
	if ended(got.Build) {
		text = "The build had ended, or ended now."
	}
	return v.redirect(path("builds", id), text)
}
