package progress

import (
	"encoding/json"
	"io"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// JSON is a display for programs: one JSON object a line, each with a "type".
// Lines that stand for an event of the build have its number as "seq" and its
// "time"; the last line is of type "result". Names and types of fields are
// stable; fields may be added. The types are
//
//	accepted           build_id, joined
//	queued             position
//	phase              name, done, duration_ms, detail
//	context            files, bytes, wanted_files, wanted_bytes, sent_files, sent_bytes, wire_bytes
//	plan               stages, steps: [{step, stage, number, total, source, line, end_line}]
//	step_started       step
//	step_log           step, stream ("stdout", "stderr", "note"), data
//	step_done          step, cached, duration_ms, rootfs_delta, error, exit_code, miss, why: see [Miss]
//	forecast           see [Forecast]
//	pull               ref, digest, bytes, total, done
//	layer              step, layer: as in the result
//	push               digest, target, bytes, total, retries, outcome, bytes_per_second
//	rootfs             bytes, limit
//	warning            message, hint, line, rule, url
//	connection_lost    error
//	reconnected        from_seq
//	cancelling
//	result             see [Result]
type JSON struct {
	enc    *json.Encoder
	err    error
	result *slipwayv1.Event // held back: its line is the last
}

// NewJSON returns a display that writes to w.
func NewJSON(w io.Writer) *JSON {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &JSON{enc: enc}
}

func (j *JSON) line(v any) {
	if err := j.enc.Encode(v); j.err == nil {
		j.err = err
	}
}

// Begin implements [Display].
func (j *JSON) Begin(Header) {}

// Note implements [Display].
func (j *JSON) Note(n Note) {
	m := map[string]any{"type": n.Type, "time": time.Now().UTC()}
	for k, v := range n.Fields {
		m[k] = v
	}
	j.line(m)
}

// Finish implements [Display].
func (j *JSON) Finish(r *slipwayv1.Result) error {
	if r != nil {
		res := NewResult(r)
		if ev := j.result; ev.GetResult() == r {
			t := ev.GetTime().AsTime()
			res.Seq, res.Time = ev.GetSeq(), &t
		}
		j.line(res)
	}
	return j.err
}

// Event implements [Display].
func (j *JSON) Event(ev *slipwayv1.Event) {
	if ev.GetResult() != nil {
		j.result = ev
		return
	}
	if f := fields(ev); f != nil {
		f["seq"], f["time"] = ev.GetSeq(), ev.GetTime().AsTime()
		j.line(f)
	}
}

// fields returns what a line says about an event; nil for an event that this
// program does not know.
func fields(ev *slipwayv1.Event) map[string]any {
	type m = map[string]any
	switch e := ev.GetEvent().(type) {
	case *slipwayv1.Event_Queued:
		return m{"type": "queued", "position": e.Queued.GetPosition()}
	case *slipwayv1.Event_Phase:
		p := e.Phase
		return m{"type": "phase", "name": name("PHASE_NAME_", p.GetName()), "done": p.GetDone(), "duration_ms": p.GetDurationMs(), "detail": p.GetDetail()}
	case *slipwayv1.Event_Context:
		c := e.Context
		return m{"type": "context", "files": c.GetFiles(), "bytes": c.GetBytes(), "wanted_files": c.GetWantedFiles(), "wanted_bytes": c.GetWantedBytes(),
			"sent_files": c.GetSentFiles(), "sent_bytes": c.GetSentBytes(), "wire_bytes": c.GetWireBytes()}
	case *slipwayv1.Event_Plan:
		return m{"type": "plan", "stages": e.Plan.GetStages(), "steps": plannedSteps(e.Plan)}
	case *slipwayv1.Event_StepStarted:
		return m{"type": "step_started", "step": e.StepStarted.GetStep()}
	case *slipwayv1.Event_StepLog:
		l := e.StepLog
		return m{"type": "step_log", "step": l.GetStep(), "stream": name("LOG_STREAM_", l.GetStream()), "data": string(l.GetData())}
	case *slipwayv1.Event_StepDone:
		d := e.StepDone
		return m{"type": "step_done", "step": d.GetStep(), "cached": d.GetCached(), "duration_ms": d.GetDurationMs(), "rootfs_delta": d.GetRootfsDelta(),
			"error": d.GetError(), "exit_code": d.GetExitCode(), "miss": d.GetMiss(), "why": NewMiss(d.GetWhy())}
	case *slipwayv1.Event_Pull:
		p := e.Pull
		return m{"type": "pull", "ref": p.GetRef(), "digest": p.GetDigest(), "bytes": p.GetBytes(), "total": p.GetTotal(), "done": p.GetDone()}
	case *slipwayv1.Event_Layer:
		return m{"type": "layer", "step": e.Layer.GetStep(), "layer": newLayer(e.Layer.GetLayer())}
	case *slipwayv1.Event_Push:
		p := e.Push
		return m{"type": "push", "digest": p.GetDigest(), "target": p.GetTarget(), "bytes": p.GetBytes(), "total": p.GetTotal(), "retries": p.GetRetries(),
			"outcome": name("PUSH_OUTCOME_", p.GetOutcome()), "bytes_per_second": p.GetBytesPerSecond()}
	case *slipwayv1.Event_Rootfs:
		return m{"type": "rootfs", "bytes": e.Rootfs.GetBytes(), "limit": e.Rootfs.GetLimit()}
	case *slipwayv1.Event_Forecast:
		return m{"type": "forecast", "forecast": NewForecast(e.Forecast)}
	case *slipwayv1.Event_Warning:
		return m{"type": "warning", "message": e.Warning.GetMessage(), "hint": e.Warning.GetHint(), "line": e.Warning.GetLine(),
			"rule": e.Warning.GetRule(), "url": e.Warning.GetUrl()}
	}
	return nil
}

func plannedSteps(p *slipwayv1.Plan) []map[string]any {
	steps := make([]map[string]any, 0, len(p.GetSteps()))
	for _, s := range p.GetSteps() {
		steps = append(steps, map[string]any{"step": s.GetStep(), "stage": s.GetStage(), "number": s.GetNumber(), "total": s.GetTotal(),
			"source": s.GetSource(), "line": s.GetLine(), "end_line": s.GetEndLine()})
	}
	return steps
}

// name returns an enum's value as JSON has it: in lower case, "" if unset.
func name(prefix string, v interface{ String() string }) string {
	s := strings.ToLower(strings.TrimPrefix(v.String(), prefix))
	if s == "unspecified" {
		return ""
	}
	return s
}

// Result is the last line of a deploy, and a part of a build's record.
type Result struct {
	Type              string     `json:"type"` // "result"
	Schema            int        `json:"schema"`
	Seq               uint64     `json:"seq,omitempty"`
	Time              *time.Time `json:"time,omitempty"`
	Status            string     `json:"status"` // "succeeded", "failed"; "detached" where the build goes on
	BuildID           string     `json:"build_id"`
	App               string     `json:"app"`
	Image             string     `json:"image"`
	Digest            string     `json:"digest"`
	Pipeline          string     `json:"pipeline"`
	RootfsBytes       uint64     `json:"rootfs_bytes"`
	RootfsLimit       uint64     `json:"rootfs_limit"`
	UncompressedBytes uint64     `json:"uncompressed_bytes"`
	CompressedBytes   uint64     `json:"compressed_bytes"`
	Steps             uint32     `json:"steps"`
	CachedSteps       uint32     `json:"cached_steps"`
	EarlyBytes        uint64     `json:"early_bytes"`
	WireBytes         uint64     `json:"wire_bytes"`
	SameAs            string     `json:"same_as,omitempty"`
	Release           *Release   `json:"release"` // null if nothing was released
	Layers            []Layer    `json:"layers"`
	Context           Context    `json:"context"`
	Timings           Timings    `json:"timings_ms"`
	Error             *Error     `json:"error"`
}

// Release is what a build released.
type Release struct {
	ID          string `json:"id"`
	Version     uint64 `json:"version"`
	Environment string `json:"environment"` // empty for none in particular
}

// Layer is one layer of a result.
type Layer struct {
	Digest       string `json:"digest"`
	DiffID       string `json:"diff_id"`
	Size         uint64 `json:"size"`
	Uncompressed uint64 `json:"uncompressed"`
	CreatedBy    string `json:"created_by"`
	Cached       bool   `json:"cached"`
	Pushed       string `json:"pushed"` // "uploaded", "mounted", "present", "linked"; "" if it was not
	MediaType    string `json:"media_type"`
}

// Context is what a result says of the build context.
type Context struct {
	Files     uint64 `json:"files"`
	Bytes     uint64 `json:"bytes"`
	SentFiles uint64 `json:"sent_files"`
	SentBytes uint64 `json:"sent_bytes"`
	WireBytes uint64 `json:"wire_bytes"`
}

// Timings are milliseconds.
type Timings struct {
	Queue     int64 `json:"queue"`
	Preflight int64 `json:"preflight"`
	Context   int64 `json:"context"`
	Build     int64 `json:"build"`
	Push      int64 `json:"push"`
	Total     int64 `json:"total"`
}

// Error is a failure.
type Error struct {
	Code      string      `json:"code"`
	Phase     string      `json:"phase"`
	Blame     string      `json:"blame"` // "user", "builder", "registry", "network"
	Retryable bool        `json:"retryable"`
	Line      uint32      `json:"line"`
	ExitCode  int32       `json:"exit_code"` // of the RUN step
	Message   string      `json:"message"`
	Hint      string      `json:"hint"`
	Excerpt   string      `json:"excerpt,omitempty"`
	Size      *SizeReport `json:"size,omitempty"`
}

// SizeReport says what fills an image that is too large.
type SizeReport struct {
	Total       uint64     `json:"total"`
	Limit       uint64     `json:"limit"`
	Path        string     `json:"path"`
	Paths       []PathSize `json:"largest_paths"`
	Directories []PathSize `json:"largest_directories"`
	Lines       []LineSize `json:"lines"`
}

// PathSize is a path and its bytes.
type PathSize struct {
	Path  string `json:"path"`
	Bytes uint64 `json:"bytes"`
}

// LineSize is a line of the Dockerfile and the bytes it added.
type LineSize struct {
	Line   uint32 `json:"line"`
	Source string `json:"source"`
	Bytes  int64  `json:"bytes"`
}

// NewResult returns r for JSON. A cancelled build has failed, with the error
// code "cancelled".
func NewResult(r *slipwayv1.Result) *Result {
	out := &Result{
		Type: "result", Schema: 1,
		Status:  name("RESULT_STATUS_", r.GetStatus()),
		BuildID: r.GetBuildId(), App: r.GetApp(), Image: r.GetImage(), Digest: r.GetDigest(), Pipeline: r.GetPipeline(),
		RootfsBytes: r.GetRootfsBytes(), RootfsLimit: r.GetRootfsLimit(),
		UncompressedBytes: r.GetUncompressedBytes(), CompressedBytes: r.GetCompressedBytes(),
		Steps: r.GetSteps(), CachedSteps: r.GetCachedSteps(), EarlyBytes: r.GetEarlyBytes(), WireBytes: r.GetWireBytes(),
		SameAs: r.GetSameAs(),
		Layers: make([]Layer, 0, len(r.GetLayers())),
		Error:  NewError(r.GetError()),
	}
	if r.GetReleaseId() != "" {
		out.Release = &Release{r.GetReleaseId(), r.GetReleaseVersion(), r.GetEnvironment()}
	}
	c, t := r.GetContext(), r.GetTimings()
	out.Context = Context{c.GetFiles(), c.GetBytes(), c.GetSentFiles(), c.GetSentBytes(), c.GetWireBytes()}
	out.Timings = Timings{t.GetQueue(), t.GetPreflight(), t.GetContext(), t.GetBuild(), t.GetPush(), t.GetTotal()}
	for _, l := range r.GetLayers() {
		out.Layers = append(out.Layers, newLayer(l))
	}
	switch r.GetStatus() {
	case slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED:
		out.Status = "failed"
		if out.Error == nil {
			out.Error = &Error{Blame: "user", Message: "cancelled"}
		}
		out.Error.Code = client.CodeCancelled
	case slipwayv1.ResultStatus_RESULT_STATUS_UNSPECIFIED:
		out.Status = "detached"
	}
	return out
}

func newLayer(l *slipwayv1.Layer) Layer {
	return Layer{l.GetDigest(), l.GetDiffId(), l.GetSize(), l.GetUncompressed(), l.GetCreatedBy(), l.GetCached(), name("PUSH_OUTCOME_", l.GetPushed()), l.GetMediaType()}
}

// NewError returns e for JSON, nil for nil.
func NewError(e *slipwayv1.Error) *Error {
	if e == nil {
		return nil
	}
	return &Error{
		Code: e.GetCode(), Phase: e.GetPhase(), Blame: client.BlameName(e.GetBlame()), Retryable: e.GetRetryable(), Line: e.GetLine(), ExitCode: e.GetExitCode(),
		Message: e.GetMessage(), Hint: e.GetHint(), Excerpt: e.GetExcerpt(), Size: newSize(e.GetSize()),
	}
}

func newSize(s *slipwayv1.SizeReport) *SizeReport {
	if s == nil {
		return nil
	}
	out := &SizeReport{Total: s.GetTotal(), Limit: s.GetLimit(), Path: s.GetPath(), Paths: paths(s.GetLargestPaths()), Directories: paths(s.GetLargestDirectories()), Lines: []LineSize{}}
	for _, l := range s.GetLines() {
		out.Lines = append(out.Lines, LineSize{l.GetLine(), l.GetSource(), l.GetBytes()})
	}
	return out
}

func paths(ps []*slipwayv1.PathSize) []PathSize {
	out := make([]PathSize, 0, len(ps))
	for _, p := range ps {
		out = append(out, PathSize{p.GetPath(), p.GetBytes()})
	}
	return out
}
