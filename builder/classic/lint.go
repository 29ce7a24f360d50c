package classic

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// checkArg is the build arg that says how to lint, as "# check=" does. It
// wins over that.
const checkArg = "BUILDKIT_DOCKERFILE_CHECK"

const (
	// maxLinted is how many instructions are linted, with their variables and
	// sources: the linter takes longer with the square of them, and cannot be
	// stopped.
	maxLinted = 1000
	// maxFindings is how many findings are told, maxNamed how many an error
	// names.
	maxFindings = 100
	maxNamed    = 20
)

// lint looks the Dockerfile over with BuildKit's rules, when the base images
// are known. It tells what it finds; with error=true that ends the build. A
// linter that fails itself ends nothing.
func (b *build) lint(ctx context.Context) error {
	content := b.job.GetDockerfile().GetContent()
	check, line := checkOptions(content)
	if v, ok := b.job.BuildArgs[checkArg]; ok {
		b.args.use(checkArg)
		check, line = v, 0
	}
	rules, err := linter.ParseLintOptions(check)
	if err != nil {
		b.warn(line, "the Dockerfile is not linted: %v", err)
		return nil
	}
	if rules.SkipAll && !rules.ExperimentalAll && len(rules.ExperimentalRules) == 0 {
		return nil
	}
	if b.weight() > maxLinted {
		b.warn(0, "the Dockerfile is not linted: it has more than %d instructions and variables", maxLinted)
		return nil
	}
	findings := b.findings(ctx, content, check)
	if rules.ReturnAsError && len(findings) > 0 {
		return violation(findings)
	}
	for _, w := range findings[:min(len(findings), maxFindings)] {
		b.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Warning{Warning: w}})
	}
	if more := len(findings) - maxFindings; more > 0 {
		b.warn(0, "the linter found %s more", count(more, "fault"))
	}
	return nil
}

// weight counts what the linter looks at.
func (b *build) weight() int {
	n := len(b.file.meta)
	for _, s := range b.stages {
		n += 1 + len(s.def.Commands)
		if s.base != nil {
			n += len(s.base.Config.Config.Env)
		}
		for _, cmd := range s.def.Commands {
			switch cmd := cmd.(type) {
			case *instructions.EnvCommand:
				n += len(cmd.Env)
			case *instructions.ArgCommand:
				n += len(cmd.Args)
			case *instructions.CopyCommand:
				n += len(cmd.SourcePaths) + len(cmd.SourceContents)
			case *instructions.AddCommand:
				n += len(cmd.SourcePaths) + len(cmd.SourceContents)
			}
		}
	}
	return n
}

func violation(findings []*slipwayv1.Warning) error {
	var texts []string
	for _, w := range findings[:min(len(findings), maxNamed)] {
		texts = append(texts, fmt.Sprintf("line %d: %s: %s", w.Line, w.Rule, w.Message))
	}
	if more := len(findings) - maxNamed; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	err := failure.Userf(failure.DockerfileInvalid, "mend the lines, or leave rules out with # check=skip=RULE,…;error=true",
		"the linter found %s, and error=true is set: %s", count(len(findings), "fault"), strings.Join(texts, "; "))
	return failure.At(err, failure.Preflight, int(findings[0].Line))
}

// checkOptions is what "# check=" says, and its line.
func checkOptions(content []byte) (options string, line int) {
	options, _, at, _ := parser.ParseDirective("check", content)
	if len(at) > 0 {
		line = at[0].Start.Line
	}
	return options, line
}

// withOptions returns the Dockerfile with other lint options, and how many
// lines that adds at its top.
func withOptions(content []byte, check string) (out []byte, added int) {
	was, line := checkOptions(content)
	directive := []byte("# check=" + check)
	if was == check {
		return content, 0
	}
	if line == 0 {
		content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
		return slices.Concat(directive, []byte("\n"), content), 1
	}
	lines := bytes.Split(content, []byte("\n"))
	lines[line-1] = directive
	return bytes.Join(lines, []byte("\n")), 0
}

// findings runs the linter and returns what it found, by line, each once.
func (b *build) findings(ctx context.Context, content []byte, check string) (found []*slipwayv1.Warning) {
	defer func() {
		if p := recover(); p != nil {
			b.opts.Log.Error("lint", "build", b.job.ID, "panic", p)
		}
	}()
	content, added := withOptions(content, check)
	var mu sync.Mutex
	target, all := b.lintTarget()
	args := maps.Clone(b.job.BuildArgs) // the linter writes into them
	delete(args, checkArg)
	_, err := dockerfile2llb.Dockerfile2LLB(ctx, content, dockerfile2llb.ConvertOpt{
		Config:         dockerui.Config{BuildArgs: args, Target: target, BuildPlatforms: []ocispec.Platform{b.job.Platform}},
		TargetPlatform: &b.job.Platform,
		MetaResolver:   b.resolved(),
		AllStages:      all,
		Warn: func(rule, _, url, message string, at []parser.Range) {
			mu.Lock()
			defer mu.Unlock()
			w := &slipwayv1.Warning{Message: message, Rule: rule, Url: url}
			if len(at) > 0 {
				w.Line = uint32(max(0, at[0].Start.Line-added))
			}
			found = append(found, w)
		},
	})
	if err != nil { // it is stricter in places, and that is no matter here
		b.opts.Log.Debug("lint", "build", b.job.ID, "err", err)
	}
	slices.SortStableFunc(found, func(x, y *slipwayv1.Warning) int {
		return cmp.Or(cmp.Compare(x.Line, y.Line), cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Message, y.Message))
	})
	return slices.CompactFunc(found, func(x, y *slipwayv1.Warning) bool {
		return x.Line == y.Line && x.Rule == y.Rule && x.Message == y.Message
	})
}

// lintTarget names the target as the linter knows it: one without a name only
// if it is the last stage.
func (b *build) lintTarget() (name string, all bool) {
	if b.target.name == "" && b.file.cut {
		return "", true
	}
	return b.target.name, false
}

// linted answers the linter's questions about images with what preflight
// resolved. Of other images it knows nothing, and asks nobody.
type linted map[string]*base.Image

func (b *build) resolved() linted {
	k := linted{}
	add := func(ref string, img *base.Image) {
		if named, err := reference.ParseNormalizedNamed(ref); err == nil && img != nil {
			k[reference.TagNameOnly(named).String()] = img
		}
	}
	for _, s := range b.stages {
		add(s.ref, s.base)
		for ref, img := range s.other {
			add(ref, img)
		}
	}
	return k
}

// ResolveImageConfig implements llb.ImageMetaResolver.
func (k linted) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	if img := k[ref]; img != nil {
		return ref, "", img.RawConfig, nil
	}
	var empty dockerspec.DockerOCIImage
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		empty.Platform = *opt.ImageOpt.Platform
	}
	raw, err := json.Marshal(empty)
	return ref, "", raw, err
}
