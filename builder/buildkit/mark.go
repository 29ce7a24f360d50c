package buildkit

import (
	"context"
	"errors"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
)

// Marks on vertices. They are descriptions, which are no part of a vertex's
// digest: they decide nothing about what is built.
const (
	markLayer   = "slipway.layer"   // the image is going to have what the step leaves
	markApp     = "slipway.app"     // whose cache mounts the step has
	markSession = "slipway.session" // of the build
)

var errProxy = errors.New("a proxied network is not supported here: leave the option out; steps reach what the operator allows")

// A marker is a frontend whose definitions are marked as they pass.
type marker struct {
	frontend.Frontend
	tenant *tenant
}

// Solve implements BuildKit's frontend.
func (m *marker) Solve(ctx context.Context, b frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if build := m.tenant.builds.get(sid); build != nil {
		b = &markingBridge{b, build}
	}
	return m.Frontend.Solve(ctx, b, exec, opt, inputs, sid, sm)
}

type markingBridge struct {
	frontend.FrontendLLBBridge
	build *build
}

func (b *markingBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	if err := b.build.mark(req.Definition); err != nil {
		return nil, err
	}
	res, err := b.FrontendLLBBridge.Solve(ctx, req, sid)
	if err != nil {
		b.build.keep(ctx, err)
		return nil, err
	}
	return b.build.keeping(res)
}

// ResolveSourceMetadata implements BuildKit's bridge.
func (b *markingBridge) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if err := b.build.mayFetch(op); err != nil {
		return nil, err
	}
	if opt.OCILayoutOpt != nil {
		if err := b.build.mayAsk(opt.OCILayoutOpt.Store.SessionID); err != nil {
			return nil, err
		}
	}
	return b.FrontendLLBBridge.ResolveSourceMetadata(ctx, op, opt)
}

// A vertexBridge is what a vertex solves definitions by that it has read from a
// file.
type vertexBridge struct {
	frontend.FrontendLLBBridge
	tenant *tenant
}

// Solve implements BuildKit's bridge.
func (b *vertexBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	build := b.tenant.builds.get(sid)
	if build == nil {
		return nil, errNotYours
	}
	return (&markingBridge{b.FrontendLLBBridge, build}).Solve(ctx, req, sid)
}

// mark marks the vertices of a definition for the build, and learns their
// lines.
func (b *build) mark(def *pb.Definition) error {
	if def == nil || len(def.Def) == 0 {
		return nil
	}
	g, err := newGraph(def)
	if err != nil {
		return failure.Userf(failure.InvalidArgument, "update the client", "the definition cannot be read: %v", err)
	}
	if n := g.depth(); n > maxDepth {
		return failure.Userf(failure.InvalidArgument, "do more in one step, or build in several", "%d steps that stand on one another are too many, %d are allowed", n, maxDepth)
	}
	layers, below := g.chain()
	for d := range g.ops {
		marks := described(def, d)
		marks[markApp], marks[markSession] = b.app, b.session
		delete(marks, markLayer)
	}
	for _, d := range layers {
		if !b.still {
			described(def, d)[markLayer] = "1"
		}
	}
	b.learn(def)
	b.lines.stack(below, digestOf(g.end))
	if b.client == nil {
		return nil // a deploy's mounts are not part of its cache
	}
	return b.tenant.worker.Worker.PruneCacheMounts(b.ctx, g.discarded(def, b.app))
}

// discarded are the cache mounts of an app that steps without a cache want
// empty, as BuildKit takes these by itself; each says whether it stands on a
// file system.
func (g *graph) discarded(def *pb.Definition, app string) map[string]bool {
	out := map[string]bool{}
	for d, op := range g.ops {
		if !def.Metadata[string(d)].GetIgnoreCache() {
			continue
		}
		for _, m := range op.GetExec().GetMounts() {
			if m.GetMountType() == pb.MountType_CACHE && m.GetCacheOpt() != nil {
				out[scopedMount(app, m.CacheOpt.ID)] = m.GetInput() != -1
			}
		}
	}
	return out
}

// maxDepth bounds how many steps stand on one another. The time that BuildKit's
// scheduler takes grows with the third power of it.
const maxDepth = 1000

