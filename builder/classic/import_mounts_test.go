package classic_test

import (
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func TestZZMounts(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	df := `FROM fid/base:1 AS build
COPY src /src
RUN cat /src /proc/sys/kernel/random/uuid > /out
FROM fid/base:1
RUN --mount=type=bind,from=build,source=/out,target=/in cat /in > /final
RUN --mount=type=cache,target=/c cp /final /c/x && cat /proc/sys/kernel/random/uuid > /id
`
	first := w.build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	a := first.check("----")
	o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	o.check("++++")
	if o.Digest != first.Digest {
		t.Error("digest")
	}
	df = strings.Replace(df, "> /final", "> /final && true", 1)
	o = w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	b := o.check("++--")
	if a.tree["/final"].SHA256 != b.tree["/final"].SHA256 || a.tree["/final"].SHA256 == "" {
		t.Errorf("%+v %+v", a.tree["/final"], b.tree["/final"])
	}
}
