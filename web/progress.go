package web

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A progress is what a build's events add up to. A page is made of it, and a
// page that goes on is told which parts of it changed.
type progress struct {
	Steps    []*step
	Phases   []*phase
	Position uint32 // in the queue
	Context  *slipwayv1.ContextProgress
	Pulls    []*slipwayv1.PullProgress
	RootFS   *slipwayv1.RootFS
	Push     push
	Warnings []*slipwayv1.Warning
	Result   *slipwayv1.Result
	Seq      uint64 // of the last event

	keep  bool // keeps output
	kept  int  // bytes of it
	begun time.Time
	last  time.Time
	byID  map[uint32]*step
}

// A step is one instruction and what has become of it.
type step struct {
	ID      uint32
	Label   string // "[build 2/4]"
	Source  string
	Line    uint32
	State   state
	Took    string // "" before it ended
	Delta   int64
	Miss    string
	Error   string
	Output  []chunk
	Dropped int // bytes of output before those

	size int // of Output
	sent int // bytes of output that a stream has told of
}

// A chunk is a piece of a step's output.
type chunk struct {
	Text string
	Note bool // the daemon itself says it
}

// A phase is a part of a build, in time.
type phase struct {
	Name   string
	Detail string
	Done   bool

	begun, ended time.Time
}

// A push counts what has gone to registries.
type push struct {
	Blobs, Done int
	Bytes       uint64 // that travelled

	blobs map[string]*slipwayv1.PushProgress
}

// How much output a page of a build shows: of a step, of a step of a build
// with much output, and what is much.
const (
	stepOutput = 64 << 10
	leanOutput = 4 << 10
	muchOutput = 2 << 20
)

func newProgress(keep bool) *progress {
	return &progress{keep: keep, byID: map[uint32]*step{}, Push: push{blobs: map[string]*slipwayv1.PushProgress{}}}
}

// Names of parts that events change.
const (
	partQueue = "queue"
	partSteps = "steps" // there are other ones
	partState = "step-state"
	partChunk = "chunk"
	partTimes = "timeline"
	partSize  = "rootfs"
	partMoved = "traffic"
	partWarns = "warnings"
	partEnd   = "end"
)

// apply notes an event and returns which part of a page it changes.
func (p *progress) apply(e *slipwayv1.Event) (part string) {
	p.Seq = e.Seq
	if t := e.Time; t != nil {
		if p.last = t.AsTime(); p.begun.IsZero() {
			p.begun = p.last
		}
	}
	switch m := e.Event.(type) {
	case *slipwayv1.Event_Queued:
		p.Position = m.Queued.Position
		return partQueue
	case *slipwayv1.Event_Phase:
		p.phase(m.Phase)
		return partTimes
	case *slipwayv1.Event_Context:
		p.Context = m.Context
		return partMoved
	case *slipwayv1.Event_Pull:
		p.pull(m.Pull)
		return partMoved
	case *slipwayv1.Event_Push:
		p.Push.add(m.Push)
		return partMoved
	case *slipwayv1.Event_Plan:
		return p.plan(m.Plan)
	case *slipwayv1.Event_StepStarted:
		p.step(m.StepStarted.Step).State = state{"Running", "run"}
		return partState
	case *slipwayv1.Event_StepLog:
		p.output(m.StepLog)
		return partChunk
	case *slipwayv1.Event_StepDone:
		p.done(m.StepDone)
		return partState
	case *slipwayv1.Event_Rootfs:
		p.RootFS = m.Rootfs
		return partSize
	case *slipwayv1.Event_Warning:
		p.Warnings = append(p.Warnings, m.Warning)
		return partWarns
	case *slipwayv1.Event_Result:
		p.Result = m.Result
		return partEnd
	}
	return ""
}

// step returns a step, also one that no plan announced.
func (p *progress) step(id uint32) *step {
	if s, ok := p.byID[id]; ok {
		return s
	}
	s := &step{ID: id, Label: fmt.Sprintf("[%d]", id), State: state{"Waiting", "wait"}}
	p.byID[id] = s
	p.Steps = append(p.Steps, s)
	return s
}

