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
	work    string // everything made on the way; the base image and binaries are kept for the next run
	product string // Slipway's module
	doc     string // Markdown file with the marked section to replace; "" for none
	results string // folder for the JSON; "" for none
	base    string // tar of a root file system to use instead of debootstrap's
	runs    int
	quick   bool
	only    string
	render  string // JSON of an earlier run
	keep    bool
}

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
	f.StringVar(&o.work, "work", filepath.Join(os.TempDir(), "slipway-bench"), "`folder` to work in; 6 GB, not on overlayfs")
	f.StringVar(&o.product, "product", "..", "`folder` of Slipway's module")
	f.StringVar(&o.doc, "doc", "", "Markdown `file` whose marked section gets the table (default docs/benchmarks.md of the product, none with -quick)")
	f.StringVar(&o.results, "results", "", "`folder` for the JSON (default results, the work folder with -quick)")
	f.StringVar(&o.base, "base", "", "`tar` of a root file system for the base image (default: Debian bookworm minbase by debootstrap)")
	f.IntVar(&o.runs, "runs", 3, "rounds; each runs everything once")
	f.BoolVar(&o.quick, "quick", os.Getenv("QUICK") == "1", "one round, gzip only; also by QUICK=1")
	f.StringVar(&o.only, "only", "", "comma-separated `contenders` to run (default all): "+strings.Join(contenderNames(), ", "))
	f.BoolVar(&o.keep, "keep", false, "keep roots and logs of the last round")
	f.StringVar(&o.render, "render", "", "run nothing; make the tables from the JSON `file` of an earlier run")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.runs < 1 {
		return o, errors.New("no arguments are taken, and -runs is at least 1")
	}
	if o.quick {
		o.runs = 1
	}
	if o.doc == "" && !o.quick {
		o.doc = filepath.Join(o.product, "docs", "benchmarks.md")
	}
	if o.results == "" {
		o.results = "results"
		if o.quick {
			o.results = o.work
		}
	}
	var err error
	if o.work, err = filepath.Abs(o.work); err != nil {
		return o, err
	}
	return o, nil
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
		res, err := readResult(o.render)
		if err != nil {
			return err
		}
		return res.show(os.Stdout, o)
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root: the daemons mount overlays and start containers")
	}
	who, err := contenders(o)
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
	image, err := baseImage(ctx, o)
	if err != nil {
		return err
	}
	work, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	b := &bench{opts: o, bin: bin, base: image, work: work}
	res := newResult(o, work)
	err = b.rounds(ctx, who, res)
	if err != nil {
		return err
	}
	if err := res.save(o); err != nil {
		return err
	}
	return res.show(os.Stdout, o)
}
