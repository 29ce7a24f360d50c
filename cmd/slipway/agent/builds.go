package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

func (s *server) addBuildTools() {
	if s.may("build:write") && s.opts.Build != nil {
		add(s, adds, "start_build", "Build a directory of this machine with its Dockerfile and push the image. Only what the daemon lacks is sent.", s.startBuild)
	}
	if s.may("build:write") {
		add(s, ruins, "cancel_build", "Stop a build. Steps that are done stay cached.", s.cancelBuild)
	}
	if !s.may("build:read") {
		return
	}
	add(s, reads, "build_status", "Where a build stands and what came of it.", s.buildStatus)
	add(s, reads, "list_builds", "List builds, newest first.", s.listBuilds)
	add(s, reads, "build_logs", "Read what a build said so far, after a cursor. Begin without one; go on with the answer's.", s.buildLogs)
	add(s, reads, "explain_failure", "Why a build failed: the failing step, its last 50 lines, and the error with a hint.", s.explainFailure)
	add(s, reads, "list_images", "List the images of an app that were built, newest first, and what was released of them.", s.listImages)
}

// A BuildRequest is what an agent may choose of a build.
type BuildRequest struct {
	App         string            `json:"app" jsonschema:"what to build it as: lower-case letters, digits and single dots, dashes or underscores between them"`
	Dir         string            `json:"dir,omitempty" jsonschema:"the directory to build, absolute or relative to the server's root; empty means the root"`
	Dockerfile  string            `json:"dockerfile,omitempty" jsonschema:"the Dockerfile's path, relative to dir; empty means Dockerfile"`
	Target      string            `json:"target,omitempty" jsonschema:"the stage to build; empty means the last"`
	BuildArgs   map[string]string `json:"build_args,omitempty" jsonschema:"values of ARGs; they are no place for secrets"`
	NoCache     bool              `json:"no_cache,omitempty" jsonschema:"run every step, cached or not"`
	Environment string            `json:"environment,omitempty" jsonschema:"release the image to this environment"`
	BuildOnly   bool              `json:"build_only,omitempty" jsonschema:"record no release and push nothing"`
	Wait        bool              `json:"wait,omitempty" jsonschema:"return when the build has ended, with progress notifications on the way, instead of as soon as the daemon has all it needs"`
}

type started struct {
	BuildID string       `json:"build_id"`
	Ended   bool         `json:"ended"`
	Status  string       `json:"status" jsonschema:"running, or how it ended: succeeded, failed or cancelled"`
	Result  *buildResult `json:"result,omitempty"`
}

func (s *server) startBuild(ctx context.Context, req *mcp.CallToolRequest, r BuildRequest) (started, error) {
	show := &teller{tell: s.teller(ctx, req)}
	res, err := s.opts.Build(ctx, r, show)
	if errors.Is(err, client.ErrDetached) {
		return started{BuildID: show.id, Status: "running"}, nil
	}
	if err != nil {
		return started{}, err
	}
	return started{BuildID: res.GetBuildId(), Ended: true, Status: name("RESULT_STATUS_", res.GetStatus()), Result: newResult(res)}, nil
}

// teller returns what sends lines as progress of a call, if its client wants
// to hear of it.
func (s *server) teller(ctx context.Context, req *mcp.CallToolRequest) func(string) {
	token := req.Params.GetProgressToken()
	if token == nil {
		return func(string) {}
	}
	n := 0
	return func(line string) {
		n++
		// A client that hears nothing any more loses only that.
		_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: float64(n), Message: line})
	}
}

// teller is a display that tells an agent.
type teller struct {
	tell func(string)
	id   string
	text
}

// Begin implements [progress.Display].
func (t *teller) Begin(progress.Header) {}

// Note implements [progress.Display].
func (t *teller) Note(n progress.Note) {
	if id, ok := n.Fields["build_id"].(string); ok && n.Type == "accepted" {
		t.id = id
		t.tell("build " + id)
	}
	if n.Type == "warning" || n.Type == "connection_lost" {
		t.tell(n.Text)
	}
}

// Event implements [progress.Display].
func (t *teller) Event(ev *slipwayv1.Event) {
	for _, l := range t.lines(ev) {
		t.tell(l.Text)
	}
}