func (p *progress) plan(m *slipwayv1.Plan) string {
	for _, planned := range m.Steps {
		s := p.step(planned.Step)
		s.Source, s.Line = planned.Source, planned.Line
		s.Label = fmt.Sprintf("[%d/%d]", planned.Number, planned.Total)
		if planned.Stage != "" {
			s.Label = fmt.Sprintf("[%s %d/%d]", planned.Stage, planned.Number, planned.Total)
		}
	}
	return partSteps
}

func (p *progress) done(m *slipwayv1.StepDone) {
	s := p.step(m.Step)
	s.Took = duration(time.Duration(m.DurationMs) * time.Millisecond)
	s.Delta, s.Miss, s.Error = m.RootfsDelta, m.Miss, m.Error
	switch {
	case m.Error != "":
		s.State = state{"Failed", "bad"}
	case m.Cached:
		s.State = state{"Cached", "off"}
	default:
		s.State = state{"Ran", "good"}
	}
}

func (p *progress) output(m *slipwayv1.StepLog) {
	s := p.step(m.Step)
	if !p.keep {
		return
	}
	c := newChunk(m)
	s.Output = append(s.Output, c)
	s.size += len(c.Text)
	p.kept += len(c.Text)
	most := stepOutput
	if p.kept > muchOutput {
		most = leanOutput
	}
	drop := 0
	for s.size > most && drop < len(s.Output)-1 {
		n := len(s.Output[drop].Text)
		s.size, p.kept, s.Dropped = s.size-n, p.kept-n, s.Dropped+n
		drop++
	}
	s.Output = slices.Delete(s.Output, 0, drop)
}

func newChunk(m *slipwayv1.StepLog) chunk {
	return chunk{Text: clean(m.Data), Note: m.Stream == slipwayv1.LogStream_LOG_STREAM_NOTE}
}

func (p *progress) phase(m *slipwayv1.Phase) {
	name := strings.ToLower(strings.TrimPrefix(m.Name.String(), "PHASE_NAME_"))
	i := slices.IndexFunc(p.Phases, func(ph *phase) bool { return ph.Name == name })
	if i < 0 {
		i = len(p.Phases)
		p.Phases = append(p.Phases, &phase{Name: name, begun: p.last})
	}
	ph := p.Phases[i]
	ph.Detail = cmp.Or(m.Detail, ph.Detail)
	if !m.Done {
		return
	}
	ph.Done, ph.ended = true, p.last
	if begun := p.last.Add(-time.Duration(m.DurationMs) * time.Millisecond); m.DurationMs > 0 && begun.Before(ph.begun) {
		ph.begun = begun // it was told of only when it had ended
	}
}

func (p *progress) pull(m *slipwayv1.PullProgress) {
	i := slices.IndexFunc(p.Pulls, func(o *slipwayv1.PullProgress) bool { return o.Ref == m.Ref && o.Digest == m.Digest })
	if i < 0 {
		p.Pulls = append(p.Pulls, m)
		return
	}
	p.Pulls[i] = m
}

// PullBytes is what has come of base images.
func (p *progress) PullBytes() (n uint64) {
	for _, m := range p.Pulls {
		n += m.Bytes
	}
	return n
}

func (p *push) add(m *slipwayv1.PushProgress) {
	p.blobs[m.Target+" "+m.Digest] = m
	p.Blobs, p.Done, p.Bytes = len(p.blobs), 0, 0
	for _, b := range p.blobs {
		if b.Outcome != slipwayv1.PushOutcome_PUSH_OUTCOME_UNSPECIFIED {
			p.Done++
		}
		if b.Outcome == slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED || b.Outcome == slipwayv1.PushOutcome_PUSH_OUTCOME_UNSPECIFIED {
			p.Bytes += b.Bytes
		}
	}
}

// A span of the timeline, in percent of the whole.
type bar struct {
	Name, Took, Detail string
	From, Width        float64
	Running            bool
}

