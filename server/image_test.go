package server_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
)

// withRegistry has reg.test be the embedded registry, and hub.test be mirrored
// by it.
func withRegistry(o *server.Options, _ *fleet.Options) {
	o.Repository = func(image string) (string, bool, bool) {
		for prefix, mirrored := range map[string]bool{"reg.test/": false, "hub.test/": true} {
			if name, ok := strings.CutPrefix(image, prefix); ok {
				name, _, _ = strings.Cut(name, ":")
				return name, true, mirrored
			}
		}
		return "", false, false
	}
}

// Who may not push to a repository of the embedded registry gets no image or
// cache into it by a deploy.
func TestTargetOfAnotherApp(t *testing.T) {
	d := start(t, &script{}, 1, withRegistry)
	registry := slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY
	for _, tc := range []struct {
		token, target, cache string
		refused              bool
	}{
		{"acme", "reg.test/billing:v1", "reg.test/billing:cache", false},
		{"shop", "reg.test/shop:v1", "reg.test/shop:cache", false},
		{"shop", "reg.test/billing:v1", "", true},
		{"shop", "", "reg.test/billing:cache", true},
		{"shop", "reg.test/shop/deep", "", true},
		{"shop", "hub.test/billing:v1", "elsewhere.test/billing:cache", false}, // not written here
		{"shop", "", "", false},
	} {
		start := &slipwayv1.Start{App: "shop", Push: true}
		if tc.target != "" {
			start.Targets = []string{"elsewhere.test/shop", tc.target}
		}
		if tc.cache != "" {
			start.CacheTo = []*slipwayv1.CacheExport{{Type: registry, Ref: tc.cache}}
		}
		c := d.open(tc.token)
		c.start(start)
		_, err := c.stream.Recv()
		if refused := status.Code(err) == codes.PermissionDenied; refused != tc.refused || !refused && err != nil {
			t.Errorf("%s deploys to %q, cache %q: %v", tc.token, tc.target, tc.cache, err)
		}
		c.cancel()
	}
}

// Who may not pull from a repository of the embedded registry gets nothing out
// of it by deploying what it holds.
func TestImageOfAnotherOrg(t *testing.T) {
	d := start(t, &script{}, 1, withRegistry)
	d.call("acme", &slipwayv1.Start{App: "billing"}).result()
	for _, tc := range []struct {
		token, image string
		refused      bool
	}{
		{"acme", "reg.test/billing:v1", false},
		{"globex", "reg.test/billing:v1", true},
		{"shop", "reg.test/billing:v1", true}, // a deploy token of another app of the org
		{"acme", "hub.test/billing:v1", false},
		{"globex", "hub.test/billing:v1", true}, // a mirror is no way around
		{"shop", "hub.test/billing:v1", true},
		{"globex", "reg.test/library/debian:v1", false}, // nobody's app
		{"shop", "reg.test/library/debian:v1", true},    // as with docker pull
		{"shop", "hub.test/library/debian:v1", false},   // what is mirrored is for all
		{"globex", "elsewhere.test/billing:v1", false},
	} {
		c, app := d.open(tc.token), "shop"
		if tc.token == "globex" {
			app = "store"
		}
		c.start(&slipwayv1.Start{App: app, Pipeline: slipwayv1.Pipeline_PIPELINE_PREBUILT, Image: tc.image})
		_, err := c.stream.Recv()
		if refused := status.Code(err) == codes.PermissionDenied; refused != tc.refused || !refused && err != nil {
			t.Errorf("%s deploys %s: %v", tc.token, tc.image, err)
		}
		c.cancel()
	}
}

// The name of an app is that of a repository: the org that has it first keeps
// it, and others hear no more than that.
func TestAppOfAnotherOrg(t *testing.T) {
	d := start(t, &script{}, 1)
	c := d.call("acme", shop())
	c.result()
	for _, plan := range []bool{false, true} {
		s := shop()
		s.PlanOnly, s.IdempotencyKey = plan, "k"
		other := d.open("globex")
		other.start(s)
		_, err := other.stream.Recv()
		if status.Code(err) != codes.PermissionDenied || strings.Contains(status.Convert(err).Message(), "acme") {
			t.Errorf("globex builds an app of acme's: %v", err)
		}
		other.cancel()
	}
	if list, err := d.records.List(t.Context(), records.Query{Org: "globex", Limit: 9}); err != nil || len(list) > 0 {
		t.Errorf("globex has builds %v, %v", list, err)
	}
}
