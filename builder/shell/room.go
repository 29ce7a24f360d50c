package shell

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/rescue"
)

// errEmpty ends the container that nobody is in any more.
var errEmpty = errors.New("nobody is inside")

// A room is a container in which processes are side by side. Its first process
// is none of theirs: so they get signals as everywhere else, and leave no zombies.
type room struct {
	id  string // of the container
	ctx context.Context
	end context.CancelCauseFunc

	people int // guarded by the step's mu

	up      chan struct{} // the container is there
	over    chan struct{} // it is gone
	err     error         // why; may be read when over
	process *sandbox.Process
	runner  Runner
	large   atomic.Pointer[limits.SizeError] // why it is being ended; nil if it is not because of that
}

func newRoom() *room {
	r := &room{id: "shell-" + strings.ToLower(ulid.Make().String()), up: make(chan struct{}), over: make(chan struct{})}
	r.ctx, r.end = context.WithCancelCause(context.Background())
	return r
}

// run has a container for p until r.ctx ends, or until more than most is written
// there.
func (r *room) run(runner Runner, p *sandbox.Process, most int64) (err error) {
	defer rescue.Into(&err)
	p.ID, p.Args, p.Idle = r.id, nil, true
	p.Stdin, p.Stdout, p.Stderr, p.Signals, p.Terminal = nil, nil, nil, nil, nil
	p.Watch = func(ctx context.Context) error {
		err := watch(ctx, p.Upper, most)
		if size, ok := errors.AsType[*limits.SizeError](err); ok {
			r.large.Store(size)
		}
		return err
	}
	p.Started = sync.OnceFunc(func() { close(r.up) })
	r.process, r.runner = p, runner
	_, err = runner.Run(r.ctx, *p)
	if errors.Is(err, errEmpty) {
		return nil
	}
	return err
}

// wait returns when the container is there, or why it is not.
func (r *room) wait(ctx context.Context) error {
	select {
	case <-r.up:
		return nil
	case <-r.over:
		return cmp.Or(r.err, errEmpty)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// exec runs a command beside the others, and ends with it and with ctx.
func (r *room) exec(ctx context.Context, args []string, c builder.Console) (int, error) {
	cmd := sandbox.Command{Container: r.id, Args: args}
	done := make(chan struct{})
	defer close(done)
	attach(&cmd, c, r.process.Env, done)
	code, err := r.runner.Exec(ctx, cmd)
	if size := r.large.Load(); size != nil {
		return 0, tooMuch(size)
	}
	if errors.Is(err, sandbox.ErrNotRunning) {
		<-r.over
		err = cmp.Or(r.err, err)
	}
	return code, err
}

func tooMuch(size *limits.SizeError) error {
	return failure.Userf(failure.TooLarge, "shells may write as much as a whole image may have (the daemon's --max-rootfs)",
		"the shell was ended: %.2f GB were written, the last of it at %s", float64(size.Total)/1e9, size.Path)
}

// attach joins a command with a console until done.
func attach(cmd *sandbox.Command, c builder.Console, env []string, done <-chan struct{}) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Signals = c.Stdin, c.Stdout, c.Stderr, c.Signals
	if c.Terminal == nil {
		return
	}
	cmd.Terminal = terminal(c.Terminal, done)
	if c.Terminal.Name != "" {
		cmd.Env = append(append([]string{}, env...), "TERM="+c.Terminal.Name)
	}
}

// terminal returns a terminal as the sandbox has it, that gets the sizes of the
// console's until done.
func terminal(t *builder.Terminal, done <-chan struct{}) *sandbox.Terminal {
	sizes := make(chan sandbox.Size)
	go func() {
		for {
			select {
			case s, ok := <-t.Resize:
				if !ok {
					return
				}
				select {
				case sizes <- sandbox.Size{Rows: s.Rows, Cols: s.Columns}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return &sandbox.Terminal{Size: sandbox.Size{Rows: t.Size.Rows, Cols: t.Size.Columns}, Resize: sizes}
}

// Between two looks at what processes have written.
const pause = 500 * time.Millisecond

// watch ends a container whose processes have written more than most to upper.
func watch(ctx context.Context, upper string, most int64) error {
	if most <= 0 || upper == "" {
		return nil
	}
	g := rootfs.NewGauge(upper)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used, at, err := g.Look(ctx, most)
		if err == nil && used > most {
			used, at, err = g.Confirm(ctx, most)
		}
		if err == nil && used > most {
			return &limits.SizeError{Report: limits.Report{Total: used, Max: most, Path: at}}
		}
	}
}
