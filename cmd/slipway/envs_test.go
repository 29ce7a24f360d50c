package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// deployments is a daemon's EnvironmentService: one environment, in which shop
// is in sync and blog is not.
type deployments struct {
	slipwayv1.UnimplementedEnvironmentServiceServer
	now      time.Time
	created  *slipwayv1.CreateEnvironmentRequest
	released *slipwayv1.CreateReleaseRequest
	promoted *slipwayv1.PromoteRequest
	history  *slipwayv1.ListHistoryRequest
}

const hexDigest = "5c1e02ab93f7aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func (d *deployments) past(ago time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(d.now.Add(-ago - time.Second/2))
}

func (d *deployments) release(app string, version uint64, digest string) *slipwayv1.Release {
	return &slipwayv1.Release{Id: "01R" + app, App: app, Environment: "production", Version: version, Image: "reg.test/" + app + ":v1", Digest: "sha256:" + digest,
		BuildId: buildID, PromotedFrom: "staging", CreatedBy: "ci", Created: d.past(48 * time.Hour)}
}

func (d *deployments) pull(app, digest string) *slipwayv1.Pull {
	return &slipwayv1.Pull{App: app, Environment: "production", Digest: "sha256:" + digest, Tag: "v0", First: d.past(time.Hour), Last: d.past(3 * time.Minute),
		Count: 3, TokenId: "tok_1", TokenName: "k8s", Address: "10.1.2.3", UserAgent: "containerd/2.1"}
}

func (d *deployments) environment() *slipwayv1.Environment {
	return &slipwayv1.Environment{Name: "production", CreatedBy: "admin", Created: d.past(5 * 7 * 24 * time.Hour), Apps: []*slipwayv1.AppState{
		{App: "blog", Drift: slipwayv1.DriftStatus_DRIFT_STATUS_DRIFTED, Behind: 2, Since: durationpb.New(26 * time.Hour),
			Released: d.release("blog", 12, hexDigest), Pulled: d.pull("blog", strings.ReplaceAll(hexDigest, "5", "6"))},
		{App: "shop", Drift: slipwayv1.DriftStatus_DRIFT_STATUS_IN_SYNC, Released: d.release("shop", 7, hexDigest), Pulled: d.pull("shop", hexDigest)},
	}}
}

func (d *deployments) CreateEnvironment(_ context.Context, r *slipwayv1.CreateEnvironmentRequest) (*slipwayv1.CreateEnvironmentResponse, error) {
	d.created = r
	resp := &slipwayv1.CreateEnvironmentResponse{Environment: &slipwayv1.Environment{Name: r.GetName(), CreatedBy: "admin", Created: d.past(0)}}
	if !r.GetWithoutToken() {
		resp.Token, resp.TokenId, resp.Expires = "sg_secret", "tok_9", timestamppb.New(time.Date(2027, 2, 20, 1, 2, 3, 0, time.UTC))
	}
	return resp, nil
}

func (d *deployments) ListEnvironments(context.Context, *slipwayv1.ListEnvironmentsRequest) (*slipwayv1.ListEnvironmentsResponse, error) {
	return &slipwayv1.ListEnvironmentsResponse{Environments: []*slipwayv1.Environment{d.environment(), {Name: "staging"}}}, nil
}

func (d *deployments) GetEnvironment(_ context.Context, r *slipwayv1.GetEnvironmentRequest) (*slipwayv1.GetEnvironmentResponse, error) {
	e := d.environment()
	if r.GetName() != e.GetName() {
		return nil, refuse(codes.NotFound, &slipwayv1.Error{Code: "not_found", Blame: slipwayv1.Blame_BLAME_USER, Message: "there is no environment " + r.GetName(), Hint: "slipway envs create"})
	}
	for _, a := range e.GetApps() {
		if a.GetApp() == r.GetApp() {
			e.Apps = []*slipwayv1.AppState{a}
			break
		}
	}
	if r.GetApp() == "nothing" {
		e.Apps = nil
	}
	return &slipwayv1.GetEnvironmentResponse{Environment: e}, nil
}

