package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A bench is what the rounds need.
type bench struct {
	opts options
	bin  binaries
	base v1.Image
	work *workload
}

// A scenario is one deploy of a round. The scenarios follow each other on the
// same daemons, so each begins with the caches that the one before it left.
type scenario struct {
	name    string
	text    string
	app     string
	dir     func(*workload) string
	prepare func(w *workload, round int) error // once a round, before the first contender
	times   int                                // deploys; 0 means 1
}

func dirA(w *workload) string { return w.A }
func dirR(w *workload) string { return w.R }

var scenarios = []scenario{
	{name: "A cold", text: "empty caches, base image not pulled yet", app: "bench-a", dir: dirA},
	{name: "A unchanged", text: "the same directory again", app: "bench-a", dir: dirA, times: 3},
	{name: "A one file", text: "one file of the 150 MB layer changed", app: "bench-a", dir: dirA,
		prepare: func(w *workload, round int) error { return w.change(round) }},
	{name: "A fresh copy", text: "the first contents in a new checkout: new inodes and times", app: "bench-a", dir: dirA,
		prepare: func(w *workload, _ int) error { return w.fresh() }},
	{name: "R cold", text: "20 × RUN echo that no cache knows, base image there", app: "bench-r", dir: dirR,
		prepare: func(w *workload, round int) error { return w.steps(round) }},
}

// rounds runs everything in turns.
func (b *bench) rounds(ctx context.Context, who []contender, res *result) error {
	for round := range b.opts.runs {
		order := slices.Clone(who)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		if err := b.round(ctx, round+1, order, res); err != nil {
			return errors.Join(fmt.Errorf("round %d: %w", round+1, err), context.Cause(ctx))
		}
	}
	return nil
}

func (b *bench) round(ctx context.Context, round int, order []contender, res *result) error {
	tools := make([]tool, 0, len(order))
	defer func() {
		for i, t := range tools {
			t.stop()
			if !b.opts.keep {
				if err := wipe(filepath.Join(b.opts.work, "roots", order[i].name)); err != nil {
					logf("%v", err)
				}
			}
		}
	}()
	for _, c := range order {
		t, err := c.fresh(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		tools = append(tools, t)
	}
	for _, sc := range scenarios {
		if sc.prepare != nil {
			if err := sc.prepare(b.work, round); err != nil {
				return fmt.Errorf("%s: %w", sc.name, err)
			}
		}
		for range max(1, sc.times) {
			for i, c := range order {
				if err := b.once(ctx, round, sc, c, tools[i], res); err != nil {
					return fmt.Errorf("%s: %s: %w", sc.name, c.name, err)
				}
			}
		}
	}
	return nil
}

func (b *bench) once(ctx context.Context, round int, sc scenario, c contender, t tool, res *result) error {
	settle()
	s, err := t.deploy(ctx, sc.dir(b.work), sc.app)
	if err != nil {
		return err
	}
	s.Round = round
	res.add(sc.name, c.name, s)
	logf("round %d  %-13s %-22s %7.2f s  cpu %6.2f s  peak %4d MB  sent %4d MB  load %.1f",
		round, sc.name, c.name, s.Wall, s.CPU, s.Peak>>20, s.Sent/1_000_000, s.Load)
	if round > 1 || sc.name != scenarios[0].name {
		return nil
	}
	size, err := t.verify(ctx)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	res.Compressed[c.name] = size
	return nil
}

// wipe removes a folder with what daemons may have left mounted in it.
func wipe(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var under []string
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			under = append(under, at)
		}
	}
	for _, at := range slices.Backward(under) {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return os.RemoveAll(dir)
}
