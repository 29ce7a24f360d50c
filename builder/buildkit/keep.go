package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/cache"
	bkexecutor "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/errdefs"
	execerrors "github.com/moby/buildkit/solver/llbsolver/errdefs"
	"github.com/moby/buildkit/solver/llbsolver/mounts"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	buildkit "github.com/moby/buildkit/worker"
	"github.com/moby/sys/user"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/shell"
	"github.com/slipwayhq/slipway/layercache"
)

// A keepingProxy is a result that has what its failed step left kept, as long as
// BuildKit still has it.
type keepingProxy struct {
	solver.ResultProxy
	build *build
}

// Result implements BuildKit's proxy.
func (p *keepingProxy) Result(ctx context.Context) (solver.CachedResult, error) {
	res, err := p.ResultProxy.Result(ctx)
	p.build.keep(ctx, err)
	return res, err
}

// keeping returns a result whose references are such proxies.
func (b *build) keeping(res *frontend.Result) (*frontend.Result, error) {
	if !b.keeps() {
		return res, nil
	}
	return result.ConvertResult(res, func(r solver.ResultProxy) (solver.ResultProxy, error) {
		return &keepingProxy{r, b}, nil
	})
}

// keeps reports whether a failed step of the build is to be kept. Who brings a
// client of BuildKit's own has no name for the build to ask for it by.
func (b *build) keeps() bool { return b.client == nil && b.keeper.Keeps() }

// A leftover is what a RUN step that failed has left, apart from its build.
type leftover struct {
	tenant *tenant
	app    string
	op     *pb.ExecOp
	refs   []cache.ImmutableRef // by mount of the op; nil for what had none
	lease  *layercache.Lease
	snap   *layercache.Snapshot // what shells write
}

// keep has what a step left kept, if err is that its command ended badly.
func (b *build) keep(ctx context.Context, err error) {
	left, ok := errors.AsType[*execerrors.ExecError](err)
	exit, bad := errors.AsType[*gateway.ExitError](err)
	of, known := errors.AsType[*errdefs.OpError](err)
	if !ok || !bad || !known || exit.ExitCode == gateway.UnknownExitStatus || of.Op.GetExec() == nil || !b.keeps() {
		return
	}
	keeper, job := b.keeper, b.job
	if keeper.Hint(job.Org, job.ID) != "" {
		return
	}
	l, failed := b.leave(context.WithoutCancel(ctx), of.Op.GetExec(), left.Mounts)
	if failed != nil {
		b.tenant.engine.log.WarnContext(ctx, "keep what a failed step left", "build", job.ID, "err", failed)
		return
	}
	kept := keeper.Keep(ctx, shell.Step{
		Org: job.Org, App: job.App, Build: job.ID, Shell: l.program(),
		Name:    fmt.Sprintf("%s failed here with exit code %d: %s", b.placeOf(err), exit.ExitCode, oneLine(l.op.GetMeta().GetArgs())),
		Secrets: l.confidential(), Weigh: l.weigh, Enter: l.enter, Drop: l.drop,
	})
	if !kept {
		l.drop(ctx)
	}
}

// placeOf says where the Dockerfile has the step that an error is about.
func (b *build) placeOf(err error) string {
	if line := cmp.Or(lineOf(err), b.lineOfVertex(err)); line > 0 {
		return fmt.Sprintf("line %d", line)
	}
	return "a step"
}

// oneLine is a command as it fits on a line.
func oneLine(args []string) string {
	text := []rune(strings.Join(strings.Fields(strings.Join(args, " ")), " "))
	if len(text) > maxWhat {
		return string(text[:maxWhat]) + "…"
	}
	return string(text)
}

