package progress

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const (
	heartbeat = 30 * time.Second // of a step that prints nothing
	pulse     = 10 * time.Second // of transfers
)

// PlainOptions tunes [Plain]. Nil means the defaults.
type PlainOptions struct {
	Color bool
	// Quiet shows only warnings, notes and how a build failed.
	Quiet bool
	// Past says that the events come from a log: nothing is running now.
	Past bool
}

// Plain is a display for logs: complete lines, written once, in order. Steps
// and transfers that take long are heard of again and again, so that a log
// that stands still means something.
type Plain struct {
	w     io.Writer
	style style
	quiet bool

	mu      sync.Mutex
	head    Header
	headed  bool
	plan    plan
	lines   int     // printed
	cached  []*step // not printed yet: if all are, one line says so
	missed  bool    // some step was not cached, or it is known that none was
	whole   bool    // every step was cached
	context transfer
	sent    *slipwayv1.ContextProgress
	push    transfer
	blobs   map[string]*slipwayv1.PushProgress
	pulls   map[string]*transfer
	stop    chan struct{}
	ticking sync.WaitGroup
}

// transfer is something whose bytes are shown now and then.
type transfer struct {
	active       bool
	began, at    time.Time // at: when it was shown last
	bytes, total uint64
}

// NewPlain returns a display that writes to w. It must be finished.
func NewPlain(w io.Writer, o *PlainOptions) *Plain {
	if o == nil {
		o = &PlainOptions{}
	}
	p := &Plain{w: w, style: style(o.Color), quiet: o.Quiet, blobs: map[string]*slipwayv1.PushProgress{}, pulls: map[string]*transfer{}, stop: make(chan struct{})}
	if !p.quiet && !o.Past {
		p.ticking.Go(p.tick)
	}
	return p
}

// Begin implements [Display].
func (p *Plain) Begin(h Header) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.head = h
}

// Note implements [Display].
func (p *Plain) Note(n Note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Text == "" || n.Progress && p.quiet {
		return
	}
	p.printf("%s", n.Text)
	for _, l := range n.Lines {
		p.printf("  %s", l)
	}
}

// Finish implements [Display].
func (p *Plain) Finish(res *slipwayv1.Result) error {
	close(p.stop)
	p.ticking.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if res == nil {
		p.flush()
		return nil
	}
	if res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED {
		p.summary(res.GetTimings().GetBuild())
	} else {
		p.flush()
	}
	r := report{w: p.w, style: p.style, head: p.head, plan: &p.plan, tail: !p.justPrinted()}
	if p.quiet && res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED {
		return nil
	}
	r.print(res)
	return nil
}

// justPrinted reports whether the failed step's output is what the log ends
// with, so that it need not be repeated.
func (p *Plain) justPrinted() bool {
	st := p.plan.failure()
	if st == nil || p.quiet {
		return false
	}
	for i, l := range st.tail {
		if l.at != p.lines-len(st.tail)+1+i {
			return false
		}
	}
	return true
}

func (p *Plain) printf(format string, args ...any) {
	p.lines++
	fmt.Fprintf(p.w, format+"\n", args...)
}

// say prints a line of the build's progress.
func (p *Plain) say(format string, args ...any) {
	if p.quiet {
		return
	}
	p.header()
	p.printf(format, args...)
}

// header prints the build's first line, once: when the plan comes, or before
// what comes sooner.
func (p *Plain) header() {
	if p.headed || p.quiet {
		return
	}
	p.headed = true
	if p.head.App == "" {
		return
	}
	parts := []string{p.style.bold(p.head.App), p.head.Pipeline, p.recipe()}
	if p.head.IgnoreFile != "" {
		parts = append(parts, fmt.Sprintf("ignore: %s (%s)", p.head.IgnoreFile, plural(p.head.IgnorePatterns, "pattern")))
	}
	p.printf("%s", strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " · "))
}

func (p *Plain) recipe() string {
	name := cmp.Or(p.head.Image, p.head.Dockerfile)
	switch {
	case len(p.plan.order) == 0:
		return name
	case name == "":
		return planned(&p.plan)
	}
	return fmt.Sprintf("%s (%s)", name, planned(&p.plan))
}

func planned(pl *plan) string {
	return plural(len(pl.order), "step") + ", " + plural(pl.stages, "stage")
}