func (d *deployments) DeleteEnvironment(context.Context, *slipwayv1.DeleteEnvironmentRequest) (*slipwayv1.DeleteEnvironmentResponse, error) {
	return &slipwayv1.DeleteEnvironmentResponse{Revoked: []string{"tok_1", "tok_2"}}, nil
}

func (d *deployments) ListHistory(_ context.Context, r *slipwayv1.ListHistoryRequest) (*slipwayv1.ListHistoryResponse, error) {
	d.history = r
	return &slipwayv1.ListHistoryResponse{Entries: []*slipwayv1.HistoryEntry{
		{Time: d.past(3 * time.Minute), Entry: &slipwayv1.HistoryEntry_Pull{Pull: d.pull("shop", hexDigest)}},
		{Time: d.past(48 * time.Hour), Entry: &slipwayv1.HistoryEntry_Release{Release: d.release("shop", 7, hexDigest)}},
	}}, nil
}

func (d *deployments) ListReleases(_ context.Context, r *slipwayv1.ListReleasesRequest) (*slipwayv1.ListReleasesResponse, error) {
	older := strings.ReplaceAll(hexDigest, "5", "7")
	all := []*slipwayv1.Release{d.release("shop", 4, hexDigest), d.release("shop", 3, hexDigest), d.release("shop", 2, older), d.release("shop", 1, hexDigest)}
	if v := r.GetVersion(); v > 4 {
		all = nil
	} else if v > 0 {
		all = all[4-v : 5-v]
	}
	if r.GetApp() == "new" {
		all = all[:1]
	}
	return &slipwayv1.ListReleasesResponse{Releases: all}, nil
}

func (d *deployments) CreateRelease(_ context.Context, r *slipwayv1.CreateReleaseRequest) (*slipwayv1.CreateReleaseResponse, error) {
	d.released = r
	out := d.release(r.GetApp(), 8, strings.TrimPrefix(r.GetImage(), "sha256:"))
	out.Environment = r.GetEnvironment()
	return &slipwayv1.CreateReleaseResponse{Release: out}, nil
}

func (d *deployments) Promote(_ context.Context, r *slipwayv1.PromoteRequest) (*slipwayv1.PromoteResponse, error) {
	d.promoted = r
	return &slipwayv1.PromoteResponse{Release: d.release(r.GetApp(), 7, hexDigest), Unchanged: r.GetFrom() == ""}, nil
}

func startDeployments(t *testing.T) (*deployments, *cli) {
	t.Helper()
	d := startDaemon(t, nil)
	d.envs.now = time.Now()
	return &d.envs, newCLI(t, d)
}

func TestEnvsCreate(t *testing.T) {
	d, c := startDeployments(t)
	c.want(0, "envs", "create", "production", "-a", "shop", "--permission", "read-write", "-x", "720h")
	if got := c.stdout.String(); got != "sg_secret\n" {
		t.Errorf("standard output %q, want the value alone", got)
	}
	c.sees(&c.stderr, "registry token tok_9 for environment production and app shop, read-write, expires 2027-02-20, shown once.",
		"docker login reg.test -u production --password-stdin")
	if r := d.created; r.GetName() != "production" || r.GetApp() != "shop" || r.GetPermission() != "read-write" || r.GetExpiresIn().AsDuration() != 720*time.Hour || r.GetNever() {
		t.Errorf("asked for %v", r)
	}
	c.want(0, "envs", "create", "production", "-x", "never", "--json")
	if got := value[madeEnv](c); !d.created.GetNever() || d.created.GetExpiresIn() != nil || got.Token != "sg_secret" || got.TokenID != "tok_9" || got.Expires == nil || got.Name != "production" {
		t.Errorf("%+v, asked for %v", got, d.created)
	}
	c.want(0, "envs", "create", "production", "-x", "30d")
	if got := d.created.GetExpiresIn().AsDuration(); got != 720*time.Hour {
		t.Errorf("asked for %v", got)
	}
	c.want(0, "envs", "create", "qa", "--no-token")
	c.sees(&c.stdout, "environment qa")
	for _, args := range [][]string{{}, {"a", "b"}, {"a", "-x", "tomorrow"}, {"a", "-x", "-1h"}, {"a", "--no-token", "-x", "never"}} {
		c.want(2, append([]string{"envs", "create"}, args...)...)
	}
}

