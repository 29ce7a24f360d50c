package main

import (
	"fmt"
	"slices"
	"strings"
)

// markdown shows the run as tables: one of ratios, one of numbers.
func (r *result) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := r.Machine
	p("Run of %s: %d rounds, the tools in turns. Machine: %s, %d cores, %.0f GB, Linux %s. %s",
		r.Begun.Format("2006-01-02 15:04 UTC"), r.Runs, m.CPU, m.Cores, float64(m.Memory)/1e9, m.Kernel, r.noise())
	p("Workload A: %d files, %.0f MB (%s). Times are medians, the range in brackets.\n", r.Workload.Files, float64(r.Workload.Bytes)/1e6, r.Workload.Source)
	r.ratios(p)
	for _, sc := range scenarios {
		samples := r.Samples[sc.name]
		if len(samples) == 0 {
			continue
		}
		p("\n**%s**: %s.\n", sc.name, sc.text)
		p("| tool | seconds | CPU seconds | peak memory of the daemon | file content sent |")
		p("|---|---|---|---|---|")
		for _, c := range allContenders {
			if s := samples[c.name]; len(s) > 0 {
				p("| %s | %s | %s | %.0f MB | %s |", c.name, spread(s, wall), spread(s, cpu), median(values(s, peak)), megabytes(median(values(s, sent))))
			}
		}
	}
	if len(r.Compressed) > 0 {
		p("\nCompressed size of A's image, base included:%s.", r.sizes())
	}
	return b.String()
}

// noise says how busy the machine was. A deploy uses both cores of a small
// machine by itself; what is far above is somebody else's.
func (r *result) noise() string {
	var v []float64
	for _, by := range r.Samples {
		for _, samples := range by {
			v = append(v, values(samples, load)...)
		}
	}
	if len(v) == 0 {
		return ""
	}
	text := fmt.Sprintf("Load average as the deploys began: %.1f (%.1f–%.1f).", median(v), slices.Min(v), slices.Max(v))
	if median(v) > 2*float64(r.Machine.Cores) {
		text += " **The machine was shared: absolute times mean little, and a tool that compresses on one core loses less to others than one that uses all. CPU seconds are the steadier measure.**"
	}
	return text
}

// ratios compares Slipway with the peer of the same compression, turn by turn.
func (r *result) ratios(p func(string, ...any)) {
	p("| | compared with | wall: peer / Slipway | CPU: peer / Slipway |")
	p("|---|---|---|---|")
	for _, sc := range scenarios {
		for _, c := range allContenders {
			if c.peer {
				continue
			}
			for _, peer := range allContenders {
				ours, theirs := r.Samples[sc.name][c.name], r.Samples[sc.name][peer.name]
				if !peer.peer || peer.compression != c.compression || len(ours) == 0 || len(ours) != len(theirs) {
					continue
				}
				p("| %s, %s | %s | %s | %s |", sc.name, c.name, peer.name, ratio(theirs, ours, wall), ratio(theirs, ours, cpu))
			}
		}
	}
}

func (r *result) sizes() string {
	var parts []string
	for _, c := range allContenders {
		if n, ok := r.Compressed[c.name]; ok {
			parts = append(parts, fmt.Sprintf(" %s %.0f MB", c.name, float64(n)/1e6))
		}
	}
	return strings.Join(parts, ",")
}

func wall(s sample) float64 { return s.Wall }
func cpu(s sample) float64  { return s.CPU }
func peak(s sample) float64 { return float64(s.Peak) / 1e6 }
func load(s sample) float64 { return s.Load }
func sent(s sample) float64 { return float64(s.Sent) }

func values(samples []sample, of func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = of(s)
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// spread is "median (least–most)".
func spread(samples []sample, of func(sample) float64) string {
	v := values(samples, of)
	if len(v) == 1 {
		return fmt.Sprintf("%.2f", v[0])
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(v), slices.Min(v), slices.Max(v))
}

// ratio compares samples that were taken in the same turn.
func ratio(theirs, ours []sample, of func(sample) float64) string {
	v := make([]float64, len(ours))
	for i := range ours {
		v[i] = of(theirs[i]) / of(ours[i])
	}
	if len(v) == 1 {
		return fmt.Sprintf("%.1f ×", v[0])
	}
	return fmt.Sprintf("%.1f × (%.1f–%.1f)", median(v), slices.Min(v), slices.Max(v))
}

func megabytes(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 1e6:
		return fmt.Sprintf("%.0f kB", n/1e3)
	}
	return fmt.Sprintf("%.0f MB", n/1e6)
}
