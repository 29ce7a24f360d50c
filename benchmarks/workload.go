package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A workload is a group of scenarios on the same daemons. -only selects it by
// its key.
type workload struct {
	key   string
	title string
	text  string // what it is made of, in Markdown
	tools []string
	quick []string // tools of quick runs, where they are not all
	bases []string // images that its Dockerfiles begin with

	// prepare makes what is deployed, once a run.
	prepare func(context.Context, *bench) error

	// open starts a tool; nil for the contender's own.
	open func(context.Context, contender, setup) (tool, error)

	slow      bool // the registry is behind a slow link
	scenarios []scenario
}

// A scenario is one thing that every tool of a workload does in its turn. The
// scenarios follow each other on the same daemons, so each begins with the
// caches that the one before it left.
type scenario struct {
	name    string
	text    string
	prepare func(b *bench, round int) error // once a round, before the first tool
	before  action                          // by each tool in its turn, not measured; may be nil
	run     action
	times   int      // 0 means 1
	fresh   bool     // on daemons without what came before
	long    bool     // not in quick runs
	verify  bool     // pull the image in the first round
	columns []column // beside those that all scenarios have
}

// An action is what one tool does in one round.
type action func(ctx context.Context, b *bench, t tool, round int) (sample, error)

// errNotMeant is returned by an action for a tool that has no part in it.
var errNotMeant = errors.New("not meant for this tool")

func allWorkloads() []*workload {
	return []*workload{workloadA(), workloadR(), workloadN(), workloadG(), workloadP(), workloadI(), workloadT(), workloadS()}
}

func workloadKeys() []string {
	var keys []string
	for _, w := range allWorkloads() {
		keys = append(keys, w.key)
	}
	return keys
}

// workloads returns those to run, each with the tools that take part.
func workloads(o options) ([]*workload, error) {
	all := allWorkloads()
	if o.only != "" {
		keys := strings.Split(o.only, ",")
		for _, k := range keys {
			if !slices.Contains(workloadKeys(), k) {
				return nil, fmt.Errorf("no workload %q; there are %s", k, strings.Join(workloadKeys(), ", "))
			}
		}
		all = slices.DeleteFunc(all, func(w *workload) bool { return !slices.Contains(keys, w.key) })
	}
	meant, err := meantTools(o)
	if err != nil {
		return nil, err
	}
	for _, w := range all {
		if o.quick && o.tools == "" && w.quick != nil {
			w.tools = w.quick
		}
		w.tools = slices.DeleteFunc(w.tools, func(name string) bool { return !slices.Contains(meant, name) })
	}
	return slices.DeleteFunc(all, func(w *workload) bool { return len(w.tools) == 0 }), nil
}

// deploys returns the action that deploys a directory of the work folder.
func deploys(name, app string) action {
	return func(ctx context.Context, b *bench, t tool, _ int) (sample, error) {
		d, ok := t.(deployer)
		if !ok {
			return sample{}, errNotMeant
		}
		return d.deploy(ctx, job{dir: b.dir(name), app: app})
	}
}

// pulls returns the action that makes a tool pull a base image and run
// something in it.
func pulls(base string) action {
	return func(ctx context.Context, b *bench, t tool, round int) (sample, error) {
		dir := b.dir("pull")
		if err := os.RemoveAll(dir); err != nil {
			return sample{}, err
		}
		if err := write(filepath.Join(dir, "Dockerfile"), strings.NewReader("FROM "+base+"\nRUN true\n"), 0o644); err != nil {
			return sample{}, err
		}
		return deploys("pull", "bench-pull")(ctx, b, t, round)
	}
}
