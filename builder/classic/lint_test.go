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

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// lint returns what the linter said of a build, as "line rule".
func (o *outcome) lint() []string {
	var out []string
	for _, e := range o.events {
		if w := e.GetWarning(); w.GetRule() != "" {
			out = append(out, fmt.Sprint(w.Line, " ", w.Rule))
			if w.Message == "" || !strings.HasPrefix(w.Url, "https://") {
				o.world.tb.Errorf("%v has no message or no address", w)
			}
		}
	}
	return out
}

func succeeded(t *testing.T, o *outcome) {
	t.Helper()
	if o.GetError() != nil {
		t.Fatal(o.GetError())
	}
}

const shabby = `# a comment
FROM fid/base:1 as one
WORKDIR sub
ENV NAME value
ENV API_TOKEN=x
MAINTAINER me
copy Dockerfile /a
ENV SEE=$NOTHING

FROM fid/base:1 AS Two
COPY --from=0 /a /a
CMD echo hi
CMD ["echo"]
`

func TestLint(t *testing.T) {
	w := newWorld(t)
	all := []string{"2 FromAsCasing", "3 WorkdirRelativePath", "4 LegacyKeyValueFormat", "5 SecretsUsedInArgOrEnv", "6 MaintainerDeprecated",
		"7 ConsistentInstructionCasing", "8 UndefinedVar", "10 StageNameCasing", "12 JSONArgsRecommended", "12 MultipleInstructionsDisallowed"}
	few := []string{"10 StageNameCasing", "12 JSONArgsRecommended", "12 MultipleInstructionsDisallowed"}
	skip := "skip=FromAsCasing,WorkdirRelativePath,LegacyKeyValueFormat,SecretsUsedInArgOrEnv,MaintainerDeprecated,ConsistentInstructionCasing,UndefinedVar"
	for _, tc := range []struct {
		name, dockerfile, arg string
		want                  []string
		target                string
	}{
		{"every rule", shabby, "", all, ""},
		{"a target by number", strings.NewReplacer(" as one", "", "--from=0 /a", "Dockerfile").Replace(shabby), "", slices.Concat(all[1:7], few), "0"},
		{"skip", strings.Replace(shabby, "# a comment", "# check="+skip, 1), "", few, ""},
		{"skip all", strings.Replace(shabby, "# a comment", "# check=skip=all", 1), "", nil, ""},
		{"build arg", shabby, skip, few, ""},
		{"build arg wins", strings.Replace(shabby, "# a comment", "# check=skip=all;error=true", 1), skip, few, ""},
		{"build arg, byte order mark", "\ufeff" + shabby, skip, few, ""},
		{"build arg and other directive", strings.Replace(shabby, "# a comment", "# escape=`", 1), skip, few, ""},
		{"clean", "FROM fid/base:1\nCMD [\"true\"]\n", "", nil, ""},
		{"an empty line that continues", "FROM fid/base:1\nENV A=1 \\\n\n B=2\n", "", []string{"4 NoEmptyContinuation"}, ""},
		{"stages not needed", "FROM fid/base:1 AS x\nWORKDIR sub\nFROM scratch AS y\nCOPY Dockerfile /\n", "", nil, ""},
		{"an ARG that names no base", "ARG TAG\nFROM fid/base:${TAG:-1}\nCMD [\"x\"]\n", "", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := &slipwayv1.Start{BuildArgs: map[string]string{}, Target: tc.target}
			if tc.arg != "" {
				start.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"] = tc.arg
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(tc.dockerfile), 0o644); err != nil {
				t.Fatal(err)
			}
			got := w.on(t).build(t.Context(), request{dir: dir, dockerfile: tc.dockerfile, start: start})
			succeeded(t, got)
			if said := got.lint(); !slices.Equal(said, tc.want) {
				t.Errorf("the linter says %q, want %q", said, tc.want)
			}
			if unused := got.warnings(); slices.ContainsFunc(unused, func(s string) bool { return strings.Contains(s, "consumed") }) {
				t.Errorf("warnings %q", unused)
			}
		})
	}
}