// Event implements [Display].
func (p *Plain) Event(ev *slipwayv1.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_Queued:
		if n := e.Queued.GetPosition(); n > 0 && !p.quiet {
			p.printf("  queue            %s first", plural(n, "build"))
		}
	case *slipwayv1.Event_Phase:
		p.phase(e.Phase)
	case *slipwayv1.Event_Context:
		p.sent = e.Context
		p.context.bytes, p.context.total = e.Context.GetSentBytes(), cmp.Or(e.Context.GetWantedBytes(), e.Context.GetBytes())
	case *slipwayv1.Event_Plan:
		p.planned(e.Plan)
	case *slipwayv1.Event_StepStarted:
		st := p.plan.get(e.StepStarted.GetStep())
		st.started, st.heard = time.Now(), time.Now()
	case *slipwayv1.Event_StepLog:
		p.log(e.StepLog)
	case *slipwayv1.Event_StepDone:
		p.done(e.StepDone)
	case *slipwayv1.Event_Pull:
		p.pull(e.Pull)
	case *slipwayv1.Event_Push:
		p.pushing(e.Push)
	case *slipwayv1.Event_Warning:
		p.warn(e.Warning)
	}
}

func (p *Plain) planned(m *slipwayv1.Plan) {
	p.plan.set(m)
	if p.headed {
		p.say("  plan             %s", planned(&p.plan))
		return
	}
	p.header()
}

func (p *Plain) phase(ph *slipwayv1.Phase) {
	now := time.Now()
	switch ph.GetName() {
	case slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT:
		if ph.GetDone() {
			p.row("preflight", ph.GetDurationMs(), ph.GetDetail())
		}
	case slipwayv1.PhaseName_PHASE_NAME_CONTEXT:
		p.context.active, p.context.began, p.context.at = !ph.GetDone(), now, now
		if ph.GetDone() {
			p.row("context", ph.GetDurationMs(), sent(p.sent, ph.GetDetail(), p.whole || !p.missed))
		}
	case slipwayv1.PhaseName_PHASE_NAME_BUILD:
		if ph.GetDone() {
			p.summary(ph.GetDurationMs())
		}
	case slipwayv1.PhaseName_PHASE_NAME_PUSH:
		p.push.active, p.push.began, p.push.at = !ph.GetDone(), now, now
	}
}

func (p *Plain) row(name string, ms int64, text string) {
	p.say("%s", row(p.style, name, millis(ms), text))
}

// sent says what of the context travelled; cached, that every step so far was
// found in the cache.
func sent(c *slipwayv1.ContextProgress, detail string, cached bool) string {
	switch {
	case c == nil:
		return detail
	case c.GetFiles() == 0:
		return "no files"
	case c.GetWantedFiles() == 0 && c.GetSentFiles() == 0 && cached:
		return plural(c.GetFiles(), "file") + " unchanged → sent 0"
	case c.GetWantedFiles() == 0 && c.GetSentFiles() == 0:
		// The daemon has what the steps read, or they read nothing.
		return fmt.Sprintf("%s, %s → sent 0", plural(c.GetFiles(), "file"), Size(c.GetBytes()))
	}
	return fmt.Sprintf("%s, %s → sent %s, %s", plural(c.GetFiles(), "file"), Size(c.GetBytes()), plural(c.GetSentFiles(), "file"), Size(c.GetWireBytes()))
}

// summary replaces the lines of cached steps by one if no other step ran.
func (p *Plain) summary(ms int64) {
	if n := len(p.cached); n > 0 && !p.missed {
		lenders := p.lenders()
		p.cached, p.missed, p.whole = nil, true, true
		p.row("build", ms, fmt.Sprintf("%d of %s cached%s", n, plural(len(p.plan.order), "step"), lenders))
		return
	}
	p.flush()
}

// lenders tells which caches elsewhere had the cached steps, and how many each.
func (p *Plain) lenders() string {
	var order []string
	count := map[string]int{}
	for _, st := range p.cached {
		if st.lender == "" {
			continue
		}
		if count[st.lender]++; count[st.lender] == 1 {
			order = append(order, st.lender)
		}
	}
	var text strings.Builder
	for _, l := range order {
		fmt.Fprintf(&text, ", %d%s", count[l], l)
	}
	return text.String()
}

// flush prints the cached steps that were held back.
func (p *Plain) flush() {
	for _, st := range p.cached {
		p.say("• %s   cached%s", pad(pad(st.label, 14)+" "+clip(st.source, 100), 48), st.lender)
	}
	p.cached = nil
}

func (p *Plain) log(l *slipwayv1.StepLog) {
	st := p.plan.get(l.GetStep())
	if isRestated(l) {
		st.heed(l)
		return
	}
	p.output(st, st.out[int(l.GetStream())%len(st.out)].add(l.GetData()))
}

func (p *Plain) output(st *step, lines []string) {
	if len(lines) == 0 {
		return
	}
	p.flush()
	p.missed = true
	st.heard = time.Now()
	for _, text := range lines {
		p.say("  %s %s", p.style.dim(st.label+" |"), text)
		st.keep(text, p.lines)
	}
}