// leave takes what is needed of the build, which is about to end.
func (b *build) leave(ctx context.Context, op *pb.ExecOp, results []solver.Result) (l *leftover, err error) {
	l = &leftover{tenant: b.tenant, app: b.app, op: op.CloneVT(), refs: make([]cache.ImmutableRef, len(op.GetMounts()))}
	for i, r := range results {
		if r == nil || i >= len(l.refs) {
			continue
		}
		if ref, ok := r.Sys().(*buildkit.WorkerRef); ok && ref.ImmutableRef != nil {
			l.refs[i] = ref.ImmutableRef.Clone()
		}
	}
	defer func() {
		if err != nil {
			l.drop(ctx)
		}
	}()
	if l.lease, err = b.tenant.cache.Lease(ctx, "failed-"+b.job.ID, 0); err != nil {
		return nil, err
	}
	l.snap, err = b.tenant.cache.Prepare(l.lease.Context(ctx), "")
	return l, err
}

// program is the shell that the step ran in, "" if that is the usual one: what
// the Dockerfile says of that is not known here.
func (l *leftover) program() string {
	if args := l.op.GetMeta().GetArgs(); len(args) > 1 && args[0] != "/bin/sh" {
		return args[0]
	}
	return ""
}

func (l *leftover) confidential() bool {
	return len(l.op.GetSecretenv()) > 0 || slices.ContainsFunc(l.op.GetMounts(), func(m *pb.Mount) bool {
		return m.GetMountType() == pb.MountType_SECRET || m.GetMountType() == pb.MountType_SSH
	})
}

// enter returns the step's process with its cache mounts, which are held until
// leave.
func (l *leftover) enter(ctx context.Context, _ func(string)) (p *sandbox.Process, leave func(), err error) {
	var taken []cache.MutableRef
	undo := func() {
		for _, ref := range taken {
			_ = ref.Release(context.WithoutCancel(ctx))
		}
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	caches := mounts.NewMountManager("shells", l.tenant.worker.Worker.CacheManager(), l.tenant.sessions)
	var root bkexecutor.Mount
	var others []bkexecutor.Mount
	for i, m := range l.op.GetMounts() {
		src, ref, err := l.source(ctx, caches, m, l.refs[i])
		if err != nil {
			return nil, nil, err
		}
		if ref != nil {
			taken = append(taken, ref)
		}
		switch {
		case m.GetDest() == pb.RootMount:
			root = bkexecutor.Mount{Src: l.over(src), Readonly: m.GetReadonly()}
		case src != nil:
			others = append(others, bkexecutor.Mount{Src: src, Selector: m.GetSelector(), Dest: l.dest(m), Readonly: m.GetReadonly()})
		}
	}
	p, release, err := l.tenant.steps.Stage(ctx, root, others, l.meta())
	if err != nil {
		return nil, nil, err
	}
	// None of it is a secret, and what is shown of other stages is not to change.
	p.Env, p.SecretEnv = p.SecretEnv, nil
	l.discard(p)
	return p, func() { _ = release(); undo() }, nil
}

// discard has changes of what other stages and the context show thrown away.
func (l *leftover) discard(p *sandbox.Process) {
	for i := range p.Mounts {
		for _, m := range l.op.GetMounts() {
			if p.Mounts[i].Target == l.dest(m) && m.GetMountType() == pb.MountType_BIND {
				p.Mounts[i].Discard = !m.GetReadonly()
			}
		}
	}
}

func (l *leftover) dest(m *pb.Mount) string {
	if path.IsAbs(m.GetDest()) {
		return m.GetDest()
	}
	return path.Join("/", l.op.GetMeta().GetCwd(), m.GetDest())
}

// source returns what a mount shows; nil for what is not kept. A cache mount is
// to be released.
func (l *leftover) source(ctx context.Context, caches *mounts.MountManager, m *pb.Mount, ref cache.ImmutableRef) (bkexecutor.Mountable, cache.MutableRef, error) {
	switch m.GetMountType() {
	case pb.MountType_BIND:
		if ref == nil {
			return empty{}, nil, nil
		}
		return mountable{ref, true}, nil, nil
	case pb.MountType_CACHE:
		scoped := m.CloneVT()
		if scoped.CacheOpt != nil {
			scoped.CacheOpt.ID = scopedMount(l.app, scoped.CacheOpt.ID)
		}
		c, err := caches.MountableCache(ctx, scoped, ref, session.NewGroup())
		return mountable{c, m.GetReadonly()}, c, err
	case pb.MountType_TMPFS:
		return mountable{caches.MountableTmpFS(m), m.GetReadonly()}, nil, nil
	}
	return nil, nil, nil
}

// A mountable is a reference of BuildKit's as its executors want it.
type mountable struct {
	cache.Mountable
	readonly bool
}

// Mount implements BuildKit's executor.Mountable.
func (m mountable) Mount(ctx context.Context, readonly bool) (bkexecutor.MountableRef, error) {
	return m.Mountable.Mount(ctx, readonly || m.readonly, session.NewGroup())
}

// empty is what a mount shows that begins with nothing.
type empty struct{}

// Mount implements BuildKit's executor.Mountable.
func (empty) Mount(context.Context, bool) (bkexecutor.MountableRef, error) { return empties{}, nil }

type empties struct{}

// Mount implements BuildKit's executor.MountableRef.
func (empties) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, nil, nil
}

