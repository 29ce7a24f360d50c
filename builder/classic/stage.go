package classic

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A stage is one FROM and what follows it.
type stage struct {
	build  *build
	index  int
	name   string // lower case; "" if it has none
	label  string // for people; "" when it is the only stage
	def    instructions.Stage
	from   *stage          // FROM an earlier stage
	ref    string          // FROM an image; "" is scratch or a stage
	images map[string]bool // references named by COPY --from and RUN --mount
	deps   []*stage        // stages likewise
	steps  []*step

	triggers   []*step // inherited ONBUILD instructions, part of the first step
	badTrigger error   // what is wrong with the one after them; may be nil

	needed   bool
	resolved bool // its images are known
	final    bool // its layers are in the target's image

	base   *base.Image            // resolved ref
	other  map[string]*base.Image // resolved images
	pulled map[string]*node       // those that were copied from, by the name written

	scope  *scope
	node   *node
	cmdSet bool           // CMD was set in this stage
	busted bool           // a step missed the cache: none after it is looked up
	first  *step          // that missed
	blamed *stage         // whose step first is
	fresh  bool           // its steps are run, cached or not
	unsure bool           // of a forecast: it stands on what is not known before it runs
	ledger *limits.Ledger // of node's image, while layers are made; touched by one pass at a time
	done   chan struct{}  // closed when the last step has run
	err    error

	stopAhead context.CancelFunc // ends lookAhead; nil before it
	proof     proof
}

// makeStages turns the parsed stages into a graph.
func (b *build) makeStages() error {
	for i, def := range b.file.stages {
		s := &stage{build: b, index: i, name: strings.ToLower(def.Name), def: def, done: make(chan struct{}),
			images: map[string]bool{}, other: map[string]*base.Image{}, pulled: map[string]*node{}, scope: newScope(b)}
		if s.name != "" && b.stageNamed(s.name, i) != nil {
			return s.invalid(def.Location[0].Start.Line, "name each stage differently", "%s stage name already used", def.Name)
		}
		s.steps = append(s.steps, newStep(1, nil, def.SourceCode, def.Location))
		if err := s.resolveFrom(); err != nil {
			return err
		}
		for _, cmd := range def.Commands {
			st := newStep(len(s.steps)+1, cmd, sourceOf(cmd), cmd.Location())
			if err := s.check(st); err != nil {
				return err
			}
			if arg, ok := cmd.(*instructions.ArgCommand); ok {
				for _, a := range arg.Args {
					b.args.use(a.Key)
				}
			}
			s.steps = append(s.steps, st)
		}
		b.stages = append(b.stages, s)
	}
	b.stages[len(b.stages)-1].addLabels()
	return nil
}

// addLabels appends the request's labels as LABEL steps.
func (s *stage) addLabels() {
	for _, kv := range pairs(s.build.job.Labels) {
		k, v, _ := strings.Cut(kv, "=")
		cmd := instructions.NewLabelCommand(k, v, true)
		st := newStep(len(s.steps)+1, cmd, "LABEL "+kv, nil)
		s.steps = append(s.steps, st)
	}
}

// stageNamed finds a stage by name or index among the first n.
func (b *build) stageNamed(name string, n int) *stage {
	for _, s := range b.stages[:min(n, len(b.stages))] {
		if s.name != "" && s.name == strings.ToLower(name) {
			return s
		}
	}
	if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < min(n, len(b.stages)) {
		return b.stages[i]
	}
	return nil
}

func (s *stage) resolveFrom() error {
	line := s.def.Location[0].Start.Line
	lex := shell.NewLex(s.build.file.escape)
	env := shell.EnvsFromSlice(pairs(s.build.meta))
	name, _, err := lex.ProcessWord(s.def.BaseName, env)
	if err != nil {
		return failure.At(unexpanded(err), failure.Preflight, line)
	}
	if name == "" {
		return s.invalid(line, "give the ARG a default, or pass it with --build-arg", "base name (%s) should not be blank", s.def.BaseName)
	}
	// FROM resolves names only, never indexes.
	if from := s.build.stageNamed(name, s.index); from != nil && from.name == strings.ToLower(name) {
		s.from = from
		return nil
	}
	if name != "scratch" {
		s.ref = name
	}
	return nil
}

