package buildkit

import (
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/linuxresources"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/pb"
	buildkit "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
)

// A worker is BuildKit's, but for what steps leave and where images go.
type worker struct {
	*base.Worker
	tenant *tenant
}

// exporter makes images by this package, and the rest by BuildKit.
func (w *worker) exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name == client.ExporterImage {
		return &imageExporter{tenant: w.tenant}, nil
	}
	return w.Worker.Exporter(name, sm)
}

// ResolveOp implements BuildKit's worker. Steps that leave files do so through
// a vertex, which sees what they leave.
func (w *worker) ResolveOp(v solver.Vertex, b frontend.FrontendLLBBridge, sm *session.Manager, proxy buildkit.ProxyOpt) (solver.Op, error) {
	op, ok := v.Sys().(*pb.Op)
	if !ok {
		return w.Worker.ResolveOp(v, b, sm, proxy)
	}
	switch step := op.Op.(type) {
	case *pb.Op_Exec:
		if proxy.Network && step.Exec.GetNetwork() != pb.NetMode_NONE {
			return nil, errProxy
		}
		n := w.newVertex(v)
		var res *pb.LinuxResources
		if m, ok := v.Options().Metadata.(*linuxresources.Metadata); ok && m != nil {
			res = m.LinuxResources
		}
		return ops.NewExecOp(v, n.scoped(step), op.Platform, n, w.ParallelismSem, sm, &vertexExecutor{n, secretive(step.Exec)}, w, res, false)
	case *pb.Op_File:
		return w.newFileOp(v, step)
	case *pb.Op_Source:
		if err := w.tenant.mayFetch(v, step.Source); err != nil {
			return nil, err
		}
	case *pb.Op_Build:
		b = &vertexBridge{b, w.tenant}
	}
	return w.Worker.ResolveOp(v, b, sm, proxy)
}

// secretive reports whether the environment of a step may have secrets: those
// that it asks for, or what the addresses of proxies contain.
func secretive(op *pb.ExecOp) bool {
	return len(op.GetSecretenv()) > 0 || op.GetMeta().GetProxyEnv() != nil
}
