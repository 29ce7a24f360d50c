package classic_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// plan asks what a build would do. Nothing may travel, run or be pushed.
func (w *world) plan(r request) (*slipwayv1.Forecast, *outcome) {
	w.tb.Helper()
	if r.start == nil {
		r.start = &slipwayv1.Start{}
	}
	r.start.PlanOnly, r.start.Context = true, &slipwayv1.ContextInfo{}
	o := w.build(w.tb.Context(), r)
	if len(o.needed) > 0 {
		w.tb.Errorf("a plan asked for %v", o.needed)
	}
	if o.Digest != "" || o.Image != "" || len(o.Layers) > 0 {
		w.tb.Errorf("a plan has an image: %v", o.Result)
	}
	var f *slipwayv1.Forecast
	for _, e := range o.events {
		switch {
		case e.GetForecast() != nil:
			f = e.GetForecast()
		case e.GetStepStarted() != nil, e.GetStepLog() != nil, e.GetLayer() != nil, e.GetPush() != nil, e.GetPull() != nil:
			w.tb.Errorf("a plan has event %v", e)
		}
	}
	return f, o
}

// marks are the steps but FROM: "+" is cached, "-" to run, "?" unknown.
func marks(f *slipwayv1.Forecast) string {
	out := ""
	for _, s := range f.GetSteps() {
		switch {
		case s.Step.Number == 1:
		case s.Cached:
			out += "+"
		case s.Unknown:
			out += "?"
		default:
			out += "-"
		}
	}
	return out
}

func TestForecast(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"package.json": "{}", "src/a": "a", "src/b": "bb", "notes": "not copied"})
	const text = `FROM fid/base:1 AS build
COPY package.json /
RUN cat /package.json > /installed
COPY src /src
FROM fid/base:1
RUN echo runtime > /runtime
COPY --from=build /installed /installed
COPY --from=build /src /src
ENV A=1
`
	r := request{dir: dir, dockerfile: text}
	f, o := w.plan(r)
	if o.Error != nil || marks(f) != "-------" {
		t.Fatalf("before the first build: %s (%v)", marks(f), o.Error)
	}
	if f.SendFiles != 3 || f.SendBytes != 5 || f.Files != 4 || f.Bytes != 15 {
		t.Errorf("would send %d files, %d bytes of %d, %d", f.SendFiles, f.SendBytes, f.Files, f.Bytes)
	}
	if f.RootfsKnown || f.PushLayers == 0 {
		t.Errorf("forecast %v", f)
	}
	left, _ := os.ReadDir(filepath.Join(w.root, "cache", "content", "blobs", "sha256"))
	built := w.build(t.Context(), r)
	built.pull()
	if len(left) > 3 {
		t.Errorf("a plan pulled the base: %d blobs", len(left))
	}

	f, _ = w.plan(r)
	if marks(f) != "+++++++" || f.SendFiles != 0 || !f.RootfsKnown || f.RootfsBytes != built.RootfsBytes || f.PushLayers != 0 {
		t.Errorf("unchanged: %s, %v; the image has %d bytes", marks(f), f, built.RootfsBytes)
	}

	w.write(dir, map[string]string{"src/b": "changed"})
	f, _ = w.plan(r)
	if marks(f) != "++-+???" || f.SendFiles != 1 || f.SendBytes != 7 || f.RootfsKnown {
		t.Errorf("changed: %s, %v", marks(f), f)
	}
	if got := f.Steps[3]; !strings.Contains(got.Miss, "src/b changed") || reason(got.Why) != "changed" {
		t.Errorf("step %v", got)
	}
	if got := f.Steps[6].Miss; !strings.HasPrefix(got, "depends on [build 4/4]") {
		t.Errorf("unknown step says %q", got)
	}
	if f.PushLayers != 2 || f.PushBytes == 0 {
		t.Errorf("would push %d layers, %d bytes; want those of the COPY --from, as large as they were", f.PushLayers, f.PushBytes)
	}
	// What was foreseen comes to pass, and a plan leaves no trace in what
	// explains the next build.
	o = w.build(t.Context(), r)
	o.pull()
	if !o.needed["src/b"] || o.needed["package.json"] || !strings.HasPrefix(o.cached(), "++-+") {
		t.Errorf("built %s, asked for %v", o.cached(), o.needed)
	}

	if _, o = w.plan(request{dir: dir, dockerfile: text + "COPY none /\n"}); o.Error == nil || o.Error.Code != "file_not_found" {
		t.Errorf("a plan of what will fail: %v", o.Error)
	}
	f, _ = w.plan(request{dir: dir, dockerfile: "FROM fid/base:1\nADD http://127.0.0.1:1/x /\nCOPY notes /\n"})
	if marks(f) != "??" || f.SendFiles != 1 {
		t.Errorf("URL: %s, %v", marks(f), f)
	}
}

// A forecast compares with the app's last builds that had about as much to do.
func TestForecastHistory(t *testing.T) {
	w := newWorld(t)
	built := func(total int64, missed uint32) *slipwayv1.Result {
		return &slipwayv1.Result{Steps: 2, CachedSteps: 2 - missed, RootfsBytes: 77, Timings: &slipwayv1.Timings{Total: total, Queue: 1}}
	}
	w.history = []*slipwayv1.Result{built(31, 2), built(1, 0), built(21, 2), built(41, 2), built(5, 1)}
	f, _ := w.plan(request{dockerfile: "FROM fid/base:1\nRUN true\nRUN echo\n"})
	if f.DurationMs != 30 || f.Samples != 3 || f.RootfsBytes != 77 || f.RootfsKnown {
		t.Errorf("forecast %v", f)
	}
}