func (p *Plain) done(d *slipwayv1.StepDone) {
	st := p.plan.get(d.GetStep())
	for i := range st.out {
		p.output(st, st.out[i].flush())
	}
	st.end(d)
	switch {
	case st.failed != nil:
		p.missed = true
	case st.cached && p.missed:
		p.cached = append(p.cached, st)
		p.flush()
	case st.cached:
		p.cached = append(p.cached, st)
	default:
		p.flush()
		p.missed = true
		text := clip(st.source, 100)
		if grew := delta(d.GetRootfsDelta()); grew != "" {
			text = pad(text, 28) + "   " + grew
		}
		if miss := p.plan.missText(st); miss != "" {
			text = pad(text, 28) + "   missed: " + clip(miss, 160)
		}
		p.row(st.label, d.GetDurationMs(), text)
	}
}

func (p *Plain) pull(m *slipwayv1.PullProgress) {
	t := p.pulls[m.GetRef()]
	if t == nil {
		t = &transfer{began: time.Now(), at: time.Now()}
		p.pulls[m.GetRef()] = t
	}
	t.active, t.bytes, t.total = !m.GetDone(), m.GetBytes(), m.GetTotal()
}

func (p *Plain) pushing(m *slipwayv1.PushProgress) {
	key := m.GetTarget() + " " + m.GetDigest()
	if old := p.blobs[key]; m.GetRetries() > old.GetRetries() {
		p.say("%s push           %s broke after %s; going on, retry %d", p.style.yellow("!"), short(m.GetDigest()), Size(m.GetBytes()), m.GetRetries())
	}
	p.blobs[key] = m
}

func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19] + "…"
	}
	return digest
}

func (p *Plain) warn(w *slipwayv1.Warning) {
	p.header()
	p.printf("%s %s", p.style.yellow("!"), warning(w, p.head.Dockerfile))
	if w.GetHint() != "" {
		p.printf("  hint: %s", clip(w.GetHint(), 400))
	}
}

// warning is a warning's text: where, by which rule, and where to read on.
func warning(w *slipwayv1.Warning, dockerfile string) string {
	text := clip(w.GetMessage(), 400)
	if w.GetRule() != "" {
		text = w.GetRule() + ": " + text
	}
	if w.GetLine() > 0 {
		text = fmt.Sprintf("%s:%d: %s", cmp.Or(dockerfile, "Dockerfile"), w.GetLine(), text)
	}
	if w.GetUrl() != "" {
		text += " (" + w.GetUrl() + ")"
	}
	return text
}

// tick looks once a second for what has been silent for too long.
func (p *Plain) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case now := <-t.C:
			p.mu.Lock()
			p.remind(now)
			p.mu.Unlock()
		}
	}
}

func (p *Plain) remind(now time.Time) {
	for _, st := range p.plan.order {
		if !st.started.IsZero() && !st.done && now.Sub(st.heard) >= heartbeat {
			p.flush()
			st.heard = now
			p.say("  %s %s  still running: %s", pad(st.label, 14), pad(seconds(now.Sub(st.started)), 6), clip(st.source, 100))
		}
	}
	if c := p.sent; p.context.due(now) {
		files := cmp.Or(c.GetWantedFiles(), c.GetFiles())
		p.say("  context          %s of %s sent, %s", Count(c.GetSentFiles()), plural(files, "file"), p.context.speed(now))
	}
	for _, ref := range slices.Sorted(maps.Keys(p.pulls)) {
		if t := p.pulls[ref]; t.due(now) {
			p.say("  pull             %s: %s", ref, t.speed(now))
		}
	}
	p.push.bytes, p.push.total = 0, 0
	for _, b := range p.blobs {
		p.push.bytes += b.GetBytes()
		p.push.total += max(b.GetTotal(), b.GetBytes())
	}
	if p.push.due(now) {
		p.say("  push             %s, %s", plural(len(p.blobs), "layer"), p.push.speed(now))
	}
}

// due reports whether the transfer is to be shown again, and takes note.
func (t *transfer) due(now time.Time) bool {
	if !t.active || t.began.IsZero() || now.Sub(t.at) < pulse {
		return false
	}
	t.at = now
	return true
}

// speed says how far the transfer is, how fast, and how long it will take.
func (t *transfer) speed(now time.Time) string {
	s := Size(t.bytes) + " of " + Size(t.total)
	secs := now.Sub(t.began).Seconds()
	if secs <= 0 || t.bytes == 0 {
		return s
	}
	perSecond := float64(t.bytes) / secs
	s += fmt.Sprintf(" (%s/s", Size(int64(perSecond)))
	if t.total > t.bytes {
		s += ", " + seconds(time.Duration(float64(t.total-t.bytes)/perSecond*float64(time.Second))) + " left"
	}
	return s + ")"
}