func TestEnvsLookedAt(t *testing.T) {
	_, c := startDeployments(t)
	c.want(0, "envs", "list")
	c.sees(&c.stdout, "NAME ", "production   2      1 drifted, 1 in sync   admin        1 month ago", "staging ")
	c.want(0, "envs", "show", "production", "-a", "blog")
	c.sees(&c.stdout, "production, created 1 month ago by admin",
		"blog   drifted for 1 day, 2 releases behind   v12 5c1e02ab93f7   2 days ago   6c1e02ab93f7   3 minutes ago   k8s")
	c.want(0, "envs", "show", "production", "--json")
	if e := value[env](c); len(e.Apps) != 2 || e.Apps[0].Status != "drifted" || e.Apps[0].SinceMS != 26*3600*1000 || e.Apps[0].Released.Version != 12 || e.Apps[1].Pulled.TokenName != "k8s" {
		t.Errorf("%+v", e)
	}
	c.want(2, "envs", "show", "qa")
	c.sees(&c.stderr, "there is no environment qa", "slipway envs create")
	c.want(0, "envs", "history", "production", "--before", "2026-11-22T17:00:00Z", "-n", "5", "-a", "shop")
	c.sees(&c.stdout, "3 minutes ago   pull         shop   v0 5c1e02ab93f7   k8s   10.1.2.3", "2 days ago      release v7   shop   v1 5c1e02ab93f7   ci    staging")
	c.want(0, "envs", "history", "production", "--json")
	if h := value[[]happening](c); len(h) != 2 || h[0].Type != "pull" || h[0].Pull.Count != 3 || h[0].Release != nil || h[1].Type != "release" || h[1].Release.Version != 7 {
		t.Errorf("%+v", h)
	}
	c.want(2, "envs", "history", "production", "--before", "noon")
	c.want(0, "envs", "delete", "production")
	c.sees(&c.stdout, "production is deleted; revoked tok_1, tok_2")
}

func TestEnvsDrift(t *testing.T) {
	_, c := startDeployments(t)
	for _, tc := range []struct {
		code int
		args []string
		apps int
	}{
		{0, nil, 2},
		{0, []string{"production"}, 2},
		{2, []string{"--exit-code"}, 2},
		{2, []string{"production", "--exit-code"}, 2},
		{2, []string{"production", "-a", "blog", "--exit-code"}, 1},
		{0, []string{"production", "-a", "shop", "--exit-code"}, 1},
		{0, []string{"-a", "shop", "--exit-code"}, 1},
		{2, []string{"production", "-a", "nothing", "--exit-code"}, 0},
		{0, []string{"production", "-a", "nothing"}, 0},
	} {
		c.want(tc.code, append([]string{"envs", "drift", "--json"}, tc.args...)...)
		if got := value[[]appState](c); len(got) != tc.apps {
			t.Errorf("%v: %+v", tc.args, got)
		}
	}
	c.want(2, "envs", "drift", "qa")
	c.want(2, "envs", "drift", "a", "b")
	c.want(0, "envs", "drift")
	c.sees(&c.stdout, "production   shop   in sync ")
}

