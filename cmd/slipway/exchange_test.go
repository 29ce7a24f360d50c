package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const exchangedToken = "sd_exchanged"

// issuing is a daemon that exchanges ID tokens and keeps trust rules.
type issuing struct {
	slipwayv1.UnimplementedTokenServiceServer
	slipwayv1.UnimplementedOrgServiceServer
	slipwayv1.UnimplementedSystemServiceServer

	addr  string
	value string
	mu    sync.Mutex
	asked []*slipwayv1.ExchangeTokenRequest
	sent  []string // bearer tokens of exchanges
	rules []*slipwayv1.Trust
}

func startIssuing(t *testing.T) *issuing {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &issuing{addr: lis.Addr().String(), value: exchangedToken}
	s := grpc.NewServer()
	slipwayv1.RegisterTokenServiceServer(s, d)
	slipwayv1.RegisterOrgServiceServer(s, d)
	slipwayv1.RegisterSystemServiceServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(lis) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return d
}

func (d *issuing) ExchangeToken(ctx context.Context, req *slipwayv1.ExchangeTokenRequest) (*slipwayv1.ExchangeTokenResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	d.asked, d.sent = append(d.asked, req), append(d.sent, md.Get("authorization")...)
	if req.GetIdToken() == "bad" {
		return nil, refuse(codes.Unauthenticated, &slipwayv1.Error{Code: "unauthorized", Phase: "auth", Blame: slipwayv1.Blame_BLAME_USER, Message: "no trust rule matches this ID token", Hint: "make one"})
	}
	return &slipwayv1.ExchangeTokenResponse{Value: d.value, Rule: "ci", Token: &slipwayv1.Token{Id: "tok_1", Type: "deploy", App: "shop", Expires: timestamppb.New(time.Now().Add(time.Hour))}}, nil
}

func (d *issuing) WhoAmI(ctx context.Context, _ *slipwayv1.WhoAmIRequest) (*slipwayv1.WhoAmIResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := strings.Join(md.Get("authorization"), ","); got != "Bearer "+exchangedToken {
		return nil, refuse(codes.Unauthenticated, &slipwayv1.Error{Code: "unauthorized", Phase: "auth", Blame: slipwayv1.Blame_BLAME_USER, Message: "not " + got})
	}
	return &slipwayv1.WhoAmIResponse{Name: "ci", Org: "acme", Type: "deploy", App: "shop"}, nil
}

func (d *issuing) CreateTrust(_ context.Context, req *slipwayv1.CreateTrustRequest) (*slipwayv1.CreateTrustResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rule := proto.Clone(req.GetTrust()).(*slipwayv1.Trust)
	rule.Id = fmt.Sprintf("tru_%d", len(d.rules)+1)
	d.rules = append(d.rules, rule)
	return &slipwayv1.CreateTrustResponse{Trust: rule}, nil
}

func (d *issuing) ListTrusts(context.Context, *slipwayv1.ListTrustsRequest) (*slipwayv1.ListTrustsResponse, error) {
	return &slipwayv1.ListTrustsResponse{Trusts: d.rules}, nil
}

func (d *issuing) DeleteTrust(_ context.Context, req *slipwayv1.DeleteTrustRequest) (*slipwayv1.DeleteTrustResponse, error) {
	for i, r := range d.rules {
		if r.GetId() == req.GetId() {
			d.rules = append(d.rules[:i], d.rules[i+1:]...)
			return &slipwayv1.DeleteTrustResponse{}, nil
		}
	}
	return nil, refuse(codes.NotFound, &slipwayv1.Error{Code: "not_found", Blame: slipwayv1.Blame_BLAME_USER, Message: "there is no such rule"})
}

func (d *issuing) last() *slipwayv1.ExchangeTokenRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.asked) == 0 {
		return nil
	}
	return d.asked[len(d.asked)-1]
}

func newIssuingCLI(t *testing.T) (*issuing, *cli) {
	d := startIssuing(t)
	c := newCLI(t, nil)
	c.vars = map[string]string{"SLIPWAY_ADDR": d.addr}
	return d, c
}

