package server_test

import (
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A plan is not a build: it is not listed, and does not stand for the build
// with the same key. Its log can be read like any other.
func TestPlanIsNoBuild(t *testing.T) {
	d := start(t, &script{build: needAll}, 1)
	s := shop()
	s.PlanOnly, s.IdempotencyKey = true, "k"
	c := d.call("acme", s)
	wantCode(t, c.result(), "not_supported") // the scripted pipeline cannot tell

	list, err := d.client.ListBuilds(as(t, "acme"), &slipwayv1.ListBuildsRequest{})
	check(t, err)
	if len(list.Builds) != 0 {
		t.Errorf("listed: %v", list.Builds)
	}
	if b, err := d.client.GetBuild(as(t, "acme"), &slipwayv1.GetBuildRequest{Id: c.id}); err != nil || b.Build.Status != slipwayv1.BuildStatus_BUILD_STATUS_FAILED {
		t.Errorf("the plan itself: %v, %v", b, err)
	}
	watch, err := d.client.WatchBuild(as(t, "acme"), &slipwayv1.WatchBuildRequest{Id: c.id})
	check(t, err)
	var last *slipwayv1.Event
	for {
		m, err := watch.Recv()
		if err != nil {
			break
		}
		last = m.Event
	}
	if last.GetResult() == nil {
		t.Errorf("the log ends with %v", last)
	}

	s = withContext(shop())
	s.IdempotencyKey = "k"
	src := scan(t, map[string]string{"a": "one"})
	again := d.call("acme", s)
	if again.joined {
		t.Error("a deploy joined the plan with its key")
	}
	again.manifest(src)
	check(t, again.recv(wantMsg))
	again.serveWant(src, again.wants[0])
	if res := again.result(); res.Error != nil {
		t.Errorf("deploy: %v", res.Error)
	}
}