func TestReleases(t *testing.T) {
	d, c := startDeployments(t)
	c.want(0, "releases", "list", "-a", "shop", "--env", "production")
	c.sees(&c.stdout, "ID ", "01Rshop   shop   production   v4        v1 5c1e02ab93f7   ci           2 days ago   staging")
	c.want(0, "releases", "create", "-a", "shop", "--env", "production", "--image", "v1")
	c.sees(&c.stdout, "shop: released v8 to production, v1 v1")
	if r := d.released; r.GetApp() != "shop" || r.GetEnvironment() != "production" || r.GetImage() != "v1" {
		t.Errorf("asked for %v", r)
	}
	c.vars["SLIPWAY_APP"] = "blog"
	c.want(0, "releases", "create", "--image", "v1", "--json")
	if r := value[release](c); r.App != "blog" || r.Environment != "" || r.Version != 8 {
		t.Errorf("%+v", r)
	}
	delete(c.vars, "SLIPWAY_APP")
	older := "sha256:" + strings.ReplaceAll(hexDigest, "5", "7")
	for args, image := range map[string]string{"": older, "--to v2": older, "--to 3": "sha256:" + hexDigest} {
		c.want(0, append([]string{"releases", "rollback", "-a", "shop", "--env", "production"}, strings.Fields(args)...)...)
		if r := d.released; r.GetImage() != image || r.GetEnvironment() != "production" {
			t.Errorf("rollback %s asked for %v", args, r)
		}
	}
	d.released = nil
	for _, tc := range []struct{ args, says string }{
		{"releases rollback -a shop --env production --to v9", "no release v9 of shop"},
		{"releases rollback -a shop --env production --to vX", "is no version"},
		{"releases rollback -a shop --env production --to 0", "is no version"},
		{"releases rollback -a new --env production", "no release before the present one of new"},
		{"releases rollback -a shop", "which environment?"},
		{"releases rollback --env production", "which app?"},
		{"releases create -a shop", "which image?"},
		{"releases create --image v1", "which app?"},
		{"promote -a shop --from staging", "to which environment?"},
		{"promote --from staging --to production", "which app?"},
	} {
		c.want(2, strings.Fields(tc.args)...)
		c.sees(&c.stderr, tc.says)
	}
	if d.released != nil || d.promoted != nil {
		t.Errorf("released %v, promoted %v", d.released, d.promoted)
	}
	c.want(0, "promote", "-a", "shop", "--from", "staging", "--to", "production")
	c.sees(&c.stdout, "shop: released v7 to production, v1 5c1e02ab93f7")
	c.want(0, "promote", "-a", "shop", "--to", "production")
	c.sees(&c.stdout, "shop: production has this image since v7")
	c.want(0, "promote", "-a", "shop", "--to", "production", "--json")
	if r := value[release](c); !r.Unchanged || r.Version != 7 {
		t.Errorf("%+v", r)
	}
}

func TestDeploySaysWhatItReleased(t *testing.T) {
	for _, tc := range []struct {
		env, says string
		want      map[string]any
	}{
		{"production", "released v12 to production  total", map[string]any{"id": "01R", "version": 12.0, "environment": "production"}},
		{"", "released v12  total", map[string]any{"id": "01R", "version": 12.0, "environment": ""}},
	} {
		d := startDaemon(t, func(s *session) error {
			if _, err := s.manifest(); err != nil {
				return err
			}
			if err := s.accept(); err != nil {
				return err
			}
			res := succeeded()
			res.ReleaseId, res.ReleaseVersion, res.Environment = "01R", 12, s.start.GetEnvironment()
			return s.say(end(res))
		})
		c := newCLI(t, d)
		args := []string{"deploy", tree(t, map[string]string{"Dockerfile": "FROM scratch\n"}), "-a", "shop"}
		if tc.env != "" {
			args = append(args, "--env", tc.env)
		}
		c.want(0, args...)
		c.sees(&c.stderr, tc.says)
		if !d.started.GetRelease() || d.started.GetEnvironment() != tc.env {
			t.Errorf("started %v", d.started)
		}
		c.want(0, append(args, "--json")...)
		got, _ := c.result()["release"].(map[string]any)
		for k, v := range tc.want {
			if got[k] != v {
				t.Errorf("release %v, want %v", got, tc.want)
			}
		}
	}
}
