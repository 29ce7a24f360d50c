package buildkit

import (
	"slices"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/builder"
)

// commands returns what the vertices of a chain are, lowest last.
func commands(t *testing.T, st llb.State) (names []string, g *graph) {
	t.Helper()
	def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	if g, err = newGraph(def.ToPB()); err != nil {
		t.Fatal(err)
	}
	chain, below := g.chain()
	for i, d := range chain {
		names = append(names, nameOf(g.ops[d]))
		if i > 0 && len(names) == len(chain) && below[d] != "" && g.ops[below[d]].GetSource() == nil {
			t.Errorf("%s stands on %s", nameOf(g.ops[d]), nameOf(g.ops[below[d]]))
		}
	}
	return names, g
}

func nameOf(op *pb.Op) string {
	if e := op.GetExec(); e != nil {
		return e.Meta.Args[len(e.Meta.Args)-1]
	}
	if f := op.GetFile(); f != nil {
		a := f.Actions[len(f.Actions)-1]
		switch {
		case a.GetMkfile() != nil:
			return a.GetMkfile().Path
		case a.GetMkdir() != nil:
			return a.GetMkdir().Path
		case a.GetCopy() != nil:
			return a.GetCopy().Dest
		}
	}
	return op.String()
}

// The image has what its own steps leave, not what those of other stages do,
// even where a step mounts or copies from them.
func TestChain(t *testing.T) {
	base := llb.Image("base")
	other := base.Run(llb.Shlex("sh -c other")).Root()
	files := llb.Scratch().File(llb.Mkfile("/made", 0o644, nil))
	run := base.Run(llb.Args([]string{"one"}), llb.AddMount("/mnt", other)).Root()
	copied := run.File(llb.Mkdir("/dir", 0o755).Mkfile("/dir/two", 0o644, nil))
	top := copied.File(llb.Copy(other, "/x", "/three"))
	for _, tc := range []struct {
		name string
		st   llb.State
		want []string
	}{
		{"image alone", base, nil},
		{"steps and other stages", top, []string{"/three", "/dir/two", "one"}},
		{"of nothing", files, []string{"/made"}},
		{"merged", llb.Merge([]llb.State{run, files}), []string{"one", "/made"}},
		{"nothing", llb.Scratch(), nil},
	} {
		if got, _ := commands(t, tc.st); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// An output of a step that is not its root has a chain of its own.
func TestChainOfAnotherOutput(t *testing.T) {
	es := llb.Image("base").Run(llb.Args([]string{"step"}))
	out := es.AddMount("/out", llb.Scratch().File(llb.Mkfile("/before", 0o644, nil)))
	if got, _ := commands(t, out); !slices.Equal(got, []string{"step", "/before"}) {
		t.Errorf("chain %q", got)
	}
}

func TestMark(t *testing.T) {
	st := llb.Image("base", llb.WithCustomName("[out 1/2] FROM base@sha256:0123")).Run(llb.Args([]string{"make"}), llb.WithCustomName("[out 2/2] RUN make")).Root()
	def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	marked := def.ToPB()
	log := &eventLog{}
	b := &build{app: "shop", job: &builder.Job{Session: log}}
	b.events = newEvents(b)
	b.mark(marked)
	layers := 0
	for d, m := range marked.Metadata {
		if m.Description[markApp] != "shop" {
			t.Errorf("vertex %s: %v", d, m.Description)
		}
		if m.Description[markLayer] != "" {
			layers++
			if src := b.lines.of(digest.Digest(d)); src.Text != "RUN make" {
				t.Errorf("the layer is of %+v", src)
			}
		}
	}
	if layers != 1 {
		t.Errorf("%d vertices make layers", layers)
	}
	var plan *slipwayv1.Plan
	for _, e := range log.all {
		plan = e.GetPlan()
	}
	if plan == nil || len(plan.Steps) != 2 || plan.Stages != 1 || plan.Steps[0].Source != "FROM base" || plan.Steps[1].Source != "RUN make" || plan.Steps[1].Stage != "out" || plan.Steps[1].Number != 2 || plan.Steps[1].Total != 2 {
		t.Errorf("plan %v", plan)
	}
	b.mark(marked) // a frontend may solve it again
	if len(log.all) != 1 {
		t.Errorf("%d events", len(log.all))
	}
}

// eventLog is a session that keeps events.
type eventLog struct {
	builder.Session
	all []*slipwayv1.Event
}

func (l *eventLog) Emit(e *slipwayv1.Event) { l.all = append(l.all, e) }

// Definitions come from clients: whatever they are, marking one does no harm.
func FuzzMark(f *testing.F) {
	for _, st := range []llb.State{llb.Image("base").Run(llb.Args([]string{"x"})).Root(), llb.Scratch().File(llb.Mkdir("/a", 0o755).Mkfile("/a/b", 0o644, nil))} {
		def, err := st.Marshal(f.Context(), llb.LinuxAmd64)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := def.ToPB().MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		def := new(pb.Definition)
		if def.UnmarshalVT(raw) != nil {
			return
		}
		b := &build{job: &builder.Job{Session: &eventLog{}}}
		b.events = newEvents(b)
		b.mark(def)
	})
}

func TestSecretive(t *testing.T) {
	for name, tc := range map[string]struct {
		op   *pb.ExecOp
		want bool
	}{
		"plain":    {&pb.ExecOp{Meta: &pb.Meta{Env: []string{"A=1"}}}, false},
		"no meta":  {&pb.ExecOp{}, false},
		"a secret": {&pb.ExecOp{Secretenv: []*pb.SecretEnv{{ID: "token"}}}, true},
		"a proxy":  {&pb.ExecOp{Meta: &pb.Meta{ProxyEnv: &pb.ProxyEnv{}}}, true},
	} {
		if got := secretive(tc.op); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
