package buildkit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	buildkit "github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
)

// A vertex is the cache manager of one step: it sees which files the step
// begins with and what it leaves.
type vertex struct {
	cache.Manager
	worker *worker
	digest digest.Digest
	app    string
	layer  bool // the image is going to have what the step leaves
	failed atomic.Bool

	mu   sync.Mutex
	refs []*vertexRef // that may become results
}

func (w *worker) newVertex(v solver.Vertex) *vertex {
	marks := v.Options().Description
	return &vertex{Manager: w.Worker.CacheManager(), worker: w, digest: v.Digest(), app: marks[markApp], layer: marks[markLayer] != ""}
}

// scoped returns a step whose cache mounts are those of the app.
func (v *vertex) scoped(op *pb.Op_Exec) *pb.Op_Exec {
	out := op
	for i, m := range op.Exec.GetMounts() {
		if m.GetMountType() != pb.MountType_CACHE || m.GetCacheOpt() == nil {
			continue
		}
		if out == op {
			out = &pb.Op_Exec{Exec: op.Exec.CloneVT()}
		}
		out.Exec.Mounts[i].CacheOpt.ID = scopedMount(v.app, m.CacheOpt.ID)
	}
	return out
}

// scopedMount is the name of an app's cache mount. An app's name has no slash.
func scopedMount(app, id string) string { return app + "/" + id }

// New implements BuildKit's cache manager.
func (v *vertex) New(ctx context.Context, parent cache.ImmutableRef, g session.Group, opts ...cache.RefOption) (cache.MutableRef, error) {
	ref, err := v.Manager.New(ctx, parent, g, opts...)
	if err != nil {
		return nil, err
	}
	if ref.GetRecordType() == client.UsageRecordTypeCacheMount {
		v.worker.note(ctx, ref, v.app) // others are noted when the step leaves them
		return ref, nil
	}
	r := &vertexRef{MutableRef: ref, vertex: v, group: g, parent: parent}
	v.mu.Lock()
	v.refs = append(v.refs, r)
	v.mu.Unlock()
	return r, nil
}

// note records that an app uses a record.
func (w *worker) note(ctx context.Context, ref cache.RefMetadata, app string) {
	if err := setApp(ref, app); err != nil {
		w.tenant.engine.log.WarnContext(ctx, "note the app of a BuildKit record", "err", err)
	}
}

// A vertexRef is a file system that a step writes to.
type vertexRef struct {
	cache.MutableRef
	vertex *vertex
	group  session.Group
	parent cache.ImmutableRef // nil if the step began with nothing
}

// Mount implements BuildKit's reference. The step gets the overlay as it is,
// not a bind mount of one: so its own directory can be watched, and the sandbox
// puts its own layers around it.
func (r *vertexRef) Mount(ctx context.Context, readonly bool, g session.Group) (snapshot.Mountable, error) {
	if readonly {
		return r.MutableRef.Mount(ctx, readonly, g)
	}
	return r.vertex.worker.Snapshotter.Mounts(ctx, r.ID())
}

// Commit implements BuildKit's reference.
func (r *vertexRef) Commit(ctx context.Context) (cache.ImmutableRef, error) {
	ref, err := r.MutableRef.Commit(ctx)
	v := r.vertex
	if err != nil {
		return nil, err
	}
	v.worker.note(ctx, ref, v.app)
	if v.failed.Load() {
		return ref, nil
	}
	for _, b := range v.worker.tenant.builds.of(r.group) {
		b.left(v, ref)
	}
	return ref, nil
}

// A vertexExecutor runs the process of one step. What a failed one leaves is
// no layer.
type vertexExecutor struct {
	vertex *vertex
	secret bool // the environment may have secrets
}

// Run implements BuildKit's executor.
func (e *vertexExecutor) Run(ctx context.Context, id string, root buildkit.Mount, mounts []buildkit.Mount, process buildkit.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	v := e.vertex
	run := v.worker.tenant.steps.Run
	if !e.secret {
		run = executor.Open{Executor: v.worker.tenant.steps}.Run
	}
	rec, err := run(context.WithValue(ctx, vertexKey{}, v), id, root, mounts, process, started)
	if err != nil {
		v.failed.Store(true)
		v.stopped(ctx, err)
	}
	return rec, err
}

// stopped ends the builds that wait for a step that the limit has stopped.
func (v *vertex) stopped(ctx context.Context, err error) {
	size, ok := errors.AsType[*limits.SizeError](err)
	if !ok {
		return
	}
	v.mu.Lock()
	refs := v.refs
	v.mu.Unlock()
	for _, r := range refs {
		for _, b := range v.worker.tenant.builds.of(r.group) {
			b.stop(failure.At(b.tooLarge(ctx, r, size), failure.Build, b.lines.of(v.digest).Line))
		}
	}
}

// Exec implements BuildKit's executor.
func (e *vertexExecutor) Exec(ctx context.Context, id string, process buildkit.ProcessInfo) error {
	return e.vertex.worker.WorkerOpt.Executor.Exec(ctx, id, process)
}
