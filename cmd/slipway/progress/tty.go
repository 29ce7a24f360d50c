package progress

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/console"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// TTY is a live display on a terminal, drawn by BuildKit's progressui: a line
// for each step, transfers as they move, the last lines of what runs. Below it
// Finish says what came of it.
type TTY struct {
	out     io.Writer
	style   style
	head    Header
	plan    plan
	display progressui.Display

	updates chan *bkclient.SolveStatus // nil until there is something to draw
	drawn   chan struct{}              // closed when the display is done

	vertices map[digest.Digest]*bkclient.Vertex
	begun    map[string]*time.Time // of transfers, by id
	notes    int
}

// NewTTY returns a display on the terminal f. It must be finished.
func NewTTY(f console.File, color bool) (*TTY, error) {
	d, err := progressui.NewDisplay(f, progressui.TtyMode)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return &TTY{
		out: f, style: style(color), display: d, drawn: make(chan struct{}),
		vertices: map[digest.Digest]*bkclient.Vertex{}, begun: map[string]*time.Time{},
	}, nil
}

// draw changes what is on the terminal.
func (t *TTY) draw(s *bkclient.SolveStatus) {
	if t.updates == nil {
		t.updates = make(chan *bkclient.SolveStatus)
		go func() {
			defer close(t.drawn)
			t.display.UpdateFrom(context.Background(), t.updates)
		}()
	}
	t.updates <- s
}

// Begin implements [Display].
func (t *TTY) Begin(h Header) { t.head = h }

// Note implements [Display].
func (t *TTY) Note(n Note) {
	switch {
	case n.Text == "":
	case t.updates == nil: // the terminal is still free
		for _, l := range append([]string{n.Text}, n.Lines...) {
			fmt.Fprintln(t.out, l)
		}
	default:
		t.notes++
		t.remark(n.Text, n.Lines)
	}
}

// remark shows text as a line of its own.
func (t *TTY) remark(text string, more []string) {
	now := time.Now()
	t.show(fmt.Sprintf("note/%s/%d", text, t.notes), clip(text, 200), func(v *bkclient.Vertex) { v.Started, v.Completed = &now, &now })
	for _, l := range more {
		t.notes++
		t.remark("  "+l, nil)
	}
}

// Finish implements [Display].
func (t *TTY) Finish(res *slipwayv1.Result) error {
	now := time.Now()
	failed := res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_FAILED || res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED
	for _, v := range t.vertices { // nothing keeps turning after the end
		if v.Started != nil && v.Completed == nil {
			done := *v
			done.Completed = &now
			if failed && v.Error == "" {
				done.Error = context.Canceled.Error()
			}
			t.draw(&bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{&done}})
		}
	}
	if t.updates != nil {
		close(t.updates)
		<-t.drawn
	}
	if res != nil {
		r := report{w: t.out, style: t.style, head: t.head, plan: &t.plan}
		r.print(res)
	}
	return nil
}

// show creates or changes the vertex of a key. What was sent before is never
// changed: the display may be reading it.
func (t *TTY) show(key, title string, change func(*bkclient.Vertex)) digest.Digest {
	id := digest.FromString(key)
	v := bkclient.Vertex{Digest: id}
	if old := t.vertices[id]; old != nil {
		v = *old
	}
	if title != "" {
		v.Name = title
	}
	change(&v)
	t.vertices[id] = &v
	t.draw(&bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{&v}})
	return id
}

// transfer shows bytes that move below a vertex.
func (t *TTY) transfer(vertex digest.Digest, id string, now time.Time, bytes, total uint64, done bool) {
	key := vertex.String() + id
	if t.begun[key] == nil {
		t.begun[key] = &now
	}
	s := &bkclient.VertexStatus{ID: id, Vertex: vertex, Current: int64(bytes), Total: int64(total), Timestamp: now, Started: t.begun[key]}
	if done {
		s.Completed = &now
	}
	t.draw(&bkclient.SolveStatus{Statuses: []*bkclient.VertexStatus{s}})
}

