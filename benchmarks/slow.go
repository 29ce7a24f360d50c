package main

import (
	"context"
	"errors"
)

// slowScale is the size of T's application beside A's.
const slowScale = 0.5

func workloadT() *workload {
	local := func(ctx context.Context, b *bench, t tool, _ int) (sample, error) {
		d, ok := t.(deployer)
		if !ok {
			return sample{}, errNotMeant
		}
		return d.deploy(ctx, job{dir: b.dir("t"), app: "bench-t", local: true})
	}
	whole := deploys("t", "bench-t")
	return &workload{
		key: "T", title: "a registry behind a slow link",
		text: "half of A, and its base image, pushed through a link of 20 MB/s and 50 ms there and back (a TCP proxy: no loss, windows large enough). " +
			"A tool that pushes while it builds takes as long as the slower of both, not as both together",
		tools: []string{slipwayRegistry, buildkitGzip},
		bases: []string{debianBase},
		slow:  true,
		prepare: func(ctx context.Context, b *bench) error {
			_, err := makeApplication(ctx, b, "t", slowScale*b.opts.scale)
			return err
		},
		scenarios: []scenario{
			{name: "T build", text: "cold, not pushed", run: local},
			{name: "T push", text: "the same, which is built now", run: whole},
			{name: "T build and push", text: "cold, both in one", run: whole, fresh: true, verify: true},
		},
	}
}

// overlap is by how much building and pushing in one took longer than the
// slower of both, turn by turn.
func overlap(build, push, both []sample) ([]float64, error) {
	if len(both) == 0 || len(build) != len(both) || len(push) != len(both) {
		return nil, errors.New("turns are missing")
	}
	out := make([]float64, len(both))
	for i := range both {
		out[i] = both[i].Wall/max(build[i].Wall, push[i].Wall) - 1
	}
	return out, nil
}
