package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// benchFlags are the flags of bench.
type benchFlags struct {
	app         string
	size        string
	files       int
	rounds      int
	seed        uint64
	base        string
	compression string
	pushTo      []string
	keep        bool
}

func (p *program) bench() *cobra.Command {
	o := &benchFlags{}
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure what deploys to a daemon take",
		Long: `Bench deploys a build context that it generates, and says what took how long:

  cold         contents that the daemon has never seen
  unchanged    the same directory again, three times
  one file     a file of the upper one of its two layers has changed
  fresh copy   the first contents in a new directory, as after a checkout

The image begins with nothing, so that no base image has to be pulled and
nothing runs; --base names an image to begin with, and has one RUN step.

In the end the cache of the app is pruned, unless it held something before or
--keep is given. What stays: the image with the tag "bench" in the registry, with
its layers, and the records of the builds.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.runBench(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.app, "app", "a", "slipway-bench", "`APP` to deploy as")
	f.StringVar(&o.size, "size", "100MB", "`SIZE` of the build context")
	f.IntVar(&o.files, "files", 2000, "its number of files")
	f.IntVar(&o.rounds, "rounds", 1, "do all of it so often, each time with other contents, and show medians")
	f.Uint64Var(&o.seed, "seed", 0, "`NUMBER` that decides the contents (default another one each time)")
	f.StringVar(&o.base, "base", "", "begin with the image `REF`, which has a shell and find, and run a step in it")
	f.StringVar(&o.compression, "compression", "", "`TYPE` of the layers, as for deploy")
	f.StringArrayVar(&o.pushTo, "push-to", nil, "push to `HOST/PATH[:TAG]` instead of the daemon's registry; repeatable")
	f.BoolVar(&o.keep, "keep", false, "leave what the deploys have cached on the daemon")
	return cmd
}

func (p *program) runBench(ctx context.Context, o *benchFlags) error {
	b, err := p.newBench(o)
	if err != nil {
		return err
	}
	c, conn, err := p.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	b.report.Address = conn.Address.String()
	before, err := c.CacheUsage(ctx, o.app)
	if err != nil {
		return conn.explain(err)
	}
	failed := b.run(ctx)
	if err := b.prune(ctx, c, before); err != nil {
		fmt.Fprintf(p.stderr, "! the cache of %s was not pruned: %v\n", o.app, client.AsError(err).GetMessage())
	}
	if failed != nil {
		return failed
	}
	return p.print(b.report, b.report.write)
}

// bench is one run of the command.
type bench struct {
	p      *program
	flags  *benchFlags
	tree   benchTree
	report *benchReport
}

// newBench checks the flags.
func (p *program) newBench(o *benchFlags) (*bench, error) {
	bytes, err := size("--size", o.size)
	if err != nil {
		return nil, err
	}
	if o.files < benchFiles || bytes < int64(o.files) {
		return nil, client.UserError(fmt.Sprintf("%s in %d files is no tree: want at least %d files, and a byte for each", o.size, o.files, benchFiles), "")
	}
	if o.rounds < 1 {
		return nil, client.UserError("--rounds: at least 1", "")
	}
	b := &bench{p: p, flags: o, tree: benchTree{Files: o.files, Bytes: bytes, Seed: o.seed, Base: o.base}}
	if b.tree.Seed == 0 {
		b.tree.Seed = uint64(time.Now().UnixNano())
	}
	if _, err := b.deployFlags().start(p.getenv); err != nil {
		return nil, err
	}
	b.report = &benchReport{
		App: o.app, Files: o.files + 1, Bytes: bytes, Seed: b.tree.Seed, Base: o.base, Compression: o.compression, Rounds: o.rounds,
	}
	return b, nil
}

// deployFlags are those of each deploy.
func (b *bench) deployFlags() *deployFlags {
	return &deployFlags{
		app: b.flags.app, compression: b.flags.compression, pushTo: b.flags.pushTo,
		buildOnly: true, push: true, imageLabel: "bench", warnSize: "0",
	}
}

func (b *bench) run(ctx context.Context) error {
	for round := range b.flags.rounds {
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	return nil
}

// round deploys one tree in all ways.
func (b *bench) round(ctx context.Context, round int) error {
	tree := b.tree
	tree.Seed += uint64(round)
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return client.UserError(err.Error(), "")
	}
	defer os.RemoveAll(dir)
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for _, d := range []string{first, second} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return client.UserError(err.Error(), "")
		}
		defer forgetHashes(d)
	}
	for _, s := range []struct {
		name    string
		prepare func() error
		dir     string
		times   int
	}{
		{"cold", func() error { return tree.write(first) }, first, 1},
		{"unchanged", nil, first, 3},
		{"one file", func() error { return tree.change(first, round) }, first, 1},
		{"fresh copy", func() error { return tree.write(second) }, second, 1},
	} {
		if s.prepare != nil {
			if err := s.prepare(); err != nil {
				return client.UserError(err.Error(), "The tree is made in $TMPDIR.")
			}
		}
		for range s.times {
			if err := b.deploy(ctx, s.name, s.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// deploy runs one deploy and records it.
func (b *bench) deploy(ctx context.Context, name, dir string) error {
	watch := &pushWatch{}
	d := &deployment{p: b.p, flags: b.deployFlags(), dir: dir, show: progress.Multi(watch)}
	d.build = &buildLog{show: d.show, reattach: b.p.reattach}
	begun := time.Now()
	res, err := d.deploy(ctx)
	took := time.Since(begun)
	if err != nil {
		return err
	}
	switch res.GetStatus() {
	case slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED:
	case slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED:
		return client.NewError(client.CodeCancelled, slipwayv1.Blame_BLAME_USER, "cancelled", "")
	default:
		return client.FromProto(res.GetError())
	}
	s := newBenchSample(res, took, watch.lasted())
	b.report.add(name, s)
	fmt.Fprintf(b.p.stderr, "  %-12s %s\n", name, s.took())
	return nil
}

// prune removes what the deploys have cached, also after an interrupt. What
// was there before it cannot tell apart, so then it leaves all.
func (b *bench) prune(ctx context.Context, c *client.Client, before *slipwayv1.UsageResponse) error {
	if b.flags.keep {
		return nil
	}
	for _, a := range before.GetApps() {
		if a.GetApp() == b.flags.app && a.GetRecords() > 0 {
			fmt.Fprintf(b.p.stderr, "! the cache of %s held something before and is not pruned\n", b.flags.app)
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	r, err := c.Prune(ctx, &slipwayv1.PruneRequest{App: b.flags.app, All: true})
	if err != nil {
		return err
	}
	b.report.Freed = r.GetFreedBytes()
	return nil
}

// forgetHashes removes what deploys remember of a directory that is gone.
func forgetHashes(dir string) {
	if cache, err := buildctx.UserHashCache(dir); err == nil {
		_ = os.Remove(cache.File)
	}
}

// pushWatch is a display that shows nothing, and knows how long blobs were on
// their way to a registry.
type pushWatch struct {
	first, last time.Time
}

// lasted returns the time from the first to the last that was heard of blobs.
func (w *pushWatch) lasted() time.Duration { return w.last.Sub(w.first) }

// Begin implements [progress.Display].
func (w *pushWatch) Begin(progress.Header) {}

// Event implements [progress.Display].
func (w *pushWatch) Event(ev *slipwayv1.Event) {
	if ev.GetPush() == nil {
		return
	}
	w.last = time.Now()
	if w.first.IsZero() {
		w.first = w.last
	}
}

// Note implements [progress.Display].
func (w *pushWatch) Note(progress.Note) {}

// Finish implements [progress.Display].
func (w *pushWatch) Finish(*slipwayv1.Result) error { return nil }
