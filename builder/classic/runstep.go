package classic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"archive/tar"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/oklog/ulid/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// checkRun refuses flags that this pipeline does not have.
func (s *stage) checkRun(st *step, cmd *instructions.RunCommand) error {
	for _, flag := range cmd.FlagsUsed {
		switch flag {
		case "network", "mount":
		case "security":
			return failure.Userf(failure.NotSupported, "leave the flag out: steps always run with Docker's default rights and are root in their container",
				"RUN --security is not supported")
		case "device":
			return failure.Userf(failure.NotSupported, "leave the flag out: steps see none of the daemon's devices", "RUN --device is not supported")
		default:
			return failure.Userf(failure.NotSupported, "leave the flag out", "RUN --%s is not supported", flag)
		}
	}
	return s.checkMounts(st, cmd)
}

// script returns the text of a RUN that is nothing but one here-document.
func script(cmd *instructions.RunCommand) (string, bool) {
	if !cmd.PrependShell || len(cmd.Files) != 1 {
		return "", false
	}
	if doc, err := parser.ParseHeredoc(strings.TrimSpace(strings.Join(cmd.CmdLine, " "))); doc == nil || err != nil {
		return "", false
	}
	f := cmd.Files[0]
	if f.Chomp {
		return parser.ChompHeredocContent(f.Data), true
	}
	return f.Data, true
}

// program returns the file that a here-document with an interpreter line
// becomes, nil for any other command.
func program(cmd *instructions.RunCommand) *sandbox.Mount {
	text, ok := script(cmd)
	if !ok || !strings.HasPrefix(text, "#!") {
		return nil
	}
	return &sandbox.Mount{Target: "/dev/pipes/" + path.Base(cmd.Files[0].Name), Data: []byte(text), Mode: 0o755, ReadOnly: true}
}

// runArgs is what RUN executes.
func runArgs(sh []string, cmd *instructions.RunCommand) []string {
	args := slices.Clone(cmd.CmdLine)
	if !cmd.PrependShell {
		return args
	}
	text := strings.Join(args, " ")
	if text, ok := script(cmd); ok {
		return append(slices.Clone(sh), text)
	}
	for _, f := range cmd.Files {
		text += "\n" + f.Data + f.Name
	}
	return append(slices.Clone(sh), text)
}

// runsItself is what RUN [] runs: what a container of the image would.
func runsItself(image *dockerspec.DockerOCIImage) []string {
	if len(image.Config.Entrypoint) > 0 {
		return image.Config.Entrypoint
	}
	return image.Config.Cmd
}

// run1 carries out RUN.
func (s *stage) run1(ctx, steps context.Context, st *step, cmd *instructions.RunCommand, done *slipwayv1.StepDone) error {
	mode, err := s.network(cmd)
	if err != nil {
		return err
	}
	image := cloneImage(s.node.image)
	args := runArgs(shellOf(&image), cmd)
	mounts, err := s.runMounts(steps, st, cmd)
	if err != nil {
		return err
	}
	values := s.scope.values(image.Config.Env)
	recorded := pairs(s.scope.recorded(values))
	createdBy := args
	if len(values) > 0 {
		createdBy = slices.Concat([]string{fmt.Sprintf("|%d", len(recorded))}, recorded, args)
	}
	if len(args) == 0 {
		args = runsItself(&image)
	}
	parts := []layercache.Part{
		{Name: "instruction", Value: fmt.Sprintf("RUN %q", args)},
		{Name: "args", Value: fmt.Sprintf("%t %q", len(values) > 0, recorded)},
		{Name: "network", Value: string(mode)},
	}
	r := &process{stage: s, step: st, done: done, mounts: mounts, sandbox: sandbox.Process{
		ID: strings.ToLower(ulid.Make().String()), Volatile: true,
		Args: args, Env: append(slices.Clone(image.Config.Env), pairs(values)...),
		Dir: image.Config.WorkingDir, User: image.Config.User, Network: mode, Limits: s.build.opts.Limits,
		Volumes: slices.Sorted(maps.Keys(image.Config.Volumes)),
	}}
	if mode != sandbox.Host {
		r.sandbox.Hostname = digest.FromString(r.sandbox.ID).Encoded()[:12] // looks like a container's id
	}
	if sh := image.Config.Shell; len(sh) > 0 {
		r.shell = sh[0]
	}
	if file := program(cmd); file != nil {
		r.program = file
		r.sandbox.Mounts = append(r.sandbox.Mounts, *file)
		r.sandbox.Args = append(slices.Clone(shellOf(&image)), file.Target)
		parts = append(parts, layercache.Part{Name: "program", Value: file.Target})
	}
	inputs := append(argInputs(s.scope.recorded(values)), layercache.Part{Name: inNetwork, Value: string(mode)})
	inputs = s.inputsOf(st, s.node, strings.Join(args, "\x00"), inputs...)
	return s.apply(ctx, steps, st, &change{
		image: image, createdBy: strings.Join(createdBy, " "),
		inputs: func() []layercache.Part { return append(mounts.inputs(), inputs...) },
		reads:  mounts.reads(), from: mounts.from(),
		key: func(ctx context.Context) ([]layercache.Part, error) {
			more, err := mounts.key(ctx)
			return slices.Concat(parts, more), err
		},
		run:   r.run,
		write: r.write,
	}, done)
}

