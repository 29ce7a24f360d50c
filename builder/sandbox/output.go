package sandbox

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"sync/atomic"

	"github.com/slipwayhq/slipway/rescue"
)

// outputs returns the writers that get a process's output for stdout and
// stderr. They are the same if those are: what is written then keeps its order.
func (t *task) outputs(ctx context.Context, cancel context.CancelCauseFunc) (io.Writer, io.Writer) {
	complaint := "exec failed: "
	if t.first {
		complaint = "runc run failed: "
	}
	out := &output{w: t.stdout, complaint: []byte(complaint), pidFile: t.pidFile(), stopped: ctx.Done(), cancel: cancel}
	if same(t.stdout, t.stderr) {
		return out, out
	}
	return out, &output{w: t.stderr, complaint: out.complaint, pidFile: out.pidFile, stopped: out.stopped, cancel: cancel}
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

	// The runtime prints why it could not start a process where the process
	// would have written, after these words. That is reported as an error and
	// not as output.
	complaint []byte
}

// complaints are the words before all that the runtime reports.
var complaints = regexp.MustCompile(`^(runc run|exec) failed: `)

func (o *output) Write(p []byte) (int, error) {
	if !o.started.Load() {
		if bytes.HasPrefix(p, o.complaint) && !exists(o.pidFile) {
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
	if err := rescue.Run(func() error { return o.pass(p) }); err != nil {
		o.cancel(err)
	}
	return len(p), nil
}

func (o *output) pass(p []byte) error {
	n, err := o.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}
