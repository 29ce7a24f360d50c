package main

import "fmt"

// An aim is what Slipway should reach on a quiet machine of two cores.
type aim struct {
	what  string
	unit  string // after the number
	atMax bool   // value is to be at most bound, else at least
	bound float64
	value func(*result) (float64, bool)
}

const mb = 1e6

func allAims() []aim {
	return []aim{
		{"A cold, BuildKit / Slipway, gzip", " ×", false, 6, ratioOf("A cold", buildkitGzip, slipwayGzip)},
		{"A cold, BuildKit / Slipway, zstd", " ×", false, 3, ratioOf("A cold", buildkitZstd, slipwayZstd)},
		{"A unchanged", " s", true, 0.2, medianOf("A unchanged", slipwayGzip, wall)},
		{"A one file, BuildKit / Slipway", " ×", false, 12, ratioOf("A one file", buildkitGzip, slipwayGzip)},
		{"A fresh copy, BuildKit / Slipway", " ×", false, 8, ratioOf("A fresh copy", buildkitGzip, slipwayGzip)},
		{"A fresh copy, file content sent", " bytes", true, 0, medianOf("A fresh copy", slipwayGzip, sent)},
		{"A cold with --buildkit, BuildKit / Slipway", " ×", false, 3, ratioOf("A cold", buildkitGzip, slipwayBuildKit)},
		{"A unchanged with --buildkit", " s", true, 0.3, medianOf("A unchanged", slipwayBuildKit, wall)},
		{"A fresh copy with --buildkit, BuildKit / Slipway", " ×", false, 4, ratioOf("A fresh copy", buildkitGzip, slipwayBuildKit)},
		{"R 20 RUN with --buildkit, BuildKit / Slipway", " ×", false, 1, ratioOf("R cold", buildkitGzip, slipwayBuildKit)},
		{"P to a foreign registry, Slipway / curl", " ×", true, 1.05, ratioOf("P push", slipwayRegistry, curl)},
		{"P to the embedded registry", " s", true, 0.1, medianOf("P push", slipwayGzip, wall)},
		{"I embedded, again", " s", true, 0.05, medianOf("I embedded, again", slipwayGzip, wall)},
		{"T, longer than the slower of build and push", " %", true, 10, overlapOf(slipwayRegistry)},
		{"unchanged deploy, among 20 more apps / alone", " ×", true, 1.2, growth(wall, "S alone", "S among others")},
		{"memory, after 200 deploys / after 20", " ×", true, 1.2, growth(after, "S early", "S late")},
		{"highest memory of the daemon, all workloads", " MB", true, 250, highest(peak)},
		{"memory of the daemon after a deploy, highest of all workloads", " MB", true, 150, highest(after)},
	}
}

// aims shows what is aimed at, and what was measured of it.
func (r *result) aims(p func(string, ...any)) {
	head := "\n| aim | bound | measured | |\n|---|---|---|---|"
	for _, a := range allAims() {
		v, ok := a.value(r)
		if !ok {
			continue
		}
		if head != "" {
			p("%s", head)
			head = ""
		}
		bound, met := "at least", v >= a.bound
		if a.atMax {
			bound, met = "at most", v <= a.bound
		}
		p("| %s | %s %v%s | %s%s | %s |", a.what, bound, a.bound, a.unit, digits(v), a.unit, map[bool]string{true: "met", false: "**missed**"}[met])
	}
}

// digits writes a number as precisely as it matters.
func digits(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 2:
		return fmt.Sprintf("%.3f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// ratioOf is the median of one tool's time over another's, turn by turn.
func ratioOf(scenario, over, under string) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		v := quotients(r.Samples[scenario][over], r.Samples[scenario][under], wall)
		if len(v) == 0 {
			return 0, false
		}
		return median(v), true
	}
}

func medianOf(scenario, tool string, of func(sample) float64) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		s := r.Samples[scenario][tool]
		if len(s) == 0 {
			return 0, false
		}
		return median(values(s, of)), true
	}
}

// overlapOf is by how many per cent building and pushing in one take longer
// than the slower of both.
func overlapOf(tool string) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		v, err := overlap(r.Samples["T build"][tool], r.Samples["T push"][tool], r.Samples["T build and push"][tool])
		if err != nil {
			return 0, false
		}
		return 100 * median(v), true
	}
}

// growth is how many times the median of a scenario is that of an earlier one.
func growth(of func(sample) float64, before, later string) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		a, ok := medianOf(before, slipwayGzip, of)(r)
		b, ok2 := medianOf(later, slipwayGzip, of)(r)
		return b / a, ok && ok2
	}
}

// highest is the largest value of any sample of slipwayd, in MB.
func highest(of func(sample) float64) func(*result) (float64, bool) {
	return func(r *result) (float64, bool) {
		most := 0.0
		for _, tools := range r.Samples {
			for _, tool := range []string{slipwayGzip, slipwayRegistry, slipwayZstd} {
				for _, s := range tools[tool] {
					most = max(most, of(s)/mb)
				}
			}
		}
		return most, most > 0
	}
}