func (s *stage) network(cmd *instructions.RunCommand) (sandbox.Mode, error) {
	switch mode := instructions.GetNetwork(cmd); mode {
	case instructions.NetworkNone:
		return sandbox.None, nil
	case instructions.NetworkHost:
		if s.build.opts.Network != sandbox.Host {
			return "", failure.Userf(failure.PermissionDenied, "the operator allows it with --network host", "RUN --network=host is not allowed on this daemon")
		}
		return sandbox.Host, nil
	}
	return s.build.opts.Network, nil
}

// A process is a RUN step under way. Its layer is the upper directory.
type process struct {
	stage   *stage
	step    *step
	done    *slipwayv1.StepDone
	mounts  *runMounts
	sandbox sandbox.Process
	program *sandbox.Mount // a here-document that it executes; nil if it is none
	shell   string         // program of SHELL; "" if there is none
	upper   string
	below   *node
	gauge   *rootfs.Gauge
	ledger  *limits.Ledger // of the image below; made when it is needed
}

// run prepares a snapshot, runs the process in it and commits it.
func (p *process) run(ctx context.Context, n *node) error {
	p.below = n.parent
	build := p.stage.build
	parent, err := n.parent.rootSnapshot(ctx)
	if err != nil {
		return err
	}
	// Before a slot is taken: who waits for a cache mount must not keep one.
	release, err := p.mounts.prepare(ctx, &p.sandbox)
	defer release()
	if err != nil {
		return err
	}
	select {
	case build.running <- struct{}{}:
		defer func() { <-build.running }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	name := snapshotName()
	err = layer.Fill(ctx, build.job.Cache, parent, name, func(snap *layercache.Snapshot) error {
		p.upper, p.gauge = snap.Upper(), rootfs.NewGauge(snap.Upper())
		return p.execute(ctx, snap)
	})
	if err == nil {
		n.setSnapshot(name)
	}
	return err
}

func (p *process) execute(ctx context.Context, snap *layercache.Snapshot) error {
	out := p.stage.build.newOutput(p.step)
	p.sandbox.Lowers, p.sandbox.Upper, p.sandbox.Work = snap.Lowers(), snap.Upper(), snap.Work()
	p.sandbox.Stdout, p.sandbox.Stderr = out.stream(slipwayv1.LogStream_LOG_STREAM_STDOUT), out.stream(slipwayv1.LogStream_LOG_STREAM_STDERR)
	p.sandbox.Watch = p.watch
	code, err := p.stage.build.opts.Runner.Run(ctx, p.sandbox)
	var size *limits.SizeError
	var start *sandbox.StartError
	switch {
	case errors.As(err, &size):
		return p.tooLarge(ctx, size)
	case errors.As(err, &start), errors.Is(err, sandbox.ErrUser):
		hint := startHint(err)
		if len(p.mounts.list) > 0 {
			hint += "; check the targets of its mounts too"
		}
		return failure.Userf(failure.StepFailed, hint, "%v", err)
	case errors.Is(err, sandbox.ErrNetwork):
		build := p.stage.build
		build.opts.Log.ErrorContext(ctx, "a RUN step has no network", "build", build.job.ID, "err", err)
		return &failure.Error{
			Code: failure.Unavailable, Phase: failure.Build, Blame: failure.Builder, Retryable: true, Err: err,
			Message: "the daemon cannot set up the network of RUN steps",
			Hint:    "the operator sees why with slipway doctor and in the daemon's log; steps with RUN --network=none can run",
		}
	case err != nil:
		return err
	case code != 0 && diskFull(p.upper):
		return &failure.Error{Code: failure.DiskFull, Blame: failure.Builder, Retryable: true, ExitCode: code,
			Message: fmt.Sprintf("the daemon's disk is full, and the command returned a non-zero code: %d", code),
			Hint:    "free disk space or run slipway cache prune, then deploy again; finished steps stay cached"}
	case code != 0:
		e := failure.Userf(failure.StepFailed, exitHint(code, p.sandbox.Limits),
			"The command '%s' returned a non-zero code: %d", strings.Join(p.sandbox.Args, " "), code)
		e.ExitCode = code
		p.keep(ctx, snap, e)
		return e
	}
	return nil
}

// scarce is how much free space no command can do its work with.
const scarce = 1 << 20

// diskFull reports whether the file system of dir has no room left. What a
// process says of that is only text.
func diskFull(dir string) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false
	}
	return int64(fs.Bavail)*fs.Bsize < scarce || fs.Files > 0 && fs.Ffree == 0
}

