package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/store"
)

// A guardedDaemon knows real tokens.
type guardedDaemon struct {
	*daemon
	admin  string
	tokens slipwayv1.TokenServiceClient
	orgs   slipwayv1.OrgServiceClient
}

func guarded(t *testing.T, s *script, workers int) *guardedDaemon {
	t.Helper()
	dir := t.TempDir()
	db, err := sqldb.Open(t.Context(), filepath.Join(dir, "tokens.db"))
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	kept, err := store.New(t.Context(), db)
	check(t, err)
	authority, err := tokens.Open(t.Context(), tokens.Options{Store: kept})
	check(t, err)
	t.Cleanup(func() { check(t, authority.Close()) })
	file := filepath.Join(dir, "admin.token")
	admin, err := tokens.AdminFile(file)
	check(t, err)
	check(t, authority.Adopt(t.Context(), admin))
	value, err := os.ReadFile(file)
	check(t, err)
	d := start(t, s, workers, func(o *server.Options, _ *fleet.Options) { o.Auth, o.Tokens = authority, authority })
	return &guardedDaemon{d, strings.TrimSpace(string(value)), slipwayv1.NewTokenServiceClient(d.cc), slipwayv1.NewOrgServiceClient(d.cc)}
}

// make creates a token with another one.
func (d *guardedDaemon) make(by string, req *slipwayv1.CreateTokenRequest) *slipwayv1.CreateTokenResponse {
	d.t.Helper()
	r, err := d.tokens.CreateToken(as(d.t, by), req)
	check(d.t, err)
	return r
}

func (d *guardedDaemon) revoke(ids ...string) {
	d.t.Helper()
	_, err := d.tokens.RevokeTokens(as(d.t, d.admin), &slipwayv1.RevokeTokensRequest{Ids: ids})
	check(d.t, err)
}

// What a revoked token started ends: its calls at once, whatever they wait for,
// and its builds, also those that nobody watches.
func TestRevocationEndsWhatATokenStarted(t *testing.T) {
	running := make(chan struct{}, 2)
	d := guarded(t, untilCancelled(running), 2)
	leaked := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "org"})
	watched := d.call(leaked.Value, shop())
	detached := shop()
	detached.App, detached.Detach = "blog", true
	alone := d.call(leaked.Value, detached)
	<-running
	<-running
	alone.cancel()
	watch, err := d.client.WatchBuild(as(t, leaked.Value), &slipwayv1.WatchBuildRequest{Id: watched.id})
	check(t, err)
	bystander, err := d.client.WatchBuild(as(t, d.admin), &slipwayv1.WatchBuildRequest{Id: watched.id})
	check(t, err)

	d.revoke(leaked.Token.Id)
	begun := time.Now()
	for name, recv := range map[string]func() error{
		"build": func() error { _, err := watched.stream.Recv(); return err },
		"watch": func() error { _, err := watch.Recv(); return err },
	} {
		for err = recv(); err == nil; err = recv() {
		}
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(status.Convert(err).Message(), "revoked") {
			t.Errorf("%s ended with %v", name, err)
		}
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the calls went on for %v", took)
	}
	var last *slipwayv1.Event
	for m, err := bystander.Recv(); err == nil; m, err = bystander.Recv() {
		last = m.Event
	}
	if res := last.GetResult(); res.GetError().GetCode() != "unauthorized" {
		t.Errorf("the build's result is %v", last)
	}
	again, err := d.client.WatchBuild(as(t, d.admin), &slipwayv1.WatchBuildRequest{Id: alone.id})
	check(t, err)
	for m, err := again.Recv(); err == nil; m, err = again.Recv() {
		last = m.Event
	}
	if res := last.GetResult(); res.GetError().GetCode() != "unauthorized" {
		t.Errorf("the detached build's result is %v", last)
	}
}

// A build outlives the token that was good when it began.
func TestBuildOutlivesItsToken(t *testing.T) {
	running := make(chan struct{}, 1)
	d := guarded(t, untilCancelled(running), 1)
	short := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "deploy", App: "shop", ExpiresIn: durationpb.New(time.Second)})
	c := d.call(short.Value, shop())
	<-running
	watch, err := d.client.WatchBuild(as(t, short.Value), &slipwayv1.WatchBuildRequest{Id: c.id})
	check(t, err)
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(status.Convert(err).Message(), "expired") {
		t.Errorf("the watch ended with %v", err)
	}
	b, err := d.client.GetBuild(as(t, d.admin), &slipwayv1.GetBuildRequest{Id: c.id})
	if err != nil || b.Build.Status != slipwayv1.BuildStatus_BUILD_STATUS_RUNNING {
		t.Errorf("the build is %v, %v", b, err)
	}
}

