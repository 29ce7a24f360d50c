package classic

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/layercache"
)

// A leftover is what a RUN step that failed has left, apart from its build.
type leftover struct {
	cache   *layercache.Cache
	lease   *layercache.Lease
	snap    *layercache.Snapshot
	process sandbox.Process // but for its cache mounts
	caches  []keptCache
	bound   []*layercache.Snapshot // files of the context that it had mounted
}

// A keptCache is a cache mount that is taken anew by each who enters.
type keptCache struct {
	options layercache.MountOptions
	targets []sandbox.Mount
}

// keep has what the step left kept, and e tell how to get there.
func (p *process) keep(ctx context.Context, snap *layercache.Snapshot, e *failure.Error) {
	b := p.stage.build
	if !b.opts.Keep.Keeps() || b.opts.Keep.Hint(b.job.Org, b.job.ID) != "" {
		return
	}
	l, err := p.leave(context.WithoutCancel(ctx), snap)
	if err != nil {
		b.opts.Log.WarnContext(ctx, "keep what a failed step left", "build", b.job.ID, "err", err)
		return
	}
	kept := b.opts.Keep.Keep(ctx, shell.Step{
		Org: b.job.Org, App: b.job.App, Build: b.job.ID, Shell: p.shell,
		Name:    fmt.Sprintf("line %d failed here with exit code %d: %s", p.step.line, e.ExitCode, oneLine(p.step.source)),
		Secrets: slices.ContainsFunc(p.mounts.list, (*runMount).confidential),
		Bytes:   l.weigh(ctx), Weigh: l.weigh, Enter: l.enter, Drop: l.drop,
	})
	if !kept {
		l.drop(ctx)
		return
	}
	hint := b.opts.Keep.Hint(b.job.Org, b.job.ID)
	if ranOut(e.ExitCode, p.sandbox.Limits) {
		hint += ";\n" + e.Hint
	}
	e.Hint = hint
}

// oneLine is an instruction as it fits on a line.
func oneLine(source string) string {
	const most = 100
	text := []rune(strings.Join(strings.Fields(source), " "))
	if len(text) > most {
		return string(text[:most]) + "…"
	}
	return string(text)
}

// confidential reports whether a mount shows what must not outlive the step.
func (m *runMount) confidential() bool {
	return m.Type == instructions.MountTypeSecret || m.Type == instructions.MountTypeSSH
}

// leave takes what is needed of the build, which is about to end.
func (p *process) leave(ctx context.Context, snap *layercache.Snapshot) (l *leftover, err error) {
	b := p.stage.build
	l = &leftover{cache: b.job.Cache, process: sandbox.Process{
		Volatile: true, Env: p.mounts.withoutAgents(p.sandbox.Env), Dir: p.sandbox.Dir, User: p.sandbox.User,
		Hostname: p.sandbox.Hostname, Network: p.sandbox.Network, Volumes: p.sandbox.Volumes, Limits: p.sandbox.Limits,
	}}
	if l.lease, err = l.cache.Lease(ctx, "failed-"+b.job.ID, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.drop(ctx)
		}
	}()
	if l.snap, err = snap.Hand(ctx, l.lease); err != nil {
		return nil, err
	}
	l.process.Lowers, l.process.Upper, l.process.Work = l.snap.Lowers(), l.snap.Upper(), l.snap.Work()
	if p.program != nil {
		l.process.Mounts = append(l.process.Mounts, *p.program)
	}
	for _, m := range p.mounts.list {
		switch m.Type {
		case instructions.MountTypeTmpfs:
			l.process.Mounts = append(l.process.Mounts, sandbox.Mount{Target: m.target, ReadOnly: m.ReadOnly, Size: m.SizeLimit})
		case instructions.MountTypeBind:
			if err := l.bind(ctx, m); err != nil {
				return nil, err
			}
		}
	}
	l.caches, err = p.mounts.leaveCaches(ctx)
	return l, err
}

// withoutAgents returns an environment without what leads to agents.
func (r *runMounts) withoutAgents(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return slices.ContainsFunc(r.list, func(m *runMount) bool {
			return m.Type == instructions.MountTypeSSH && kv == socketVariable+m.target
		})
	})
}

