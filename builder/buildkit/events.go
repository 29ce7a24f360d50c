package buildkit

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A step is a vertex that people know as an instruction.
type step struct {
	*slipwayv1.PlannedStep
	digest    digest.Digest
	whole     digest.Digest // the step that it is a part of; "" if it is one
	started   time.Time
	completed time.Time
	ran       bool // it left something, in this build
	pulled    bool // bytes of its image have come
	cached    bool
	err       string
	told      bool // that it has ended
}

// lines know from which lines of the Dockerfile vertices and file systems come.
type lines struct {
	mu       sync.Mutex
	vertices map[digest.Digest]limits.Source
	below    map[digest.Digest]digest.Digest
	top      digest.Digest
}

// stack learns which vertices stand on which, and which is the top of them.
func (x *lines) stack(below map[digest.Digest]digest.Digest, top digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.top = top
	if x.below == nil {
		x.below = map[digest.Digest]digest.Digest{}
	}
	maps.Copy(x.below, below)
}

// place gives layers, lowest first, the lines of a vertex that has left them
// and of those that it stands on. Layers of a base image have none.
func (x *lines) place(layers []*layer.Layer, top digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := len(layers) - 1; i >= 0 && top != ""; i-- {
		layers[i].Origin = x.vertices[top]
		top = x.below[top]
	}
}

// last returns the top of the last definition.
func (x *lines) last() digest.Digest {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.top
}

// under returns the vertex that another one stands on; "" if it is none.
func (x *lines) under(v digest.Digest) digest.Digest {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.below[v]
}

func (x *lines) of(v digest.Digest) limits.Source {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.vertices[v]
}

// vertexName is how the Dockerfile's frontend names a vertex: "[build 2/4] RUN
// make".
var vertexName = regexp.MustCompile(`^\[(?:(.*) )?(\d+)/(\d+)\] (.*)$`)

// learn finds the steps of a definition, and tells of them.
func (b *build) learn(def *pb.Definition) {
	var found []*step
	for d, m := range def.Metadata {
		name := m.GetDescription()["llb.customname"]
		if name == "" && b.client != nil {
			b.events.unnamed(digest.Digest(d))
		}
		match := vertexName.FindStringSubmatch(name)
		if match == nil {
			continue
		}
		s := &step{digest: digest.Digest(d), PlannedStep: &slipwayv1.PlannedStep{Stage: match[1], Source: redact(match[4])}}
		if s.image() { // people have not written its digest
			s.Source, _, _ = strings.Cut(s.Source, "@")
		}
		s.Number, s.Total = number(match[2]), number(match[3])
		s.Line, s.EndLine = lineRange(def, d)
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b *step) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Number, b.Number))
	})
	found, parts := split(found)
	b.lines.add(found)
	b.lines.add(parts)
	b.events.plan(found)
	b.events.partake(parts)
}

// split takes out what is a part of another step: of an ADD, BuildKit fetches
// the repository or the URL under the name of the copy, without a line.
func split(all []*step) (steps, parts []*step) {
	type name struct {
		stage, source string
		number, total uint32
	}
	of := func(s *step) name { return name{s.Stage, s.Source, s.Number, s.Total} }
	whole := map[name]*step{}
	for _, s := range all {
		if s.Line > 0 {
			whole[of(s)] = s
		}
	}
	for _, s := range all {
		w := whole[of(s)]
		if s.Line > 0 || w == nil {
			steps = append(steps, s)
			continue
		}
		s.Line, s.EndLine = w.Line, w.EndLine
		s.whole = w.digest
		parts = append(parts, s)
	}
	return steps, parts
}

func (x *lines) add(steps []*step) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.vertices == nil {
		x.vertices = map[digest.Digest]limits.Source{}
	}
	for _, s := range steps {
		x.vertices[s.digest] = limits.Source{Line: int(s.Line), Text: s.Source}
	}
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // digits, as the pattern says
	return uint32(n)
}

// lineRange is where a vertex comes from; 0 if that is not known.
func lineRange(def *pb.Definition, vertex string) (first, last uint32) {
	for _, l := range def.GetSource().GetLocations()[vertex].GetLocations() {
		for _, r := range l.GetRanges() {
			at := uint32(max(0, r.GetStart().GetLine()))
			if first == 0 || at < first {
				first = at
			}
			last = max(last, uint32(max(0, r.GetEnd().GetLine())), first)
		}
	}
	return first, last
}

