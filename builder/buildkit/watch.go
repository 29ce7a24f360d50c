package buildkit

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/cache"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
)

// Between two looks at what a step has written: a tenth of the time is spent
// looking, more if there is so much to see that it would come too late.
const (
	shortPause = 50 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// watched returns a context that ends when the step writes past the limit of a
// build that waits for it, and what ends the watch and returns why it stopped
// the step, nil if it did not.
func (v *vertex) watched(ctx context.Context) (context.Context, func() error) {
	v.mu.Lock()
	refs := v.refs
	v.mu.Unlock()
	var g gauges
	for _, r := range refs {
		most := v.worker.tenant.builds.limit(r.group)
		if most < 0 {
			continue
		}
		if dir := v.worker.upper(ctx, r.MutableRef); dir != "" {
			g = append(g, &gauged{Gauge: rootfs.NewGauge(dir), below: v.worker.below(ctx, r.parent), most: most})
		}
	}
	if len(g) == 0 {
		return ctx, func() error { return nil }
	}
	ctx, stop := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	look, end := context.WithCancel(ctx)
	go func() {
		err := g.watch(look)
		if err != nil {
			stop(err)
		}
		done <- err
	}()
	return ctx, func() error {
		end()
		err := <-done
		stop(nil)
		return err
	}
}

// upper is the directory that a file system in the making writes to; "" if
// that is not known.
func (w *worker) upper(ctx context.Context, ref cache.MutableRef) string {
	m, err := w.Snapshotter.Mounts(ctx, ref.ID())
	if err != nil {
		return ""
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return ""
	}
	if release != nil {
		defer func() { _ = release() }() // nothing was mounted
	}
	return upperOf(mounts)
}

// upperOf returns the directory that a snapshot's mount writes to; "" if there
// is none. A snapshot on nothing is a bind mount of it.
func upperOf(mounts []mount.Mount) string {
	if len(mounts) != 1 {
		return ""
	}
	m := mounts[0]
	if m.Type == "bind" {
		return filepath.Clean(m.Source)
	}
	for _, o := range m.Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return ""
}

// lowersOf returns the directories below, topmost first.
func lowersOf(mounts []mount.Mount) []string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return strings.Split(dirs, ":")
			}
		}
	}
	return nil
}

type gauges []*gauged

// A gauged directory is one that a step writes to.
type gauged struct {
	*rootfs.Gauge
	below func(context.Context) int64 // bytes that the step began with
	most  int64
}

// watch looks until ctx is done, and returns a *limits.SizeError when there is
// too much.
func (g gauges) watch(ctx context.Context) error {
	timer := time.NewTimer(shortPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		begun := time.Now()
		for _, d := range g {
			if err := d.measure(ctx); err != nil {
				return err
			}
		}
		timer.Reset(min(max(shortPause, 10*time.Since(begun)), longPause))
	}
}

// measure reports a *limits.SizeError if the step has written past the limit.
// What the step changes while it is read is counted at another look.
func (d *gauged) measure(ctx context.Context) error {
	room := d.most - d.below(ctx)
	used, at, err := d.Look(ctx, room)
	if err == nil && used > room {
		used, at, err = d.Confirm(ctx, room)
	}
	if err != nil || used <= room {
		return nil
	}
	return &limits.SizeError{Report: limits.Report{Total: d.most - room + used, Max: d.most, Path: at}}
}

// below returns what tells how much a step began with: the sum of the ledgers
// of the layers that have one. It is no more than the step really began with.
func (w *worker) below(_ context.Context, parent cache.ImmutableRef) func(context.Context) int64 {
	if parent == nil {
		return func(context.Context) int64 { return 0 }
	}
	var known int64
	var settled bool
	return func(ctx context.Context) int64 {
		if !settled {
			known, settled = w.tenant.weigh(ctx, parent)
		}
		return known
	}
}