// Event implements [Display].
func (t *TTY) Event(ev *slipwayv1.Event) {
	now := time.Now()
	if ev.GetTime() != nil {
		now = ev.GetTime().AsTime()
	}
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_Queued:
		t.show("queue", fmt.Sprintf("queue: %s first", plural(e.Queued.GetPosition(), "build")), begin(now))
	case *slipwayv1.Event_Phase:
		t.phase(e.Phase, now)
	case *slipwayv1.Event_Context:
		c := e.Context
		t.transfer(t.show("context", "context", begin(now)), "sending", now, c.GetSentBytes(), max(c.GetWantedBytes(), c.GetSentBytes()), false)
	case *slipwayv1.Event_Plan:
		t.plan.set(e.Plan)
		for _, s := range t.plan.order {
			t.step(s, func(*bkclient.Vertex) {})
		}
	case *slipwayv1.Event_StepStarted:
		t.step(t.plan.get(e.StepStarted.GetStep()), begin(now))
	case *slipwayv1.Event_StepLog:
		t.log(e.StepLog, now)
	case *slipwayv1.Event_StepDone:
		t.done(e.StepDone, now)
	case *slipwayv1.Event_Pull:
		p := e.Pull
		v := t.show("pull/"+p.GetRef(), "pull "+p.GetRef(), begin(now))
		t.transfer(v, "layers", now, p.GetBytes(), p.GetTotal(), p.GetDone())
		if p.GetDone() {
			t.show("pull/"+p.GetRef(), "", end(now))
		}
	case *slipwayv1.Event_Push:
		t.push(e.Push, now)
	case *slipwayv1.Event_Warning:
		t.notes++
		t.remark("warning: "+warning(e.Warning, t.head.Dockerfile), nil)
	}
}

func (t *TTY) push(p *slipwayv1.PushProgress, now time.Time) {
	v := t.show("push", "push", begin(now))
	done := p.GetOutcome() != slipwayv1.PushOutcome_PUSH_OUTCOME_UNSPECIFIED
	id := short(p.GetDigest())
	if done && t.begun[v.String()+id] == nil { // nothing moved: say why
		id += " " + name("PUSH_OUTCOME_", p.GetOutcome())
	}
	t.transfer(v, id, now, p.GetBytes(), p.GetTotal(), done)
}

// begin marks a vertex as started unless it is.
func begin(now time.Time) func(*bkclient.Vertex) {
	return func(v *bkclient.Vertex) {
		if v.Started == nil {
			v.Started = &now
		}
	}
}

// end marks a vertex as completed.
func end(now time.Time) func(*bkclient.Vertex) {
	return func(v *bkclient.Vertex) {
		if v.Started == nil {
			v.Started = &now
		}
		v.Completed = &now
	}
}

func (t *TTY) phase(p *slipwayv1.Phase, now time.Time) {
	var title string
	switch p.GetName() {
	case slipwayv1.PhaseName_PHASE_NAME_QUEUE:
		if _, queued := t.vertices[digest.FromString("queue")]; !queued {
			return
		}
		title = "queue"
	case slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT:
		title = "preflight"
	case slipwayv1.PhaseName_PHASE_NAME_CONTEXT:
		title = "context"
	case slipwayv1.PhaseName_PHASE_NAME_PUSH:
		title = "push"
	default:
		return // the build is its steps
	}
	key := title
	if !p.GetDone() {
		t.show(key, title, begin(now))
		return
	}
	if p.GetDetail() != "" {
		title += "  " + clip(p.GetDetail(), 160)
	}
	t.show(key, title, func(v *bkclient.Vertex) {
		if v.Started == nil {
			began := now.Add(-time.Duration(p.GetDurationMs()) * time.Millisecond)
			v.Started = &began
		}
		v.Completed = &now
	})
}

func (t *TTY) step(s *step, change func(*bkclient.Vertex)) digest.Digest {
	return t.show(fmt.Sprintf("step/%d", s.id), s.label+" "+clip(s.source, 400), change)
}

func (t *TTY) log(l *slipwayv1.StepLog, now time.Time) {
	if isRestated(l) {
		return
	}
	v := t.step(t.plan.get(l.GetStep()), begin(now))
	t.draw(&bkclient.SolveStatus{Logs: []*bkclient.VertexLog{{Vertex: v, Stream: int(l.GetStream()), Data: l.GetData(), Timestamp: now}}})
}

func (t *TTY) done(d *slipwayv1.StepDone, now time.Time) {
	s := t.plan.get(d.GetStep())
	s.end(d)
	t.step(s, func(v *bkclient.Vertex) {
		end(now)(v)
		if miss := t.plan.missText(s); miss != "" && !s.cached {
			v.Name += "   missed: " + clip(miss, 160)
		}
		v.Cached, v.Error = s.cached, d.GetError()
	})
}
