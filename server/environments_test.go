package server_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// images are those of a registry.
type images struct{ d *daemon }

func (i images) Resolve(ctx context.Context, app, reference string) (string, error) {
	repo, err := i.d.registry.Repository(app)
	if err != nil {
		return "", err
	}
	desc, _, err := repo.Manifest(ctx, reference)
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrInvalid) {
		return "", fmt.Errorf("%w: %v", server.ErrNoImage, err)
	}
	return desc.Digest.String(), err
}

func (i images) Parts(_ context.Context, _, digest string) ([]string, error) {
	return indexes{"sha256:ix": {"sha256:amd64"}}[digest], nil
}

// mint makes tokens.
type mint struct {
	mu   sync.Mutex
	made []tokens.Request
	fail error
}

func (m *mint) Create(_ context.Context, by tokens.Principal, r tokens.Request) (tokens.Token, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return tokens.Token{}, "", m.fail
	}
	m.made = append(m.made, r)
	return tokens.Token{ID: fmt.Sprint("tok_", len(m.made)), Org: by.Org, Expires: time.Now().Add(r.ExpiresIn)}, fmt.Sprint("sg_", len(m.made)), nil
}

func (m *mint) RevokeEnv(_ context.Context, _ tokens.Principal, env string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	var ids []string
	for i, r := range m.made {
		if r.Env == env {
			ids = append(ids, fmt.Sprint("tok_", i+1))
			m.made[i].Env = ""
		}
	}
	return ids, nil
}

// environments is a daemon with environments, and what calls it.
type environments struct {
	*daemon
	slipwayv1.EnvironmentServiceClient
	mint  *mint
	pulls *server.PullLog
}

func startEnvironments(t *testing.T, workers int) *environments {
	t.Helper()
	e := &environments{mint: &mint{}}
	build := func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		return image(ctx, job, "the image "+job.Tag)
	}
	e.daemon = start(t, &script{build: build}, workers, func(o *server.Options, _ *fleet.Options) {
		who := o.Auth.(*people).known
		puller := func(name, env, permission string) tokens.Principal {
			p := tokens.Token{ID: "tok_" + name, Name: name, Org: "acme", Type: tokens.TypeRegistry, Env: env, Permission: permission}
			return p.Principal("")
		}
		who["cluster"] = puller("cluster", "production", tokens.ReadOnly)
		who["pusher"] = puller("pusher", "", tokens.ReadWrite)
		bound := who["acme"]
		bound.Env = "production"
		who["operator"] = bound
		ci := who["shop"]
		ci.Env = "staging"
		who["shop-staging"] = ci
		o.Issuer = e.mint
		o.Pulls = server.StartPullLog(o.Records, images{}, o.Log)
		e.pulls = o.Pulls
		t.Cleanup(func() { check(t, e.pulls.Close()) })
		o.Repository = func(image string) (string, bool, bool) {
			name, ok := strings.CutPrefix(image, "reg.test/")
			name, _, _ = strings.Cut(name, "@")
			if i := strings.LastIndexByte(name, ':'); i > 0 {
				name = name[:i]
			}
			return name, ok, false
		}
	})
	e.EnvironmentServiceClient = slipwayv1.NewEnvironmentServiceClient(e.cc)
	return e
}

func (e *environments) create(names ...string) {
	e.t.Helper()
	for _, name := range names {
		_, err := e.CreateEnvironment(as(e.t, "acme"), &slipwayv1.CreateEnvironmentRequest{Name: name, WithoutToken: true})
		check(e.t, err)
	}
}

// deploy builds an image of a text and releases it.
func (e *environments) deploy(token, app, env, text string) *slipwayv1.Result {
	e.t.Helper()
	c := e.call(token, &slipwayv1.Start{App: app, Push: true, Release: true, Environment: env, Tag: text})
	return c.result()
}

func errorOf(err error) *slipwayv1.Error {
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*slipwayv1.Error); ok {
			return e
		}
	}
	return nil
}

// wantError checks that a call was refused, with a hint.
func wantError(t testing.TB, what string, err error, code, text string) {
	t.Helper()
	e := errorOf(err)
	if e.GetCode() != code || !strings.Contains(e.GetMessage(), text) || e.GetHint() == "" {
		t.Errorf("%s: %v, %v; want %s about %q, and a hint", what, err, e, code, text)
	}
}

