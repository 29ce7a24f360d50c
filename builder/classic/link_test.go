package classic_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// The layer of COPY --link does not know what is below it: links there are not
// followed, and the directories above the destination are its own.
func TestLinkDestination(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "f", "base/real/keep": "", "base/to": "->/real", "base/file": "a file", "base/wide/keep": ""})
	img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY --chmod=777 base /\nWORKDIR /wide\n" +
		"COPY --link f /to/\nCOPY --link f /file/\nCOPY --link --chown=3:4 f ./deep/\nCOPY f /real/plain\nCOPY --link f /wide/f"}).pull()
	for p, want := range map[string]node{
		"/to": {Type: "d", Mode: "0755", Own: "0:0"}, "/to/f": {Type: "f", Mode: "0644", Own: "0:0"}, "/real/keep": {Type: "f", Mode: "0777", Own: "0:0"},
		"/file": {Type: "d", Mode: "0755", Own: "0:0"}, "/file/f": {Type: "f", Mode: "0644", Own: "0:0"},
		"/wide": {Type: "d", Mode: "0755", Own: "0:0"}, "/wide/deep": {Type: "d", Mode: "0755", Own: "3:4"}, "/wide/deep/f": {Type: "f", Mode: "0644", Own: "3:4"},
		"/wide/keep": {Type: "f", Mode: "0777", Own: "0:0"}, "/real": {Type: "d", Mode: "0777", Own: "0:0"}, "/real/plain": {Type: "f", Mode: "0644", Own: "0:0"},
	} {
		if n := img.tree[p]; n.Type != want.Type || n.Mode != want.Mode || n.Own != want.Own {
			t.Errorf("%s is %+v, want %+v", p, n, want)
		}
	}
	if n, ok := img.tree["/real/f"]; ok {
		t.Errorf("/real/f is %+v: the link was followed", n)
	}
}

// A step with --link is a hit over an image that it has never been over, and
// gives what it gives without a cache, also to a RUN that stands on it.
func TestLinkCache(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	packed := string(gzipped(w, w.smallTar()))
	w.write(dir, map[string]string{"f": "f", "d/g": "g", "a.tgz": packed})
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer web.Close()
	for _, tc := range []struct{ name, before, after, rest, want string }{
		{"below changed", "RUN echo 1 > /x", "RUN echo 2 > /x", "COPY --link f /l/", "-+"},
		{"base changed", "COPY f /1", "COPY f /2", "COPY --link f d /l/\nENV a=b\nRUN cat /l/f", "-+--"},
		{"without the flag", "COPY f /1", "COPY f /2", "COPY f d /l/", "--"},
		{"from a stage", "RUN echo 1 > /x", "RUN echo 2 > /x", "COPY --from=src --link f /l/\nRUN cat /l/f", "-+-"},
		{"a URL", "RUN echo 1 > /x", "RUN echo 2 > /x", "ADD --link " + web.URL + "/f /l/", "-+"},
		{"an archive", "RUN echo 1 > /x", "RUN echo 2 > /x", "ADD --link a.tgz /l/\nRUN cat /l/d/f", "-+-"},
		{"other destination", "WORKDIR /a", "WORKDIR /b", "COPY --link f rel/", "--"},
		{"same destination", "WORKDIR /a", "WORKDIR /b", "COPY --link f /rel/", "-+"},
		{"other shell", `SHELL ["/bin/sh", "-ec"]`, `SHELL ["/bin/sh", "-c"]`, "COPY --link f /l/", "--"},
		{"numeric owner", "USER 1", "USER 2", "COPY --link --chown=1:2 f /l/", "-+"},
		{"named owner", "RUN echo u:x:7:8:::: > /etc/passwd; echo u:x:8: > /etc/group", "RUN echo u:x:9:9:::: > /etc/passwd; echo u:x:9: > /etc/group", "COPY --link --chown=u f /l/", "--"},
		{"all hits, then a miss", "ENV x=1", "ENV x=2", "COPY --link f /l/\nCOPY --link d /l/\nRUN ls /l > /list\nCOPY --link f /z\nCOPY d /l/d", "-++-+-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			org := "l-" + strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(tc.name))
			file := func(first string) string {
				return "FROM scratch AS src\nCOPY f /f\nFROM fid/base:1\n" + first + "\n" + tc.rest
			}
			w.build(t.Context(), request{org: org, dir: dir, dockerfile: file(tc.before)}).pull()
			second := w.build(t.Context(), request{org: org, dir: dir, dockerfile: file(tc.after)})
			img := second.pull()
			if got := second.cached(); !strings.HasSuffix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
			fresh := w.build(t.Context(), request{org: org + "-2", dir: dir, dockerfile: file(tc.after)})
			if !sameButTimes(fresh.pull(), img) {
				t.Error("the cache changes what is built")
			}
			if len(img.config.History) != len(fresh.pull().config.History) || img.config.History[len(img.config.History)-1].CreatedBy != fresh.pull().config.History[len(img.config.History)-1].CreatedBy {
				t.Errorf("history %+v", img.config.History)
			}
			if second.RootfsBytes != fresh.RootfsBytes {
				t.Errorf("the root file system has %d bytes, %d without a cache", second.RootfsBytes, fresh.RootfsBytes)
			}
			third := w.build(t.Context(), request{org: org, dir: dir, dockerfile: file(tc.after)})
			third.pull()
			if got := third.cached(); strings.Contains(got, "-") {
				t.Errorf("again: %s", got)
			}
		})
	}
}

// What is put on another image counts against the limit there, and a stage that
// shall not use the cache does not.
func TestLinkLimits(t *testing.T) {
	w := newWorld(t)
	w.max = 6 << 20
	dir := t.TempDir()
	w.write(dir, map[string]string{"four": strings.Repeat("x", 4<<20), "three": strings.Repeat("y", 3<<20)})
	w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY --link four /four"}).pull()
	o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY three /three\nCOPY --link four /four"})
	if e := o.Error; e.GetCode() != failure.TooLarge || e.GetLine() != 3 {
		t.Errorf("%v", e)
	}
	for i, start := range []*slipwayv1.Start{{NoCache: true}, {NoCacheStages: []string{"Last"}}, {NoCacheStages: []string{"0"}}} {
		o = w.build(t.Context(), request{dir: dir, dockerfile: fmt.Sprintf("FROM scratch AS last\nENV a=%d\nCOPY --link four /four", i), start: start})
		o.pull()
		if got := o.cached(); got != "--" {
			t.Errorf("%v: %s", start, got)
		}
	}
}
