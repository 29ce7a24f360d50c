package classic_test

import (
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A plan counts what caches elsewhere have, and brings nothing of it.
func TestForecastWithCacheFrom(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}}).check("--------")
	b := w.elsewhere()
	f, _ := b.plan(request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	if got := marks(f); got != "++++++++" {
		t.Errorf("plan %s", got)
	}
	f, _ = b.plan(request{dir: dir, dockerfile: strings.Replace(lucky, "ENV A=b", "ENV A=c", 1), start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	t.Log(marks(f), f)
	f, _ = b.plan(request{dir: dir, dockerfile: lucky})
	if got := marks(f); strings.Contains(got, "+") {
		t.Errorf("without the cache, plan %s", got)
	}
}