func TestEnvironments(t *testing.T) {
	e := startEnvironments(t, 0)
	ctx := as(t, "acme")
	made, err := e.CreateEnvironment(ctx, &slipwayv1.CreateEnvironmentRequest{Name: "production", App: "shop", Permission: tokens.ReadWrite, ExpiresIn: durationpb.New(time.Hour)})
	check(t, err)
	want := tokens.Request{Type: tokens.TypeRegistry, Name: "production", App: "shop", Env: "production", Permission: tokens.ReadWrite, ExpiresIn: time.Hour}
	if made.Token != "sg_1" || made.TokenId != "tok_1" || made.Expires == nil || fmt.Sprint(e.mint.made[0]) != fmt.Sprint(want) || made.Environment.CreatedBy != "acme" {
		t.Errorf("made %v with %+v", made, e.mint.made)
	}
	_, err = e.CreateEnvironment(ctx, &slipwayv1.CreateEnvironmentRequest{Name: "production"})
	wantError(t, "again", err, failure.InvalidArgument, "exists already")
	if len(e.mint.made) != 1 {
		t.Error("a token was made for an environment that was there")
	}
	e.create("staging")
	list := func(token string) string {
		resp, err := e.ListEnvironments(as(t, token), &slipwayv1.ListEnvironmentsRequest{})
		check(t, err)
		var names []string
		for _, env := range resp.Environments {
			names = append(names, env.Name)
		}
		return strings.Join(names, " ")
	}
	for token, want := range map[string]string{"acme": "production staging", "reader": "production staging", "globex": "", "operator": "production", "shop-staging": "staging"} {
		if got := list(token); got != want {
			t.Errorf("%s sees %q, want %q", token, got, want)
		}
	}

	e.mint.fail = fmt.Errorf("%w: only admins make tokens that never expire", tokens.ErrDenied)
	_, err = e.CreateEnvironment(ctx, &slipwayv1.CreateEnvironmentRequest{Name: "qa", Never: true})
	wantError(t, "a token that is denied", err, failure.PermissionDenied, "only admins")
	_, err = e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: "production"})
	wantError(t, "tokens that cannot be revoked", err, failure.PermissionDenied, "only admins")
	e.mint.fail = nil
	if got := list("acme"); got != "staging" {
		t.Errorf("there are %q", got)
	}
	gone, err := e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: "production"}) // what is left of it
	if err != nil || !slices.Equal(gone.Revoked, []string{"tok_1"}) {
		t.Errorf("revoked %v, %v", gone, err)
	}
	_, err = e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: "production"})
	wantError(t, "delete again", err, failure.NotFound, "was deleted")
	_, err = e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: "production"})
	wantError(t, "get", err, failure.NotFound, "was deleted")
	if _, err := e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production"}); err != nil {
		t.Errorf("history: %v", err)
	}
}

// Names go into SQL, image names, URLs and terminals: what is no name is
// refused by every call, and who asks for an environment that is not there
// hears so.
func TestNamesOfEnvironments(t *testing.T) {
	e := startEnvironments(t, 0)
	e.create("production")
	ctx := as(t, "acme")
	calls := func(env, app string) map[string]error {
		second := func(_ any, err error) error { return err }
		return map[string]error{
			"get":     second(e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: env, App: app})),
			"delete":  second(e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: env})),
			"release": second(e.CreateRelease(ctx, &slipwayv1.CreateReleaseRequest{App: "shop", Environment: env, Image: "v1"})),
			"list":    second(e.ListReleases(ctx, &slipwayv1.ListReleasesRequest{App: app, Environment: env})),
			"promote": second(e.Promote(ctx, &slipwayv1.PromoteRequest{App: "shop", From: "production", To: env})),
			"from":    second(e.Promote(ctx, &slipwayv1.PromoteRequest{App: "shop", From: env, To: "production"})),
			"history": second(e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: env, App: app})),
		}
	}
	for what, err := range calls("qa", "shop") {
		wantError(t, what, err, failure.NotFound, "no environment qa")
	}
	for _, name := range []string{
		"../../etc", "a/b", "Production", "prod\n", "prod\x1b[31m", "<b>prod</b>", "'; drop table environments; --", "a' or '1'='1", "a..b", "-a", " ", "ü", strings.Repeat("a", 101),
	} {
		for what, err := range calls(name, "shop") {
			wantError(t, what+" "+name, err, failure.InvalidArgument, "is no name for an environment")
		}
		_, err := e.CreateEnvironment(ctx, &slipwayv1.CreateEnvironmentRequest{Name: name})
		wantError(t, "create "+name, err, failure.InvalidArgument, "is no name for an environment")
		_, err = e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: "production", App: name})
		wantError(t, "show app "+name, err, failure.InvalidArgument, "is no name for an app")
		_, err = e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production", App: name})
		wantError(t, "history of app "+name, err, failure.InvalidArgument, "is no name for an app")
		_, err = e.ListReleases(ctx, &slipwayv1.ListReleasesRequest{Environment: "production", App: name})
		wantError(t, "releases of app "+name, err, failure.InvalidArgument, "is no name for an app")
		_, err = e.Promote(ctx, &slipwayv1.PromoteRequest{App: name, To: "production"})
		wantError(t, "promote app "+name, err, failure.InvalidArgument, "is no name for an app")
		c := e.open("acme")
		c.start(&slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: name})
		_, err = c.stream.Recv()
		wantError(t, "deploy to "+name, err, failure.InvalidArgument, "is no name for an environment")
	}
}