// IdentityMapping implements BuildKit's executor.MountableRef.
func (empties) IdentityMapping() *user.IdentityMapping { return nil }

// over returns a file system that begins with what src shows, and has its changes
// in the step's own snapshot.
func (l *leftover) over(src bkexecutor.Mountable) bkexecutor.Mountable { return overlaid{l, src} }

type overlaid struct {
	*leftover
	src bkexecutor.Mountable
}

// Mount implements BuildKit's executor.Mountable.
func (o overlaid) Mount(ctx context.Context, _ bool) (bkexecutor.MountableRef, error) {
	below, err := o.src.Mount(ctx, true)
	return overlaidMounts{o.snap, below}, err
}

type overlaidMounts struct {
	snap *layercache.Snapshot
	snapshot.Mountable
}

// Mount implements BuildKit's executor.MountableRef.
func (o overlaidMounts) Mount() ([]mount.Mount, func() error, error) {
	list, release, err := o.Mountable.Mount()
	if err != nil {
		return nil, nil, err
	}
	lowers := lowersOf(list)
	if len(list) == 1 && list[0].Type != "overlay" {
		lowers = []string{list[0].Source}
	}
	options := []string{"upperdir=" + o.snap.Upper(), "workdir=" + o.snap.Work()}
	if len(lowers) > 0 && list[0].Type != "tmpfs" {
		options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, release, nil
}

// meta is what the step says of its process.
func (l *leftover) meta() bkexecutor.Meta {
	m := l.op.GetMeta()
	out := bkexecutor.Meta{
		Args: m.GetArgs(), Env: m.GetEnv(), Cwd: m.GetCwd(), User: m.GetUser(), Hostname: m.GetHostname(),
		Ulimit: m.GetUlimit(), NetMode: l.op.GetNetwork(), SecurityMode: l.op.GetSecurity(),
	}
	for _, h := range m.GetExtraHosts() {
		out.ExtraHosts = append(out.ExtraHosts, bkexecutor.HostIP{Host: h.GetHost(), IP: net.ParseIP(h.GetIP())})
	}
	return out
}

// weigh returns what shells have written: the rest is counted with BuildKit's
// records.
func (l *leftover) weigh(ctx context.Context) int64 {
	n, _, _ := rootfs.NewGauge(l.snap.Upper()).Look(ctx, math.MaxInt64)
	return n
}

// drop gives all of it back.
func (l *leftover) drop(ctx context.Context) {
	for _, ref := range l.refs {
		if ref != nil {
			_ = ref.Release(ctx)
		}
	}
	if l.snap != nil {
		_ = l.snap.Discard(ctx)
	}
	if l.lease != nil {
		_ = l.lease.Release(ctx)
	}
}
