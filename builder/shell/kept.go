package shell

import (
	"context"
	"errors"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/layercache"
)

// A kept step is one that shells can be opened in.
type kept struct {
	Step
	keeper *Keeper
	spare  *layercache.Spare
	timer  *time.Timer

	mu   sync.Mutex
	room *room // that somebody is in; nil if nobody is
}

func newKept(k *Keeper, s Step) *kept { return &kept{Step: s, keeper: k} }

func (x *kept) id() stepID { return stepID{x.Org, x.Build} }

// drop is what the store calls when the step goes.
func (x *kept) drop(ctx context.Context) {
	x.keeper.forget(x) // waits for Keep, if that is not done with it
	x.timer.Stop()
	x.Step.Drop(ctx)
}

// shell runs one command, or the first shell that there is.
func (x *kept) shell(ctx context.Context, args []string, c builder.Console) (int, error) {
	r, err := x.enter(ctx, c.Tell)
	if err != nil {
		return 0, err
	}
	defer x.leave(r)
	c.Tell(x.Name)
	if x.Secrets {
		c.Tell("the step's secrets and SSH agents are not kept: they are not there")
	}
	if len(args) > 0 {
		code, err := r.exec(ctx, args, c)
		return code, explain(err)
	}
	program, err := x.program(ctx, r)
	if err != nil {
		return 0, explain(err)
	}
	code, err := r.exec(ctx, []string{program}, c)
	return code, explain(err)
}

// program returns the first shell that runs.
func (x *kept) program(ctx context.Context, r *room) (string, error) {
	for _, program := range shells(x.Shell) {
		_, err := r.exec(ctx, []string{program, "-c", ":"}, builder.Console{})
		if err == nil {
			return program, nil
		}
		if _, missing := errors.AsType[*sandbox.StartError](err); !missing {
			return "", err
		}
	}
	return "", failure.Userf(failure.NotFound, "name a program that it has: slipway builds shell "+x.Build+" -- CMD",
		"the file system of the step has no shell")
}

// explain says what is wrong with a command that did not run.
func explain(err error) error {
	if start, ok := errors.AsType[*sandbox.StartError](err); ok {
		return failure.Userf(failure.NotFound, "check that the file system has the program, and its PATH", "%s", start.Message)
	}
	switch {
	case errors.Is(err, sandbox.ErrUser):
		return failure.Userf(failure.ImageInvalid, "give USER a number, or a name that the image's /etc/passwd has", "%v", err)
	case errors.Is(err, sandbox.ErrNetwork):
		return &failure.Error{Code: failure.Unavailable, Blame: failure.Builder, Retryable: true, Err: err,
			Message: "the daemon cannot set up the network of sandboxes", Hint: "the operator sees why with slipway doctor and in the daemon's log"}
	case errors.Is(err, sandbox.ErrClosed):
		return errClosed
	}
	return err
}

// interactive are the programs that people can talk to, of those that SHELL may
// name.
var interactive = []string{"ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "pwsh", "sh", "tcsh", "zsh"}

// shells lists what to try, in order.
func shells(own string) []string {
	all := []string{"/bin/bash", "/bin/sh"}
	if slices.Contains(interactive, path.Base(own)) {
		return append([]string{own}, all...)
	}
	return all
}

// enter returns the step's container, with the caller in it, and makes it for
// the first one.
func (x *kept) enter(ctx context.Context, tell func(string)) (*room, error) {
	x.mu.Lock()
	r := x.room
	if r == nil {
		r = newRoom()
		x.room = r
		go x.open(r, tell)
	}
	r.people++
	x.mu.Unlock()
	if err := r.wait(ctx); err != nil {
		x.leave(r)
		return nil, explain(err)
	}
	return r, nil
}

// open runs a container for the step until the last one has left it.
func (x *kept) open(r *room, tell func(string)) {
	defer close(r.over)
	p, leave, err := x.Enter(r.ctx, tell)
	if err == nil {
		r.err = r.run(x.keeper.opts.Runner, p, x.keeper.opts.MaxSize)
		leave()
	} else {
		r.err = err
	}
	if r.err != nil && context.Cause(r.ctx) == nil {
		x.keeper.log.Warn("a container for shells ended", "build", x.Build, "err", r.err)
	}
}

// leave takes one out of a container, which ends with the last one. It waits
// for that, so that the next one finds a step that nobody is in.
func (x *kept) leave(r *room) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.people--
	if r.people > 0 {
		return
	}
	r.end(errEmpty)
	<-r.over
	if x.room == r {
		x.room = nil
	}
	if x.Weigh != nil {
		x.spare.Weigh(x.Weigh(context.Background()))
	}
}