func TestDeployReleases(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("staging", "production")
	var ids []string
	for i, tc := range []struct {
		token, env, text, want string
		version                uint64
	}{
		{"acme", "production", "one", "production", 1},
		{"acme", "production", "two", "production", 2},
		{"acme", "staging", "two", "staging", 1},
		{"acme", "", "three", "", 1},
		{"shop", "", "four", "", 2},
		{"shop-staging", "", "five", "staging", 2}, // its own
		{"operator", "", "six", "production", 3},
	} {
		res := e.deploy(tc.token, "shop", tc.env, tc.text)
		if res.Error != nil || res.ReleaseId == "" || res.ReleaseVersion != tc.version || res.Environment != tc.want {
			t.Fatalf("deploy %d: released %s v%d to %q: %v", i, res.ReleaseId, res.ReleaseVersion, res.Environment, res.Error)
		}
		got, err := e.GetBuildResult(res.BuildId)
		if err != nil || got.ReleaseId != res.ReleaseId || got.ReleaseVersion != res.ReleaseVersion {
			t.Errorf("deploy %d: the record says %v, %v", i, got, err)
		}
		ids = append(ids, res.ReleaseId)
	}
	all, err := e.ListReleases(as(t, "acme"), &slipwayv1.ListReleasesRequest{App: "shop"})
	check(t, err)
	slices.Reverse(all.Releases)
	if len(all.Releases) != len(ids) {
		t.Fatalf("%d releases", len(all.Releases))
	}
	for i, r := range all.Releases {
		if r.Id != ids[i] || r.BuildId == "" || !strings.HasPrefix(r.Image, "reg.test/shop:") || r.Digest == "" {
			t.Errorf("release %d is %v, want %s", i, r, ids[i])
		}
	}
	if r := all.Releases[1]; r.Image != "reg.test/shop:two" || r.CreatedBy != "acme" || r.Environment != "production" {
		t.Errorf("second: %v", r)
	}

	for what, s := range map[string]*slipwayv1.Start{
		"build only": {App: "shop", Push: true},
		"not pushed": {App: "shop", Release: true},
		"a plan":     {App: "shop", Push: true, Release: true, Environment: "production", PlanOnly: true},
		"elsewhere":  {App: "shop", Push: true, Release: true, Targets: []string{"reg.test/other"}},
	} {
		if res := e.call("acme", s).result(); res.ReleaseId != "" || res.ReleaseVersion != 0 {
			t.Errorf("%s was released: %v", what, res)
		}
	}
	res := e.call("acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Targets: []string{"reg.test/other:x", "reg.test/shop:mine"}}).result()
	list, err := e.ListReleases(as(t, "acme"), &slipwayv1.ListReleasesRequest{App: "shop", Limit: 1})
	if err != nil || res.ReleaseVersion != 3 || list.Releases[0].Image != "reg.test/shop:mine" {
		t.Errorf("one target of two: %v, %v, %v", res.ReleaseVersion, list, err)
	}
	failing := errors.New("boom")
	e.script.plan = func(context.Context, *builder.Job) error { return failing }
	if res := e.deploy("acme", "shop", "production", "seven"); res.Error == nil || res.ReleaseId != "" {
		t.Errorf("a failed build: %v", res)
	}
}

// GetBuildResult returns the result on record.
func (e *environments) GetBuildResult(id string) (*slipwayv1.Result, error) {
	b, err := e.client.GetBuild(as(e.t, "acme"), &slipwayv1.GetBuildRequest{Id: id})
	return b.GetBuild().GetResult(), err
}

// What cannot be released is refused before anything travels or is recorded.
func TestDeployToWhatMayNotBe(t *testing.T) {
	e := startEnvironments(t, 0)
	e.create("production")
	elsewhere := []string{"elsewhere.test/shop"}
	for _, tc := range []struct {
		what, token string
		start       *slipwayv1.Start
		code, text  string
	}{
		{"no such environment", "acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: "qa"}, failure.NotFound, "no environment qa"},
		{"to plan for it", "acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: "qa", PlanOnly: true}, failure.NotFound, "no environment qa"},
		{"another org's", "globex", &slipwayv1.Start{App: "soap", Push: true, Release: true, Environment: "production"}, failure.NotFound, "no environment production"},
		{"a token for another", "shop-staging", &slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: "production"}, failure.PermissionDenied, `for environment "staging", not "production"`},
		{"the token's own, which is gone", "shop-staging", &slipwayv1.Start{App: "shop", Push: true, Release: true}, failure.NotFound, "no environment staging"},
		{"no release", "acme", &slipwayv1.Start{App: "shop", Push: true, Environment: "production"}, failure.InvalidArgument, "is released"},
		{"no push", "acme", &slipwayv1.Start{App: "shop", Release: true, Environment: "production"}, failure.InvalidArgument, "is released"},
		{"pushed elsewhere", "acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Targets: elsewhere, Environment: "production"}, failure.InvalidArgument, "is released"},
	} {
		c := e.open(tc.token)
		c.start(tc.start)
		_, err := c.stream.Recv()
		wantError(t, tc.what, err, tc.code, tc.text)
	}
	for _, org := range []string{"acme", "globex"} {
		left, err := e.records.List(t.Context(), records.Query{Org: org, Limit: 10})
		if err != nil || len(left) != 0 {
			t.Errorf("%d builds were recorded, %v", len(left), err)
		}
	}
}

// A key joins builds that are released to the same environment, and no others.
func TestKeysOfEnvironments(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("staging", "production")
	for i, tc := range []struct {
		env     string
		joined  bool
		version uint64
	}{{"staging", false, 1}, {"production", false, 1}, {"", false, 1}, {"staging", true, 1}, {"production", true, 1}, {"", true, 1}} {
		c := e.call("acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: tc.env, IdempotencyKey: "k"})
		if res := c.result(); c.joined != tc.joined || res.Environment != tc.env || res.ReleaseVersion != tc.version {
			t.Errorf("deploy %d to %q: joined %v, released v%d to %q", i, tc.env, c.joined, res.ReleaseVersion, res.Environment)
		}
	}
}

// Deploys that end at the same time get versions without gaps.
func TestDeploysAtOnce(t *testing.T) {
	e := startEnvironments(t, 4)
	e.create("production")
	var calls []*call
	for i := range 5 {
		calls = append(calls, e.call("acme", &slipwayv1.Start{App: "shop", Push: true, Release: true, Environment: "production", Tag: fmt.Sprint("v", i)}))
	}
	versions := map[uint64]bool{}
	for _, c := range calls {
		res := c.result()
		if res.Error != nil {
			t.Fatal(res.Error)
		}
		versions[res.ReleaseVersion] = true
	}
	for v := range uint64(5) {
		if !versions[v+1] {
			t.Errorf("there is no v%d: %v", v+1, versions)
		}
	}
}

// A release that cannot be recorded fails its build, in the log and on record.
func TestDeployWithoutRecords(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("production")
	db, err := sql.Open("sqlite", filepath.Join(e.root, "records.db"))
	check(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `alter table releases rename to lost`)
	check(t, err)
	res := e.deploy("acme", "shop", "production", "one")
	wantCode(t, res, failure.Unavailable)
	if res.Error.GetHint() == "" || !res.Error.GetRetryable() || strings.Contains(res.Error.GetMessage(), "no such table") || res.ReleaseId != "" {
		t.Errorf("the error: %v", res.Error)
	}
	if b, err := e.records.Get(t.Context(), "acme", res.BuildId); err != nil || b.Status != records.Failed {
		t.Errorf("the record: %+v, %v", b, err)
	}
	if log := e.log.String(); !strings.Contains(log, "no such table") {
		t.Errorf("the log does not say why: %s", log)
	}
	_, err = db.ExecContext(t.Context(), `alter table lost rename to releases`)
	check(t, err)
	if res := e.deploy("acme", "shop", "production", "one"); res.Error != nil || res.ReleaseVersion != 1 {
		t.Errorf("again: v%d, %v", res.ReleaseVersion, res.Error)
	}
}

// A build whose end is on record already, because the answer to it was lost or
// another daemon gave it up, ends as the record says, and releases nothing more.
func TestDeployThatHadEnded(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("production")
	e.script.build = func(ctx context.Context, job *builder.Job) (*builder.Image, error) {
		known, err := proto.Marshal(&slipwayv1.Result{BuildId: job.ID, App: "shop", Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, ReleaseId: "01R", ReleaseVersion: 7})
		if err != nil {
			return nil, err
		}
		if err := e.records.End(ctx, records.Build{ID: job.ID, Status: records.Succeeded, Ended: time.Now(), Result: known}); err != nil {
			return nil, err
		}
		return image(ctx, job, "one")
	}
	if res := e.deploy("acme", "shop", "production", "one"); res.Error != nil || res.ReleaseId != "01R" || res.ReleaseVersion != 7 {
		t.Errorf("result %v", res)
	}
	if list, err := e.ListReleases(as(t, "acme"), &slipwayv1.ListReleasesRequest{}); err != nil || len(list.Releases) != 0 {
		t.Errorf("releases %v, %v", list, err)
	}
}

func TestReleasesAndPromotion(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("staging", "production")
	one, two := e.deploy("acme", "shop", "staging", "one"), e.deploy("acme", "shop", "staging", "two")
	ctx := as(t, "acme")

	first, err := e.Promote(as(t, "pusher"), &slipwayv1.PromoteRequest{App: "shop", From: "staging", To: "production"})
	check(t, err)
	r := first.Release
	if first.Unchanged || r.Digest != two.Digest || r.Version != 1 || r.PromotedFrom != "staging" || r.Environment != "production" || r.Image != "reg.test/shop:two" || r.BuildId != two.BuildId || r.CreatedBy != "pusher" {
		t.Errorf("promoted %v", first)
	}
	again, err := e.Promote(ctx, &slipwayv1.PromoteRequest{App: "shop", From: "staging", To: "production"})
	if err != nil || !again.Unchanged || again.Release.Id != r.Id {
		t.Errorf("again: %v, %v", again, err)
	}
	back, err := e.CreateRelease(ctx, &slipwayv1.CreateReleaseRequest{App: "shop", Environment: "production", Image: one.Digest})
	if err != nil || back.Release.Version != 2 || back.Release.Digest != one.Digest || back.Release.Image != "reg.test/shop:one" || back.Release.BuildId != one.BuildId {
		t.Errorf("rolled back: %v, %v", back, err)
	}
	for _, image := range []string{"one", "shop:one", "reg.test/shop:one", "reg.test/shop@" + one.Digest, "shop@" + one.Digest, "reg.test/shop:two@" + one.Digest, "@" + one.Digest} {
		got, err := e.CreateRelease(ctx, &slipwayv1.CreateReleaseRequest{App: "shop", Image: image})
		if err != nil || got.Release.Digest != one.Digest {
			t.Errorf("%s: %v, %v", image, got, err)
		}
	}
	if list, err := e.ListReleases(ctx, &slipwayv1.ListReleasesRequest{App: "shop", Environment: "production", Version: 1}); err != nil || len(list.Releases) != 1 || list.Releases[0].Id != r.Id {
		t.Errorf("v1: %v, %v", list, err)
	}

	foreign := e.deploy("globex", "soap", "", "one")
	for _, tc := range []struct {
		what, token string
		req         any
		code, text  string
	}{
		{"an image that is not there", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "three"}, failure.NotFound, "no image three"},
		{"a digest that is not there", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "sha256:" + strings.Repeat("0", 64)}, failure.NotFound, "no image"},
		{"half a digest", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "sha256:00"}, failure.NotFound, "no image"},
		{"latest, which is not there", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "reg.test/shop"}, failure.NotFound, "no image latest"},
		{"no image", "acme", &slipwayv1.CreateReleaseRequest{App: "shop"}, failure.InvalidArgument, "needs an image"},
		{"another app's", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "reg.test/billing:one"}, failure.InvalidArgument, "no image of the app shop"},
		{"another registry's", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "docker.io/library/debian:12"}, failure.InvalidArgument, "no image of the app shop"},
		{"a path", "acme", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "../shop:one"}, failure.InvalidArgument, "no image of the app shop"},
		{"another org's app", "acme", &slipwayv1.CreateReleaseRequest{App: "soap", Image: foreign.Digest}, failure.PermissionDenied, "may not release the app soap"},
		{"no app", "acme", &slipwayv1.CreateReleaseRequest{Image: "one"}, failure.InvalidArgument, "no name for an app"},
		{"of another app than the token's", "shop", &slipwayv1.CreateReleaseRequest{App: "billing", Image: "one"}, failure.PermissionDenied, `not "billing"`},
		{"by who may read", "reader", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "one"}, failure.PermissionDenied, "release:write"},
		{"by who may pull", "cluster", &slipwayv1.CreateReleaseRequest{App: "shop", Image: "one"}, failure.PermissionDenied, "release:write"},
		{"to another environment than the token's", "operator", &slipwayv1.CreateReleaseRequest{App: "shop", Environment: "staging", Image: "one"}, failure.PermissionDenied, `not "staging"`},
		{"from another environment than the token's", "operator", &slipwayv1.PromoteRequest{App: "shop", From: "staging", To: "production"}, failure.PermissionDenied, `not "staging"`},
		{"to itself", "acme", &slipwayv1.PromoteRequest{App: "shop", From: "staging", To: "staging"}, failure.InvalidArgument, "to itself"},
		{"to nowhere", "acme", &slipwayv1.PromoteRequest{App: "shop", From: "staging"}, failure.InvalidArgument, "environment to go to"},
		{"nothing", "acme", &slipwayv1.PromoteRequest{App: "blog", From: "staging", To: "production"}, failure.NotFound, "nothing was released of the app blog to staging"},
		{"nothing from nowhere", "acme", &slipwayv1.PromoteRequest{App: "blog", To: "production"}, failure.NotFound, "nothing was released of the app blog"},
	} {
		var err error
		switch req := tc.req.(type) {
		case *slipwayv1.CreateReleaseRequest:
			_, err = e.CreateRelease(as(t, tc.token), req)
		case *slipwayv1.PromoteRequest:
			_, err = e.Promote(as(t, tc.token), req)
		}
		wantError(t, tc.what, err, tc.code, tc.text)
	}
	if moved, err := e.Promote(ctx, &slipwayv1.PromoteRequest{App: "shop", To: "production"}); err != nil || !moved.Unchanged {
		t.Errorf("what was released to none: %v, %v", moved, err)
	}
}

