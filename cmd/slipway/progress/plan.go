package progress

import (
	"fmt"
	"regexp"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// tailLines is how much of a failed step's output is shown again.
const tailLines = 20

// step is one planned step and what has become of it.
type step struct {
	id      uint32
	label   string // "[build 2/4]"
	source  string
	line    uint32
	stage   string
	number  uint32
	total   uint32
	started time.Time // zero before
	done    bool
	cached  bool
	ended   *slipwayv1.StepDone // nil before
	failed  *slipwayv1.StepDone
	out     [4]splitter // by stream
	tail    []tailLine
	heard   time.Time // when it last printed something

	lender string // " from REF" if a cache elsewhere had it
}

// tailLine is a line of output and where in the log it was printed.
type tailLine struct {
	text string
	at   int
}

// fromScratch matches a FROM that stands on nothing. There is nothing to be
// done for it, so it counts as cached.
var fromScratch = regexp.MustCompile(`(?i)^from\s+(?:--\S+\s+)*(?-i:scratch)(?:\s|$)`)

// end notes how a step ended.
func (s *step) end(d *slipwayv1.StepDone) {
	s.done, s.cached, s.ended = true, d.GetCached(), d
	if d.GetError() != "" {
		s.failed = d
		return
	}
	s.cached = s.cached || fromScratch.MatchString(s.source)
}

// plan keeps the steps of a build.
type plan struct {
	steps  map[uint32]*step
	order  []*step
	stages uint32
}

func (p *plan) set(m *slipwayv1.Plan) {
	p.stages = m.GetStages()
	for _, s := range m.GetSteps() {
		st := p.get(s.GetStep())
		st.label, st.source, st.line = label(s), s.GetSource(), s.GetLine()
		st.stage, st.number, st.total = s.GetStage(), s.GetNumber(), s.GetTotal()
	}
}

// get returns a step, also one that no plan announced.
func (p *plan) get(id uint32) *step {
	if s, ok := p.steps[id]; ok {
		return s
	}
	s := &step{id: id, label: fmt.Sprintf("[%d]", id)}
	if p.steps == nil {
		p.steps = map[uint32]*step{}
	}
	p.steps[id] = s
	p.order = append(p.order, s)
	return s
}

// kept counts the steps that ended well: they stay cached.
func (p *plan) kept() (n, cached int) {
	for _, s := range p.order {
		if s.done && s.failed == nil {
			n++
			if s.cached {
				cached++
			}
		}
	}
	return n, cached
}

// failure returns the step that failed, nil if none did.
func (p *plan) failure() *step {
	for _, s := range p.order {
		if s.failed != nil {
			return s
		}
	}
	return nil
}

func (s *step) keep(text string, at int) {
	if len(s.tail) == tailLines {
		s.tail = append(s.tail[:0], s.tail[1:]...)
	}
	s.tail = append(s.tail, tailLine{text, at})
}

func label(s *slipwayv1.PlannedStep) string {
	if s.GetStage() == "" {
		return fmt.Sprintf("[%d/%d]", s.GetNumber(), s.GetTotal())
	}
	return fmt.Sprintf("[%s %d/%d]", s.GetStage(), s.GetNumber(), s.GetTotal())
}

// restated matches what the daemon says about a step in the words of Docker's
// classic builder, and every display here in its own.
var restated = regexp.MustCompile(`^(Step \d+/\d+ :| ?---> |Removed intermediate container|Successfully (built|tagged) )`)

// lentBy matches a hit in a cache elsewhere.
var lentBy = regexp.MustCompile(`^ ---> Using cache from (\S+)\n$`)

// heed takes from what the daemon says about the step where it was cached.
func (s *step) heed(l *slipwayv1.StepLog) {
	if m := lentBy.FindSubmatch(l.GetData()); m != nil && l.GetStream() == slipwayv1.LogStream_LOG_STREAM_NOTE {
		s.lender = " from " + string(m[1])
	}
}

func isRestated(l *slipwayv1.StepLog) bool {
	return l.GetStream() == slipwayv1.LogStream_LOG_STREAM_NOTE && restated.Match(l.GetData())
}
