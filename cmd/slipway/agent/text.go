package agent

import (
	"fmt"
	"strings"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// line is one of a build's log.
type line struct {
	Step string `json:"step,omitempty" jsonschema:"the step that it is about, such as 2/5"`
	Text string `json:"text"`
}

// longest is how much of a line is told.
const longest = 2000

// text turns events into lines. It remembers the plan, for the names of steps.
type text struct {
	plan map[uint32]*slipwayv1.PlannedStep
}

func (t *text) step(n uint32) *slipwayv1.PlannedStep { return t.plan[n] }

// number names a step by its place in the stage.
func (t *text) number(n uint32) string {
	s := t.plan[n]
	if s == nil {
		return fmt.Sprint(n)
	}
	number := fmt.Sprintf("%d/%d", s.GetNumber(), s.GetTotal())
	if s.GetStage() != "" {
		number = s.GetStage() + " " + number
	}
	return number
}

// lines returns what an event says; most say nothing that an agent needs.
func (t *text) lines(ev *slipwayv1.Event) []line {
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_Plan:
		if t.plan == nil {
			t.plan = map[uint32]*slipwayv1.PlannedStep{}
		}
		for _, s := range e.Plan.GetSteps() {
			t.plan[s.GetStep()] = s
		}
	case *slipwayv1.Event_Queued:
		return []line{{Text: fmt.Sprintf("queued behind %d builds", e.Queued.GetPosition())}}
	case *slipwayv1.Event_StepLog:
		return t.output(e.StepLog)
	case *slipwayv1.Event_StepStarted:
		if s := t.plan[e.StepStarted.GetStep()]; s != nil {
			return []line{{t.number(s.GetStep()), clipped(s.GetSource())}}
		}
	case *slipwayv1.Event_StepDone:
		return t.done(e.StepDone)
	case *slipwayv1.Event_Warning:
		return []line{{Text: clipped("warning: " + e.Warning.GetMessage())}}
	case *slipwayv1.Event_Result:
		return []line{{Text: clipped(ending(e.Result))}}
	}
	return nil
}

func (t *text) output(l *slipwayv1.StepLog) []line {
	var out []line
	for s := range strings.Lines(string(l.GetData())) {
		out = append(out, line{t.number(l.GetStep()), clipped(strings.TrimRight(s, "\r\n"))})
	}
	return out
}

func (t *text) done(d *slipwayv1.StepDone) []line {
	n := t.number(d.GetStep())
	switch {
	case d.GetError() != "":
		return []line{{n, clipped("failed: " + d.GetError())}}
	case d.GetCached():
		return []line{{n, "cached"}}
	}
	return []line{{n, fmt.Sprintf("done in %.1fs", float64(d.GetDurationMs())/1000)}}
}

func ending(r *slipwayv1.Result) string {
	if e := r.GetError(); e != nil {
		return client.FromProto(e).Error()
	}
	return name("RESULT_STATUS_", r.GetStatus()) + " " + r.GetImage()
}

func clipped(s string) string {
	if len(s) > longest {
		s = s[:longest] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

// silent is an observer that does not care how events come.
type silent struct{}

func (silent) Accepted(string, bool) {}
func (silent) Lost(*client.Error)    {}
func (silent) Reattached(uint64)     {}
func (silent) Cancelling()           {}

// A reader collects a page of lines after a cursor.
type reader struct {
	silent
	text
	logs
	most int
	full func()
}

// Event implements [client.Observer].
func (r *reader) Event(ev *slipwayv1.Event) {
	lines := r.lines(ev)
	if ev.GetSeq() <= r.Cursor {
		return
	}
	if len(r.Lines) > 0 && len(r.Lines)+len(lines) > r.most {
		r.full()
		r.most = 0 // what comes before the stream ends is for the next page
		return
	}
	r.Lines, r.Cursor = append(r.Lines, lines...), ev.GetSeq()
}

// A finder keeps the last lines of each step, and which one failed.
type finder struct {
	silent
	text
	last   map[uint32][]string
	failed uint32
}

// lastLines are how many of them are of use.
const lastLines = 50

// Event implements [client.Observer].
func (f *finder) Event(ev *slipwayv1.Event) {
	lines := f.lines(ev)
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_StepLog:
		n := e.StepLog.GetStep()
		for _, l := range lines {
			f.last[n] = append(f.last[n], l.Text)
		}
		if over := len(f.last[n]) - lastLines; over > 0 {
			f.last[n] = f.last[n][over:]
		}
	case *slipwayv1.Event_StepDone:
		if e.StepDone.GetError() != "" && f.failed == 0 {
			f.failed = e.StepDone.GetStep()
		}
	}
}