// Between two looks at what a process has written: a tenth of the time is spent
// looking, more if there is so much to see that it would come too late.
const (
	shortPause = 50 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// watch stops a process that writes past the limit.
func (p *process) watch(ctx context.Context) error {
	most := p.stage.build.job.MaxSize
	if most < 0 {
		return nil
	}
	timer := time.NewTimer(shortPause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		begun := time.Now()
		if err := p.measure(ctx, most); err != nil {
			return err
		}
		timer.Reset(min(max(shortPause, 10*time.Since(begun)), longPause))
	}
}

// measure reports a *limits.SizeError when the process has written past the
// limit. A rewrite of what the image has already is counted as such, where
// the layers below have been counted.
func (p *process) measure(ctx context.Context, most int64) error {
	below := p.below.counted()
	used, at, err := p.gauge.Look(ctx, most-below)
	if err == nil && below+used > most {
		used, at, err = p.confirm(ctx, used, at, most-below)
	}
	if err != nil {
		// The process changes what is being read; the layer's own pass counts
		// exactly in the end.
		return nil
	}
	if below+used > most {
		return &limits.SizeError{Report: limits.Report{Total: below + used, Max: most, Path: at}}
	}
	return nil
}

// confirm makes sure that the process uses more than it may, used, as it
// seems: the image below may lose something for it, and what was seen long ago
// may have changed.
func (p *process) confirm(ctx context.Context, used int64, at string, most int64) (int64, string, error) {
	var credit int64
	if p.below.isMade() && p.below.err == nil {
		var err error
		if credit, err = p.credit(ctx); err != nil || used-credit <= most {
			return used - credit, at, err
		}
	}
	used, at, err := p.gauge.Confirm(ctx, most+credit)
	return used - credit, at, err
}

// credit is what the process takes away from the image below it.
func (p *process) credit(ctx context.Context) (int64, error) {
	if p.ledger == nil {
		ledger, err := p.stage.build.charged(ctx, p.below.layers())
		if err != nil {
			return 0, err
		}
		p.ledger = ledger
	}
	return rootfs.Credit(ctx, p.upper, p.ledger.Held)
}

// counted is what is known of the unpacked size: a lower bound while layers
// are in the making.
func (n *node) counted() int64 {
	for at := n; at != nil; at = at.parent {
		if at.isMade() {
			rootfs, _ := at.size()
			return rootfs
		}
	}
	return 0
}

// tooLarge counts the stopped step's files like a layer's, so that the report
// has its paths too.
func (p *process) tooLarge(ctx context.Context, seen *limits.SizeError) error {
	if err := p.below.wait(ctx); err != nil {
		return err
	}
	ledger, err := p.stage.build.charged(ctx, p.below.layers())
	if err != nil {
		return err
	}
	l := ledger.Begin(limits.Source{Line: p.step.line, Text: p.step.source})
	err = rootfs.WriteUpper(ctx, tar.NewWriter(io.Discard), p.upper, l.Entry)
	var exact *limits.SizeError
	if errors.As(err, &exact) {
		return exact
	}
	return seen
}

// write makes the layer of what the process left.
func (p *process) write(ctx context.Context, _ *node, w *layer.Writer) error {
	return rootfs.WriteUpper(ctx, w.Tar(), p.upper, w.Charge)
}