// Bars returns the phases as bars over the time from the first event to the
// last.
func (p *progress) Bars() []bar {
	whole := max(p.last.Sub(p.begun), time.Millisecond)
	phases := slices.Clone(p.Phases)
	slices.SortStableFunc(phases, func(a, b *phase) int { return cmp.Compare(order(a.Name), order(b.Name)) })
	var out []bar
	for _, ph := range phases {
		end := ph.ended
		if !ph.Done {
			end = p.last
		}
		took := max(0, end.Sub(ph.begun))
		from := percent(max(0, ph.begun.Sub(p.begun)).Milliseconds(), max(1, whole.Milliseconds()))
		width := percent(took.Milliseconds(), max(1, whole.Milliseconds()))
		out = append(out, bar{ph.Name, duration(took), ph.Detail, min(from, 99.4), max(0.6, min(width, 100-from)), !ph.Done && p.Result == nil})
	}
	return out
}

// order is that of the timeline: the way of a byte.
func order(name string) int {
	return slices.Index([]string{"queue", "preflight", "context", "build", "push"}, name)
}

// Layers says how the layers of the image came to be in the registry: "2
// uploaded, 1 mounted"; "" if nothing was pushed.
func (p *progress) Layers() string {
	var parts []string
	for _, o := range []struct {
		outcome slipwayv1.PushOutcome
		word    string
	}{
		{slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED, "uploaded"}, {slipwayv1.PushOutcome_PUSH_OUTCOME_MOUNTED, "mounted"},
		{slipwayv1.PushOutcome_PUSH_OUTCOME_LINKED, "linked"}, {slipwayv1.PushOutcome_PUSH_OUTCOME_PRESENT, "there before"},
	} {
		n := 0
		for _, l := range p.Result.GetLayers() {
			if l.Pushed == o.outcome {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o.word))
		}
	}
	return strings.Join(parts, ", ")
}

// Largest are the paths of an image that is too large, the largest first.
func (p *progress) Largest() []*slipwayv1.PathSize {
	report := p.Result.GetError().GetSize()
	all := slices.Concat(report.GetLargestPaths(), report.GetLargestDirectories())
	slices.SortStableFunc(all, func(a, b *slipwayv1.PathSize) int { return cmp.Compare(b.Bytes, a.Bytes) })
	all = slices.CompactFunc(all, func(a, b *slipwayv1.PathSize) bool { return a.Path == b.Path })
	return all[:min(10, len(all))]
}

// Lines are what the lines of a Dockerfile added to an image that is too
// large, the largest first.
func (p *progress) Lines() []*slipwayv1.LineSize {
	lines := slices.Clone(p.Result.GetError().GetSize().GetLines())
	slices.SortStableFunc(lines, func(a, b *slipwayv1.LineSize) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return lines[:min(10, len(lines))]
}

// Used and Limit are of the image's unpacked root file system; 0 if nobody has
// counted.
func (p *progress) Used() uint64 {
	return cmp.Or(p.Result.GetError().GetSize().GetTotal(), p.Result.GetRootfsBytes(), p.RootFS.GetBytes())
}

func (p *progress) Limit() uint64 {
	return cmp.Or(p.Result.GetError().GetSize().GetLimit(), p.Result.GetRootfsLimit(), p.RootFS.GetLimit())
}

// escapes are sequences by which output colours text, moves the cursor or sets
// the title of a terminal.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_=>78])`)

// clean returns output as a page can show it: what a carriage return overwrote
// is gone, and so is everything that would steer a terminal.
func clean(data []byte) string {
	var b strings.Builder
	for line := range bytes.Lines(escapes.ReplaceAll(data, nil)) {
		text := bytes.TrimRight(line, "\r\n")
		if i := bytes.LastIndexByte(text, '\r'); i >= 0 {
			text = text[i+1:]
		}
		b.WriteString(strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
				return -1
			}
			return r
		}, strings.ToValidUTF8(string(text), "�")))
		if bytes.HasSuffix(line, []byte("\n")) {
			b.WriteByte('\n')
		}
	}
	return b.String()
}