// check refuses what cannot work before anything runs, and notes what the
// step needs of other stages.
func (s *stage) check(st *step) error {
	if cmd, ok := st.cmd.(*instructions.RunCommand); ok {
		if err := s.checkRun(st, cmd); err != nil {
			return failure.At(err, failure.Preflight, st.line)
		}
	}
	for _, from := range sourcesOf(st.cmd) {
		if err := s.checkSource(st, from); err != nil {
			return err
		}
	}
	return nil
}

// checkSource notes a stage or image that a step reads.
func (s *stage) checkSource(st *step, from string) error {
	if dep := s.build.stageNamed(from, s.index); dep != nil {
		s.deps = append(s.deps, dep)
		return nil
	}
	if i, err := strconv.Atoi(from); err == nil {
		reason := "index out of bounds"
		if i == s.index {
			reason = "refers to current build stage"
		}
		return s.invalid(st.line, "name a stage that comes before this one", "invalid from flag value %s: %s", from, reason)
	}
	if strings.EqualFold(from, s.name) {
		return s.invalid(st.line, "name a stage that comes before this one", "invalid from flag value %s: refers to current build stage", from)
	}
	s.images[from] = true
	return nil
}

func (s *stage) invalid(line int, hint, format string, args ...any) error {
	return failure.At(failure.Userf(failure.DockerfileInvalid, hint, format, args...), failure.Preflight, line)
}

// need marks the stage and all that it stands on.
func (s *stage) need() {
	if s.needed {
		return
	}
	s.needed = true
	if s.from != nil {
		s.from.need()
	}
	for _, d := range s.deps {
		d.need()
	}
}

// resolveBases resolves the images of all needed stages. What the images'
// triggers need is resolved in a further round.
func (b *build) resolveBases(ctx context.Context) error {
	for {
		var round []*stage
		for _, s := range b.stages {
			if s.needed && !s.resolved {
				round = append(round, s)
				s.resolved = true
			}
		}
		if len(round) == 0 {
			return nil
		}
		if err := b.resolveStages(ctx, round); err != nil {
			return err
		}
		for _, s := range round {
			if err := s.readTriggers(); err != nil {
				return err
			}
			if err := b.resolveCopies(ctx, s, s.triggers); err != nil {
				return err
			}
			for _, d := range s.deps {
				d.need()
			}
		}
	}
}

// resolveStages resolves the images that the stages name, side by side.
func (b *build) resolveStages(ctx context.Context, stages []*stage) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range stages {
		if s.ref != "" {
			g.Go(func() (err error) {
				defer rescue.Into(&err)
				s.base, err = b.resolve(ctx, s.ref, s.def.Platform)
				return failure.At(s.baseHint(err), failure.Preflight, s.steps[0].line)
			})
		}
		g.Go(func() (err error) {
			defer rescue.Into(&err)
			return b.resolveCopies(ctx, s, s.steps)
		})
	}
	return g.Wait()
}

// resolveCopies resolves the images that the stage's steps read, each
// once.
func (b *build) resolveCopies(ctx context.Context, s *stage, steps []*step) error {
	for _, st := range steps {
		for _, from := range sourcesOf(st.cmd) {
			if !s.images[from] || s.other[from] != nil {
				continue
			}
			img, err := b.resolve(ctx, from, "")
			if err != nil {
				return failure.At(s.laterHint(err, from), failure.Preflight, st.line)
			}
			s.other[from] = img
		}
	}
	return nil
}

func (b *build) resolve(ctx context.Context, ref, platform string) (*base.Image, error) {
	want := b.job.Platform
	if platform != "" {
		lex := shell.NewLex(b.file.escape)
		text, _, err := lex.ProcessWord(platform, shell.EnvsFromSlice(pairs(b.meta)))
		if err == nil {
			want, err = base.Default(text)
		}
		if err != nil {
			return nil, failure.Userf(failure.DockerfileInvalid, "give it as os/arch, like linux/amd64", "failed to parse platform %s", text)
		}
	}
	img, err := b.opts.Bases.For(b.job.Cache.Name()).Resolve(ctx, ref, want, b.job.Session.Credentials)
	if err == nil {
		err = b.precharge(ctx, img)
	}
	return img, baseFailure(ref, err)
}