// github is the part of a runner of GitHub Actions that gives ID tokens.
func github(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer runner" || r.URL.Query().Get("api-version") != "2.0" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"value":"github for %s"}`, r.URL.Query().Get("audience"))
	}))
	t.Cleanup(s.Close)
	return s
}

func TestExchangeFindsIDToken(t *testing.T) {
	d, c := newIssuingCLI(t)
	runner := github(t)
	if runtime.GOOS != "windows" {
		bin := t.TempDir()
		agent := "#!/bin/sh\necho \"buildkite $*\"\n"
		if err := os.WriteFile(filepath.Join(bin, "buildkite-agent"), []byte(agent), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	}
	own := "slipway://" + d.addr
	for _, tc := range []struct {
		name string
		vars map[string]string
		args []string
		want string
	}{
		{"github", map[string]string{"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": runner.URL + "/?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}, nil, "github for " + own},
		{"audience", map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": runner.URL + "/?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}, []string{"--audience", "a b&c"}, "github for a b&c"},
		{"audience variable", map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": runner.URL + "/?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner", "SLIPWAY_OIDC_AUDIENCE": "us"}, nil, "github for us"},
		{"gitlab", map[string]string{"GITLAB_CI": "true", "SLIPWAY_ID_TOKEN": "gitlab"}, nil, "gitlab"},
		{"buildkite", map[string]string{"BUILDKITE": "true"}, nil, "buildkite oidc request-token --audience " + own},
		{"circleci", map[string]string{"CIRCLECI": "true", "CIRCLE_OIDC_TOKEN_V2": "circle"}, nil, "circle"},
		{"standard input", nil, []string{"--id-token-file", "-"}, "from stdin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "buildkite" && runtime.GOOS == "windows" {
				t.Skip("the agent of this test is a shell script")
			}
			c.t, c.stdin = t, "from stdin\n"
			c.vars = map[string]string{"SLIPWAY_ADDR": d.addr, "SLIPWAY_API_TOKEN": "hidden", "SLIPWAY_ORG": "acme"}
			for k, v := range tc.vars {
				c.vars[k] = v
			}
			c.want(0, append([]string{"tokens", "exchange", "--rule", "ci", "-x", "10m"}, tc.args...)...)
			got := d.last()
			if got.GetIdToken() != tc.want || got.GetRule() != "ci" || got.GetOrg() != "acme" || got.GetExpiresIn().AsDuration() != 10*time.Minute {
				t.Errorf("asked with %v; want ID token %q", got, tc.want)
			}
			if c.stdout.String() != exchangedToken+"\n" {
				t.Errorf("standard output %q", c.stdout.String())
			}
			if masked := strings.Contains(c.stderr.String(), "::add-mask::"+exchangedToken+"\n"); masked != (tc.vars["GITHUB_ACTIONS"] == "true") {
				t.Errorf("masked: %v, in\n%s", masked, c.stderr.String())
			}
		})
	}
	if len(d.sent) > 0 {
		t.Errorf("exchanges were sent with %v: another token is no business of them", d.sent)
	}
}

func TestExchangeWithoutIDToken(t *testing.T) {
	d, c := newIssuingCLI(t)
	runner := github(t)
	t.Setenv("PATH", t.TempDir())
	for _, tc := range []struct {
		name string
		vars map[string]string
		args []string
		code int
		want string
	}{
		{"nowhere", nil, nil, 2, "--id-token-file"},
		{"github without permission", map[string]string{"GITHUB_ACTIONS": "true"}, nil, 2, "id-token: write"},
		{"github refuses", map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": runner.URL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}, nil, 6, "403"},
		{"gitlab", map[string]string{"GITLAB_CI": "true"}, nil, 2, "SLIPWAY_ID_TOKEN"},
		{"buildkite without agent", map[string]string{"BUILDKITE": "true"}, nil, 6, "buildkite-agent"},
		{"no file", nil, []string{"--id-token-file", "/does/not/exist"}, 2, "/does/not/exist"},
		{"empty", nil, []string{"--id-token-file", "-"}, 2, "empty"},
		{"no rule", map[string]string{"SLIPWAY_ID_TOKEN": "bad"}, nil, 3, "no trust rule"},
		{"never", map[string]string{"SLIPWAY_ID_TOKEN": "x"}, []string{"-x", "never"}, 2, "expire"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t, c.stdin = t, ""
			c.vars = map[string]string{"SLIPWAY_ADDR": d.addr}
			for k, v := range tc.vars {
				c.vars[k] = v
			}
			c.want(tc.code, append([]string{"tokens", "exchange"}, tc.args...)...)
			c.sees(&c.stderr, tc.want)
		})
	}
}

func TestExchangePrints(t *testing.T) {
	d, c := newIssuingCLI(t)
	c.vars["SLIPWAY_ID_TOKEN"] = "x"
	c.want(0, "tokens", "exchange", "--export")
	if c.stdout.String() != "export SLIPWAY_API_TOKEN="+exchangedToken+"\n" {
		t.Errorf("standard output %q", c.stdout.String())
	}
	c.want(0, "tokens", "exchange", "--json")
	if got := value[map[string]any](c); got["token"] != exchangedToken || got["id"] != "tok_1" || got["type"] != "deploy" || got["expires_at"] == nil || len(got) != 4 {
		t.Errorf("%v", got)
	}
	d.value = "x; rm -rf /" // a shell would run that
	c.want(1, "tokens", "exchange", "--export")
	if c.stdout.Len() > 0 {
		t.Errorf("standard output %q", c.stdout.String())
	}
}

// With SLIPWAY_OIDC=1 a command that has no token gets one by itself.
func TestCommandsExchange(t *testing.T) {
	d, c := newIssuingCLI(t)
	c.vars["SLIPWAY_ID_TOKEN"] = "x"
	c.want(3, "whoami")
	if d.last() != nil {
		t.Error("exchanged without being told to")
	}
	c.vars["SLIPWAY_OIDC"], c.vars["SLIPWAY_ORG"], c.vars["SLIPWAY_TRUST"] = "1", "acme", "ci"
	c.want(0, "whoami")
	c.sees(&c.stdout, "acme", "SLIPWAY_OIDC=1")
	if got := d.last(); got.GetOrg() != "acme" || got.GetRule() != "ci" || len(d.asked) != 1 {
		t.Errorf("asked with %v", d.asked)
	}
	p := &program{environment: &environment{getenv: func(name string) string { return c.vars[name] }}}
	d.asked = nil
	for range 3 {
		conn, err := p.connection()
		if err != nil {
			t.Fatal(err)
		}
		if token, err := conn.bearer(t.Context()); token != exchangedToken || err != nil {
			t.Errorf("bearer %q, %v", token, err)
		}
	}
	if len(d.asked) != 1 {
		t.Errorf("one run exchanged %d times", len(d.asked))
	}
	c.vars["SLIPWAY_ID_TOKEN"] = "bad"
	c.want(3, "whoami", "--json")
	c.sees(&c.stdout, "no trust rule matches this ID token", "make one")
	c.vars["SLIPWAY_ID_TOKEN"] = ""
	c.want(2, "whoami")
	c.sees(&c.stderr, "there is no ID token here")
	c.vars["SLIPWAY_API_TOKEN"] = exchangedToken
	c.want(0, "whoami")
	c.sees(&c.stdout, "SLIPWAY_API_TOKEN")
}

func TestTrust(t *testing.T) {
	d, c := newIssuingCLI(t)
	own := "slipway://" + d.addr
	for _, tc := range []struct {
		args []string
		want *slipwayv1.Trust
	}{
		{[]string{"--github", "acme/shop", "-a", "shop"},
			&slipwayv1.Trust{Issuer: "https://token.actions.githubusercontent.com", Audience: own, Claims: map[string]string{"repository": "acme/shop"}, Type: "deploy", App: "shop"}},
		{[]string{"--github", "acme/shop", "--branch", "release/*", "--environment", "production", "--env", "live", "-a", "shop", "--claim", "actor=ann"},
			&slipwayv1.Trust{Issuer: "https://token.actions.githubusercontent.com", Audience: own, Type: "deploy", App: "shop", Environment: "live",
				Claims: map[string]string{"repository": "acme/shop", "ref": "refs/heads/release/*", "environment": "production", "actor": "ann"}}},
		{[]string{"--gitlab", "acme/platform/shop", "--branch", "main", "--type", "registry", "--permission", "read-write"},
			&slipwayv1.Trust{Issuer: "https://gitlab.com", Audience: own, Type: "registry", Permission: "read-write",
				Claims: map[string]string{"project_path": "acme/platform/shop", "ref": "main", "ref_type": "branch"}}},
		{[]string{"--gitlab", "acme/shop", "--issuer", "https://gitlab.example.com", "--audience", "us", "--type", "readonly"},
			&slipwayv1.Trust{Issuer: "https://gitlab.example.com", Audience: "us", Type: "readonly", Claims: map[string]string{"project_path": "acme/shop"}}},
		{[]string{"--buildkite", "acme/shop", "--branch", "main", "--type", "org"},
			&slipwayv1.Trust{Issuer: "https://agent.buildkite.com", Audience: own, Type: "org", Claims: map[string]string{"organization_slug": "acme", "pipeline_slug": "shop", "build_branch": "main"}}},
		{[]string{"--circleci", "1-a/2-b", "-a", "shop", "--branch", "main"},
			&slipwayv1.Trust{Issuer: "https://oidc.circleci.com/org/1-a", Audience: "1-a", Type: "deploy", App: "shop",
				Claims: map[string]string{"oidc.circleci.com/project-id": "2-b", "oidc.circleci.com/vcs-ref": "refs/heads/main"}}},
		{[]string{"--issuer", "https://id.example.com", "--audience", "us", "--claim", "groups=staff", "--type", "user", "--role", "admin"},
			&slipwayv1.Trust{Issuer: "https://id.example.com", Audience: "us", Type: "user", Role: "admin", Claims: map[string]string{"groups": "staff"}}},
	} {
		c.want(0, append([]string{"trust", "create", "ci"}, tc.args...)...)
		got := proto.Clone(d.rules[len(d.rules)-1]).(*slipwayv1.Trust)
		got.Id, got.Name = "", ""
		if !proto.Equal(got, tc.want) {
			t.Errorf("%v: %v\nwant %v", tc.args, got, tc.want)
		}
	}
	for _, args := range [][]string{
		nil, {"--github", "acme"}, {"--github", "acme/"}, {"--github", "a/b", "--gitlab", "a/b"}, {"--github", "a/b", "--issuer", "https://x"}, {"--github", "a/b", "-x", "never"},
		{"--github", "a/b", "--claim", "repository=c/d"}, {"--buildkite", "a/b", "--environment", "x"}, {"--issuer", "https://x", "--branch", "main"}, {"--issuer", "https://x", "--claim", "=x"},
	} {
		c.want(2, append([]string{"trust", "create", "ci"}, args...)...)
	}
	c.want(0, "trust", "list")
	c.sees(&c.stdout, "tru_1", "repository=acme/shop", "deploy shop in live")
	c.want(0, "trust", "list", "--json")
	if got := value[map[string][]map[string]any](c)["trusts"]; len(got) != 7 || got[0]["issuer"] != "https://token.actions.githubusercontent.com" {
		t.Errorf("%v", got)
	}
	d.rules[3].Name = "third"
	c.want(0, "trust", "delete", "third")
	c.want(0, "trust", "delete", "tru_1")
	c.want(2, "trust", "delete", "tru_1")
	if len(d.rules) != 5 {
		t.Errorf("%d rules left", len(d.rules))
	}
}
