package classic_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/classic"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A brokenRunner panics in the watch of a RUN step, or instead of it.
type brokenRunner struct {
	classic.Runner
	watch bool
}

func (b brokenRunner) Run(ctx context.Context, p sandbox.Process) (int, error) {
	if !b.watch {
		panic("boom")
	}
	p.Watch = func(context.Context) error { panic("boom") }
	return b.Runner.Run(ctx, p)
}

// A panic, wherever it comes in a build, is the failure of that build, and the
// daemon's log has its stack. The next build is as good as ever.
func TestPanicsFailTheBuildAlone(t *testing.T) {
	w := newWorld(t)
	ref, _ := w.serveBase(func(string) {})
	w.opts.Bases = base.NewResolver(base.Options{})
	shell := w.options().Bases
	emits := func(is func(*slipwayv1.Event) bool) func(w *world) {
		return func(w *world) {
			w.onEmit = func(e *slipwayv1.Event) {
				if is(e) {
					panic("boom")
				}
			}
		}
	}
	const run = "FROM " + registryHost + "/fid/base:1\nRUN true\n"
	for _, tc := range []struct {
		name, dockerfile string
		harm             func(*world)
	}{
		{"a stage", "FROM scratch\nCOPY f /\n", emits(func(e *slipwayv1.Event) bool { return e.GetStepStarted() != nil })},
		{"a layer", "FROM scratch\nCOPY f /\n", emits(func(e *slipwayv1.Event) bool { return e.GetLayer() != nil })},
		{"a push", "FROM scratch\nCOPY f /\n", emits(func(e *slipwayv1.Event) bool { return e.GetPush() != nil })},
		{"a pull", "FROM " + ref + "\n", emits(func(e *slipwayv1.Event) bool { return e.GetPull() != nil })},
		{"preflight", "FROM scratch\nCOPY f /\n", emits(func(e *slipwayv1.Event) bool { return e.GetPlan() != nil })},
		{"contents", "FROM scratch\nCOPY f /\n", func(w *world) { w.onNeed = func(string) { panic("boom") } }},
		{"a RUN step", run, func(w *world) { w.opts.Bases, w.opts.Runner = shell, brokenRunner{Runner: w.runner} }},
		{"a watch", "FROM " + registryHost + "/fid/base:1\nRUN sleep 30\n", func(w *world) {
			w.opts.Bases, w.opts.Runner = shell, brokenRunner{w.runner, true}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			w.log.Reset()
			tc.harm(w)
			dir := t.TempDir()
			w.write(dir, map[string]string{"f": "text of " + tc.name})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			res := w.build(ctx, request{org: "broken", dir: dir, dockerfile: tc.dockerfile})
			if res.GetError().GetCode() != failure.Internal || strings.Contains(res.Error.Message, "boom") {
				t.Errorf("result %v", res.Error)
			}
			if log := w.log.String(); !strings.Contains(log, "boom") || !strings.Contains(log, "panic_test.go") {
				t.Errorf("log %s", log)
			}
		})
	}
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "text"})
	if res := w.build(t.Context(), request{org: "broken", dir: dir, dockerfile: "FROM scratch\nCOPY f /\n"}); res.Error != nil {
		t.Errorf("afterwards: %v", res.Error)
	}
}
