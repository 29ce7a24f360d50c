package buildkit

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/cache"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
)

// Between two looks at what a step has written: a tenth of the time is spent
// looking, more if there is so much to see that it would come too late.
const (
	shortPause = 50 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// vertexKey is under which a context has the [vertex] whose process runs.
type vertexKey struct{}

// watch stops a step that writes past the limit of the builds that wait for it:
// it returns a *limits.SizeError.
func watch(ctx context.Context, root executor.Root) error {
	v, ok := ctx.Value(vertexKey{}).(*vertex)
	if !ok || root.Upper == "" {
		return nil // a process that leaves nothing
	}
	r := v.writes(ctx, root.Upper)
	if r == nil {
		return nil
	}
	most := v.worker.tenant.builds.limit(r.group)
	if most < 0 {
		return nil
	}
	below, done := v.worker.below(r.parent)
	defer done()
	g := &gauged{Gauge: rootfs.NewGauge(root.Upper), upper: root.Upper, below: below, most: most}
	return g.watch(ctx)
}

// writes returns the file system that has an upper directory.
func (v *vertex) writes(ctx context.Context, upper string) *vertexRef {
	v.mu.Lock()
	refs := v.refs
	v.mu.Unlock()
	for _, r := range refs {
		if v.worker.upper(ctx, r.MutableRef) == upper {
			return r
		}
	}
	return nil
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

// A gauged directory is one that a step writes to.
type gauged struct {
	*rootfs.Gauge
	upper string
	below func(context.Context) *limits.Ledger // what the step began with, as far as that is known
	most  int64
}

// watch looks until ctx is done, and returns a *limits.SizeError when there is
// too much.
func (d *gauged) watch(ctx context.Context) error {
	timer := time.NewTimer(shortPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		begun := time.Now()
		if err := d.measure(ctx); err != nil {
			return err
		}
		timer.Reset(min(max(shortPause, 10*time.Since(begun)), longPause))
	}
}

// measure reports a *limits.SizeError if the step has written past the limit.
// What it takes away from the image below counts for it. What it changes while
// it is read is counted at another look.
func (d *gauged) measure(ctx context.Context) error {
	below := d.below(ctx)
	room := d.most - below.Total()
	used, _, err := d.Look(ctx, room)
	if err != nil || used <= room {
		return nil
	}
	credit, err := rootfs.Credit(ctx, d.upper, below.Held)
	if err != nil || used-credit <= room {
		return nil
	}
	used, at, err := d.Confirm(ctx, room+credit)
	if err != nil || used-credit <= room {
		return nil
	}
	return &limits.SizeError{Report: limits.Report{Total: below.Total() + used - credit, Max: d.most, Path: at}}
}

// tooLarge counts a stopped step's files like a layer's, on top of what it began
// with, so that the report has their paths too.
func (b *build) tooLarge(ctx context.Context, r *vertexRef, seen *limits.SizeError) error {
	dir := r.vertex.worker.upper(ctx, r.MutableRef)
	if dir == "" {
		return seen
	}
	ledger := limits.NewLedger(b.job.MaxSize)
	if r.parent != nil {
		layers, err := b.counted(ctx, r.parent, b.lines.under(r.vertex.digest))
		if err != nil {
			return seen
		}
		for _, l := range layers {
			if err := layer.Charge(b.ctx, b.tenant.cache, l, ledger); err != nil {
				return err
			}
		}
	}
	account := ledger.Begin(b.lines.of(r.vertex.digest))
	err := rootfs.WriteUpper(ctx, tar.NewWriter(io.Discard), dir, account.Entry)
	if exact, ok := errors.AsType[*limits.SizeError](err); ok {
		return exact
	}
	return seen
}

// below returns what tells how much a step began with, once all of it has been
// counted always the same, and what is to be called when nobody asks any more.
func (w *worker) below(parent cache.ImmutableRef) (look func(context.Context) *limits.Ledger, done func()) {
	t := w.tenant
	var known *weighed
	var settled bool
	look = func(ctx context.Context) *limits.Ledger {
		if !settled {
			t.weights.put(known)
			known, settled = t.weigh(ctx, parent)
		}
		return known.ledger
	}
	return look, func() { t.weights.put(known) }
}