// Everybody who promotes at once gets the same release.
func TestPromoteAtOnce(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("staging", "production")
	e.deploy("acme", "shop", "staging", "one")
	var wg sync.WaitGroup
	ids := make([]string, 10)
	made := make([]bool, 10)
	for i := range ids {
		wg.Go(func() {
			resp, err := e.Promote(as(t, "acme"), &slipwayv1.PromoteRequest{App: "shop", From: "staging", To: "production"})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i], made[i] = resp.Release.Id, !resp.Unchanged
		})
	}
	wg.Wait()
	if len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 1 || len(slices.DeleteFunc(made, func(m bool) bool { return !m })) != 1 {
		t.Errorf("releases %v, made %v", ids, made)
	}
}

// Each method of the service is refused to those who lack its right.
func TestRightsInEnvironments(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("staging", "production")
	e.deploy("acme", "shop", "production", "one")
	e.deploy("acme", "billing", "production", "one")
	for _, tc := range []struct {
		what  string
		call  func(ctx context.Context) error
		right string // tokens that may
	}{
		{"create", func(ctx context.Context) error {
			_, err := e.CreateEnvironment(ctx, &slipwayv1.CreateEnvironmentRequest{Name: "qa", WithoutToken: true})
			if err == nil {
				_, err = e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: "qa"})
			}
			return err
		}, "acme globex"},
		{"list", func(ctx context.Context) error {
			_, err := e.ListEnvironments(ctx, &slipwayv1.ListEnvironmentsRequest{})
			return err
		}, "acme globex operator reader shop shop-staging"},
		{"get", func(ctx context.Context) error {
			_, err := e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: "production"})
			return err
		}, "acme operator reader shop"},
		{"get another app", func(ctx context.Context) error {
			_, err := e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: "production", App: "billing"})
			return err
		}, "acme operator reader"},
		{"history", func(ctx context.Context) error {
			_, err := e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production"})
			return err
		}, "acme operator reader shop"},
		{"releases", func(ctx context.Context) error {
			_, err := e.ListReleases(ctx, &slipwayv1.ListReleasesRequest{Environment: "production"})
			return err
		}, "acme operator reader shop"},
		{"delete", func(ctx context.Context) error {
			_, err := e.DeleteEnvironment(ctx, &slipwayv1.DeleteEnvironmentRequest{Name: "staging"})
			if err == nil {
				e.create("staging")
			}
			return err
		}, "acme"},
	} {
		for _, token := range []string{"acme", "globex", "operator", "reader", "shop", "shop-staging", "cluster", "pusher"} {
			err := tc.call(as(t, token))
			if may := slices.Contains(strings.Fields(tc.right), token); may != (err == nil) {
				t.Errorf("%s: %s: %v", token, tc.what, err)
			}
			if code := errorOf(err).GetCode(); err != nil && code != failure.PermissionDenied && (token != "globex" || code != failure.NotFound) {
				t.Errorf("%s: %s: %v", token, tc.what, err)
			}
		}
	}
	// A token for one app hears of no other.
	got, err := e.GetEnvironment(as(t, "shop"), &slipwayv1.GetEnvironmentRequest{Name: "production"})
	list, listErr := e.ListEnvironments(as(t, "shop"), &slipwayv1.ListEnvironmentsRequest{})
	history, historyErr := e.ListHistory(as(t, "shop"), &slipwayv1.ListHistoryRequest{Environment: "production"})
	releases, releasesErr := e.ListReleases(as(t, "shop"), &slipwayv1.ListReleasesRequest{})
	if err := errors.Join(err, listErr, historyErr, releasesErr); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(got, list, history, releases); strings.Contains(text, "billing") || !strings.Contains(text, "shop") {
		t.Errorf("a token for shop hears %s", text)
	}
}

