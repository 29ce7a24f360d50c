package buildkit

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	stock "github.com/moby/buildkit/solver/llbsolver/file"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/llbsolver/ops/fileoptypes"
	"github.com/moby/buildkit/solver/pb"
	buildkit "github.com/moby/buildkit/worker"
	fscopy "github.com/tonistiigi/fsutil/copy"
)

// contextKey is in the metadata of a deploy's context. Nobody ever writes to the
// files of such a record, nor to those of one that has them linked: what stands
// on it has a directory of its own for what it changes.
const contextKey = "slipway.context"

// A fileOp is BuildKit's step that copies files, but that those of a deploy's
// context are linked where that comes to the same.
type fileOp struct {
	solver.Op
	vertex  *vertex
	name    string
	actions []*pb.FileAction
}

// newFileOp returns BuildKit's own step where it has more to do than to copy.
func (w *worker) newFileOp(v solver.Vertex, step *pb.Op_File) (solver.Op, error) {
	n := w.newVertex(v)
	op, err := ops.NewFileOp(v, step, n, w.ParallelismSem, w)
	if err != nil || !plain(step.File.GetActions()) {
		return op, err
	}
	return &fileOp{Op: op, vertex: n, name: v.Name(), actions: step.File.GetActions()}, nil
}

// plain reports whether all actions copy directories or files as they are. In a
// file system that several actions write to, others might change what is linked.
func plain(actions []*pb.FileAction) bool {
	for _, a := range actions {
		if !plainCopy(a.GetCopy()) {
			return false
		}
	}
	return true
}

func plainCopy(c *pb.FileActionCopy) bool {
	return c != nil && c.Owner == nil && c.Mode == -1 && c.ModeStr == "" && c.Timestamp == -1 &&
		!c.AttemptUnpackDockerCompatibility && !c.AlwaysReplaceExistingDestPaths &&
		len(c.IncludePatterns) == 0 && len(c.ExcludePatterns) == 0
}

// Exec implements BuildKit's operation.
func (f *fileOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	refs := make([]fileoptypes.Ref, len(inputs))
	for i, in := range inputs {
		ref, ok := in.Sys().(*buildkit.WorkerRef)
		if !ok {
			return nil, fmt.Errorf("input of a step is a %T", in.Sys())
		}
		refs[i] = ref.ImmutableRef
	}
	backend, err := stock.NewFileOpBackend(nobody)
	if err != nil {
		return nil, err
	}
	w := f.vertex.worker
	shown := &contextMounts{RefManager: stock.NewRefManager(f.vertex, f.name), mounts: map[fileoptypes.Mount]bool{}}
	outs, err := ops.NewFileOpSolver(w, &linkingBackend{Backend: backend, shown: shown}, shown).Solve(ctx, refs, f.actions, job.Session())
	if err != nil {
		return nil, err
	}
	results := make([]solver.Result, len(outs))
	for i, out := range outs {
		results[i] = buildkit.NewWorkerRefResult(out.(cache.ImmutableRef), w)
	}
	return results, nil
}

// nobody is the owner that a plain copy names.
func nobody(*pb.ChownOpt, snapshot.Mountable, snapshot.Mountable) (*fscopy.User, error) {
	return nil, nil
}

// contextMounts are the mounts of a step. They know which of them show a
// deploy's context.
type contextMounts struct {
	*stock.RefManager
	mu     sync.Mutex
	mounts map[fileoptypes.Mount]bool
}

// Prepare implements fileoptypes.RefManager.
func (c *contextMounts) Prepare(ctx context.Context, ref fileoptypes.Ref, readonly bool, g session.Group) (fileoptypes.Mount, error) {
	m, err := c.RefManager.Prepare(ctx, ref, readonly, g)
	if err != nil {
		return nil, err
	}
	if md, ok := ref.(cache.RefMetadata); ok && readonly && md.GetString(contextKey) != "" {
		c.mu.Lock()
		c.mounts[m] = true
		c.mu.Unlock()
	}
	return m, nil
}

func (c *contextMounts) has(m fileoptypes.Mount) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mounts[m]
}

// A linkingBackend copies as BuildKit does, but links the files of a context.
type linkingBackend struct {
	*stock.Backend
	shown *contextMounts
}

// Copy implements fileoptypes.Backend.
func (b *linkingBackend) Copy(ctx context.Context, from, to, user, group fileoptypes.Mount, action *pb.FileActionCopy) error {
	l := b.link(from, to, action)
	if l == nil {
		return b.Backend.Copy(ctx, from, to, user, group, action)
	}
	// BuildKit makes the directory, and all on the way to it.
	bare := action.CloneVT()
	bare.ExcludePatterns = all
	if err := b.Backend.Copy(ctx, from, to, user, group, bare); err != nil {
		return err
	}
	done, err := l.fill(ctx)
	if err != nil || done {
		return err
	}
	return b.Backend.Copy(ctx, from, to, user, group, action)
}

// link returns how a copy can be made by links, nil if it cannot.
func (b *linkingBackend) link(from, to fileoptypes.Mount, action *pb.FileActionCopy) *links {
	source, ok := from.(*stock.Mount)
	target, ok2 := to.(*stock.Mount)
	if !ok || !ok2 || !b.shown.has(from) || strings.ContainsAny(action.Src, `*?[\`) {
		return nil
	}
	l := &links{}
	if l.source = directoryOf(source.Mountable()); l.source == "" {
		return nil
	}
	if l.upper = directoryOf(target.Mountable()); l.upper == "" {
		return nil
	}
	if !l.choose(target.Mountable(), action) {
		return nil
	}
	return l
}

// directoryOf is the directory that a mount shows, or the one that takes what
// is written to it; "" if there is none.
func directoryOf(m snapshot.Mountable) string {
	mounts, release, err := m.Mount()
	if err != nil {
		return ""
	}
	if release != nil {
		defer func() { _ = release() }() // nothing was mounted
	}
	return upperOf(mounts)
}
