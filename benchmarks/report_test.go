package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// resultOf is a run of one round.
func resultOf(samples map[string]map[string]sample) *result {
	r := newResult(options{runs: 1, scale: 1})
	for sc, tools := range samples {
		for tool, s := range tools {
			r.add(sc, tool, s)
		}
	}
	return r
}

func TestAims(t *testing.T) {
	r := resultOf(map[string]map[string]sample{
		"A cold":           {slipwayGzip: {Wall: 5, Peak: 200e6, After: 90e6}, buildkitGzip: {Wall: 29, Peak: 900e6}},
		"A unchanged":      {slipwayGzip: {Wall: 0.1}},
		"P push":           {slipwayRegistry: {Wall: 2}, curl: {Wall: 2}},
		"T build":          {slipwayRegistry: {Wall: 8}},
		"T push":           {slipwayRegistry: {Wall: 10}},
		"T build and push": {slipwayRegistry: {Wall: 12}},
	})
	var b strings.Builder
	r.aims(func(format string, args ...any) { b.WriteString(sprintln(format, args...)) })
	for _, want := range []string{
		"| A cold, BuildKit / Slipway, gzip | at least 6 × | 5.8 × | **missed** |",
		"| A unchanged | at most 0.2 s | 0.100 s | met |",
		"| P to a foreign registry, Slipway / curl | at most 1.05 × | 1.000 × | met |",
		"| T, longer than the slower of build and push | at most 10 % | 20.0 % | **missed** |",
		"| highest memory of the daemon, all workloads | at most 250 MB | 200 MB | met |",
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "one file") {
		t.Errorf("an aim that was not measured is shown:\n%s", b.String())
	}
}

// The tables have a line for each tool, without columns in which nobody has
// anything.
func TestMarkdown(t *testing.T) {
	r := resultOf(map[string]map[string]sample{
		"P push": {
			slipwayRegistry: {Wall: 2, CPU: 1, Pushed: 1_000_000_000, Phases: map[string]float64{"start to exit": 2.5}},
			curl:            {Wall: 3, CPU: 2, Pushed: 1_000_000_000},
		},
	})
	text := r.markdown()
	for _, want := range []string{
		"### P: a push of finished blobs\n",
		"| P push, slipway-registry-gzip | curl | 1.5 × | 2.0 × |\n",
		"| slipway-registry-gzip | 2.00 | 1.00 | 1000 MB | 2.50 |\n",
		"| curl | 3.00 | 2.00 | 1000 MB |  |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "### A") || strings.Contains(text, "| push |") {
		t.Errorf("what was not measured is shown:\n%s", text)
	}
}

// A later run beats an earlier one, scenario by scenario.
func TestMerge(t *testing.T) {
	var files []string
	for i, r := range []*result{
		resultOf(map[string]map[string]sample{"A cold": {slipwayGzip: {Wall: 1}}, "R cold": {slipwayGzip: {Wall: 2}}}),
		resultOf(map[string]map[string]sample{"R cold": {slipwayGzip: {Wall: 3}}, "P push": {curl: {Wall: 4}}}),
	} {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(t.TempDir(), string(rune('a'+i))))
		if err := os.WriteFile(files[i], raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := readResults(files)
	if err != nil {
		t.Fatal(err)
	}
	for sc, want := range map[string]float64{"A cold": 1, "R cold": 3} {
		if got := r.Samples[sc][slipwayGzip]; len(got) != 1 || got[0].Wall != want {
			t.Errorf("%s: %v, want %v seconds", sc, got, want)
		}
	}
	if len(r.Samples["P push"][curl]) != 1 || len(r.Others) != 1 {
		t.Errorf("merged: %v, %v", r.Samples, r.Others)
	}
	if _, err := readResults([]string{files[0], "/nosuch"}); err == nil {
		t.Error("no error for a file that is not there")
	}
}

func TestWorkloads(t *testing.T) {
	keys := func(o options) []string {
		t.Helper()
		all, err := workloads(o)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, w := range all {
			out = append(out, w.key)
		}
		return out
	}
	for _, tc := range []struct {
		o    options
		want string
	}{
		{options{}, "A R N G P I T S"},
		{options{quick: true}, "A R N G P I T S"},
		{options{only: "P,A"}, "A P"},
		{options{tools: "curl"}, "P"},
		{options{only: "A,I", tools: "crane"}, "I"},
	} {
		if got := keys(tc.o); strings.Join(got, " ") != tc.want {
			t.Errorf("%+v: %v, want %s", tc.o, got, tc.want)
		}
	}
	for _, o := range []options{{only: "X"}, {tools: "make"}} {
		if _, err := workloads(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// Names are what results are known by.
func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range allWorkloads() {
		for _, sc := range w.scenarios {
			if seen[sc.name] || !strings.HasPrefix(sc.name, w.key+" ") || sc.run == nil || sc.text == "" {
				t.Errorf("scenario %q of %s", sc.name, w.key)
			}
			seen[sc.name] = true
		}
		for _, tool := range w.tools {
			if !slices.Contains(contenderNames(), tool) {
				t.Errorf("%s: no tool %q", w.key, tool)
			}
		}
	}
}

func TestOverlap(t *testing.T) {
	got, err := overlap([]sample{{Wall: 4}, {Wall: 10}}, []sample{{Wall: 8}, {Wall: 5}}, []sample{{Wall: 8}, {Wall: 15}})
	if err != nil || len(got) != 2 || math.Abs(got[0]) > 1e-9 || math.Abs(got[1]-0.5) > 1e-9 {
		t.Errorf("overlap = %v, %v", got, err)
	}
	if _, err := overlap(nil, nil, []sample{{}}); err == nil {
		t.Error("no error for turns that are missing")
	}
}

func TestCurlScript(t *testing.T) {
	b := &bench{opts: options{work: t.TempDir()}}
	if err := makeBlobs(b, "p", 0.0001); err != nil {
		t.Fatal(err)
	}
	script, err := curlScript(layoutOf(b.dir("p")), "http://host/v2/app")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(script, "up http://host/v2/app "); n != pushBlobs {
		t.Errorf("%d uploads, want %d:\n%s", n, pushBlobs, script)
	}
	for line := range strings.Lines(script) {
		if fields := strings.Fields(line); fields[0] == "up" {
			if _, err := os.Stat(fields[2]); err != nil {
				t.Error(err)
			}
		}
	}
}

func sprintln(format string, args ...any) string { return fmt.Sprintf(format+"\n", args...) }
