package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// benchReport is what bench found, as JSON has it.
type benchReport struct {
	Address     string          `json:"address"`
	App         string          `json:"app"`
	Files       int             `json:"files"`
	Bytes       int64           `json:"bytes"`
	Seed        uint64          `json:"seed"`
	Base        string          `json:"base"`
	Compression string          `json:"compression"`
	Rounds      int             `json:"rounds"`
	Scenarios   []benchScenario `json:"scenarios"`
	Freed       uint64          `json:"freed_bytes"` // by pruning in the end
}

type benchScenario struct {
	Name    string        `json:"name"` // "cold", "unchanged", "one file", "fresh copy"
	Samples []benchSample `json:"samples"`
}

// benchSample is one deploy.
type benchSample struct {
	MS          float64          `json:"ms"`           // of the client
	Timings     progress.Timings `json:"timings_ms"`   // of the daemon
	SentFiles   uint64           `json:"sent_files"`   // files of the context
	SentBytes   uint64           `json:"sent_bytes"`   // their contents
	WireBytes   uint64           `json:"wire_bytes"`   // the same as it was sent
	PushedBytes uint64           `json:"pushed_bytes"` // to the registry; none where layers are linked
	PushMS      float64          `json:"push_ms"`      // from the first blob's begin to the last one's end
	Compressed  uint64           `json:"compressed_bytes"`
	Layers      []string         `json:"layers"` // how each came into the registry
}

func newBenchSample(res *slipwayv1.Result, took, pushing time.Duration) benchSample {
	r := progress.NewResult(res)
	s := benchSample{
		MS: milliseconds(took), Timings: r.Timings, SentFiles: r.Context.SentFiles, SentBytes: r.Context.SentBytes, WireBytes: r.Context.WireBytes,
		PushedBytes: r.WireBytes, PushMS: milliseconds(pushing), Compressed: r.CompressedBytes, Layers: []string{},
	}
	for _, l := range r.Layers {
		s.Layers = append(s.Layers, l.Pushed)
	}
	return s
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *benchSample) took() string { return precise(s.MS) }

func (r *benchReport) add(name string, s benchSample) {
	i := slices.IndexFunc(r.Scenarios, func(sc benchScenario) bool { return sc.Name == name })
	if i < 0 {
		i = len(r.Scenarios)
		r.Scenarios = append(r.Scenarios, benchScenario{Name: name})
	}
	r.Scenarios[i].Samples = append(r.Scenarios[i].Samples, s)
}

// write shows medians.
func (r *benchReport) write(w io.Writer) {
	fmt.Fprintf(w, "%s: %s in %s files, seed %d\n\n", r.Address, progress.Size(r.Bytes), progress.Count(r.Files), r.Seed)
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tTOTAL\tQUEUE\tPREFLIGHT\tCONTEXT\tBUILD\tPUSH\tSENT\tCONTEXT/S\tPUSHED\tPUSHED/S\t")
	for _, sc := range r.Scenarios {
		of := func(f func(*benchSample) float64) float64 { return benchMedian(sc.Samples, f) }
		total := of(func(s *benchSample) float64 { return s.MS })
		pushed, pushing := of(func(s *benchSample) float64 { return float64(s.PushedBytes) }), of(func(s *benchSample) float64 { return s.PushMS })
		fmt.Fprintf(t, "%s\t%s\t", sc.Name, precise(total))
		for _, phase := range []func(*benchSample) int64{
			func(s *benchSample) int64 { return s.Timings.Queue },
			func(s *benchSample) int64 { return s.Timings.Preflight },
			func(s *benchSample) int64 { return s.Timings.Context },
			func(s *benchSample) int64 { return s.Timings.Build },
			func(s *benchSample) int64 { return s.Timings.Push },
		} {
			fmt.Fprintf(t, "%s\t", precise(of(func(s *benchSample) float64 { return float64(phase(s)) })))
		}
		sent := of(func(s *benchSample) float64 { return float64(s.SentBytes) })
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", progress.Size(int64(sent)), perSecond(float64(r.Bytes), total), progress.Size(int64(pushed)), perSecond(pushed, pushing))
	}
	t.Flush()
	if n := len(r.Scenarios); n > 0 && r.Scenarios[0].Samples[0].PushedBytes == 0 {
		fmt.Fprintln(w, "\nLayers were linked into the daemon's own registry: nothing had to be pushed.")
	}
	if r.Freed > 0 {
		fmt.Fprintf(w, "\nPruned %s of the cache. The image %s:bench and the records of the builds stay.\n", progress.Size(r.Freed), r.App)
	}
}

// precise shows short times as they differ: 0.042s.
func precise(ms float64) string {
	if ms < 9995 {
		return fmt.Sprintf("%.3gs", max(ms, 0)/1000)
	}
	return progress.Duration(time.Duration(ms * float64(time.Millisecond)))
}

// perSecond is a rate, "–" if there is none.
func perSecond(bytes, ms float64) string {
	if bytes == 0 || ms <= 0 {
		return "–"
	}
	return progress.Size(int64(bytes/ms*1000)) + "/s"
}

func benchMedian(samples []benchSample, of func(*benchSample) float64) float64 {
	v := make([]float64, len(samples))
	for i := range samples {
		v[i] = of(&samples[i])
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
