package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// options says what is measured and where.
type options struct {
	work    string // everything made on the way; base images and binaries are kept for the next run
	product string // Slipway's module
	doc     string // Markdown file with the marked section to replace; "" for none
	results string // folder for the JSON
	base    string // tar of a root file system to use instead of debootstrap's
	runs    int
	quick   bool
	scale   float64 // factor on the size of every workload
	only    string
	tools   string
	render  string // JSON of earlier runs
	keep    bool
}

// quickScale makes a quick run end in time.
const quickScale = 0.1

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	f.StringVar(&o.work, "work", filepath.Join(os.TempDir(), "slipway-bench"), "`folder` to work in; 20 GB, not on overlayfs")
	f.StringVar(&o.product, "product", "..", "`folder` of Slipway's module")
	f.StringVar(&o.doc, "doc", "", "Markdown `file` whose marked section gets the tables (default docs/benchmarks.md of the product after a complete run)")
	f.StringVar(&o.results, "results", "", "`folder` for the JSON (default results after a complete run, else the work folder)")
	f.StringVar(&o.base, "base", "", "`tar` of a root file system for the base image (default: Debian bookworm minbase by debootstrap)")
	f.IntVar(&o.runs, "runs", 3, "rounds; each runs everything once")
	f.BoolVar(&o.quick, "quick", os.Getenv("QUICK") == "1", "one round, gzip only, small workloads; also by QUICK=1")
	f.Float64Var(&o.scale, "scale", 0, fmt.Sprintf("`factor` on the size of the workloads, to try things out (default 1, %v with -quick)", quickScale))
	f.StringVar(&o.only, "only", "", "comma-separated `workloads` to run (default all): "+strings.Join(workloadKeys(), ", "))
	f.StringVar(&o.tools, "tools", "", "comma-separated `tools` to run (default all): "+strings.Join(contenderNames(), ", "))
	f.BoolVar(&o.keep, "keep", false, "keep roots and logs of the last round")
	f.StringVar(&o.render, "render", "", "run nothing; make the tables from comma-separated JSON `files` of earlier runs, where a later one beats those before it")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	return o, o.complete(f.NArg())
}

// complete checks the options and fills in what they leave open.
func (o *options) complete(args int) error {
	if args > 0 || o.runs < 1 || o.scale < 0 {
		return errors.New("no arguments are taken, -runs is at least 1, and -scale is above 0")
	}
	if o.quick {
		o.runs = 1
	}
	if o.scale == 0 {
		o.scale = 1
		if o.quick {
			o.scale = quickScale
		}
	}
	whole := o.scale == 1 && !o.quick && o.only == "" && o.tools == "" && o.render == ""
	if o.doc == "" && whole {
		o.doc = filepath.Join(o.product, "docs", "benchmarks.md")
	}
	if o.results == "" {
		o.results = o.work
		if whole {
			o.results = "results"
		}
	}
	var err error
	o.work, err = filepath.Abs(o.work)
	return err
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.render != "" {
		res, err := readResults(strings.Split(o.render, ","))
		if err != nil {
			return err
		}
		return res.show(os.Stdout, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root: the daemons mount overlays and start containers")
	}
	work, err := workloads(o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	bin, err := build(ctx, o)
	if err != nil {
		return err
	}
	b := &bench{opts: o, bin: bin, res: newResult(o), images: map[string]baseImage{}}
	failed := b.all(ctx, work)
	if err := b.res.save(o); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil {
		o.doc = "" // keeps what the last complete run said
	}
	return errors.Join(failed, b.res.show(os.Stdout, o))
}
