package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// An agent uses slipway's tools.
type agent struct {
	t       *testing.T
	session *mcp.ClientSession

	mu   sync.Mutex
	told []string // by progress notifications
}

func newAgent(t *testing.T, transport mcp.Transport) *agent {
	t.Helper()
	a := &agent{t: t}
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.told = append(a.told, r.Params.Message)
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	session, err := c.Connect(ctx, transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.session = session
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a
}

// stdio starts slipway mcp in a directory.
func (c *client) stdio(t *testing.T, dir string, args ...string) *agent {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "slipway"), append([]string{"mcp"}, args...)...)
	cmd.Env, cmd.Dir, cmd.Stderr = c.env, dir, os.Stderr
	return newAgent(t, &mcp.CommandTransport{Command: cmd})
}

func (a *agent) tools() []string {
	a.t.Helper()
	r, err := a.session.ListTools(a.t.Context(), nil)
	if err != nil {
		a.t.Fatal(err)
	}
	var names []string
	for _, tool := range r.Tools {
		names = append(names, tool.Name)
		if tool.OutputSchema == nil || tool.Description == "" || tool.Annotations == nil {
			a.t.Errorf("tool %s has no schema, description or annotations", tool.Name)
		}
	}
	slices.Sort(names)
	return names
}

// call calls a tool, reads its answer into out, and returns the error that it
// gave, which is part of its answer.
func (a *agent) call(tool string, args map[string]any, out any) *failure {
	a.t.Helper()
	params := &mcp.CallToolParams{Name: tool, Arguments: args}
	params.SetProgressToken("p")
	r, err := a.session.CallTool(a.t.Context(), params)
	if err != nil {
		a.t.Fatalf("%s: %v", tool, err)
	}
	text := r.Content[0].(*mcp.TextContent).Text
	if r.IsError {
		var e struct{ Error *failure }
		if err := json.Unmarshal([]byte(text), &e); err != nil || e.Error == nil {
			a.t.Fatalf("%s: error %q: %v", tool, text, err)
		}
		return e.Error
	}
	if out == nil {
		return nil
	}
	b, err := json.Marshal(r.StructuredContent)
	if err == nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		a.t.Fatalf("%s: %v", tool, err)
	}
	return nil
}

// do calls a tool that must succeed.
func (a *agent) do(tool string, args map[string]any, out any) {
	a.t.Helper()
	if e := a.call(tool, args, out); e != nil {
		a.t.Fatalf("%s: %s", tool, e.Message)
	}
}

func (a *agent) heard(text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.told, func(s string) bool { return strings.Contains(s, text) })
}

type agentBuild struct {
	ID      string `json:"id"`
	BuildID string `json:"build_id"`
	Status  string `json:"status"`
	Ended   bool   `json:"ended"`
	Result  *struct {
		Image  string   `json:"image"`
		Digest string   `json:"digest"`
		Error  *failure `json:"error"`
	} `json:"result"`
}

type agentLogs struct {
	Lines []struct {
		Step string `json:"step"`
		Text string `json:"text"`
	} `json:"lines"`
	Cursor uint64 `json:"cursor"`
	More   bool   `json:"more"`
	Ended  bool   `json:"ended"`
}

var allTools = []string{
	"build_logs", "build_status", "cancel_build", "create_token", "drift", "explain_failure", "list_builds", "list_environments", "list_images", "list_tokens",
	"revoke_token", "start_build", "whoami",
}