// events turns what BuildKit tells into the build's log.
type events struct {
	build *build

	mu       sync.Mutex
	steps    []*step
	byDigest map[digest.Digest]*step
	pulls    map[string]*slipwayv1.PullProgress
	names    map[digest.Digest]string // of vertices that are no steps
	parts    map[digest.Digest]*step  // steps by the vertices that are parts of them
	layers   map[digest.Digest]bool   // that were told of, by diff ID
	plain    map[digest.Digest]bool   // vertices without a name of their own, which are steps, too
}

func newEvents(b *build) *events {
	return &events{build: b, byDigest: map[digest.Digest]*step{}, pulls: map[string]*slipwayv1.PullProgress{}, names: map[digest.Digest]string{}, parts: map[digest.Digest]*step{}, layers: map[digest.Digest]bool{}, plain: map[digest.Digest]bool{}}
}

func (e *events) emit(ev *slipwayv1.Event) { e.build.job.Session.Emit(ev) }

// plan takes the steps of a definition that is going to be solved. Frontends
// may solve several; steps keep their numbers.
func (e *events) plan(found []*step) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := len(e.steps)
	for _, s := range found {
		e.add(s)
	}
	if len(e.steps) > before {
		e.planned()
	}
}

// add takes a step that is not there yet.
func (e *events) add(s *step) {
	if e.byDigest[s.digest] != nil {
		return
	}
	s.Step = uint32(len(e.steps)) + 1
	e.steps = append(e.steps, s)
	e.byDigest[s.digest] = s
}

// planned tells of all steps.
func (e *events) planned() {
	p := &slipwayv1.Plan{}
	stages := map[string]bool{}
	for _, s := range e.steps {
		stages[s.Stage] = true
		p.Steps = append(p.Steps, s.PlannedStep)
	}
	p.Stages = uint32(len(stages))
	e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: p}})
}

// unnamed learns that a vertex of a client's own definition is a step. What it
// is called BuildKit says when it begins.
func (e *events) unnamed(d digest.Digest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plain[d] = true
}

// partake learns which vertices are parts of steps.
func (e *events) partake(parts []*step) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range parts {
		if s := e.byDigest[p.whole]; s != nil {
			e.parts[p.digest] = s
		}
	}
}

// part follows one: the step begins with it, and fails with it.
func (e *events) part(s *step, v *client.Vertex) {
	if v.Started != nil {
		e.begin(s, *v.Started)
	}
	if v.Error != "" && v.Completed != nil {
		s.err, s.completed = v.Error, *v.Completed
		e.done(s)
	}
}

// begin tells once that a step has begun.
func (e *events) begin(s *step, at time.Time) {
	if s.started.IsZero() {
		s.started = at
		e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepStarted{StepStarted: &slipwayv1.StepStarted{Step: s.Step}}})
	}
}

// left notes that a step of this build has left something.
func (e *events) left(v digest.Digest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.byDigest[v]; s != nil {
		s.ran = true
	}
	// What it stands on has come to an end, too: BuildKit says so of the image
	// that all begin with only when nobody may want it any more.
	for d := v; d != ""; d = e.build.lines.under(d) {
		if s := e.byDigest[d]; s != nil && s.image() && !s.started.IsZero() {
			s.cached = !s.pulled
			s.completed = time.Now()
			e.done(s)
		}
	}
}

// image reports whether the step is the begin of a stage.
func (s *step) image() bool { return strings.HasPrefix(s.Source, "FROM ") }

// status takes what BuildKit tells.
func (e *events) status(st *client.SolveStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range st.Vertexes {
		e.vertex(v)
	}
	for _, l := range st.Logs {
		if s := cmp.Or(e.byDigest[l.Vertex], e.parts[l.Vertex]); s != nil {
			e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{Step: s.Step, Stream: streamOf(l.Stream), Data: l.Data}}})
		}
	}
	for _, s := range st.Statuses {
		e.progress(s)
	}
	for _, w := range st.Warnings {
		e.warning(w)
	}
}

func streamOf(n int) slipwayv1.LogStream {
	if n == 2 {
		return slipwayv1.LogStream_LOG_STREAM_STDERR
	}
	return slipwayv1.LogStream_LOG_STREAM_STDOUT
}

