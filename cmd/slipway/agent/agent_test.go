package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/agent"
	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// daemon has one build and one token.
type daemon struct {
	slipwayv1.UnimplementedSystemServiceServer
	slipwayv1.UnimplementedBuildServiceServer
	slipwayv1.UnimplementedTokenServiceServer

	who    *slipwayv1.WhoAmIResponse
	build  *slipwayv1.Build
	events []*slipwayv1.Event
	asked  *slipwayv1.DeriveTokenRequest
}

func (d *daemon) WhoAmI(context.Context, *slipwayv1.WhoAmIRequest) (*slipwayv1.WhoAmIResponse, error) {
	return d.who, nil
}

func (d *daemon) GetBuild(context.Context, *slipwayv1.GetBuildRequest) (*slipwayv1.GetBuildResponse, error) {
	if d.build == nil {
		st, err := status.New(codes.NotFound, "x").WithDetails(&slipwayv1.Error{Code: "not_found", Blame: slipwayv1.Blame_BLAME_USER, Message: "no such build", Hint: "list them"})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &slipwayv1.GetBuildResponse{Build: d.build}, nil
}

func (d *daemon) WatchBuild(r *slipwayv1.WatchBuildRequest, s grpc.ServerStreamingServer[slipwayv1.WatchBuildResponse]) error {
	if !r.GetReplayOnly() {
		return errors.New("a page of a log waits for more")
	}
	for _, ev := range d.events {
		if err := s.Send(&slipwayv1.WatchBuildResponse{Event: ev}); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) DeriveToken(_ context.Context, r *slipwayv1.DeriveTokenRequest) (*slipwayv1.DeriveTokenResponse, error) {
	d.asked = r
	return &slipwayv1.DeriveTokenResponse{Value: "sd_x", Token: &slipwayv1.Token{Id: "tok_2", Type: "deploy"}}, nil
}

func (d *daemon) say(evs ...*slipwayv1.Event) {
	for _, ev := range evs {
		ev.Seq = uint64(len(d.events) + 1)
		d.events = append(d.events, ev)
	}
}

func output(step uint32, text string) *slipwayv1.Event {
	return &slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{Step: step, Data: []byte(text)}}}
}

