package classic_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/classic/casetest"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// casesDir has what Docker's classic builder made of Dockerfiles.
const casesDir = "testdata/cases"

func TestCases(t *testing.T) {
	w := newWorld(t)
	casetest.Run(t, casesDir, func(t *testing.T) casetest.Builder { return caseBuilder{w.on(t)} })
}

// A caseBuilder builds the cases in this process, each in an org of its own.
type caseBuilder struct{ world *world }

func (b caseBuilder) Build(t *testing.T, c casetest.Build) *casetest.Outcome {
	content, err := os.ReadFile(filepath.Join(c.Dir, c.File))
	if err != nil {
		t.Fatal(err)
	}
	start := &slipwayv1.Start{
		Dockerfile: &slipwayv1.Dockerfile{Name: c.File, Content: content},
		Targets:    []string{registryHost + "/fid/" + c.Case + ":latest"},
	}
	if c.Ref != "" {
		start.Targets = []string{registryHost + "/" + c.Ref}
	}
	arguments(t, start, c.Args)
	o := b.world.build(t.Context(), request{org: c.Case, dir: c.Dir, start: start})
	out := &casetest.Outcome{ExitCode: o.exitCode(), Message: o.Error.GetMessage(), Image: o.repository, Steps: steps(o)}
	for _, e := range o.events {
		if w := e.GetWarning(); w != nil && w.Line == 0 {
			out.Warnings = append(out.Warnings, w.Message)
		}
	}
	return out
}

func (b caseBuilder) Pull(_ *testing.T, image string) *casetest.Image {
	name, tag, _ := strings.Cut(strings.TrimPrefix(image, registryHost+"/"), ":")
	return b.world.read(name, tag)
}

// arguments reads the docker command line's.
func arguments(t *testing.T, start *slipwayv1.Start, args []string) {
	t.Helper()
	start.BuildArgs, start.Labels = map[string]string{}, map[string]string{}
	for i := 0; i < len(args); i++ {
		if args[i] == "--no-cache" {
			start.NoCache = true
			continue
		}
		name, value, ok := strings.Cut(args[i+1], "=")
		switch {
		case args[i] == "--build-arg" && ok:
			start.BuildArgs[name] = value
		case args[i] == "--build-arg": // not set where the client is: not sent
		case args[i] == "--label":
			start.Labels[name] = value
		default:
			t.Fatalf("argument %s", args[i])
		}
		i++
	}
}

// steps joins what the build's events say of each step.
func steps(o *outcome) []casetest.Step {
	var out []casetest.Step
	at := map[uint32]int{}
	for _, e := range o.events {
		switch e := e.Event.(type) {
		case *slipwayv1.Event_Plan:
			for _, s := range e.Plan.Steps {
				at[s.Step] = len(out)
				out = append(out, casetest.Step{Source: s.Source})
			}
		case *slipwayv1.Event_StepStarted:
			out[at[e.StepStarted.Step]].Started = true
		case *slipwayv1.Event_StepLog:
			out[at[e.StepLog.Step]].Output += string(e.StepLog.Data)
		case *slipwayv1.Event_StepDone:
			out[at[e.StepDone.Step]].Cached = e.StepDone.Cached
		}
	}
	return out
}
