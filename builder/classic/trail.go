package classic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/layercache"
)

// Names of inputs. What comes after a blank is which one.
const (
	inInstruction = "instruction"
	inExpanded    = "expanded"
	inFiles       = "files"
	inBase        = "base"
	inStage       = "stage"
	inImage       = "image"
	inNetwork     = "network"
	inArg         = "arg"
	inEnv         = "env"
)

// A memory is what is known of the app's last build of this recipe. It is read
// when the first step misses.
type memory struct {
	once  sync.Once
	trail layercache.Trail
	there bool

	listing sync.Once
	files   *manifestFS // nil if there is no list of them

	storing sync.Once
	stored  digest.Digest // the list of this build's files
	size    int64
}

// recipe names what is built: builds of another Dockerfile, target or platform
// explain nothing about this one.
func (b *build) recipe() string {
	return fmt.Sprintf("%q for %q on %s", b.file.name, strings.ToLower(b.job.Target), platforms.Format(b.job.Platform))
}

// lastTrail returns the trail of the app's last build; ok is false if none is
// kept. What cannot be read explains nothing, and stops nothing.
func (b *build) lastTrail(ctx context.Context) (t layercache.Trail, ok bool) {
	b.memory.once.Do(func() {
		var err error
		b.memory.trail, err = b.job.Cache.Trail(ctx, b.job.App, b.recipe())
		b.memory.there = err == nil
	})
	return b.memory.trail, b.memory.there
}

// lastFiles returns the files of the last build's context, nil if they are not
// known.
func (b *build) lastFiles(ctx context.Context) *manifestFS {
	t, ok := b.lastTrail(ctx)
	b.memory.listing.Do(func() {
		if !ok {
			return
		}
		packed, err := b.job.Cache.TrailFiles(ctx, t)
		if err != nil {
			return
		}
		if m, err := decodeFiles(packed); err == nil {
			b.memory.files = newManifestFS(m, b.job)
		}
	})
	return b.memory.files
}

// keepFiles stores the list of the context's files.
func (b *build) keepFiles(ctx context.Context, m *buildctx.Manifest) {
	b.memory.storing.Do(func() {
		list := encodeFiles(m)
		if len(list) == 0 {
			return
		}
		d, err := b.job.Cache.PutBytes(ctx, list)
		if err != nil {
			b.opts.Log.WarnContext(ctx, "keep the list of files", "build", b.job.ID, "err", err)
			return
		}
		b.memory.stored, b.memory.size = d, int64(len(list))
	})
}

// key names the stage in a trail.
func (s *stage) key() string {
	if s.name != "" {
		return s.name
	}
	return fmt.Sprint(s.index)
}

// stepsOf returns the steps of a stage.
func stepsOf(t layercache.Trail, stage string) []layercache.TrailStep {
	var out []layercache.TrailStep
	for _, st := range t.Steps {
		if st.Stage == stage {
			out = append(out, st)
		}
	}
	return out
}

// chain lists the stage's nodes up to n, FROM first.
func (s *stage) chain(n *node) []*node {
	var out []*node
	for at := n; at != nil && at.stage == s; at = at.parent {
		out = append(out, at)
	}
	slices.Reverse(out)
	return out
}

// Bounds of what a trail keeps.
const (
	maxTrailSteps = 500
	maxInputs     = 64  // of a step
	maxInput      = 160 // bytes of a value
)

// remember records the way that the build took, unless the last one took the
// same. What fails here only costs an explanation.
func (b *build) remember(ctx context.Context, failed bool) {
	ctx = context.WithoutCancel(ctx)
	old, had := b.lastTrail(ctx)
	t := layercache.Trail{App: b.job.App, Recipe: b.recipe(), Time: time.Now().UTC(), Files: old.Files, FilesSize: old.FilesSize}
	for _, s := range b.stages {
		if s.needed {
			t.Steps = append(t.Steps, s.trail(stepsOf(old, s.key()))...)
		}
	}
	if len(t.Steps) > maxTrailSteps || failed && !slices.ContainsFunc(t.Steps, finished) {
		return
	}
	if had && sameWay(old.Steps, t.Steps) {
		return
	}
	if m := b.context.manifest(); m != nil && !(had && sameFiles(old.Steps, t.Steps)) {
		b.keepFiles(ctx, m)
		t.Files, t.FilesSize = b.memory.stored, b.memory.size
	}
	if err := b.job.Cache.PutTrail(ctx, t); err != nil {
		b.opts.Log.WarnContext(ctx, "record how the build went", "build", b.job.ID, "err", err)
	}
}

func finished(st layercache.TrailStep) bool { return !st.Unfinished && st.Key != layercache.Key{} }

// sameWay reports whether two trails name the same steps with the same keys.
func sameWay(a, b []layercache.TrailStep) bool {
	return slices.EqualFunc(a, b, func(a, b layercache.TrailStep) bool {
		return a.Key == b.Key && a.Unfinished == b.Unfinished && a.Stage == b.Stage && a.Image == b.Image
	})
}

// sameFiles reports whether every step that read files of the context read
// what a step of the old trail had read, so that its list of files still holds.
func sameFiles(old, now []layercache.TrailStep) bool {
	had := map[string]bool{}
	for _, st := range old {
		if v := valueOf(st.Inputs, inFiles); v != "" && !st.Unfinished {
			had[v] = true
		}
	}
	return !slices.ContainsFunc(now, func(st layercache.TrailStep) bool {
		v := valueOf(st.Inputs, inFiles)
		return v != "" && !st.Unfinished && !had[v]
	})
}