// connect returns an agent's session over memory.
func (d *daemon) connect(t *testing.T, o agent.Options) *mcp.ClientSession {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	slipwayv1.RegisterSystemServiceServer(g, d)
	slipwayv1.RegisterBuildServiceServer(g, d)
	slipwayv1.RegisterTokenServiceServer(g, d)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-served })
	a, err := client.ParseAddress(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if o.Client, err = client.New(client.Options{Address: a, Token: "t"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Client.Close() })
	s, err := agent.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	here, there := mcp.NewInMemoryTransports()
	server, err := s.Connect(t.Context(), there, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test"}, nil).Connect(t.Context(), here, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	return session
}

// call returns the structured answer of a tool, or its error's JSON.
func call(t *testing.T, s *mcp.ClientSession, tool string, args map[string]any) (answer map[string]any, failed bool) {
	t.Helper()
	r, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	if err := json.Unmarshal([]byte(r.Content[0].(*mcp.TextContent).Text), &answer); err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	return answer, r.IsError
}

func whoHas(scopes ...string) *slipwayv1.WhoAmIResponse {
	return &slipwayv1.WhoAmIResponse{TokenId: "tok_1", Name: "ci", Scopes: scopes}
}

func TestTools(t *testing.T) {
	build := func(context.Context, agent.BuildRequest, progress.Display) (*slipwayv1.Result, error) {
		return nil, nil
	}
	for _, tc := range []struct {
		name string
		who  *slipwayv1.WhoAmIResponse
		opts agent.Options
		want string
	}{
		{"none", whoHas(), agent.Options{}, "create_token list_tokens revoke_token whoami"},
		{"no token of the store", &slipwayv1.WhoAmIResponse{TokenId: "admin"}, agent.Options{}, "list_tokens revoke_token whoami"},
		{"builds", whoHas("build:write"), agent.Options{Build: build}, "cancel_build create_token list_tokens revoke_token start_build whoami"},
		{"builds, and no directory", whoHas("build:write"), agent.Options{}, "cancel_build create_token list_tokens revoke_token whoami"},
		{"reads", whoHas("build:read"), agent.Options{Build: build}, "build_logs build_status create_token explain_failure list_builds list_images list_tokens revoke_token whoami"},
		{"environments", whoHas("env:read"), agent.Options{}, "create_token drift list_environments list_tokens revoke_token whoami"},
	} {
		d := &daemon{who: tc.who}
		r, err := d.connect(t, tc.opts).ListTools(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, tool := range r.Tools {
			names = append(names, tool.Name)
			if reads := !slices.Contains([]string{"create_token", "revoke_token", "start_build", "cancel_build"}, tool.Name); tool.Annotations.ReadOnlyHint != reads {
				t.Errorf("%s: read-only %v", tool.Name, tool.Annotations.ReadOnlyHint)
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: %s; want %s", tc.name, got, tc.want)
		}
	}
}

func TestErrors(t *testing.T) {
	d := &daemon{who: whoHas("build:read", "build:write")}
	s := d.connect(t, agent.Options{Build: func(context.Context, agent.BuildRequest, progress.Display) (*slipwayv1.Result, error) {
		return nil, errors.New("something odd")
	}})
	for _, tc := range []struct {
		tool string
		args map[string]any
		want [3]any // code, message, hint
	}{
		{"build_status", map[string]any{"id": "x"}, [3]any{"not_found", "no such build", "list them"}},
		{"build_logs", map[string]any{"id": "x"}, [3]any{"not_found", "no such build", "list them"}},
		{"explain_failure", map[string]any{"id": "x"}, [3]any{"not_found", "no such build", "list them"}},
		{"start_build", map[string]any{"app": "shop"}, [3]any{"internal", "something odd", ""}},
	} {
		got, failed := call(t, s, tc.tool, tc.args)
		e, _ := got["error"].(map[string]any)
		if !failed || [3]any{e["code"], e["message"], e["hint"]} != tc.want {
			t.Errorf("%s: %v, an error: %v", tc.tool, got, failed)
		}
	}
}

func TestLogs(t *testing.T) {
	d := &daemon{who: whoHas("build:read"), build: &slipwayv1.Build{Id: "b"}}
	d.say(&slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: &slipwayv1.Plan{Steps: []*slipwayv1.PlannedStep{{Step: 7, Number: 2, Total: 5, Stage: "web", Source: "RUN make"}}}}})
	d.say(&slipwayv1.Event{Event: &slipwayv1.Event_StepStarted{StepStarted: &slipwayv1.StepStarted{Step: 7}}})
	for i := range 30 {
		d.say(output(7, fmt.Sprintf("a%d\nb%d\n", i, i)))
	}
	d.say(output(7, "\xff"+strings.Repeat("x", 5000)))
	s := d.connect(t, agent.Options{})
	first, _ := call(t, s, "build_logs", map[string]any{"id": "b", "limit": 10})
	lines := first["lines"].([]any)
	if len(lines) != 9 || first["more"] != true || first["ended"] != false || first["cursor"] != 6.0 {
		t.Errorf("%d lines, %v", len(lines), first)
	}
	if l := lines[1].(map[string]any); l["step"] != "web 2/5" || l["text"] != "a0" {
		t.Errorf("second line %v", l)
	}
	second, _ := call(t, s, "build_logs", map[string]any{"id": "b", "limit": 1, "after": 6})
	if l := second["lines"].([]any); len(l) != 2 || l[0].(map[string]any)["text"] != "a4" || l[0].(map[string]any)["step"] != "web 2/5" {
		t.Errorf("an event of more lines than the limit: %v", second)
	}
	last, _ := call(t, s, "build_logs", map[string]any{"id": "b", "after": 32})
	if l := last["lines"].([]any); len(l) != 1 || len(l[0].(map[string]any)["text"].(string)) > 2100 || last["more"] != false || last["ended"] != false {
		t.Errorf("the end of a build that runs: %v", last)
	}
	d.build.Result = &slipwayv1.Result{}
	if over, _ := call(t, s, "build_logs", map[string]any{"id": "b", "after": 33}); len(over["lines"].([]any)) != 0 || over["cursor"] != 33.0 || over["ended"] != true {
		t.Errorf("after the end: %v", over)
	}
}

// The first step that failed counts, not what was cancelled because of it.
func TestExplainFailure(t *testing.T) {
	d := &daemon{who: whoHas("build:read"), build: &slipwayv1.Build{Id: "b", Status: slipwayv1.BuildStatus_BUILD_STATUS_FAILED,
		Result: &slipwayv1.Result{Error: &slipwayv1.Error{Code: "step_failed", Message: "it failed", Hint: "mend it", ExitCode: 3}}}}
	d.say(&slipwayv1.Event{Event: &slipwayv1.Event_Plan{Plan: &slipwayv1.Plan{Steps: []*slipwayv1.PlannedStep{{Step: 1, Source: "RUN one", Line: 4}, {Step: 2, Source: "RUN two", Line: 5}}}}})
	for i := range 60 {
		d.say(output(1, fmt.Sprintf("one %d\n", i)), output(2, "two\n"))
	}
	for step, text := range []string{"exit code 3", "cancelled"} {
		d.say(&slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: &slipwayv1.StepDone{Step: uint32(step + 1), Error: text}}})
	}
	s := d.connect(t, agent.Options{})
	got, failed := call(t, s, "explain_failure", map[string]any{"id": "b"})
	if out := got["output"].([]any); failed || got["step"] != "RUN one" || got["line"] != 4.0 || len(out) != 50 || out[0] != "one 10" || out[49] != "one 59" {
		t.Errorf("%v", got)
	}
	if e := got["error"].(map[string]any); e["code"] != "step_failed" || e["hint"] != "mend it" {
		t.Errorf("%v", e)
	}
}

func TestCreateToken(t *testing.T) {
	d := &daemon{who: whoHas()}
	s := d.connect(t, agent.Options{MaxExpiry: time.Hour})
	for _, tc := range []struct {
		args map[string]any
		in   time.Duration // 0 if it is refused
		name string
	}{
		{nil, time.Hour, "mcp"},
		{map[string]any{"expires_in": "5m", "name": " x "}, 5 * time.Minute, "mcp: x"},
		{map[string]any{"expires_in": "61m"}, 0, ""},
		{map[string]any{"expires_in": "0s"}, 0, ""},
		{map[string]any{"expires_in": "-5m"}, 0, ""},
	} {
		d.asked = nil
		_, failed := call(t, s, "create_token", tc.args)
		if failed != (tc.in == 0) || failed != (d.asked == nil) || !failed && (d.asked.GetExpiresIn().AsDuration() != tc.in || d.asked.GetName() != tc.name) {
			t.Errorf("%v: refused %v, asked for %v", tc.args, failed, d.asked)
		}
	}
}