// vertex follows a step. BuildKit begins one and ends it more than once: while
// it looks whether the step is cached, and when it runs.
func (e *events) vertex(v *client.Vertex) {
	if s := e.parts[v.Digest]; s != nil {
		e.part(s, v)
		return
	}
	s := e.byDigest[v.Digest]
	if s == nil && e.plain[v.Digest] && v.Started != nil {
		s = &step{digest: v.Digest, PlannedStep: &slipwayv1.PlannedStep{Source: redact(v.Name)}}
		e.add(s)
		e.planned()
	}
	if s == nil {
		e.names[v.Digest] = v.Name
		return
	}
	if v.Started != nil {
		e.begin(s, *v.Started)
	}
	s.cached = s.cached || v.Cached
	if v.Error != "" {
		s.err = v.Error
	}
	if v.Completed == nil {
		return
	}
	s.completed = *v.Completed
	if s.cached || s.ran || s.err != "" {
		e.done(s)
	}
}

// layer tells once of each layer what it adds.
func (e *events) layer(l *layer.Layer, delta int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.layers[l.DiffID] {
		return
	}
	e.layers[l.DiffID] = true
	ev := &slipwayv1.LayerDone{RootfsDelta: delta, Layer: &slipwayv1.Layer{
		Digest: l.Descriptor.Digest.String(), DiffId: l.DiffID.String(), Size: uint64(l.Descriptor.Size),
		Uncompressed: uint64(l.Uncompressed), MediaType: l.Descriptor.MediaType, Cached: l.Cached,
	}}
	for _, s := range e.steps {
		if int(s.Line) == l.Origin.Line && s.Source == l.Origin.Text && l.Origin.Line > 0 {
			ev.Step = s.Step
		}
	}
	e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_Layer{Layer: ev}})
}

// exitCode is how BuildKit writes that a process has failed.
var exitCode = regexp.MustCompile(`did not complete successfully: exit code: (\d+)`)

// done tells once that a step has ended.
func (e *events) done(s *step) {
	if s.told {
		return
	}
	s.told = true
	d := &slipwayv1.StepDone{Step: s.Step, Cached: s.cached, Error: redact(s.err)}
	if m := exitCode.FindStringSubmatch(s.err); m != nil {
		d.ExitCode = int32(number(m[1]))
	}
	if !s.cached && !s.started.IsZero() && s.completed.After(s.started) {
		d.DurationMs = s.completed.Sub(s.started).Milliseconds()
	}
	e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: d}})
}

// end tells of the steps that have ended without a word. Of a build that
// succeeded, what left nothing is cached: BuildKit has looked no further than it
// had to. So is an image that did not come.
func (e *events) end(succeeded bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.steps {
		if succeeded && !s.ran && !s.pulled {
			s.cached = true
		}
		if succeeded || !s.completed.IsZero() {
			e.done(s)
		}
	}
}

// progress tells how base images arrive.
func (e *events) progress(s *client.VertexStatus) {
	d := digest.Digest(s.ID)
	if d.Validate() != nil {
		return
	}
	if from := e.byDigest[s.Vertex]; from != nil {
		from.pulled = true
	}
	p := e.pulls[s.ID]
	if p == nil {
		p = &slipwayv1.PullProgress{Ref: e.imageOf(s.Vertex), Digest: s.ID}
		e.pulls[s.ID] = p
	}
	if p.Done {
		return
	}
	p.Bytes, p.Total, p.Done = uint64(max(0, s.Current)), uint64(max(0, s.Total)), s.Completed != nil
	e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_Pull{Pull: &slipwayv1.PullProgress{
		Ref: p.Ref, Digest: p.Digest, Bytes: p.Bytes, Total: p.Total, Done: p.Done,
	}}})
}

// imageOf is the image that a vertex pulls.
func (e *events) imageOf(v digest.Digest) string {
	name := e.names[v]
	if s := e.byDigest[v]; s != nil {
		name = s.Source
	}
	ref, _, _ := strings.Cut(strings.TrimPrefix(name, "FROM "), "@")
	return ref
}

func (e *events) warning(w *client.VertexWarning) {
	out := &slipwayv1.Warning{Message: string(w.Short), Url: w.URL}
	if rule, text, ok := strings.Cut(out.Message, ": "); ok && !strings.Contains(rule, " ") {
		out.Rule, out.Message = rule, text
	}
	if i := strings.LastIndex(out.Message, " (line "); i > 0 && len(w.Range) > 0 {
		out.Message = out.Message[:i]
	}
	if len(w.Range) > 0 {
		out.Line = uint32(max(0, w.Range[0].GetStart().GetLine()))
	}
	e.emit(&slipwayv1.Event{Event: &slipwayv1.Event_Warning{Warning: out}})
}

// counts returns how many steps there were, and how many of them were cached.
func (e *events) counts() (steps, cached int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.steps {
		if s.cached {
			cached++
		}
	}
	return len(e.steps), cached
}