// bind takes what a bind mount shows.
func (l *leftover) bind(ctx context.Context, m *runMount) error {
	out := sandbox.Mount{Target: m.target, ReadOnly: m.ReadOnly, Discard: !m.ReadOnly}
	if m.source.files != nil {
		snap, name, err := m.source.handFiles(ctx, l.lease)
		if err != nil {
			return err
		}
		l.bound = append(l.bound, snap)
		out.Source, out.Select = snap.Upper(), name
		l.process.Mounts = append(l.process.Mounts, out)
		return nil
	}
	name, err := m.source.tree.rootSnapshot(ctx)
	if err != nil {
		return err
	}
	if name != "" {
		lowers, err := l.cache.View(l.lease.Context(ctx), name)
		if err != nil {
			return err
		}
		out.Stack, out.Select = readOnly(lowers), m.source.path
	}
	l.process.Mounts = append(l.process.Mounts, out)
	return nil
}

// handFiles gives the files of the context that were made for a mount to another
// lease, and returns the name of the one that is shown; "" is all of them.
func (m *mountSource) handFiles(ctx context.Context, lease *layercache.Lease) (*layercache.Snapshot, string, error) {
	hash, err := m.identity(ctx)
	if err != nil {
		return nil, "", err
	}
	src := m.files.sources[0]
	snap, err := m.build.bound.hand(ctx, src.name+" "+hash, lease)
	if err != nil || src.file.isDir() {
		return snap, "", err
	}
	return snap, src.name, nil
}

// hand gives a directory to another lease.
func (b *boundFiles) hand(ctx context.Context, name string, lease *layercache.Lease) (*layercache.Snapshot, error) {
	b.mu.Lock()
	d := b.dirs[name]
	b.mu.Unlock()
	if d == nil {
		return nil, errors.New("files of the context that were mounted are gone")
	}
	d.making.Lock()
	defer d.making.Unlock()
	return d.snap.Hand(ctx, lease)
}

// leaveCaches lists the cache mounts of a step in the order in which they are
// taken.
func (r *runMounts) leaveCaches(ctx context.Context) ([]keptCache, error) {
	names, uses, err := r.cacheUses(ctx)
	if err != nil {
		return nil, err
	}
	var out []keptCache
	for _, name := range names {
		c := keptCache{options: r.cacheOptions(name, r.list[uses[name][0]])}
		// A directory that was lost meanwhile begins empty: what it would begin
		// with is the build's.
		first := runMount{Mount: r.list[uses[name][0]].Mount}
		c.options.Fill, c.options.Waiting = first.fillCache, nil
		for _, i := range uses[name] {
			c.targets = append(c.targets, sandbox.Mount{Target: r.list[i].target, ReadOnly: r.list[i].ReadOnly})
		}
		out = append(out, c)
	}
	return out, nil
}

// enter returns the step's process with its cache mounts, which are held until
// leave.
func (l *leftover) enter(ctx context.Context, tell func(string)) (*sandbox.Process, func(), error) {
	p := l.process
	p.Mounts = slices.Clone(p.Mounts)
	h := &held{}
	ctx = l.lease.Context(ctx)
	for _, c := range l.caches {
		o := c.options
		o.Waiting = func() { tell("waiting for the cache mount " + o.ID + " (sharing=locked), which a build has") }
		m, err := l.cache.Mount(ctx, o)
		if err != nil {
			h.release()
			return nil, nil, err
		}
		h.mounts = append(h.mounts, m)
		for _, at := range c.targets {
			at.Source = m.Dir()
			p.Mounts = append(p.Mounts, at)
		}
	}
	return &p, h.release, nil
}

// weigh returns what the step has on the disk.
func (l *leftover) weigh(ctx context.Context) (total int64) {
	for _, s := range append(slices.Clone(l.bound), l.snap) {
		if n, _, err := rootfs.NewGauge(s.Upper()).Look(ctx, math.MaxInt64); err == nil {
			total += n
		}
	}
	return total
}

// drop gives all of it back.
func (l *leftover) drop(ctx context.Context) {
	for _, s := range append(slices.Clone(l.bound), l.snap) {
		if s != nil {
			_ = s.Discard(ctx)
		}
	}
	_ = l.lease.Release(ctx)
}