// TestDrift makes releases (r) and pulls (p) of images at times before now, and
// looks.
func TestDrift(t *testing.T) {
	const (
		m = time.Minute
		h = time.Hour
	)
	type event struct {
		what  string // "r" and an image, or "p" and an image
		ago   time.Duration
		until time.Duration // of pulls, if they went on
	}
	for _, tc := range []struct {
		name   string
		events []event
		want   string // status, behind, since
	}{
		{"in sync", []event{{"r1", 2 * h, 0}, {"p1", h, 0}}, "in_sync 0 0s"},
		{"in sync, pulled before the release", []event{{"p1", 2 * h, 0}, {"r1", h, 0}}, "in_sync 0 0s"},
		{"in sync after a roll-out", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, h}, {"r2", h, 0}, {"p2", 50 * m, 30 * m}}, "in_sync 0 0s"},
		{"never pulled", []event{{"r1", 3 * h, 0}, {"r2", h, 0}}, "pending 2 3h0m0s"},
		{"not yet pulled", []event{{"r1", 3 * h, 0}, {"p1", 2 * h, 0}, {"r2", h, 0}}, "pending 1 1h0m0s"},
		{"two releases behind", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, 0}, {"r2", 7 * h, 0}, {"r3", h, 0}}, "pending 2 7h0m0s"},
		{"another one after the release", []event{{"r1", 9 * h, 0}, {"r2", 8 * h, 0}, {"p1", 7 * h, 0}}, "drifted 1 7h0m0s"},
		{"kept pulling the old one", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, 0}, {"r2", 7 * h, 0}, {"p1", h, 0}}, "drifted 1 7h0m0s"},
		{"rolled back by hand", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, 0}, {"r2", 7 * h, 0}, {"p2", 6 * h, 0}, {"p1", 5 * h, 0}, {"p1", h, 0}}, "drifted 1 5h0m0s"},
		{"an image that was never released", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, 0}, {"p7", 2 * h, 0}}, "drifted 0 2h0m0s"},
		{"rolled back, and pulled", []event{{"r1", 9 * h, 0}, {"p1", 8 * h, 0}, {"r2", 7 * h, 0}, {"p2", 6 * h, 0}, {"r1", 2 * h, 0}, {"p1", h, 0}}, "in_sync 0 0s"},
		{"rolled back, not yet pulled", []event{{"r1", 9 * h, 0}, {"r2", 7 * h, 0}, {"p2", 6 * h, 0}, {"r1", 2 * h, 0}}, "pending 1 2h0m0s"},
		{"the same image released twice", []event{{"r1", 9 * h, 0}, {"r1", 8 * h, 0}, {"p1", 7 * h, 0}, {"r2", 6 * h, 0}}, "pending 1 6h0m0s"},
		{"unreleased", []event{{"p1", 2 * h, 0}, {"p1", h, 0}}, "unreleased 0 2h0m0s"},
		{"mixed", []event{{"r1", 9 * h, 0}, {"r2", 9 * m, 0}, {"p1", 8 * m, 0}, {"p2", 6 * m, 0}, {"p1", 4 * m, 0}}, "mixed 1 6m0s"},
		{"mixed, both go on", []event{{"r1", 9 * h, 0}, {"r2", 3 * h, 0}, {"p1", 50 * m, 49 * m}, {"p2", 40 * m, 39 * m}}, "mixed 0 40m0s"},
		{"a roll-out is not mixed", []event{{"r1", 9 * h, 0}, {"r2", 9 * m, 0}, {"p1", 8 * m, m}, {"p2", 6 * m, m}}, "in_sync 0 0s"},
		{"mixed long ago", []event{{"r1", 9 * h, 0}, {"r2", 8 * h, 0}, {"p1", 40 * m, 0}, {"p2", 35 * m, 0}, {"p1", 30 * m, 0}, {"p2", 11 * m, 0}}, "in_sync 0 0s"},
		{"mixed a while ago", []event{{"r1", 9 * h, 0}, {"r2", 8 * h, 0}, {"p1", 40 * m, 0}, {"p2", 35 * m, 0}, {"p1", 30 * m, 0}, {"p2", 5 * m, 0}}, "in_sync 0 0s"},
		{"too far apart to be mixed", []event{{"r1", 9 * h, 0}, {"r2", 8 * h, 0}, {"p2", 30 * m, 0}, {"p1", 5 * m, 0}}, "drifted 1 5m0s"},
		{"a platform by its digest", []event{{"rix", 2 * h, 0}, {"pamd64", h, 0}}, "in_sync 0 0s"},
		{"an image and its platform", []event{{"rix", 2 * h, 0}, {"pix", 5 * m, 0}, {"pamd64", 4 * m, 0}, {"pix", 3 * m, 0}}, "in_sync 0 0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := startEnvironments(t, 0)
			e.create("production", "staging")
			now := time.Now()
			for i, ev := range tc.events {
				at, digest := now.Add(-ev.ago), "sha256:"+ev.what[1:]
				for _, env := range []string{"production", "staging"} {
					if env == "staging" { // which is of no concern
						at, digest = at.Add(30*time.Second), digest+"s"
					}
					if ev.what[0] == 'r' {
						_, err := e.records.Release(t.Context(), records.Release{Org: "acme", App: "shop", Env: env, Digest: digest, Tag: "v", Created: at})
						check(t, err)
						continue
					}
					check(t, e.records.SavePulls(t.Context(), []records.Pull{{ID: fmt.Sprint(env, i), Org: "acme", Env: env, App: "shop", Digest: digest,
						TokenID: "tok", First: at, Last: at.Add(ev.until), Count: 1}}))
				}
			}
			got, err := e.GetEnvironment(as(t, "reader"), &slipwayv1.GetEnvironmentRequest{Name: "production"})
			check(t, err)
			if len(got.Environment.Apps) != 1 {
				t.Fatalf("apps %v", got.Environment.Apps)
			}
			s := got.Environment.Apps[0]
			text := fmt.Sprintf("%s %d %v", strings.ToLower(strings.TrimPrefix(s.Drift.String(), "DRIFT_STATUS_")), s.Behind, s.Since.AsDuration().Round(m))
			if text != tc.want {
				t.Errorf("%s, want %s\nreleased %v\npulled %v", text, tc.want, s.Released, s.Pulled)
			}
		})
	}
}

