package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Miss says why a step was not cached, as JSON has it.
type Miss struct {
	Reason        string      `json:"reason"` // "new", "changed", "parent", "evicted", "disabled", "damaged"
	Changes       []KeyChange `json:"changes"`
	Evicted       *time.Time  `json:"evicted,omitempty"`
	EvictedReason string      `json:"evicted_reason,omitempty"`
}

// KeyChange is one input of a step that differs from the build before.
type KeyChange struct {
	Part   string `json:"part"`
	Name   string `json:"name"`
	Before string `json:"before"`
	Now    string `json:"now"`
}

// NewMiss returns m for JSON, nil for nil.
func NewMiss(m *slipwayv1.Miss) *Miss {
	if m == nil {
		return nil
	}
	out := &Miss{Reason: name("MISS_REASON_", m.GetReason()), Changes: []KeyChange{}, EvictedReason: m.GetEvictedReason()}
	for _, c := range m.GetChanges() {
		out.Changes = append(out.Changes, KeyChange{c.GetPart(), c.GetName(), c.GetBefore(), c.GetNow()})
	}
	if at := m.GetEvicted(); at != nil {
		t := at.AsTime()
		out.Evicted = &t
	}
	return out
}

// Explanation tells of each step of a build whether it was cached, and if it
// was not why.
type Explanation struct {
	BuildID string          `json:"build_id"`
	Steps   []ExplainedStep `json:"steps"`
	Hints   []string        `json:"hints"`
}

// ExplainedStep is one step of an explanation.
type ExplainedStep struct {
	Step       uint32 `json:"step"`
	Stage      string `json:"stage"`
	Number     uint32 `json:"number"`
	Total      uint32 `json:"total"`
	Source     string `json:"source"`
	Line       uint32 `json:"line"`
	Done       bool   `json:"done"` // the build got to its end
	Cached     bool   `json:"cached"`
	DurationMS int64  `json:"duration_ms"`
	Miss       string `json:"miss"`
	Why        *Miss  `json:"why"` // null for a cached step
	label      string
}

// An Explainer makes an explanation of a build's events.
type Explainer struct{ plan plan }

// Event takes the next event.
func (x *Explainer) Event(ev *slipwayv1.Event) {
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_Plan:
		x.plan.set(e.Plan)
	case *slipwayv1.Event_StepDone:
		x.plan.get(e.StepDone.GetStep()).end(e.StepDone)
	}
}

// Explain returns what the events tell.
func (x *Explainer) Explain(id string) *Explanation {
	out := &Explanation{BuildID: id, Steps: []ExplainedStep{}, Hints: x.plan.hints()}
	for _, st := range x.plan.order {
		e := ExplainedStep{
			Step: st.id, Stage: st.stage, Number: st.number, Total: st.total, Source: st.source, Line: st.line,
			Done: st.done && st.failed == nil, Cached: st.cached, label: st.label,
		}
		if st.ended != nil && !st.cached {
			e.DurationMS, e.Miss, e.Why = st.ended.GetDurationMs(), st.ended.GetMiss(), NewMiss(st.ended.GetWhy())
		}
		out.Steps = append(out.Steps, e)
	}
	if out.Hints == nil {
		out.Hints = []string{}
	}
	return out
}

// Write prints the explanation for people.
func (x *Explanation) Write(w io.Writer) {
	for i := range x.Steps {
		st := &x.Steps[i]
		what := "not reached"
		switch {
		case st.Cached:
			what = "cached"
		case st.Miss != "":
			what = "missed: " + clip(st.Miss, 300)
		case st.Done:
			what = "ran"
		}
		fmt.Fprintf(w, "• %s   %s\n", pad(pad(st.label, 14)+" "+clip(st.Source, 100), 56), what)
	}
	for _, h := range x.Hints {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
}

// missText is what a display says of a step that ran: nothing where the user
// knows, because it is the first build or the cache was not to be used.
func (p *plan) missText(st *step) string {
	d := st.ended
	switch why := d.GetWhy(); why.GetReason() {
	case slipwayv1.MissReason_MISS_REASON_DISABLED:
		return ""
	case slipwayv1.MissReason_MISS_REASON_NEW:
		if len(why.GetChanges()) == 0 && p.first() {
			return ""
		}
	case slipwayv1.MissReason_MISS_REASON_PARENT:
		if root := p.rootOf(d); root != nil && p.missText(root) == "" {
			return ""
		}
	}
	return d.GetMiss()
}

// first reports whether the build had nothing to compare itself with, as far as
// is known: no step was cached, and none says more than that it is new.
func (p *plan) first() bool {
	for _, st := range p.order {
		switch st.ended.GetWhy().GetReason() {
		case slipwayv1.MissReason_MISS_REASON_CHANGED, slipwayv1.MissReason_MISS_REASON_EVICTED, slipwayv1.MissReason_MISS_REASON_DAMAGED:
			return false
		}
		if st.cached && st.number > 1 {
			return false
		}
	}
	return true
}

// rootOf returns the step of this build that one blames which ran for its sake:
// below it, or in a stage that it copies from.
func (p *plan) rootOf(d *slipwayv1.StepDone) *step {
	for _, c := range d.GetWhy().GetChanges() {
		if c.GetPart() != "step" {
			continue
		}
		for _, st := range p.order {
			if st.ended != d && strings.HasPrefix(c.GetName(), st.label+" ") {
				return st
			}
		}
	}
	return nil
}

// originOf follows the blame from stage to stage.
func (p *plan) originOf(st *step) *step {
	origin := p.rootOf(st.ended)
	for range p.order {
		next := (*step)(nil)
		if origin != nil {
			next = p.rootOf(origin.ended)
		}
		if next == nil {
			break
		}
		origin = next
	}
	return origin
}

// hints says what a miss led to, and how it could have been avoided.
func (p *plan) hints() []string {
	var out []string
	for _, root := range p.order {
		switch root.ended.GetWhy().GetReason() {
		case slipwayv1.MissReason_MISS_REASON_UNSPECIFIED, slipwayv1.MissReason_MISS_REASON_DISABLED:
			continue
		}
		if p.rootOf(root.ended) != nil {
			continue
		}
		var after []*step
		for _, st := range p.order {
			if p.originOf(st) == root && st.number > 1 {
				after = append(after, st)
			}
		}
		if len(after) == 0 || p.missText(root) == "" {
			continue
		}
		if h := reorder(root, after); h != "" {
			out = append(out, h)
			continue
		}
		h := fmt.Sprintf("%d of %s ran because %s did", len(after), plural(len(p.order), "step"), root.label)
		if copied(root.source) == nil {
			h += "; nothing in COPY order would have helped"
		}
		out = append(out, h)
	}
	return out
}
