package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// killed is the exit code of what was stopped.
const killed = 128 + int(syscall.SIGKILL)

// outcome tells the end of a process as stock BuildKit does, so that clients
// say "did not complete successfully: exit code: 7". valid are the exit codes
// that are no failure; nil means 0.
func (e *Executor) outcome(ctx context.Context, code int, err error, starved bool, valid []int) error {
	if err != nil {
		return e.failure(ctx, err)
	}
	if valid == nil {
		valid = []int{0}
	}
	if slices.Contains(valid, code) {
		return nil
	}
	exit := &gatewaypb.ExitError{ExitCode: uint32(code)}
	if starved {
		exit.Err = syscall.ENOMEM
	}
	return exit
}

// failure puts an error of the sandbox into words for whoever wrote the step.
func (e *Executor) failure(ctx context.Context, err error) error {
	start, isStart := errors.AsType[*sandbox.StartError](err)
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		exit := &gatewaypb.ExitError{ExitCode: uint32(killed)}
		exit.Err = fmt.Errorf("%s: %w", exit.Error(), err)
		return exit
	case isStart:
		return &gatewaypb.ExitError{ExitCode: gatewaypb.UnknownExitStatus, Err: start}
	case errors.Is(err, sandbox.ErrUser):
		return fmt.Errorf("%w: name a user that the image has, or a numeric id", err)
	case errors.Is(err, sandbox.ErrNetwork):
		e.log.ErrorContext(ctx, "a step has no network", "err", err)
		return &worded{"the daemon cannot set up the network of steps; the operator sees why with slipway doctor and in the daemon's log; " +
			"steps with RUN --network=none can run", err}
	case errors.Is(err, sandbox.ErrClosed):
		return &worded{"the daemon is shutting down: run the build again", err}
	}
	return err
}

// A worded error has another text than the one it wraps.
type worded struct {
	text string
	err  error
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }
