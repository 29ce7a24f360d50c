package limits_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/limits"
)

const mega = 1_000_000

var (
	debian  = limits.Source{Line: 1, Text: "FROM debian:bookworm"}
	install = limits.Source{Line: 2, Text: "RUN apt-get update && apt-get install -y gcc"}
	copyApp = limits.Source{Line: 3, Text: "COPY --chown=app . /app"}
	compile = limits.Source{Line: 4, Text: "run make"}
	fetch   = limits.Source{Line: 5, Text: "COPY --link --from=build /out /out"}
)

func TestAdvice(t *testing.T) {
	type layer struct {
		src limits.Source
		hs  []*tar.Header
	}
	apart := func(hs ...*tar.Header) []*tar.Header { return hs }
	for _, tc := range []struct {
		name   string
		layers []layer
		want   []string // how the texts begin
	}{
		{"nothing", nil, nil},
		{"base", []layer{{debian, apart(file("usr/lib/x", 100*mega), file("app/node_modules/x", 50*mega), file("var/lib/apt/lists/x", 50*mega))}},
			[]string{"choose a smaller base image: this one takes 200.05 MB"}},
		{"what a COPY brought", []layer{{copyApp, apart(
			file("app/node_modules/a/index.js", 50*mega), file("app/node_modules/a/node_modules/b/index.js", 10*mega), file("app/node_modules/a/.git/pack", mega),
			file("app/web/node_modules/c/index.js", 5*mega), file("app/.git/objects/pack/x", 20*mega),
			file("app/target/debug/x", 3*mega), file("app/src/target/aim", 9*mega), file("app/.venv/x", 10_000))}},
			[]string{
				"add **/node_modules to .dockerignore: line 3 copies 66.04 MB to /app/node_modules and 1 more",
				"add **/.git to .dockerignore: line 3 copies 20.01 MB to /app/.git",
				"add **/target to .dockerignore: line 3 copies 3.01 MB to /app/target",
			}},
		{"what others wrote", []layer{
			{compile, apart(file("app/node_modules/x", 90*mega), file("app/.git/x", 90*mega), file("big", 100*mega))},
			{fetch, apart(file("out/node_modules/x", 90*mega))}},
			[]string{"remove what is not needed within the RUN of line 4"}},
		{"caches of package managers", []layer{{install, apart(
			file("var/lib/apt/lists/deb.debian.org_Packages", 40*mega), file("var/cache/apt/archives/gcc.deb", 60*mega),
			file("root/.cache/pip/http/x", 30*mega), file("home/node/.npm/_cacache/x", 20*mega), file("root/.cache/yarn/x", 10*mega))}},
			[]string{
				"end the RUN of line 2 with && apt-get clean: it leaves 60.01 MB in /var/cache/apt",
				"end the RUN of line 2 with && rm -rf /var/lib/apt/lists/*: it leaves 40.01 MB in /var/lib/apt/lists",
				"use pip install --no-cache-dir in line 2: it leaves 30.01 MB in /root/.cache/pip",
				"end the RUN of line 2 with && npm cache clean --force: it leaves 20.00 MB in /home/node/.npm/_cacache",
			}},
		{"build tools", []layer{
			{debian, apart(file("usr/lib/libc.so", 50*mega), file("usr/local/go/bin/go", 200*mega))},
			{install, apart(file("usr/lib/gcc/x86_64/cc1", 80*mega), file("usr/lib/jvm/java-17/jmods/java.base", 40*mega))},
			{compile, apart(file("root/.cache/go-build/00/x", 300*mega), file("root/go/pkg/mod/x", 100*mega), file("root/.m2/repository/x", 60*mega))}},
			[]string{
				"build in a stage of its own and take only the result with COPY --from: line 4 brings 460.03 MB of build caches in /root/.cache/go-build and 2 more",
				"build in a stage of its own and take only the result with COPY --from: line 1 brings 200.02 MB of build tools in /usr/local/go",
				"build in a stage of its own and take only the result with COPY --from: line 2 brings 120.02 MB of build tools in /usr/lib/gcc and 1 more",
			}},
		{"removed too late", []layer{
			{install, apart(file("var/lib/big", 500*mega), file("f", mega))},
			{compile, apart(file("var/lib/.wh.big", 0), file("g", 2*mega))}},
			[]string{"remove files in the RUN that writes them: line 4 removes 498.00 MB of earlier lines"}},
		{"one large file", []layer{{copyApp, apart(file("app/train.parquet", 500*mega))}},
			[]string{"name what the image does not need in .dockerignore: line 3 copies 500.02 MB"}},
		{"from another stage", []layer{{fetch, apart(file("out/x", 500*mega))}},
			[]string{"copy less from the other stage: line 5 copies 500.02 MB"}},
		{"written by one, touched by another", []layer{
			{copyApp, apart(file("app/node_modules/a", 50*mega))},
			{compile, apart(file("app/node_modules/.bin/b", 10_000))}},
			[]string{"add **/node_modules to .dockerignore: line 3 copies 50.02 MB"}},
		{"a name as long as they come", []layer{{copyApp, apart(file(strings.Repeat("ü/", 1000)+"node_modules/a", 50*mega))}},
			[]string{"add **/node_modules to .dockerignore: line 3 copies 50.01 MB to …/ü/"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, again := limits.NewLedger(0), limits.NewLedger(0)
			for _, y := range tc.layers {
				if err := again.Replay(y.src, entries(t, l, y.src, y.hs...)); err != nil {
					t.Fatal(err)
				}
			}
			got := l.Report().Advice
			if fmt.Sprint(got) != fmt.Sprint(again.Report().Advice) {
				t.Errorf("replayed: %v, want %v", again.Report().Advice, got)
			}
			ok := len(got) >= len(tc.want)
			for i := range min(len(got), len(tc.want)) {
				ok = ok && strings.HasPrefix(got[i].Text, tc.want[i]) && len(got[i].Text) < 300
			}
			for _, a := range got[min(len(got), len(tc.want)):] { // the general one
				ok = ok && strings.Contains(a.Text, " the ") && len(got) <= 4
			}
			if !ok {
				t.Errorf("advice:\n%v\nwant:\n%v", got, tc.want)
			}
		})
	}
}

// The error that stops a build has all of the report.
func TestSizeErrorHasAdvice(t *testing.T) {
	l := limits.NewLedger(100 * mega)
	y := l.Begin(copyApp)
	for i := range 200 {
		if err := y.Entry(file(fmt.Sprintf("app/node_modules/%d/index.js", i), mega)); err != nil {
			var over *limits.SizeError
			if !errors.As(err, &over) || len(over.Advice) == 0 || over.Advice[0].Line != 3 || over.Advice[0].Bytes < 99*mega {
				t.Errorf("%v: %+v", err, over.Advice)
			}
			return
		}
	}
	t.Error("not stopped")
}
