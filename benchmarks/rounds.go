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
	"time"
)

// A bench is what the rounds need.
type bench struct {
	opts   options
	bin    binaries
	res    *result
	images map[string]baseImage // base images made so far
}

// dir is the folder of a build context.
func (b *bench) dir(name string) string { return filepath.Join(b.opts.work, "contexts", name) }

// all prepares and runs the workloads, round by round. A workload that fails
// leaves the others in peace.
func (b *bench) all(ctx context.Context, work []*workload) error {
	if err := wipe(filepath.Join(b.opts.work, "roots")); err != nil { // of a run that was killed
		return err
	}
	var failed []error
	ready := make([]*workload, 0, len(work))
	for _, w := range work {
		if err := b.prepare(ctx, w); err != nil {
			failed = append(failed, b.fail(w, err))
			continue
		}
		ready = append(ready, w)
	}
	for round := range b.opts.runs {
		for _, w := range ready {
			if ctx.Err() != nil {
				return errors.Join(append(failed, context.Cause(ctx))...)
			}
			if err := b.round(ctx, round+1, w); err != nil {
				failed = append(failed, b.fail(w, fmt.Errorf("round %d: %w", round+1, err)))
			}
		}
	}
	return errors.Join(failed...)
}

// fail records that something of a workload is missing.
func (b *bench) fail(w *workload, err error) error {
	err = fmt.Errorf("workload %s: %w", w.key, err)
	first, rest, _ := strings.Cut(err.Error(), "\n")
	b.res.note(first)
	if rest != "" {
		logf("%s", rest)
	}
	return err
}

func (b *bench) prepare(ctx context.Context, w *workload) error {
	for _, name := range w.bases {
		if err := b.makeBase(ctx, name); err != nil {
			return err
		}
	}
	w.tools = slices.DeleteFunc(w.tools, func(name string) bool {
		missing := contenderOf(name).missing()
		if missing != "" {
			b.res.note(fmt.Sprintf("%s is not installed: no %s in %s", missing, name, w.key))
		}
		return missing != ""
	})
	if w.prepare == nil {
		return nil
	}
	return w.prepare(ctx, b)
}

// A stand is a contender with its place in a round.
type stand struct {
	contender
	tool   tool // nil while it is not open
	opened int  // so often
	out    bool // a peer that failed, for the rest of the round
}

// round runs a workload once. A peer that fails is left out from there on.
func (b *bench) round(ctx context.Context, round int, w *workload) error {
	logf("round %d  %s: %s", round, w.key, w.title)
	stands := make([]*stand, 0, len(w.tools))
	for _, name := range w.tools {
		stands = append(stands, &stand{contender: contenderOf(name)})
	}
	if round%2 == 0 {
		slices.Reverse(stands)
	}
	defer func() { b.clear(stands) }()
	for _, sc := range w.scenarios {
		if sc.long && b.opts.quick {
			continue
		}
		if sc.fresh {
			stop(stands)
		}
		if sc.prepare != nil {
			if err := sc.prepare(b, round); err != nil {
				return fmt.Errorf("%s: %w", sc.name, err)
			}
		}
		times := max(1, sc.times)
		if b.opts.quick {
			times = (times + 2) / 3
		}
		for n := range times {
			for _, s := range stands {
				if s.out {
					continue
				}
				if err := b.once(ctx, w, sc, s, round, n == 0); err != nil {
					err = fmt.Errorf("%s: %s: %w", sc.name, s.name, err)
					if !s.peer || ctx.Err() != nil {
						return err
					}
					s.out = true
					_ = b.fail(w, fmt.Errorf("round %d: %w", round, err))
				}
			}
		}
	}
	return nil
}

// open starts a tool in an empty folder.
func (b *bench) open(ctx context.Context, w *workload, s *stand) error {
	s.opened++
	dir := b.root(s)
	if err := wipe(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	set := setup{bin: b.bin, dir: dir, work: b.opts.work, compression: s.compression, slow: w.slow}
	for _, name := range w.bases {
		set.bases = append(set.bases, b.images[name])
	}
	start := s.contender.open
	if w.open != nil {
		start = func(ctx context.Context, set setup) (tool, error) { return w.open(ctx, s.contender, set) }
	}
	t, err := start(ctx, set)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.tool = t
	return nil
}

// root is a new folder for a stand.
func (b *bench) root(s *stand) string {
	return filepath.Join(b.opts.work, "roots", fmt.Sprintf("%s.%d", s.name, s.opened))
}

// stop stops the tools.
func stop(stands []*stand) {
	for _, s := range stands {
		if s.tool != nil {
			s.tool.stop()
			s.tool = nil
		}
	}
}

// clear stops the tools and removes what they leave. File systems go on with
// that for a while, which is waited for.
func (b *bench) clear(stands []*stand) {
	stop(stands)
	if b.opts.keep {
		return
	}
	if err := wipe(filepath.Join(b.opts.work, "roots")); err != nil {
		logf("%v", err)
	}
	syscall.Sync()
	time.Sleep(2 * time.Second)
}

// once runs a scenario by one tool, and records it.
func (b *bench) once(ctx context.Context, w *workload, sc scenario, s *stand, round int, first bool) error {
	if s.tool == nil {
		if err := b.open(ctx, w, s); err != nil {
			return err
		}
	}
	if sc.before != nil && first {
		if _, err := sc.before(ctx, b, s.tool, round); err != nil && !errors.Is(err, errNotMeant) {
			return fmt.Errorf("before: %w", err)
		}
	}
	settle()
	got, err := sc.run(ctx, b, s.tool, round)
	if errors.Is(err, errNotMeant) {
		return nil
	}
	if err != nil {
		return err
	}
	got.Round = round
	b.res.add(sc.name, s.name, got)
	logf("round %d  %-22s %-22s %7.2f s  cpu %6.2f s  peak %4d MB  after %4d MB  sent %4d MB  pushed %4d MB  load %.1f", round, sc.name, s.name,
		got.Wall, got.CPU, got.Peak/1_000_000, got.After/1_000_000, got.Sent/1_000_000, got.Pushed/1_000_000, got.Load)
	d, ok := s.tool.(deployer)
	if !sc.verify || round > 1 || !first || !ok {
		return nil
	}
	size, err := d.verify(ctx)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	b.res.size(sc.name, s.name, size)
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
