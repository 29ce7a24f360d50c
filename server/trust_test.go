package server_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/oidc"
	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
	"github.com/slipwayhq/slipway/tokens/store"
)

// startExchanging starts a daemon that trusts an issuer, and returns a context
// of an admin's calls.
func startExchanging(t *testing.T, issuer *oidctest.Issuer) (*daemon, context.Context) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldbtest.File(t))
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	s, err := store.New(t.Context(), db)
	check(t, err)
	v, err := oidc.New(&oidc.Options{CAFile: issuer.CAFile()})
	check(t, err)
	a, err := tokens.Open(t.Context(), tokens.Options{Store: s, Issuer: v})
	check(t, err)
	t.Cleanup(func() { check(t, a.Close()) })
	root := tokens.Principal{ID: "root", Name: "root", User: "root", Org: tokens.DefaultOrg, Type: tokens.TypeAdmin, Role: tokens.RoleAdmin, Scopes: tokens.Scopes(tokens.TypeAdmin)}
	_, _, value, err := a.CreateOrg(t.Context(), root, "acme", "ann")
	check(t, err)
	d := start(t, &script{}, 0, func(o *server.Options, _ *fleet.Options) { o.Auth, o.Tokens = a, a })
	return d, as(t, value)
}

// refusal returns what a status tells people.
func refusal(err error) *slipwayv1.Error {
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*slipwayv1.Error); ok {
			return e
		}
	}
	return nil
}

func TestExchange(t *testing.T) {
	issuer := oidctest.New(t)
	d, ann := startExchanging(t, issuer)
	orgs, service, system := slipwayv1.NewOrgServiceClient(d.cc), slipwayv1.NewTokenServiceClient(d.cc), slipwayv1.NewSystemServiceClient(d.cc)
	rule := &slipwayv1.Trust{Name: "shop", Issuer: issuer.URL(), Audience: "us", Claims: map[string]string{"repository": "acme/shop"}, Type: "deploy", App: "shop", Ttl: durationpb.New(10 * time.Minute)}
	made, err := orgs.CreateTrust(ann, &slipwayv1.CreateTrustRequest{Trust: rule})
	check(t, err)
	if got := made.Trust; got.CreatedBy != "ann" || got.Id == "" || got.Ttl.AsDuration() != 10*time.Minute || got.Created == nil {
		t.Errorf("rule %v", got)
	}
	list, err := orgs.ListTrusts(ann, &slipwayv1.ListTrustsRequest{})
	if err != nil || len(list.Trusts) != 1 || list.Trusts[0].Claims["repository"] != "acme/shop" {
		t.Errorf("rules %v, %v", list, err)
	}

	good := map[string]any{"repository": "acme/shop"}
	got, err := service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: issuer.Token("us", good)})
	check(t, err)
	if got.Rule != "shop" || got.Token.CreatedBy != "trust shop" || got.Token.Type != "deploy" || got.Token.Expires.AsTime().After(time.Now().Add(10*time.Minute)) {
		t.Errorf("token %v", got)
	}
	who, err := system.WhoAmI(as(t, got.Value), &slipwayv1.WhoAmIRequest{})
	if err != nil || who.Org != "acme" || who.App != "shop" {
		t.Errorf("who am I: %v, %v", who, err)
	}
	if _, err := orgs.CreateTrust(as(t, got.Value), &slipwayv1.CreateTrustRequest{Trust: rule}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a deploy token makes a rule: %v", err)
	}

	_, err = service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: issuer.Token("us", map[string]any{"repository": "evil/shop"})})
	if e := refusal(err); status.Code(err) != codes.Unauthenticated || e == nil || !strings.Contains(e.Message, `repository "evil/shop"`) || !strings.Contains(e.Hint, "trust create") {
		t.Errorf("another repository: %v, %v", err, refusal(err))
	}
	if _, err := service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: "x", ExpiresIn: durationpb.New(-1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("expires before it is made: %v", err)
	}

	if _, err := orgs.DeleteTrust(ann, &slipwayv1.DeleteTrustRequest{Id: "tru_0"}); status.Code(err) != codes.NotFound || refusal(err).GetHint() == "" {
		t.Errorf("a rule that is not there: %v", err)
	}
	_, err = orgs.DeleteTrust(ann, &slipwayv1.DeleteTrustRequest{Id: made.Trust.Id})
	check(t, err)
	if _, err := service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: issuer.Token("us", good)}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the rule is gone: %v", err)
	}
}

func TestExchangeTrouble(t *testing.T) {
	issuer := oidctest.New(t)
	d, ann := startExchanging(t, issuer)
	orgs, service := slipwayv1.NewOrgServiceClient(d.cc), slipwayv1.NewTokenServiceClient(d.cc)
	for _, bad := range []*slipwayv1.Trust{nil, {}, {Name: "x", Type: "deploy", App: "x", Audience: "us", Issuer: "http://id.example.com"},
		{Name: "x", Type: "deploy", App: "x", Audience: "us", Issuer: "https://gitlab.com"}, {Name: "x", Type: "readonly", Audience: "us", Issuer: issuer.URL(), Ttl: durationpb.New(-time.Hour)}} {
		if _, err := orgs.CreateTrust(ann, &slipwayv1.CreateTrustRequest{Trust: bad}); status.Code(err) != codes.InvalidArgument || refusal(err).GetHint() == "" {
			t.Errorf("%v: %v", bad, err)
		}
	}
	_, err := orgs.CreateTrust(ann, &slipwayv1.CreateTrustRequest{Trust: &slipwayv1.Trust{Name: "all", Issuer: issuer.URL(), Audience: "us", Type: "readonly"}})
	check(t, err)
	issuer.Pretend(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "secret words of the intranet", http.StatusBadGateway)
	})
	_, err = service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: issuer.Token("us", nil)})
	if status.Code(err) != codes.Unavailable || !refusal(err).GetRetryable() || strings.Contains(err.Error(), "intranet") || strings.Contains(refusal(err).GetMessage(), issuer.URL()) {
		t.Errorf("the issuer is away: %v", err)
	}
	for range 12 {
		_, err = service.ExchangeToken(t.Context(), &slipwayv1.ExchangeTokenRequest{IdToken: "x"})
	}
	if e := refusal(err); e.GetCode() != "busy" {
		t.Errorf("after a dozen failures: %v", err)
	}
}
