package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkShare tells what part of a deploy is Slipway's own: all of the wall
// time, from the client's start to its exit, that no process inside of a RUN
// step fills. It builds the applications of workloads N and G, nothing cached,
// once with a base image that earlier builds have used and once without. Needs
// what the workloads need; the work folder is that of make bench.
//
//	go test -run '^$' -bench Share -benchtime 1x -count 3 .
func BenchmarkShare(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	o, err := parse(nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, w := range []*workload{workloadN(), workloadG()} {
		for _, there := range []bool{true, false} {
			name := w.key
			if !there {
				name += "-base-pulled"
			}
			b.Run(name, func(b *testing.B) { share(b, o, w, there) })
		}
	}
}

func share(b *testing.B, o options, w *workload, baseThere bool) {
	bench := &bench{opts: o, res: newResult(o), images: map[string]baseImage{}}
	if err := bench.prepare(b.Context(), w); err != nil {
		b.Fatal(err)
	}
	if err := w.scenarios[0].prepare(bench, 1); err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(b.TempDir(), "context")
	if err := os.CopyFS(dir, os.DirFS(bench.dir(strings.ToLower(w.key)))); err != nil {
		b.Fatal(err)
	}
	timed(b, filepath.Join(dir, "Dockerfile"))
	var wall, run float64
	for b.Loop() {
		t, err := startSlipway(b.Context(), setup{bin: binaries{"../bin"}, dir: b.TempDir(), compression: "gzip", bases: []baseImage{bench.images[w.bases[0]]}}, false, false)
		if err != nil {
			b.Fatal(err)
		}
		if baseThere {
			if _, err := pulls(w.bases[0])(b.Context(), bench, t, 1); err != nil {
				b.Fatal(err)
			}
		}
		settle()
		s, said, err := t.output(b.Context(), dir, "-a", "share")
		t.stop()
		if err != nil {
			b.Fatal(err)
		}
		wall += s.Wall
		run += insideRun(b, said)
	}
	n := float64(b.N)
	b.ReportMetric(wall*1e9/n, "ns/op")
	b.ReportMetric(run/n, "run-s/op")
	b.ReportMetric((wall-run)/n, "own-s/op")
	b.ReportMetric(100*(wall-run)/wall, "own-%")
}

const clock = "date +inside=%s.%N"

var (
	runLine = regexp.MustCompile(`(?m)^RUN (.*)$`)
	inside  = regexp.MustCompile(`inside=([0-9.]+)`)
)

// timed makes the RUN steps of a Dockerfile print when they begin and end.
func timed(b *testing.B, file string) {
	b.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	put(b, file, runLine.ReplaceAllString(string(text), "RUN "+clock+" && $1 && "+clock))
}

// insideRun adds up what lies between the first and the last line of each RUN,
// in seconds.
func insideRun(b *testing.B, said []byte) float64 {
	b.Helper()
	times := map[int][]float64{}
	for line := range bytes.Lines(said) {
		var e struct {
			Type string
			Step int
			Data string
		}
		if err := json.Unmarshal(line, &e); err != nil {
			b.Fatal(err)
		}
		for _, at := range inside.FindAllStringSubmatch(e.Data, -1) {
			seconds, err := strconv.ParseFloat(at[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			times[e.Step] = append(times[e.Step], seconds)
		}
	}
	var sum float64
	for step, at := range times {
		if len(at) != 2 {
			b.Fatalf("step %d tells %d times, want 2", step, len(at))
		}
		sum += at[1] - at[0]
	}
	if sum == 0 {
		b.Fatalf("no step tells its times: %s", tail(said))
	}
	return sum
}
