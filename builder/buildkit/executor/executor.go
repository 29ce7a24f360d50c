// Package executor runs the processes of BuildKit's solver in our own sandbox:
// BuildKit's [executor.Executor] over builder/sandbox. A RUN step gets the same
// network, system call filter, rights, mounts and limits as in the classic
// pipeline, and leaves as little behind.
//
// Read [Executor.Run] first. What BuildKit brings becomes a [sandbox.Process]:
// the root file system in root.go, mounts in mount.go, everything else in
// meta.go, which also refuses what a step may not have. How it ended is told in
// BuildKit's terms by exit.go. Further processes of a container are in exec.go.
package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/rescue"
)

// A Runner is what an Executor needs of a [sandbox.Runner].
type Runner interface {
	// Run runs a process in a container of its own.
	Run(context.Context, sandbox.Process) (int, error)

	// Exec runs one more process in a container.
	Exec(context.Context, sandbox.Command) (int, error)
}

// Options configures an Executor.
type Options struct {
	Runner Runner

	// Network is that of processes that do not choose one. Only with Host may a
	// process choose the host's, unless AllowHost is set. Empty means Sandbox.
	Network   sandbox.Mode
	AllowHost bool

	// Limits are those of each process. A client may ask for less.
	Limits sandbox.Limits

	// Flush writes to disk what a process changes whenever it asks for that.
	// Without it, what a process has written is of unknown content after the
	// machine crashed: whoever keeps it must drop it then.
	Flush bool

	// Watch, if not nil, runs beside each process of Run. An error stops the
	// process and is what Run returns. The context has the values of Run's and
	// is done when the process has ended, for which Run waits.
	Watch func(context.Context, Root) error

	// Log gets what cannot be returned. Nil means none.
	Log *slog.Logger
}

// A Root is the root file system of a process under way.
type Root struct {
	// Upper is the directory that gets what the process writes, in the form of
	// overlayfs: the upper directory of the mutable reference that BuildKit made
	// for the step, which nobody else has. It is empty if there is none, since
	// the process can write nothing.
	Upper string

	// Lowers are the directories of the layers below, topmost first. They are
	// not known where BuildKit has mounted the root file system.
	Lowers []string

	Container string   // BuildKit's id; empty for steps
	Args      []string // of the process
}

// An Executor is BuildKit's way to run processes. Its methods may be called from
// many goroutines at once. Container ids are chosen by clients, and whoever
// knows one can run processes in that container: give each organisation an
// Executor of its own. They may share a Runner.
type Executor struct {
	opts Options
	log  *slog.Logger

	mu      sync.Mutex
	running map[string]*container
}

var _ executor.Executor = (*Executor)(nil)

// New returns an Executor.
func New(o Options) *Executor {
	if o.Network == "" {
		o.Network = sandbox.Sandbox
	}
	e := &Executor{opts: o, log: o.Log, running: map[string]*container{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e
}

// Run runs a process to its end in a container of its own. An exit code that is
// not welcome is a *pb.ExitError of BuildKit's gateway, as stock clients expect;
// so is the end by ctx, with its cause inside. What a process may not have is
// refused with an error that wraps [ErrRefused]. There is never a Recorder.
// started, which may be nil, is closed when the process runs or never will.
// When Run returns, nothing of the container is left.
//
// Mount points that the root file system lacks are never part of it, so
// Meta.RemoveMountStubsRecursive has nothing to decide. Meta.CgroupParent is the
// operator's business and ignored.
func (e *Executor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	return nil, e.start(ctx, id, root, mounts, process, started, true)
}

// An Open executor runs processes as [Executor] does whose environment has no
// secret: it saves them a file system in memory.
type Open struct{ *Executor }

// Run implements BuildKit's executor.
func (e Open) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	return nil, e.start(ctx, id, root, mounts, process, started, false)
}

func (e *Executor) start(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}, secret bool) (err error) {
	up := sync.OnceFunc(func() {
		if started != nil {
			close(started)
		}
	})
	defer up()
	if process.Stdin != nil {
		defer process.Stdin.Close()
	}
	c := &container{}
	if id != "" {
		if c, err = e.register(id); err != nil {
			return err
		}
		defer func() { e.forget(id, c, err) }()
	}
	defer rescue.Into(&err) // before anyone is told
	p, err := e.process(process.Meta, secret)
	if err != nil {
		return err
	}
	if started != nil || id != "" {
		p.Started = func() { c.begin(p.ID); up() }
	}
	p.ID = newID()
	return e.run(ctx, id, p, root, mounts, process)
}

func (e *Executor) run(ctx context.Context, id string, p *sandbox.Process, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo) error {
	var used resources
	defer func() {
		if err := used.release(); err != nil {
			e.log.WarnContext(ctx, "release what a process used", "args", p.Args, "err", err)
		}
	}()
	if err := used.addAll(ctx, p, root, mounts); err != nil {
		return err
	}
	if e.opts.Watch != nil {
		at := watched(p)
		at.Container, at.Args = id, p.Args
		p.Watch = func(ctx context.Context) error { return e.opts.Watch(ctx, at) }
	}
	var starved bool
	p.OutOfMemory = func() { starved = true }
	p.Stdin, p.Stdout, p.Stderr, p.Signals = process.Stdin, process.Stdout, process.Stderr, process.Signal
	done := make(chan struct{})
	var resizing sync.WaitGroup
	if process.Meta.Tty {
		p.Terminal = terminal(process.Resize, done, &resizing)
	}
	code, err := e.opts.Runner.Run(ctx, *p)
	close(done)
	resizing.Wait()
	return e.outcome(ctx, code, err, starved, process.Meta.ValidExitCodes)
}

// Stage returns a process as Run would run it, without a console, for a caller
// that runs it in the sandbox by other means. Its environment is SecretEnv. What
// it stands on is there until release, which the caller calls unless there is an
// error.
func (e *Executor) Stage(ctx context.Context, root executor.Mount, mounts []executor.Mount, meta executor.Meta) (_ *sandbox.Process, release func() error, err error) {
	defer rescue.Into(&err)
	p, err := e.process(meta, true)
	if err != nil {
		return nil, nil, err
	}
	var used resources
	if err := used.addAll(ctx, p, root, mounts); err != nil {
		return nil, nil, errors.Join(err, used.release())
	}
	return p, used.release, nil
}

// addAll makes root and mounts those of p.
func (r *resources) addAll(ctx context.Context, p *sandbox.Process, root executor.Mount, mounts []executor.Mount) error {
	if err := r.addRoot(ctx, p, root); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	for _, m := range mounts {
		if err := r.addMount(ctx, p, m); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Dest, err)
		}
	}
	return nil
}

// resources are what is to be given back when a process has ended.
type resources struct{ undo []func() error }

func (r *resources) add(undo func() error) {
	if undo != nil {
		r.undo = append(r.undo, undo)
	}
}

// release gives all back, in reverse order.
func (r *resources) release() error {
	var errs []error
	for i := len(r.undo) - 1; i >= 0; i-- {
		errs = append(errs, rescue.Run(r.undo[i]))
	}
	return errors.Join(errs...)
}