// Finish implements [progress.Display].
func (t *teller) Finish(*slipwayv1.Result) error { return nil }

type buildID struct {
	ID string `json:"id" jsonschema:"of the build"`
}

// buildRecord is a build.
type buildRecord struct {
	ID        string       `json:"id"`
	App       string       `json:"app"`
	Status    string       `json:"status" jsonschema:"queued, running, succeeded, failed or cancelled"`
	CreatedBy string       `json:"created_by"`
	Created   string       `json:"created_at"`
	Ended     string       `json:"ended_at" jsonschema:"empty while it goes on"`
	Seconds   float64      `json:"seconds" jsonschema:"how long it took so far"`
	Result    *buildResult `json:"result,omitempty" jsonschema:"once it has ended"`
}

// buildResult is what came of a build.
type buildResult struct {
	Image       string          `json:"image"`
	Digest      string          `json:"digest"`
	Steps       uint32          `json:"steps"`
	CachedSteps uint32          `json:"cached_steps"`
	RootFSBytes uint64          `json:"rootfs_bytes" jsonschema:"size of the unpacked image"`
	RootFSLimit uint64          `json:"rootfs_limit"`
	Error       *progress.Error `json:"error,omitempty"`
}

func newResult(r *slipwayv1.Result) *buildResult {
	out := &buildResult{r.GetImage(), r.GetDigest(), r.GetSteps(), r.GetCachedSteps(), r.GetRootfsBytes(), r.GetRootfsLimit(), nil}
	if e := r.GetError(); e != nil {
		out.Error = progress.NewError(e)
	}
	return out
}

func newBuild(b *slipwayv1.Build) buildRecord {
	r := buildRecord{
		ID: b.GetId(), App: b.GetApp(), Status: name("BUILD_STATUS_", b.GetStatus()), CreatedBy: b.GetCreatedBy(), Seconds: b.GetDuration().AsDuration().Seconds(),
		Created: moment(b.GetCreated(), b.GetCreated() != nil), Ended: moment(b.GetEnded(), b.GetEnded() != nil),
	}
	if b.GetResult() != nil {
		r.Result = newResult(b.GetResult())
	}
	return r
}

func (s *server) buildStatus(ctx context.Context, _ *mcp.CallToolRequest, r buildID) (buildRecord, error) {
	b, err := s.opts.Client.GetBuild(ctx, r.ID)
	return newBuild(b), err
}

func (s *server) cancelBuild(ctx context.Context, _ *mcp.CallToolRequest, r buildID) (buildRecord, error) {
	b, err := s.opts.Client.CancelBuild(ctx, r.ID)
	return newBuild(b), err
}

type buildsRequest struct {
	App    string `json:"app,omitempty" jsonschema:"only builds of this app"`
	Limit  uint32 `json:"limit,omitempty" jsonschema:"at most so many; 20 if 0, at most 1000"`
	Before string `json:"before,omitempty" jsonschema:"only builds older than the one with this ID, to page on"`
}

type buildList struct {
	Builds []buildRecord `json:"builds"`
}

func (s *server) listBuilds(ctx context.Context, _ *mcp.CallToolRequest, r buildsRequest) (buildList, error) {
	if r.Limit == 0 {
		r.Limit = 20
	}
	all, err := s.opts.Client.ListBuilds(ctx, &slipwayv1.ListBuildsRequest{App: r.App, Limit: r.Limit, BeforeId: r.Before})
	out := buildList{Builds: []buildRecord{}}
	for _, b := range all {
		out.Builds = append(out.Builds, newBuild(b))
	}
	return out, err
}

type logsRequest struct {
	ID    string `json:"id" jsonschema:"of the build"`
	After uint64 `json:"after,omitempty" jsonschema:"the cursor of the answer before; 0 means from the beginning"`
	Limit int    `json:"limit,omitempty" jsonschema:"about how many lines; 200 if 0, at most 2000"`
}

type logs struct {
	Lines  []line `json:"lines"`
	Cursor uint64 `json:"cursor" jsonschema:"give it as after to go on"`
	More   bool   `json:"more" jsonschema:"there are more lines now"`
	Ended  bool   `json:"ended" jsonschema:"the build has ended and these lines are its last"`
}