// depth is the length of the longest way through the graph.
func (g *graph) depth() int {
	known := make(map[digest.Digest]int, len(g.ops))
	var of func(d digest.Digest) int
	of = func(d digest.Digest) int {
		op := g.ops[d]
		if n, ok := known[d]; ok || op == nil {
			return n
		}
		n := 0
		for _, in := range op.Inputs {
			n = max(n, of(digest.Digest(in.GetDigest())))
		}
		known[d] = n + 1
		return n + 1
	}
	most := 0
	for d := range g.ops {
		most = max(most, of(d))
	}
	return most
}

// described returns the description of a vertex, to write to.
func described(def *pb.Definition, d digest.Digest) map[string]string {
	if def.Metadata == nil {
		def.Metadata = map[string]*pb.OpMetadata{}
	}
	m := def.Metadata[string(d)]
	if m == nil {
		m = &pb.OpMetadata{}
		def.Metadata[string(d)] = m
	}
	if m.Description == nil {
		m.Description = map[string]string{}
	}
	return m.Description
}

// A graph is a definition by the digests of its vertices.
type graph struct {
	ops map[digest.Digest]*pb.Op
	end *pb.Input // what the definition is for; nil if it is nothing
}

func newGraph(def *pb.Definition) (*graph, error) {
	g := &graph{ops: make(map[digest.Digest]*pb.Op, len(def.Def))}
	var last *pb.Op
	for _, raw := range def.Def {
		op := new(pb.Op)
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, err
		}
		g.ops[digest.FromBytes(raw)] = op
		last = op
	}
	if last != nil && last.Op == nil && len(last.Inputs) > 0 {
		g.end = last.Inputs[0]
	}
	return g, nil
}

// chain returns the vertices whose files the result consists of: each makes a
// layer of the image. Below tells which of them another one stands on.
func (g *graph) chain() (out []digest.Digest, below map[digest.Digest]digest.Digest) {
	below = map[digest.Digest]digest.Digest{}
	seen := map[digest.Digest]bool{}
	for next := []*pb.Input{g.end}; len(next) > 0; next = next[1:] {
		in := next[0]
		if in == nil {
			continue
		}
		d := digest.Digest(in.Digest)
		op := g.ops[d]
		if op == nil || seen[d] {
			continue
		}
		seen[d] = true
		switch step := op.Op.(type) {
		case *pb.Op_Exec:
			out = append(out, d)
			next = append(next, execBelow(op, step.Exec, in.Index))
			below[d] = digestOf(next[len(next)-1])
		case *pb.Op_File:
			out = append(out, d)
			next = append(next, fileBelow(op, step.File, in.Index))
			below[d] = digestOf(next[len(next)-1])
		case *pb.Op_Merge:
			for _, i := range step.Merge.GetInputs() {
				next = append(next, input(op, i.GetInput()))
			}
		}
	}
	return out, below
}

func digestOf(in *pb.Input) digest.Digest {
	if in == nil {
		return ""
	}
	return digest.Digest(in.Digest)
}

// execBelow is what the file system that a step puts out began as.
func execBelow(op *pb.Op, e *pb.ExecOp, output int64) *pb.Input {
	for _, m := range e.GetMounts() {
		if m.GetOutput() == output && m.GetMountType() == pb.MountType_BIND {
			return input(op, m.GetInput())
		}
	}
	return nil
}

// fileBelow follows the actions of a step down to the file system that the
// first of them began with.
func fileBelow(op *pb.Op, f *pb.FileOp, output int64) *pb.Input {
	at := -1
	actions := f.GetActions()
	for i, a := range actions {
		if a.GetOutput() == output {
			at = i
		}
	}
	for at >= 0 && at < len(actions) {
		in := actions[at].GetInput()
		if in < int64(len(op.Inputs)) {
			return input(op, in)
		}
		before := int(in) - len(op.Inputs)
		if before >= at {
			return nil
		}
		at = before
	}
	return nil
}

func input(op *pb.Op, i int64) *pb.Input {
	if i < 0 || i >= int64(len(op.Inputs)) {
		return nil
	}
	return op.Inputs[i]
}
