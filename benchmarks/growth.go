package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// How a daemon ages: apps in its store, and deploys in a row.
const (
	growthApps   = 20
	growthFiles  = 300
	growthEarly  = 20
	growthLate   = 200
	quickLate    = 60 // in quick runs
	growthRepeat = 7
)

func workloadS() *workload {
	return &workload{
		key: "S", title: "a daemon that ages",
		text:    "small apps of 300 files, 3 MB, in one COPY. Memory is what a row of deploys, each with a file changed, leaves resident",
		tools:   []string{slipwayGzip},
		bases:   []string{debianBase},
		prepare: func(_ context.Context, b *bench) error { return makeSmallApp(b, 0) },
		scenarios: []scenario{
			{name: "S alone", text: "unchanged deploy of the only app in the store", run: smallApp(0), before: smallApp(0), times: growthRepeat},
			{name: "S among others", text: "the same with 20 more apps in the store", run: smallApp(0), before: moreApps, times: growthRepeat},
			{name: "S early", text: "after 20 deploys", run: row(func(*bench) int { return growthEarly }), columns: []column{afterColumn}},
			{name: "S late", text: "after 200 deploys, in a quick run after 60", run: row(func(b *bench) int { return late(b) - growthEarly }), columns: []column{afterColumn}},
		},
	}
}

func late(b *bench) int {
	if b.opts.quick {
		return quickLate
	}
	return growthLate
}

// makeSmallApp writes the nth app.
func makeSmallApp(b *bench, n int) error {
	files := map[string]string{"Dockerfile": "FROM debian:bookworm\nCOPY . /srv/app\n"}
	for i := range growthFiles {
		files[fmt.Sprintf("src/%02d/%03d.txt", i%20, i)] = strings.Repeat(fmt.Sprintf("app %d file %d\n", n, i), 700)
	}
	return writeFiles(b.dir(smallAppName(n)), files)
}

func smallAppName(n int) string { return fmt.Sprintf("s%d", n) }

func smallApp(n int) action { return deploys(smallAppName(n), "bench-"+smallAppName(n)) }

// moreApps deploys the other apps.
func moreApps(ctx context.Context, b *bench, t tool, round int) (sample, error) {
	for n := 1; n <= growthApps; n++ {
		if err := makeSmallApp(b, n); err != nil {
			return sample{}, err
		}
		if _, err := smallApp(n)(ctx, b, t, round); err != nil {
			return sample{}, err
		}
	}
	return smallApp(0)(ctx, b, t, round)
}

// row returns the action that deploys the first app again and again, each time
// with a change. Its sample is the last one, with the median of the times.
func row(times func(*bench) int) action {
	return func(ctx context.Context, b *bench, t tool, round int) (sample, error) {
		var all []sample
		n := times(b)
		for i := range n {
			file := filepath.Join(b.dir(smallAppName(0)), "change.txt")
			if err := os.WriteFile(file, fmt.Appendf(nil, "round %d, change %d of %d\n", round, i, n), 0o644); err != nil {
				return sample{}, err
			}
			s, err := smallApp(0)(ctx, b, t, round)
			if err != nil {
				return s, fmt.Errorf("deploy %d of %d: %w", i+1, n, err)
			}
			all = append(all, s)
		}
		last := all[len(all)-1]
		last.Wall, last.CPU = median(values(all, wall)), median(values(all, cpu))
		for _, s := range all {
			last.Peak = max(last.Peak, s.Peak)
		}
		return last, nil
	}
}