// precharge refuses an image that is known to be too large before anything of
// it or for it travels: by its ledgers, if the cache has them, else by what it
// has compressed.
func (b *build) precharge(ctx context.Context, img *base.Image) error {
	if b.job.MaxSize < 0 {
		return nil
	}
	var known []*layer.Layer
	var packed int64
	for i, desc := range img.Manifest.Layers {
		l, err := layer.Lookup(ctx, b.job.Cache, img.Config.RootFS.DiffIDs[i], desc.MediaType)
		if err == nil {
			known = append(known, l)
			continue
		}
		if !missing(err) {
			return err
		}
		packed += desc.Size
	}
	b.incoming.Add(packed)
	if len(known) == len(img.Manifest.Layers) {
		_, err := b.sizeOf(ctx, img, known)
		return err
	}
	if packed > b.job.MaxSize {
		return &limits.SizeError{Report: limits.Report{Total: packed, Max: b.job.MaxSize, Path: img.Ref + ", which is as large before it is unpacked"}}
	}
	return nil
}

// Writes estimates what the build puts on the disk beside the context: base
// images as they come and unpacked.
func (b *build) Writes() int64 { return 4 * b.incoming.Load() }

// baseFailure names what went wrong with a base image.
func baseFailure(ref string, err error) error {
	var known *failure.Error
	var wrong *base.PlatformError
	var size *limits.SizeError
	if err == nil || errors.As(err, &known) || errors.As(err, &size) {
		return err
	}
	what := "base image " + ref
	e := &failure.Error{Blame: failure.User, Message: fmt.Sprintf("%s: %v", what, err), Err: err}
	switch shared := builder.SourceFailure(what, err); {
	case errors.As(err, &wrong):
		e.Code, e.Hint = failure.PlatformMismatch, "use a base image for "+wrong.Want+", or build with --platform"
	case shared != nil:
		return shared
	case errors.Is(err, base.ErrInvalid):
		e.Code, e.Hint = failure.DockerfileInvalid, "check the image's name; a damaged image must be pushed again"
	default:
		return err
	}
	return e
}

// start runs the stage. Steps end with steps, layers in the making with ctx.
func (s *stage) start(ctx, steps context.Context) {
	s.build.group.Go(func() error {
		defer close(s.done)
		s.err = rescue.Run(func() error { return s.run(ctx, steps) })
		if s.err != nil {
			s.build.fail(s.err)
		}
		return s.err
	})
}

// result waits until the stage's last step has run.
func (s *stage) result(ctx context.Context) (*node, error) {
	select {
	case <-s.done:
		return s.node, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *stage) run(ctx, steps context.Context) error {
	defer s.endAhead()
	for _, st := range s.steps {
		if err := context.Cause(steps); err != nil {
			return err
		}
		if err := s.step(ctx, steps, st); err != nil {
			return err
		}
	}
	return nil
}

// step runs one instruction and tells the client.
func (s *stage) step(ctx, steps context.Context, st *step) error {
	if err := s.await(steps, st); err != nil {
		return err
	}
	emit := s.build.job.Session.Emit
	begun := time.Now()
	emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepStarted{StepStarted: &slipwayv1.StepStarted{Step: st.id}}})
	done := &slipwayv1.StepDone{Step: st.id}
	defer s.foreseen(st, done)
	var err error
	if st.number == 1 {
		err = s.begin(ctx, steps, st, done)
	} else {
		err = s.dispatch(ctx, steps, st, done)
	}
	if isLost(err) || isLost(context.Cause(steps)) {
		return err // the build begins anew
	}
	err = failure.At(err, failure.Build, st.line)
	done.DurationMs = time.Since(begun).Milliseconds()
	if err != nil {
		e := failure.As(err)
		done.Error, done.ExitCode = e.Message, int32(e.ExitCode)
	} else if o := s.build.opts.Observe; o != nil && st.number > 1 && s.build.forecast == nil {
		o.StepCached(done.Cached)
	}
	emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepDone{StepDone: done}})
	return err
}

// await waits for the stages that a step stands on or reads, so that the
// time it takes is not the step's.
func (s *stage) await(ctx context.Context, st *step) error {
	deps := []*stage{s.from}
	if st.number > 1 {
		deps = nil
		for _, from := range sourcesOf(st.cmd) {
			deps = append(deps, s.build.stageNamed(from, s.index))
		}
	}
	for _, dep := range deps {
		if dep == nil {
			continue
		}
		if _, err := dep.result(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) note(st *step, format string, args ...any) {
	s.build.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_StepLog{StepLog: &slipwayv1.StepLog{
		Step: st.id, Stream: slipwayv1.LogStream_LOG_STREAM_NOTE, Data: []byte(fmt.Sprintf(format, args...) + "\n"),
	}}})
}