// error=true ends the build before anything of it runs.
func TestLintErrors(t *testing.T) {
	w := newWorld(t)
	for _, arg := range []bool{false, true} {
		start, dockerfile := &slipwayv1.Start{}, shabby
		if arg {
			start.BuildArgs = map[string]string{"BUILDKIT_DOCKERFILE_CHECK": "skip=StageNameCasing;error=true"}
		} else {
			dockerfile = strings.Replace(shabby, "# a comment", "# check=skip=StageNameCasing;error=true", 1)
		}
		got := w.build(t.Context(), request{dockerfile: dockerfile, start: start})
		e := got.GetError()
		if e.GetCode() != failure.DockerfileInvalid || e.Phase != failure.Preflight || e.Line != 2 {
			t.Fatalf("result %v", got.Result)
		}
		for _, part := range []string{"9 faults", "line 2: FromAsCasing: ", "line 5: SecretsUsedInArgOrEnv: ", "line 8: UndefinedVar: ", "line 12: JSONArgsRecommended: "} {
			if !strings.Contains(e.Message, part) {
				t.Errorf("message %q lacks %q", e.Message, part)
			}
		}
		if strings.Contains(e.Message, "StageNameCasing") {
			t.Errorf("message %q names a rule that is left out", e.Message)
		}
	}
	clean := w.build(t.Context(), request{dockerfile: "# check=error=true\nFROM fid/base:1\nCMD [\"true\"]\n"})
	succeeded(t, clean)
}

// What base images set counts, and none is asked for again.
func TestLintKnowsBases(t *testing.T) {
	w := newWorld(t)
	w.push("fid/set", "1", dockerspec.DockerOCIImage{
		Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goarch}},
		Config: dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{
			Env: []string{"HOME_OF=/app"}, WorkingDir: "/srv"}},
	})
	got := w.build(t.Context(), request{dockerfile: "FROM fid/set:1\nWORKDIR /sub\nENV X=$HOME_OF\nENV Y=$HOME_OFF\n"})
	succeeded(t, got)
	if said := got.lint(); !slices.Equal(said, []string{"4 UndefinedVar"}) {
		t.Errorf("the linter says %q", said)
	}
	for _, e := range got.events {
		if w := e.GetWarning(); w != nil && !strings.Contains(w.Message, "did you mean $HOME_OF") {
			t.Errorf("message %q", w.Message)
		}
	}
}

// Options that make no sense are told, and end nothing.
func TestLintOptionsThatAreWrong(t *testing.T) {
	w := newWorld(t)
	got := w.build(t.Context(), request{dockerfile: "# check=mistake\nFROM fid/base:1 as x\n"})
	succeeded(t, got)
	if said := got.warnings(); len(said) != 1 || !strings.Contains(said[0], "not linted") {
		t.Errorf("warnings %q", said)
	}
}

// A Dockerfile of a size that nobody writes is built all the same.
func TestLintHasLimits(t *testing.T) {
	w := newWorld(t)
	got := w.build(t.Context(), request{dockerfile: "FROM fid/base:1\n" + strings.Repeat("LABEL a=$B\n", 120)})
	succeeded(t, got)
	if said := got.warnings(); len(said) != 101 || !strings.Contains(said[100], "20 faults more") {
		t.Errorf("%d warnings, the last %q", len(said), said[len(said)-1])
	}
	for _, dockerfile := range []string{
		strings.Repeat("FROM scratch\n", 1000) + "FROM fid/base:1 as x\n",
		"FROM fid/base:1 as x\nENV" + strings.Repeat(" A=1", 1000) + "\n",
	} {
		got = w.build(t.Context(), request{dockerfile: dockerfile})
		succeeded(t, got)
		if said := got.warnings(); len(said) != 1 || !strings.Contains(said[0], "more than 1000 instructions") {
			t.Errorf("warnings %q", said)
		}
	}
}