// What a cluster pulls is seen at once, in history and drift.
func TestHistory(t *testing.T) {
	e := startEnvironments(t, 1)
	e.create("production")
	one := e.deploy("acme", "shop", "production", "one")
	at := time.Now()
	token := tokens.Token{ID: "tok_cluster", Name: "cluster", Org: "acme", Type: tokens.TypeRegistry, Env: "production"}
	who := token.Principal("")
	e.pulls.Saw(who, server.PullEvent{Time: at.Add(time.Millisecond), App: "shop", Reference: "one", Digest: one.Digest, Address: "10.1.2.3:55", UserAgent: "containerd"})
	for i := range 3 {
		e.pulls.Saw(who, server.PullEvent{Time: at.Add(time.Duration(i+2) * time.Millisecond), App: fmt.Sprint("blog", i), Reference: "v1", Digest: "sha256:1"})
	}
	ctx := as(t, "acme")
	if h, err := e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production"}); err != nil || len(h.Entries) != 5 {
		t.Errorf("right after the pulls: %v, %v", h, err)
	}
	e.pulls.Saw(who, server.PullEvent{Time: at.Add(5 * time.Millisecond), App: "shop", Reference: "one", Digest: one.Digest, Address: "10.1.2.3:55"})
	got, err := e.GetEnvironment(ctx, &slipwayv1.GetEnvironmentRequest{Name: "production", App: "shop"})
	check(t, err)
	if s := got.Environment.Apps; len(s) != 1 || s[0].Drift != slipwayv1.DriftStatus_DRIFT_STATUS_IN_SYNC || s[0].Pulled.TokenName != "cluster" || s[0].Pulled.Count != 2 || s[0].Pulled.Address != "10.1.2.3" {
		t.Errorf("apps %v", s)
	}
	var seen []string
	var before *timestamppb.Timestamp
	for range 10 {
		page, err := e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production", Limit: 2, Before: before})
		check(t, err)
		if len(page.Entries) == 0 {
			break
		}
		for _, entry := range page.Entries {
			before = entry.Time
			if r := entry.GetRelease(); r != nil {
				seen = append(seen, fmt.Sprint("release ", r.App, " v", r.Version))
			} else {
				seen = append(seen, fmt.Sprint("pull ", entry.GetPull().App))
			}
		}
	}
	if got, want := strings.Join(seen, ", "), "pull shop, pull blog2, pull blog1, pull blog0, release shop v1"; got != want {
		t.Errorf("history: %s, want %s", got, want)
	}
	shop, err := e.ListHistory(ctx, &slipwayv1.ListHistoryRequest{Environment: "production", App: "shop"})
	if err != nil || len(shop.Entries) != 2 {
		t.Errorf("of one app: %v, %v", shop, err)
	}
	if raw, err := json.Marshal(shop); err != nil || strings.Contains(string(raw), "sg_") {
		t.Errorf("history holds a token: %s, %v", raw, err)
	}
}