func (s *server) buildLogs(ctx context.Context, _ *mcp.CallToolRequest, r logsRequest) (logs, error) {
	most := min(r.Limit, 2000)
	if most <= 0 {
		most = 200
	}
	b, err := s.opts.Client.GetBuild(ctx, r.ID)
	if err != nil {
		return logs{}, err
	}
	ctx, full := context.WithCancelCause(ctx)
	defer full(nil)
	page := &reader{most: most, full: func() { full(errFull) }, logs: logs{Lines: []line{}, Cursor: r.After}}
	// The plan came first: without it, steps have no names.
	_, err = s.opts.Client.Replay(ctx, r.ID, 0, page)
	if context.Cause(ctx) == errFull {
		page.More, err = true, nil
	}
	page.Ended = !page.More && b.GetResult() != nil
	return page.logs, err
}

var errFull = errors.New("the page is full")

type failureReport struct {
	BuildID  string          `json:"build_id"`
	App      string          `json:"app"`
	Status   string          `json:"status"`
	Step     string          `json:"step" jsonschema:"the instruction that failed; empty if it was none"`
	Line     uint32          `json:"line" jsonschema:"of the Dockerfile; 0 if it was none"`
	ExitCode int32           `json:"exit_code"`
	Output   []string        `json:"output" jsonschema:"the last lines that the step printed"`
	Error    *progress.Error `json:"error"`
}

func (s *server) explainFailure(ctx context.Context, _ *mcp.CallToolRequest, r buildID) (failureReport, error) {
	b, err := s.opts.Client.GetBuild(ctx, r.ID)
	if err != nil {
		return failureReport{}, err
	}
	e := b.GetResult().GetError()
	if e == nil {
		return failureReport{}, client.UserError(fmt.Sprintf("build %s did not fail: it is %s", b.GetId(), name("BUILD_STATUS_", b.GetStatus())), "build_status says where it stands.")
	}
	f := &finder{last: map[uint32][]string{}}
	if _, err := s.opts.Client.Replay(ctx, r.ID, 0, f); err != nil {
		return failureReport{}, err
	}
	report := failureReport{
		BuildID: b.GetId(), App: b.GetApp(), Status: name("BUILD_STATUS_", b.GetStatus()), Line: e.GetLine(), ExitCode: e.GetExitCode(),
		Output: append([]string{}, f.last[f.failed]...), Error: progress.NewError(e),
	}
	if step := f.step(f.failed); step != nil {
		report.Step, report.Line = step.GetSource(), step.GetLine()
	}
	return report, nil
}

type imagesRequest struct {
	App   string `json:"app" jsonschema:"whose images"`
	Limit uint32 `json:"limit,omitempty" jsonschema:"at most so many builds and releases; 20 if 0"`
}

type image struct {
	Image   string `json:"image" jsonschema:"HOST/APP:TAG"`
	Digest  string `json:"digest"`
	BuildID string `json:"build_id"`
	Created string `json:"created_at"`
}

type images struct {
	Images   []image   `json:"images"`
	Releases []release `json:"releases" jsonschema:"what was released of the app; none if the token in use may not see that"`
}

func (s *server) listImages(ctx context.Context, _ *mcp.CallToolRequest, r imagesRequest) (images, error) {
	limit := r.Limit
	if limit == 0 {
		limit = 20
	}
	out := images{Images: []image{}, Releases: []release{}}
	all, err := s.opts.Client.ListBuilds(ctx, &slipwayv1.ListBuildsRequest{App: r.App, Limit: min(limit*5, 1000)}) // some failed
	if err != nil {
		return out, err
	}
	for _, b := range all {
		if res := b.GetResult(); res.GetImage() != "" && res.GetError() == nil && len(out.Images) < int(limit) {
			out.Images = append(out.Images, image{res.GetImage(), res.GetDigest(), b.GetId(), moment(b.GetCreated(), b.GetCreated() != nil)})
		}
	}
	if s.may("env:read") {
		out.Releases, err = s.releases(ctx, r.App, limit)
	}
	return out, err
}