func valueOf(parts []layercache.Part, name string) string {
	for _, p := range parts {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// trail describes the stage's steps. Those that this build did not get to are
// as they were before, unfinished.
func (s *stage) trail(old []layercache.TrailStep) []layercache.TrailStep {
	var out []layercache.TrailStep
	done := 0
	for _, n := range s.chain(s.node) {
		if !n.isMade() || n.err != nil {
			break
		}
		out, done = append(out, n.trail()), n.step.number
	}
	for _, st := range s.steps[done:] {
		out = append(out, s.unfinished(st, old))
	}
	return out
}

// unfinished describes a step that the build did not get to. How large its
// layer was before is worth knowing still.
func (s *stage) unfinished(st *step, old []layercache.TrailStep) layercache.TrailStep {
	out := layercache.TrailStep{
		Stage: s.key(), Source: clipText(st.source, maxInput), Unfinished: true,
		Inputs: []layercache.Part{{Name: inInstruction, Value: input("", st.source)}},
	}
	for _, was := range old {
		if was.Source == out.Source {
			out.DiffID, out.Blob, out.Size = was.DiffID, was.Blob, was.Size
		}
	}
	return out
}

func (n *node) trail() layercache.TrailStep {
	st := layercache.TrailStep{Stage: n.stage.key(), Source: clipText(n.step.source, maxInput), Key: n.key, Image: n.id, Inputs: n.explained()}
	if n.layer != nil {
		st.DiffID, st.Blob, st.Size = n.layer.DiffID, n.layer.Descriptor.Digest, n.layer.Descriptor.Size
	}
	return st
}

// explained returns the node's inputs.
func (n *node) explained() []layercache.Part {
	if n.inputs == nil {
		return nil
	}
	in := n.inputs()
	return in[:min(len(in), maxInputs)]
}

// manifest returns the context's manifest if a step has looked at it.
func (c *contextFiles) manifest() *buildctx.Manifest {
	if c.fs == nil {
		return nil
	}
	return c.fs.Manifest
}

// variables matches what an instruction refers to.
var variables = regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`)

// inputsOf lists what a step depends on beyond its parent: its text, the
// variables in it, and more. expanded is the whole of it, variables replaced.
func (s *stage) inputsOf(st *step, image *node, expanded string, more ...layercache.Part) []layercache.Part {
	out := []layercache.Part{{Name: inInstruction, Value: input("", st.source)}}
	args, seen := s.scope.recorded(s.scope.values(image.image.Config.Env)), map[string]bool{}
	for _, p := range more {
		if name, ok := strings.CutPrefix(p.Name, inArg+" "); ok {
			seen[name] = true
		}
	}
	for _, m := range variables.FindAllStringSubmatch(st.source, maxInputs) {
		name := m[1]
		if seen[name] {
			continue
		}
		seen[name] = true
		if v, ok := args[name]; ok {
			out = append(out, layercache.Part{Name: inArg + " " + name, Value: input(name, v)})
		}
		for _, kv := range image.image.Config.Env {
			if k, v, _ := strings.Cut(kv, "="); k == name {
				out = append(out, layercache.Part{Name: inEnv + " " + name, Value: input(name, v)})
			}
		}
	}
	out = append(out, more...)
	return append(out, layercache.Part{Name: inExpanded, Value: short(expanded)})
}

// argInputs lists the ARGs that a RUN sees.
func argInputs(values map[string]string) []layercache.Part {
	var out []layercache.Part
	for _, kv := range pairs(values) {
		name, v, _ := strings.Cut(kv, "=")
		out = append(out, layercache.Part{Name: inArg + " " + name, Value: input(name, v)})
	}
	return out
}

// private matches names of variables whose values are better not shown.
var private = regexp.MustCompile(`(?i)(token|secret|passw|pwd|credential|auth|private|api_?key|access_?key|^key$|_key$)`)

// input is a value as a trail has it: what may be shown of it, and after a NUL
// a hash of all of it.
func input(name, value string) string {
	shown := clipText(value, maxInput)
	if private.MatchString(name) {
		shown = ""
	}
	return shown + "\x00" + short(value)
}

// shown is what people see of an input: its beginning, or else of its hash.
func shown(value string) string {
	text, hash, _ := strings.Cut(value, "\x00")
	if text == "" && hash != short("") && hash != "" {
		return hash[:4] + "…"
	}
	return clipText(strings.Join(strings.Fields(text), " "), 60)
}

// short is the beginning of a value's hash.
func short(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:8])
}

// shortID is the beginning of a digest, as people tell them apart.
func shortID(d digest.Digest) string {
	if hash := d.Encoded(); len(hash) > 12 {
		return string(d.Algorithm()) + ":" + hash[:12] + "…"
	}
	return d.String()
}

func clipText(s string, n int) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// transferInputs returns the inputs of a COPY or ADD of files of the context.
func (s *stage) transferInputs(st *step, t *transfer, hash string) func() []layercache.Part {
	return known(s.inputsOf(st, s.node, t.comment("", destOf(st))+strings.Join(t.patterns, "\x00"), layercache.Part{Name: inFiles, Value: short(hash)}))
}

// inputs returns those of the COPY --from. The identity of a stage is known
// when it is made.
func (v *fromStage) inputs(st *step, from string) func() []layercache.Part {
	s := v.stage
	own := s.inputsOf(st, s.node, v.transfer.comment("", v.dest)+strings.Join(v.patterns, "\x00"))
	return func() []layercache.Part {
		source := layercache.Part{Name: inStage + " " + from, Value: shortID(v.src.id)}
		if img := s.other[from]; img != nil && s.build.stageNamed(from, s.index) == nil {
			source = imageInput(inImage, from, img.Digest)
		}
		return append([]layercache.Part{source}, own...)
	}
}

// known returns inputs that are known already.
func known(in []layercache.Part) func() []layercache.Part {
	return func() []layercache.Part { return in }
}
