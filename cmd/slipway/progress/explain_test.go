package progress_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/cmd/slipway/progress"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// explained plays a build: each line is an instruction, and after a tab why it
// missed: "a file that changed", "" for a cached one, "^" for one that comes
// after a miss, "new".
func explained(lines ...string) []*slipwayv1.Event {
	plan := &slipwayv1.Plan{Stages: 1}
	events := []*slipwayv1.Event{{Event: &slipwayv1.Event_Plan{Plan: plan}}}
	root := ""
	for i, line := range lines {
		source, why, _ := strings.Cut(line, "\t")
		id := uint32(i + 1)
		plan.Steps = append(plan.Steps, &slipwayv1.PlannedStep{Step: id, Number: id, Total: uint32(len(lines)), Source: source})
		d := &slipwayv1.StepDone{Step: id, Cached: why == "", DurationMs: 41_000}
		label := fmt.Sprintf("[%d/%d]", id, len(lines))
		switch why {
		case "":
		case "^":
			d.Miss = "parent"
			d.Why = &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_PARENT, Changes: []*slipwayv1.KeyChange{{Part: "step", Name: root}}}
		case "stage":
			d.Miss = "stage a changed"
			d.Why = &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_CHANGED, Changes: []*slipwayv1.KeyChange{{Part: "stage", Name: "a"}, {Part: "step", Name: root}}}
			root = label + " " + source
		case "new":
			root = label + " " + source
			d.Miss, d.Why = "it is new", &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_NEW}
		default:
			root = label + " " + source
			d.Miss = why + " changed"
			d.Why = &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_CHANGED, Changes: []*slipwayv1.KeyChange{{Part: "file", Name: why}}}
		}
		events = append(events, &slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: d}})
	}
	return events
}

func TestHints(t *testing.T) {
	const from = "FROM node"
	for _, tc := range []struct {
		name  string
		lines []string
		want  string // part of the only hint; "" is none
		not   string
	}{
		{name: "first build", lines: []string{from, "COPY . .\tnew", "RUN npm ci\t^"}},
		{name: "cached", lines: []string{from, "COPY . .", "RUN npm ci"}},
		{name: "nothing after", lines: []string{from, "RUN npm ci", "COPY . .\tsrc/a"}},
		{name: "order", lines: []string{from, "COPY . .\tsrc/a", "RUN npm ci\t^", "RUN npm run build\t^"},
			want: "[2/4] COPY . . comes before [3/4] RUN npm ci, so every source change reinstalls packages (41s this time). Copy package.json and package-lock.json first, then RUN npm ci, then COPY . ."},
		{name: "the lock file itself changed", lines: []string{from, "COPY . .\tpackage-lock.json", "RUN npm ci\t^"}, want: "1 of 3 steps ran because [2/3] did", not: "COPY"},
		{name: "install and build in one", lines: []string{from, "COPY . .\tsrc/a", "RUN npm ci && npm run build\t^"}, want: "1 of 3 steps ran", not: "reinstalls"},
		{name: "a package by name", lines: []string{from, "COPY . .\tsrc/a", "RUN npm install ./local\t^"}, want: "1 of 3 steps", not: "reinstalls"},
		{name: "system packages", lines: []string{from, "COPY . .\tsrc/a", "RUN apt-get update && apt-get install -y curl && rm -rf /var/lib/apt/lists/*\t^"}, want: "before COPY . .."},
		{name: "pip", lines: []string{from, "COPY . .\tapp.py", "RUN --mount=type=cache,target=/root/.cache pip install --no-cache-dir -r requirements/dev.txt\t^"}, want: "Copy dev.txt first"},
		{name: "pip of the project", lines: []string{from, "COPY . .\tapp.py", "RUN pip install .\t^"}, want: "1 of 3 steps", not: "reinstalls"},
		{name: "a step that is no copy", lines: []string{from, "RUN date\twhatever", "RUN npm ci\t^"}, want: "1 of 3 steps ran because [2/3] did; nothing in COPY order would have helped"},
		{name: "through a stage", lines: []string{from, "RUN date\twhatever", "COPY --from=a /x /x\tstage", "RUN npm ci\t^"}, want: "2 of 4 steps ran because [2/4] did"},
		{name: "from a stage", lines: []string{from, "COPY --from=a /x /x\tx", "RUN npm ci\t^"}, want: "nothing in COPY order"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := &progress.Explainer{}
			var plain bytes.Buffer
			p := progress.NewPlain(&plain, nil)
			for _, e := range explained(tc.lines...) {
				x.Event(e)
				p.Event(e)
			}
			if err := p.Finish(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED}); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(x.Explain("id").Hints, "\n")
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) || tc.not != "" && strings.Contains(got, tc.not) {
				t.Errorf("hints %q, want %q and not %q", got, tc.want, tc.not)
			}
			if got != "" && !strings.Contains(plain.String(), "hint: "+got+"\n") {
				t.Errorf("the display does not give the hint:\n%s", plain.String())
			}
			if got == "" && strings.Contains(plain.String(), "hint") {
				t.Errorf("the display gives a hint:\n%s", plain.String())
			}
		})
	}
}

// What everybody knows of a first build is not said of each step.
func TestMissIsShown(t *testing.T) {
	for _, tc := range []struct {
		lines []string
		want  string
		not   string
	}{
		{[]string{"FROM x", "RUN a\tnew", "RUN b\t^"}, "RUN b", "missed"},
		{[]string{"FROM x", "RUN a", "RUN b\tnew"}, "missed: it is new", ""},
		{[]string{"FROM x", "COPY f /\tf", "RUN b\t^"}, "missed: f changed", ""},
		{[]string{"FROM x", "COPY f /\tf", "RUN b\t^"}, "missed: parent", ""},
	} {
		var out bytes.Buffer
		p := progress.NewPlain(&out, nil)
		for _, e := range explained(tc.lines...) {
			p.Event(e)
		}
		if err := p.Finish(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), tc.want) || tc.not != "" && strings.Contains(out.String(), tc.not) {
			t.Errorf("want %q and not %q:\n%s", tc.want, tc.not, out.String())
		}
	}
}

func TestForecastText(t *testing.T) {
	f := &slipwayv1.Forecast{
		Files: 1204, Bytes: 38_200_000, SendFiles: 2, SendBytes: 18_000, RootfsBytes: 240_000_000, RootfsLimit: 8_000_000_000,
		PushLayers: 1, PushBytes: 12_000_000, DurationMs: 9_100, Samples: 5,
		Steps: []*slipwayv1.ForecastStep{
			{Step: &slipwayv1.PlannedStep{Number: 1, Total: 3, Source: "FROM x"}, Cached: true},
			{Step: &slipwayv1.PlannedStep{Number: 2, Total: 3, Source: "COPY . ."}, Miss: "src/cart.ts changed", Why: &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_CHANGED}},
			{Step: &slipwayv1.PlannedStep{Number: 3, Total: 3, Source: "RUN go build"}, Miss: "parent [2/3]", Why: &slipwayv1.Miss{Reason: slipwayv1.MissReason_MISS_REASON_PARENT}},
		},
	}
	var out bytes.Buffer
	progress.NewForecast(f).Write(&out)
	want := `context   1,204 files, 38.2 MB; would send 2 files, 18 kB
steps     1 cached, 2 to run:
          [2/3] COPY . . (src/cart.ts changed)
          [3/3] RUN go build
rootfs    about 0.24 of 8 GB (last deploy)
push      1 layer of about 12.0 MB
time      about 9.1s (median of the last 5 like it)
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
