package main

import (
	"fmt"
	"slices"
	"strings"
)

// A column is one of a scenario's table.
type column struct {
	title string
	cell  func([]sample) string
}

// empty reports whether no tool has anything there.
func (c column) empty(samples map[string][]sample) bool {
	for _, s := range samples {
		if text := c.cell(s); text != "" && text != "0" {
			return false
		}
	}
	return true
}

// commonColumns are in every table.
var commonColumns = []column{
	{"seconds", func(s []sample) string { return spread(s, wall) }},
	{"CPU seconds", func(s []sample) string { return spread(s, cpu) }},
	{"peak memory", func(s []sample) string { return megabytes(median(values(s, peak))) }},
	{"file content sent", func(s []sample) string { return megabytes(median(values(s, sent))) }},
	{"sent to the registry", func(s []sample) string { return megabytes(median(values(s, pushed))) }},
}

// afterColumn is the memory of the daemon when the client has ended.
var afterColumn = column{"memory after", func(s []sample) string { return megabytes(median(values(s, after))) }}

// phaseColumn is a phase that some of the tools tell of.
func phaseColumn(name string) column {
	of := func(s sample) float64 { return s.Phases[name] }
	return column{name, func(s []sample) string {
		if _, ok := s[0].Phases[name]; !ok {
			return ""
		}
		return spread(s, of)
	}}
}

// markdown shows the run: what is aimed at, then for each workload a table of
// ratios and tables of numbers.
func (r *result) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := r.Machine
	p("Run of %s: %d rounds, the tools in turns. Machine: %s, %d cores, %.0f GB, Linux %s. %s",
		r.begun(), r.Runs, m.CPU, m.Cores, float64(m.Memory)/1e9, m.Kernel, r.noise())
	if r.Scale != 1 {
		p("**The workloads have %v times their size: this run says little.**", r.Scale)
	}
	p("Times are medians, the range in brackets.")
	for _, n := range r.Notes {
		p("%s.", strings.TrimSuffix(n, "."))
	}
	r.aims(p)
	for _, w := range allWorkloads() {
		if slices.ContainsFunc(w.scenarios, func(sc scenario) bool { return len(r.Samples[sc.name]) > 0 }) {
			r.section(p, w)
		}
	}
	return b.String()
}

func (r *result) begun() string {
	const form = "2006-01-02 15:04 UTC"
	text := r.Begun.Format(form)
	for _, t := range r.Others {
		text += ", " + t.Format(form)
	}
	return text
}

// section shows a workload.
func (r *result) section(p func(string, ...any), w *workload) {
	p("\n### %s: %s\n", w.key, w.title)
	p("%s%s.", strings.ToUpper(w.text[:1]), w.text[1:])
	if w.key == "A" && r.Workload != nil {
		p("%d files, %.0f MB (%s).", r.Workload.Files, float64(r.Workload.Bytes)/1e6, r.Workload.Source)
	}
	r.ratios(p, w)
	for _, sc := range w.scenarios {
		r.table(p, w, sc)
	}
}

// table shows a scenario.
func (r *result) table(p func(string, ...any), w *workload, sc scenario) {
	samples := r.Samples[sc.name]
	if len(samples) == 0 {
		return
	}
	p("\n**%s**: %s.\n", sc.name, sc.text)
	columns := slices.DeleteFunc(slices.Concat(commonColumns, sc.columns), func(c column) bool { return c.empty(samples) })
	head, rule := "| tool |", "|---|"
	for _, c := range columns {
		head, rule = head+" "+c.title+" |", rule+"---|"
	}
	p("%s\n%s", head, rule)
	for _, tool := range w.tools {
		s := samples[tool]
		if len(s) == 0 {
			continue
		}
		line := "| " + tool + " |"
		for _, c := range columns {
			line += " " + c.cell(s) + " |"
		}
		p("%s", line)
	}
	if text := r.sizes(w, sc); text != "" {
		p("\nCompressed size of the image, base included:%s.", text)
	}
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

// ratios compares Slipway with the peers of the same compression, turn by turn.
func (r *result) ratios(p func(string, ...any), w *workload) {
	var lines []string
	for _, sc := range w.scenarios {
		for _, ours := range w.tools {
			for _, theirs := range w.tools {
				c, peer := contenderOf(ours), contenderOf(theirs)
				a, b := r.Samples[sc.name][ours], r.Samples[sc.name][theirs]
				if c.peer || !peer.peer || peer.compression != c.compression || len(a) == 0 || len(a) != len(b) {
					continue
				}
				lines = append(lines, fmt.Sprintf("| %s, %s | %s | %s | %s |", sc.name, ours, theirs, ratio(b, a, wall), ratio(b, a, cpu)))
			}
		}
	}
	if len(lines) > 0 {
		p("\n| | compared with | wall: peer / Slipway | CPU: peer / Slipway |\n|---|---|---|---|\n%s", strings.Join(lines, "\n"))
	}
}

func (r *result) sizes(w *workload, sc scenario) string {
	var parts []string
	for _, tool := range w.tools {
		if n, ok := r.Sizes[sc.name][tool]; ok {
			parts = append(parts, fmt.Sprintf(" %s %s", tool, megabytes(float64(n))))
		}
	}
	return strings.Join(parts, ",")
}

func wall(s sample) float64   { return s.Wall }
func cpu(s sample) float64    { return s.CPU }
func peak(s sample) float64   { return float64(s.Peak) }
func after(s sample) float64  { return float64(s.After) }
func load(s sample) float64   { return s.Load }
func sent(s sample) float64   { return float64(s.Sent) }
func pushed(s sample) float64 { return float64(s.Pushed) }

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
	v := quotients(theirs, ours, of)
	if len(v) == 1 {
		return fmt.Sprintf("%.1f ×", v[0])
	}
	return fmt.Sprintf("%.1f × (%.1f–%.1f)", median(v), slices.Min(v), slices.Max(v))
}

func quotients(theirs, ours []sample, of func(sample) float64) []float64 {
	v := make([]float64, min(len(theirs), len(ours)))
	for i := range v {
		v[i] = of(theirs[i]) / of(ours[i])
	}
	return v
}

func megabytes(n float64) string {
	switch {
	case n < 0:
		return "?"
	case n == 0:
		return "0"
	case n < 1e6:
		return fmt.Sprintf("%.0f kB", n/1e3)
	}
	return fmt.Sprintf("%.0f MB", n/1e6)
}