func TestAgent(t *testing.T) {
	_, c := startWithBusybox(t)
	root := t.TempDir()
	write := func(name, text string) {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("good/Dockerfile", "FROM busybox\nRUN echo built-by-an-agent\n")
	write("bad/Dockerfile", "FROM busybox\nRUN for i in $(seq 80); do echo line $i; done; exit 7\n")
	a := c.stdio(t, root)
	if got := a.tools(); !slices.Equal(got, allTools) {
		t.Errorf("tools %v", got)
	}

	var built agentBuild
	a.do("start_build", map[string]any{"app": "shop", "dir": "good", "wait": true}, &built)
	if built.Status != "succeeded" || !built.Ended || built.Result == nil || !strings.HasPrefix(built.Result.Digest, "sha256:") {
		t.Fatalf("built %+v", built)
	}
	if !a.heard("built-by-an-agent") || !a.heard("build "+built.BuildID) {
		t.Errorf("was told of the build: %q", a.told)
	}
	var status agentBuild
	a.do("build_status", map[string]any{"id": built.BuildID}, &status)
	if status.Status != "succeeded" || status.Result.Image != built.Result.Image {
		t.Errorf("status %+v", status)
	}
	var images struct {
		Images, Releases []struct{ Image, Digest string }
	}
	a.do("list_images", map[string]any{"app": "shop"}, &images)
	if len(images.Images) != 1 || images.Images[0].Digest != built.Result.Digest || len(images.Releases) != 1 {
		t.Errorf("images %+v", images)
	}
	if e := a.call("explain_failure", map[string]any{"id": built.BuildID}, nil); e == nil || e.Code != "invalid_argument" || e.Hint == "" {
		t.Errorf("explain what did not fail: %+v", e)
	}

	var failed agentBuild
	a.do("start_build", map[string]any{"app": "shop", "dir": filepath.Join(root, "bad")}, &failed)
	if failed.Ended || failed.BuildID == "" {
		t.Fatalf("started %+v", failed)
	}
	deadline := time.Now().Add(patience)
	for status.ID = ""; status.ID == "" || status.Status == "running" || status.Status == "queued"; time.Sleep(100 * time.Millisecond) {
		a.do("build_status", map[string]any{"id": failed.BuildID}, &status)
		if time.Now().After(deadline) {
			t.Fatal("the build does not end")
		}
	}
	var why struct {
		Step     string   `json:"step"`
		Line     int      `json:"line"`
		ExitCode int      `json:"exit_code"`
		Output   []string `json:"output"`
		Error    *failure `json:"error"`
	}
	a.do("explain_failure", map[string]any{"id": failed.BuildID}, &why)
	if why.Line != 2 || why.ExitCode != 7 || !strings.HasPrefix(why.Step, "RUN for") || why.Error.Code != "step_failed" {
		t.Errorf("explained %+v", why)
	}
	if len(why.Output) != 50 || why.Output[0] != "line 31" || why.Output[49] != "line 80" {
		t.Errorf("last lines %q", why.Output)
	}
	a.pages(failed.BuildID)

	if e := a.call("build_status", map[string]any{"id": "01JD9K6V3E0000000000000000"}, nil); e == nil || e.Code != "not_found" {
		t.Errorf("a build that is not there: %+v", e)
	}
	if e := a.call("start_build", map[string]any{"app": "Not A Name", "dir": "good"}, nil); e == nil || e.Code != "invalid_argument" || e.Hint == "" {
		t.Errorf("a name that none is: %+v", e)
	}
	var list struct{ Builds []agentBuild }
	a.do("list_builds", map[string]any{"app": "shop", "limit": 1}, &list)
	if len(list.Builds) != 1 || list.Builds[0].ID != failed.BuildID {
		t.Errorf("builds %+v", list)
	}
	var cancelled agentBuild
	a.do("cancel_build", map[string]any{"id": failed.BuildID}, &cancelled)
	if cancelled.Status != "failed" {
		t.Errorf("cancelled what had ended: %+v", cancelled)
	}
}

// pages reads a log page by page, and as a whole.
func (a *agent) pages(id string) {
	a.t.Helper()
	var whole, pages []string
	var page agentLogs
	a.do("build_logs", map[string]any{"id": id, "limit": 2000}, &page)
	if page.More || !page.Ended {
		a.t.Errorf("the whole log: more %v, ended %v", page.More, page.Ended)
	}
	for _, l := range page.Lines {
		whole = append(whole, l.Step+" "+l.Text)
	}
	after, rounds := uint64(0), 0
	for page = (agentLogs{More: true}); page.More && rounds < 200; rounds++ {
		page = agentLogs{}
		a.do("build_logs", map[string]any{"id": id, "after": after, "limit": 10}, &page)
		for _, l := range page.Lines {
			pages = append(pages, l.Step+" "+l.Text)
		}
		after = page.Cursor
	}
	if !slices.Equal(whole, pages) || !page.Ended || rounds < 2 {
		a.t.Errorf("in %d pages:\n%q\nas a whole:\n%q", rounds, pages, whole)
	}
	if text := strings.Join(whole, "\n"); strings.Count(text, "line ") < 80 || !strings.Contains(text, "step_failed") {
		a.t.Errorf("the log:\n%s", text)
	}
}

// An agent builds what is below its root and nothing else.
func TestAgentStaysInside(t *testing.T) {
	d := startDaemon(t)
	c := d.client()
	top := t.TempDir()
	root := filepath.Join(top, "root")
	for _, dir := range []string{root, filepath.Join(top, "other"), filepath.Join(root, "linked")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(top, "other", "Dockerfile")
	if err := os.WriteFile(secret, []byte("FROM scratch\nCOPY very-secret /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{filepath.Join(root, "out"): filepath.Join(top, "other"), filepath.Join(root, "linked", "Dockerfile"): secret} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	a := c.stdio(t, root)
	for _, args := range []map[string]any{
		{"dir": "../other"}, {"dir": filepath.Join(top, "other")}, {"dir": "out"}, {"dir": "linked"}, {"dir": "linked", "dockerfile": "Dockerfile"},
		{"dockerfile": "../other/Dockerfile"}, {"dockerfile": secret}, {"dockerfile": "out/Dockerfile"}, {"dir": top},
	} {
		args["app"] = "shop"
		e := a.call("start_build", args, nil)
		if e == nil || e.Code != "permission_denied" || !strings.Contains(e.Message, "outside") || strings.Contains(e.Message+e.Excerpt, "very-secret") {
			t.Errorf("%v: %+v", args, e)
		}
	}
	if e := a.call("start_build", map[string]any{"app": "shop", "dir": "missing"}, nil); e == nil || e.Code != "invalid_argument" {
		t.Errorf("a directory that is not there: %+v", e)
	}
	free := c.stdio(t, root, "--any-dir")
	if e := free.call("start_build", map[string]any{"app": "shop", "dir": "../other", "wait": true}, nil); e != nil && strings.Contains(e.Message, "outside") {
		t.Errorf("with --any-dir: %+v", e)
	}
}

func TestAgentTokens(t *testing.T) {
	d := startDaemon(t)
	c := d.client()
	a := c.stdio(t, t.TempDir())
	type made struct {
		ID      string    `json:"id"`
		Token   string    `json:"token"`
		Expires time.Time `json:"expires_at"`
	}
	var deploy, readonly made
	a.do("create_token", map[string]any{"type": "deploy", "app": "shop", "name": "ci"}, &deploy)
	if left := time.Until(deploy.Expires); left > 24*time.Hour || left < 23*time.Hour {
		t.Errorf("lives for %v", left)
	}
	a.do("create_token", map[string]any{"type": "readonly", "expires_in": "30m"}, &readonly)
	if left := time.Until(readonly.Expires); left > 30*time.Minute {
		t.Errorf("lives for %v", left)
	}
	for _, args := range []map[string]any{{"expires_in": "25h"}, {"expires_in": "-1h"}, {"expires_in": "soon"}, {"type": "king"}} {
		if e := a.call("create_token", args, nil); e == nil || e.Code != "invalid_argument" || e.Hint == "" {
			t.Errorf("%v: %+v", args, e)
		}
	}
	var list struct {
		Tokens []struct {
			ID, Name, Status string
			Revocable        bool
		}
	}
	a.do("list_tokens", map[string]any{"type": "deploy"}, &list)
	if len(list.Tokens) != 1 || list.Tokens[0].Name != "mcp: ci" || list.Tokens[0].Status != "active" || !list.Tokens[0].Revocable {
		t.Errorf("tokens %+v", list)
	}

	narrow := c.with("SLIPWAY_API_TOKEN="+deploy.Token).stdio(t, t.TempDir())
	if got := narrow.tools(); !slices.Equal(got, allTools) {
		t.Errorf("a deploy token has the tools %v", got)
	}
	if e := narrow.call("create_token", map[string]any{"type": "readonly"}, nil); e == nil || e.Code != "permission_denied" {
		t.Errorf("a deploy token makes a readonly token: %+v", e)
	}
	if e := narrow.call("list_images", map[string]any{"app": "other"}, nil); e != nil && e.Code != "permission_denied" {
		t.Errorf("a deploy token looks at another app: %+v", e)
	}
	looks := c.with("SLIPWAY_API_TOKEN="+readonly.Token).stdio(t, t.TempDir())
	if got := looks.tools(); slices.Contains(got, "start_build") || slices.Contains(got, "cancel_build") || !slices.Contains(got, "build_logs") {
		t.Errorf("a readonly token has the tools %v", got)
	}
	var gone struct{ Revoked []string }
	a.do("revoke_token", map[string]any{"id": deploy.ID}, &gone)
	if !slices.Contains(gone.Revoked, deploy.ID) {
		t.Errorf("revoked %v", gone)
	}
	if e := narrow.call("list_builds", nil, nil); e == nil || e.Code != "unauthorized" {
		t.Errorf("with a token that was revoked: %+v", e)
	}
}

func TestAgentEnvironments(t *testing.T) {
	d := startDaemon(t)
	c := d.client()
	if r := c.slipway("envs", "create", "live", "--json"); r.code() != exitDone {
		t.Fatal(r.text())
	}
	a := c.stdio(t, t.TempDir())
	var list struct{ Environments []struct{ Name string } }
	a.do("list_environments", nil, &list)
	if len(list.Environments) != 1 || list.Environments[0].Name != "live" {
		t.Errorf("environments %+v", list)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := c.stdio(t, dir)
	var built agentBuild
	b.do("start_build", map[string]any{"app": "shop", "environment": "live", "wait": true}, &built)
	var drift struct {
		Name string
		Apps []struct {
			App, Drift string
			Released   struct{ Digest string }
		}
	}
	a.do("drift", map[string]any{"environment": "live"}, &drift)
	if len(drift.Apps) != 1 || drift.Apps[0].Drift != "pending" || drift.Apps[0].Released.Digest != built.Result.Digest {
		t.Errorf("drift %+v after %+v", drift, built)
	}
	if e := a.call("drift", map[string]any{"environment": "none"}, nil); e == nil || e.Code != "not_found" {
		t.Errorf("drift of what is not there: %+v", e)
	}
}

// bearer adds a token to requests.
type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func TestAgentsOverHTTP(t *testing.T) {
	d := startDaemon(t)
	c := d.client()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "slipway"), "mcp", "--http", "127.0.0.1:0", "--root", root)
	cmd.Env = c.with("SLIPWAY_API_TOKEN=").env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("slipway mcp ends with %v", err)
		}
	})
	said := bufio.NewReader(stderr)
	line, err := said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, said)
	at := strings.TrimSpace(line[strings.Index(line, "http://"):])

	admin := newAgent(t, &mcp.StreamableClientTransport{Endpoint: at, HTTPClient: &http.Client{Transport: bearer{d.token}}})
	if got := admin.tools(); !slices.Equal(got, allTools) {
		t.Errorf("tools %v", got)
	}
	var built agentBuild
	admin.do("start_build", map[string]any{"app": "shop", "wait": true}, &built)
	if built.Status != "succeeded" || !admin.heard("COPY") {
		t.Errorf("built %+v, told %q", built, admin.told)
	}
	var made struct{ Token string }
	admin.do("create_token", map[string]any{"type": "readonly"}, &made)
	looks := newAgent(t, &mcp.StreamableClientTransport{Endpoint: at, HTTPClient: &http.Client{Transport: bearer{made.Token}}})
	if got := looks.tools(); slices.Contains(got, "start_build") {
		t.Errorf("a readonly token has the tools %v", got)
	}

	const ping = `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`
	for _, tc := range []struct {
		name          string
		host, origin  string
		authorization string
		want          int
	}{
		{"nobody", "", "", "", http.StatusUnauthorized},
		{"not a bearer", "", "", "Basic " + d.token, http.StatusUnauthorized},
		{"empty", "", "", "Bearer ", http.StatusUnauthorized},
		{"a wrong token", "", "", "Bearer sd_wrong", http.StatusUnauthorized},
		{"a page that was rebound", "evil.example.com", "", "", http.StatusForbidden},
		{"a page of another site", "", "https://evil.example.com", "", http.StatusForbidden},
		{"localhost", "localhost:1", "", "Bearer " + d.token, http.StatusOK},
		{"the admin", "", "", "Bearer " + d.token, http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, strings.NewReader(ping))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		for name, v := range map[string]string{"Origin": tc.origin, "Authorization": tc.authorization} {
			if v != "" {
				req.Header.Set(name, v)
			}
		}
		if tc.host != "" {
			req.Host = tc.host
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.want || strings.Contains(string(body), d.token) {
			t.Errorf("%s: %s %s", tc.name, resp.Status, body)
		}
		if named := resp.Header.Get("WWW-Authenticate") != ""; named != (tc.want == http.StatusUnauthorized) {
			t.Errorf("%s: WWW-Authenticate %q", tc.name, resp.Header.Get("WWW-Authenticate"))
		}
	}
	for _, args := range [][]string{
		{"--http", "0.0.0.0:0"}, {"--http", "127.0.0.1:0", "--allow-remote"}, {"--allow-remote"}, {"--http", "x"}, {"--root", "/does/not/exist"}, {"--max-token-expiry", "0s"},
	} {
		if r := c.slipway(append([]string{"mcp"}, args...)...); r.code() != exitUser {
			t.Errorf("%v: exit code %d\n%s", args, r.code(), r.text())
		}
	}
	if r := c.with("SLIPWAY_API_TOKEN=sd_wrong").slipway("mcp"); r.code() != exitAuth {
		t.Errorf("with a wrong token: %s", fmt.Sprint(r.code(), r.text()))
	}
}