// Each method says who may call it, and lets nobody else in.
func TestEveryMethodHasARule(t *testing.T) {
	d := guarded(t, &script{}, 0)
	exec := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "machine-exec", App: "shop", Command: []string{"true"}})
	revoked := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "org"})
	d.revoke(revoked.Token.Id)
	expired := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "org", ExpiresIn: durationpb.New(time.Nanosecond)})
	forged := tokens.New("sa_")
	values := map[string]string{
		"revoked": revoked.Value, "expired": expired.Value, "forged": forged, "malformed": "sa_nonsense",
		"truncated": d.admin[:len(d.admin)-1], "prefix changed": "so_" + d.admin[3:], "doubled": d.admin + d.admin, "hash": "sa_" + strings.Repeat("0", 38),
	}
	// What a token for one command may call: it does nothing else.
	everybody := map[string]bool{
		"/slipway.v1.SystemService/WhoAmI": true, "/slipway.v1.SystemService/Info": true, "/slipway.v1.TokenService/DeriveToken": true,
		"/slipway.v1.TokenService/ListTokens": true, "/slipway.v1.TokenService/GetToken": true, "/slipway.v1.TokenService/RevokeTokens": true,
		"/slipway.v1.TokenService/DeleteTokens": true, "/slipway.v1.OrgService/ListApps": true, "/slipway.v1.ShellService/Exec": true,
	}
	methods := 0
	for name, info := range d.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			method := "/" + name + "/" + m.Name
			if strings.HasPrefix(name, "grpc.health.") || method == slipwayv1.TokenService_ExchangeToken_FullMethodName {
				continue
			}
			methods++
			for what, value := range values {
				err := invoke(as(t, value), d.cc, method, m)
				if c := status.Code(err); c != codes.Unauthenticated && c != codes.ResourceExhausted {
					t.Errorf("%s with a token that is %s: %v", method, what, err)
				}
			}
			if err := invoke(as(t, d.admin), d.cc, method, m); status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), "no rule") {
				t.Errorf("%s: %v", method, err)
			}
			err := invoke(as(t, exec.Value), d.cc, method, m)
			if open := everybody[method] || strings.HasPrefix(name, "grpc.reflection."); open == (status.Code(err) == codes.PermissionDenied) {
				t.Errorf("%s with a token for one command: %v", method, err)
			}
		}
	}
	if methods < 25 {
		t.Errorf("only %d methods found", methods)
	}
}

// What belongs to one org does not exist for another.
func TestTokensOfAnotherOrg(t *testing.T) {
	d := guarded(t, &script{}, 1)
	org, err := d.orgs.CreateOrg(as(t, d.admin), &slipwayv1.CreateOrgRequest{Name: "acme", Admin: "ana"})
	check(t, err)
	theirs := d.make(org.Token, &slipwayv1.CreateTokenRequest{Type: "deploy", App: "shop"})
	c := d.call(theirs.Value, shop())
	c.result()
	admin := as(t, d.admin)
	for name, err := range map[string]error{
		"get":    second(d.tokens.GetToken(admin, &slipwayv1.GetTokenRequest{Id: theirs.Token.Id})),
		"revoke": second(d.tokens.RevokeTokens(admin, &slipwayv1.RevokeTokensRequest{Ids: []string{theirs.Token.Id}})),
		"delete": second(d.tokens.DeleteTokens(admin, &slipwayv1.DeleteTokensRequest{Ids: []string{theirs.Token.Id}})),
		"build":  second(d.client.GetBuild(admin, &slipwayv1.GetBuildRequest{Id: c.id})),
		"cancel": second(d.client.CancelBuild(admin, &slipwayv1.CancelBuildRequest{Id: c.id})),
	} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.tokens.CreateToken(admin, &slipwayv1.CreateTokenRequest{Type: "deploy", App: "shop"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a token for their app: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A value is in the answer that made it and in no log.
func TestValuesAreShownOnce(t *testing.T) {
	d := guarded(t, &script{}, 0)
	made := d.make(d.admin, &slipwayv1.CreateTokenRequest{Type: "org", Name: "ci"})
	who, err := slipwayv1.NewSystemServiceClient(d.cc).WhoAmI(as(t, made.Value), &slipwayv1.WhoAmIRequest{})
	check(t, err)
	list, err := d.tokens.ListTokens(as(t, d.admin), &slipwayv1.ListTokensRequest{})
	check(t, err)
	bad := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+made.Value+"x")
	_, refusal := slipwayv1.NewSystemServiceClient(d.cc).WhoAmI(bad, &slipwayv1.WhoAmIRequest{}, grpc.WaitForReady(true))
	for name, text := range map[string]string{"record": made.Token.String(), "who": who.String(), "list": list.String(), "log": d.log.String(), "error": refusal.Error()} {
		if strings.Contains(text, made.Value[3:20]) {
			t.Errorf("the %s shows the value: %s", name, text)
		}
	}
	if who.TokenId != made.Token.Id || who.Org != "default" || who.User != "admin" || who.Role != "developer" {
		t.Errorf("it stands for %v", who)
	}
}
