package sandbox

import (
	"context"
	"io"
	"regexp"
	"sync/atomic"
)

// outputs returns the writers that get a process's output for stdout and
// stderr. They are the same if those are: what is written then keeps its order.
func outputs(ctx context.Context, cancel context.CancelCauseFunc, stdout, stderr io.Writer, pidFile string) (io.Writer, io.Writer) {
	out := &output{w: stdout, pidFile: pidFile, stopped: ctx.Done(), cancel: cancel}
	if same(stdout, stderr) {
		return out, out
	}
	return out, &output{w: stderr, pidFile: pidFile, stopped: ctx.Done(), cancel: cancel}
}

func same(a, b io.Writer) (equal bool) {
	defer func() {
		if recover() != nil {
			equal = false // values that cannot be compared
		}
	}()
	return a == b
}

// An output passes on what a process writes. It stops the process when that
// fails, and reads on to the end so that the process does not notice first.
type output struct {
	w       io.Writer
	pidFile string
	stopped <-chan struct{} // nobody wants more
	cancel  context.CancelCauseFunc
	started atomic.Bool
}

// The runtime prints why it could not start a process where the process would
// have written. That is reported as an error and not as output.
var runtimePrefix = regexp.MustCompile(`^(runc run|exec) failed: `)

func (o *output) Write(p []byte) (int, error) {
	if !o.started.Load() {
		if runtimePrefix.Match(p) && !exists(o.pidFile) {
			return len(p), nil
		}
		o.started.Store(true)
	}
	select {
	case <-o.stopped:
		return len(p), nil
	default:
	}
	if o.w == nil {
		return len(p), nil
	}
	n, err := o.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		o.cancel(err)
	}
	return len(p), nil
}
