package progress_test

import (
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Where a step was cached is told with that it was.
func TestPlainCachedElsewhere(t *testing.T) {
	from := func(step uint32, ref string) *slipwayv1.StepLog {
		return &slipwayv1.StepLog{Step: step, Stream: slipwayv1.LogStream_LOG_STREAM_NOTE, Data: []byte(" ---> Using cache from " + ref + "\n")}
	}
	hit := func(step uint32) *slipwayv1.StepDone { return &slipwayv1.StepDone{Step: step, Cached: true} }
	plan := planOf("FROM a", "COPY . .", "RUN npm ci", "CMD x")
	end := &slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_BUILD, Done: true}
	ref := "registry.example.com/team/cache:main"

	all := show(nil, nil, plan, hit(0), from(1, ref), hit(1), from(2, ref), hit(2), from(3, "other:v1"), hit(3), end)
	if want := "4 of 4 steps cached, 2 from " + ref + ", 1 from other:v1\n"; !strings.Contains(all, want) {
		t.Errorf("got\n%s\nwant %s", all, want)
	}
	some := show(nil, nil, plan, hit(0), from(1, ref), hit(1), &slipwayv1.StepDone{Step: 2}, &slipwayv1.StepDone{Step: 3}, end)
	for _, line := range strings.Split(some, "\n") {
		if strings.Contains(line, "COPY") && !strings.HasSuffix(line, "cached from "+ref) || strings.Contains(line, "FROM a") && !strings.HasSuffix(line, "cached") {
			t.Errorf("got %q", line)
		}
	}
	if strings.Contains(all+some, "Using cache") || strings.Count(some, "cached") != 2 {
		t.Errorf("got\n%s", some)
	}
}
