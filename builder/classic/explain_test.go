package classic_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/classic/casetest"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// whys returns what was said of each step that ran, by the first words of its
// source: the reason in lower case, and the sentence.
func (o *outcome) whys() map[string]string {
	source, out := map[uint32]string{}, map[string]string{}
	for _, e := range o.events {
		for _, s := range e.GetPlan().GetSteps() {
			source[s.Step] = s.Source
		}
		if d := e.GetStepDone(); d != nil && d.Why != nil {
			out[source[d.Step]] = reason(d.Why) + ": " + d.Miss
		} else if d != nil && d.Miss != "" {
			out[source[d.Step]] = "no why: " + d.Miss
		}
	}
	return out
}

func reason(m *slipwayv1.Miss) string {
	return strings.ToLower(strings.TrimPrefix(m.Reason.String(), "MISS_REASON_"))
}

// TestExplain changes one thing between two builds and looks at what the second
// says of its first step that runs. The step after it blames it.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	const dockerfile = `FROM fid/base:1
ARG WHO=one
ENV MOOD=good
COPY package.json lock* ./
RUN echo $WHO > /who
COPY . /app
RUN true
`
	for _, tc := range []struct {
		name  string
		edit  func(dir string)
		text  func(string) string
		start *slipwayv1.Start
		step  string // source of the step, "" if none ran
		want  string
		first bool // it is the last step: none blames it
		exact bool // nothing else is said
	}{
		{name: "nothing"},
		{name: "file", step: "COPY package.json lock* ./", want: "changed: lock.json changed (was 6b86…, is d929…)", edit: func(dir string) { w.write(dir, map[string]string{"lock.json": "other"}) }},
		{name: "two files", step: "COPY . /app", want: "and 1 more file", edit: func(dir string) { w.write(dir, map[string]string{"src/a": "A", "src/b": "B"}) }},
		{name: "added file", step: "COPY . /app", want: "changed: src/c is new", edit: func(dir string) { w.write(dir, map[string]string{"src/c": "c"}) }},
		{name: "removed file", step: "COPY . /app", want: "changed: src/a is gone", edit: func(dir string) { w.must(os.Remove(filepath.Join(dir, "src/a"))) }},
		{name: "added match", step: "COPY package.json lock* ./", want: "changed: lock2 is new", edit: func(dir string) { w.write(dir, map[string]string{"lock2": "c"}) }},
		{name: "mode", step: "COPY . /app", want: "changed: the mode of src/a changed (was 0644, is 0755)", edit: func(dir string) { w.must(os.Chmod(filepath.Join(dir, "src/a"), 0o755)) }},
		{name: "arg", step: "RUN echo $WHO > /who", want: "changed: ARG WHO changed (was one, is two)", exact: true, start: &slipwayv1.Start{BuildArgs: map[string]string{"WHO": "two"}}},
		{name: "instruction", step: "RUN false || true", want: "changed: the instruction changed (was RUN true, is RUN false || true)", first: true,
			text: func(s string) string { return strings.Replace(s, "RUN true", "RUN false || true", 1) }},
		{name: "new step", step: "RUN echo new", want: "new: new step", text: func(s string) string { return strings.Replace(s, "COPY . /app", "RUN echo new\nCOPY . /app", 1) }},
		{name: "step gone", step: "COPY . /app", want: "changed: RUN echo $WHO > /who before it is gone", text: func(s string) string { return strings.Replace(s, "RUN echo $WHO > /who\n", "", 1) }},
		{name: "other Dockerfile", step: "RUN true", want: "new: no earlier build", first: true, start: &slipwayv1.Start{Dockerfile: &slipwayv1.Dockerfile{Name: "Other", Content: []byte("FROM fid/base:1\nRUN true")}}},
		{name: "no cache", step: "ENV MOOD=good", want: "disabled: --no-cache", first: true, start: &slipwayv1.Start{NoCache: true}},
		{name: "no cache of a stage", step: "ENV MOOD=good", want: "disabled: --no-cache-filter 0", first: true, start: &slipwayv1.Start{NoCacheStages: []string{"0"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, org, dir := w.on(t), "explain "+tc.name, t.TempDir()
			w.write(dir, map[string]string{"package.json": "{}", "lock.json": "1", "src/a": "a", "src/b": "b"})
			text := dockerfile
			w.build(t.Context(), request{org: org, dir: dir, dockerfile: text}).pull()
			if tc.edit != nil {
				tc.edit(dir)
			}
			if tc.text != nil {
				text = tc.text(text)
			}
			o := w.build(t.Context(), request{org: org, dir: dir, dockerfile: text, start: tc.start})
			o.pull()
			whys := o.whys()
			if tc.step == "" {
				if len(whys) > 0 {
					t.Fatalf("cached steps say why they are not: %q", whys)
				}
				return
			}
			if !strings.Contains(whys[tc.step], tc.want) || tc.exact && whys[tc.step] != tc.want {
				t.Errorf("%s: %q, want %q; all: %q", tc.step, whys[tc.step], tc.want, whys)
			}
			if !tc.first && !strings.HasPrefix(whys["RUN true"], "parent: parent [") {
				t.Errorf("the last step does not blame another one: %q", whys)
			}
		})
	}
}

// A base that moved, a stage that was built anew, what was evicted, and what
// did not finish.
func TestExplainParents(t *testing.T) {
	w := newWorld(t)
	say := func(name string, o *outcome, step, want string) {
		t.Helper()
		if got := o.whys()[step]; !strings.Contains(got, want) {
			t.Errorf("%s: %s: %q, want %q; all: %q", name, step, got, want, o.whys())
		}
	}
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "one", "g": "g"})
	const stages = "FROM fid/base:1 AS build\nCOPY f /f\nRUN cat /f > /made\nFROM fid/base:1\nCOPY --from=build /made /made\nCOPY g /g\n"
	w.build(t.Context(), request{dir: dir, dockerfile: stages}).pull()
	w.write(dir, map[string]string{"f": "two"})
	o := w.build(t.Context(), request{dir: dir, dockerfile: stages})
	say("stage", o, "COPY f /f", "f changed (was ")
	say("stage", o, "COPY --from=build /made /made", "changed: stage build changed ([build 2/3] ran)")
	say("stage", o, "COPY g /g", "parent: parent [stage-1 2/3]")
	if o.cached() != "----" {
		t.Errorf("cached %q", o.cached())
	}

	if _, err := w.cache.Prune(t.Context(), layercache.PruneOptions{Org: "acme", All: true}); err != nil {
		t.Fatal(err)
	}
	o = w.build(t.Context(), request{dir: dir, dockerfile: stages})
	say("pruned", o, "COPY f /f", "evicted: removed from the cache at ")
	say("pruned", o, "COPY f /f", "pruned by request")

	layers := o.Layers
	w.must(os.Remove(filepath.Join(w.root, "cache/content/blobs/sha256", strings.TrimPrefix(layers[len(layers)-1].Digest, "sha256:"))))
	o = w.build(t.Context(), request{dir: dir, dockerfile: stages})
	say("damaged", o, "COPY g /g", "damaged: found damaged at ")
	if o.cached() != "+++-" {
		t.Errorf("cached %q", o.cached())
	}

	const failing = "FROM fid/base:1\nRUN true\nRUN test -e /proc/self/nothing\n"
	fail := &slipwayv1.Start{Dockerfile: &slipwayv1.Dockerfile{Name: "Failing", Content: []byte(failing)}}
	if o = w.build(t.Context(), request{start: fail}); o.Error == nil {
		t.Fatal("it did not fail")
	}
	say("failing", o, "RUN true", "no earlier build")
	o = w.build(t.Context(), request{start: fail})
	say("failing again", o, "RUN test -e /proc/self/nothing", "new: it did not finish in the last build")

	const moving = "FROM fid/moving:1\nRUN true\nRUN echo\n"
	move := &slipwayv1.Start{Dockerfile: &slipwayv1.Dockerfile{Name: "Moving", Content: []byte(moving)}}
	config := dockerspec.DockerOCIImage{Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goarch}}}
	_, plain := casetest.Base(t, casesDir)
	w.push("fid/moving", "1", config, plain)
	w.build(t.Context(), request{start: move}).pull()
	config.Config.Labels = map[string]string{"moved": "yes"}
	w.push("fid/moving", "1", config, plain)
	o = w.build(t.Context(), request{start: move})
	say("base", o, "RUN true", "changed: base fid/moving:1 changed (was sha256:")
}

// An unchanged build reads the trail and writes none, and one build's trail
// serves the next, whichever of them was cached.
func TestTrailFollowsTheLastBuild(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	build := func(text string) *outcome {
		w.write(dir, map[string]string{"f": text})
		return w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY . /\n"})
	}
	build("one").pull()
	build("two").pull()
	if got := build("one").cached(); got != "+" {
		t.Fatalf("cached %q", got)
	}
	one := "76" // SHA-256 of "one" begins with 7692
	if got := build("three").whys()["COPY . /"]; !strings.Contains(got, "was "+one) {
		t.Errorf("%q, want the digest of the build before", got)
	}
}

// Values of secrets that were given as ARGs are told apart and not shown.
func TestExplainHidesSecrets(t *testing.T) {
	w := newWorld(t)
	text := "FROM fid/base:1\nARG API_TOKEN\nARG LONG\nRUN true\n"
	build := func(token string) *outcome {
		return w.build(t.Context(), request{dockerfile: text, start: &slipwayv1.Start{BuildArgs: map[string]string{"API_TOKEN": token, "LONG": strings.Repeat("long ", 40)}}})
	}
	build("hunter2").pull()
	o := build("hunter3")
	why := o.whys()["RUN true"]
	if !strings.Contains(why, "ARG API_TOKEN changed (was ") || strings.Contains(why, "hunter") {
		t.Errorf("%q", why)
	}
	for _, e := range o.events {
		if strings.Contains(e.String(), "hunter") && e.GetStepDone() != nil {
			t.Errorf("event %v", e)
		}
	}
	// Proxies are no part of a key, and may hold a password.
	proxied := func(url string) *outcome {
		return w.build(t.Context(), request{dockerfile: "FROM fid/base:1\nRUN echo $HTTP_PROXY > /dev/null\nRUN true\n", start: &slipwayv1.Start{BuildArgs: map[string]string{"HTTP_PROXY": url}, NoCache: true}})
	}
	proxied("http://u:hunter2@x").pull()
	if tr, err := w.cache.Org("acme").Trail(t.Context(), "case", `"Dockerfile" for "" on linux/`+goarch); err != nil || strings.Contains(fmt.Sprint(tr), "hunter") || strings.Contains(fmt.Sprint(tr), "arg HTTP_PROXY") {
		t.Errorf("trail %v, %v", tr, err)
	}
}

func TestNoCacheStages(t *testing.T) {
	w := newWorld(t)
	const text = "FROM fid/base:1 AS one\nRUN echo 1 > /1\nFROM fid/base:1 AS two\nRUN echo 2 > /2\nFROM fid/base:1\nCOPY --from=one /1 /1\nCOPY --from=two /2 /2\n"
	start := func(stages ...string) *slipwayv1.Start { return &slipwayv1.Start{NoCacheStages: stages} }
	w.build(t.Context(), request{dockerfile: text}).pull()
	o := w.build(t.Context(), request{dockerfile: text, start: start("TWO")})
	if got := o.cached(); got != "+-++" && got != "+-+-" {
		t.Errorf("cached %q, want only the steps of two, and what it changes, to run", got)
	}
	if got := o.whys()["RUN echo 2 > /2"]; got != "disabled: --no-cache-filter two" {
		t.Errorf("%q", got)
	}
	o = w.build(t.Context(), request{dockerfile: text, start: start("three")})
	if o.Error == nil || o.Error.Code != "dockerfile_invalid" || !strings.Contains(o.Error.Message, "three") || o.Error.Phase != "preflight" {
		t.Errorf("unknown stage: %v", o.Error)
	}
	if slices.ContainsFunc(o.events, func(e *slipwayv1.Event) bool { return e.GetStepStarted() != nil }) {
		t.Error("steps were looked at although a stage is unknown")
	}
}
