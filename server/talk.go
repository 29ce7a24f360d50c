package server

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"syscall"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// A talk joins a process with a client by a call.
type talk struct {
	recv func() (*slipwayv1.ProcessInput, error)

	mu   sync.Mutex // around send
	send func(*slipwayv1.ProcessOutput) error

	terminal *slipwayv1.Terminal // may be nil
	stdin    *io.PipeReader      // nil if the process has no input
	typed    *io.PipeWriter
	queue    chan []byte // of stdin; closed at its end
	sizes    chan builder.WindowSize
	signals  chan syscall.Signal
	done     chan struct{} // the process has ended
}

// queued is how many pieces of input wait for a process that does not read, so
// that a signal behind them gets through.
const queued = 64

func newTalk(terminal *slipwayv1.Terminal, input bool, recv func() (*slipwayv1.ProcessInput, error), send func(*slipwayv1.ProcessOutput) error) *talk {
	t := &talk{recv: recv, send: send, terminal: terminal, queue: make(chan []byte, queued),
		sizes: make(chan builder.WindowSize, 1), signals: make(chan syscall.Signal), done: make(chan struct{})}
	if input {
		t.stdin, t.typed = io.Pipe()
	}
	return t
}

// run has the process from its begin to its end, and sends its exit code last.
func (t *talk) run(ctx context.Context, f *Front, method string, process func(context.Context, builder.Console) (int, error)) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if t.stdin != nil {
		go t.feed()
	}
	go func() { // ends with the call
		defer f.caught(ctx, method, stop)
		if err := t.listen(); err != nil {
			stop(err)
		}
	}()
	var code int
	err := rescue.Run(func() (err error) {
		code, err = process(ctx, t.console())
		return err
	})
	close(t.done)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return t.say(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Exit{Exit: &slipwayv1.ProcessExit{Code: int32(code)}}})
}

func (t *talk) console() builder.Console {
	c := builder.Console{
		Stdout: sayer(func(p []byte) error {
			return t.say(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Stdout{Stdout: p}})
		}),
		Stderr: sayer(func(p []byte) error {
			return t.say(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Stderr{Stderr: p}})
		}),
		Signals: t.signals,
		Notice: func(line string) {
			_ = t.say(&slipwayv1.ProcessOutput{Output: &slipwayv1.ProcessOutput_Notice{Notice: line}}) // the next output fails, too
		},
	}
	if t.stdin != nil {
		c.Stdin = t.stdin
	}
	if t.terminal != nil {
		c.Terminal = &builder.Terminal{Name: t.terminal.Term, Size: windowSize(t.terminal.Size), Resize: t.sizes}
	}
	return c
}

func windowSize(s *slipwayv1.WindowSize) builder.WindowSize {
	return builder.WindowSize{Rows: uint16(min(s.GetRows(), math.MaxUint16)), Columns: uint16(min(s.GetColumns(), math.MaxUint16))}
}

// A sayer sends output. What it gets is sent before it returns.
type sayer func([]byte) error

// maxOutput is how much of the output is in one message.
const maxOutput = 64 << 10

// Write implements io.Writer.
func (s sayer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(len(p), n+maxOutput)]
		if err := s(piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

func (t *talk) say(m *slipwayv1.ProcessOutput) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.send(m)
}

// feed passes queued input on.
func (t *talk) feed() {
	for {
		select {
		case data, ok := <-t.queue:
			if !ok {
				t.typed.Close()
				return
			}
			if _, err := t.typed.Write(data); err != nil {
				return
			}
		case <-t.done:
			return
		}
	}
}

// listen takes what the client says until it stops.
func (t *talk) listen() error {
	for open := true; ; {
		m, err := t.recv()
		if errors.Is(err, io.EOF) {
			if open {
				close(t.queue)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if m.GetEof() != nil && open {
			open = false
			close(t.queue)
			continue
		}
		if err := t.hear(m, open); err != nil {
			return err
		}
	}
}

// maxInput is how much input is in one message.
const maxInput = 64 << 10

func (t *talk) hear(m *slipwayv1.ProcessInput, open bool) error {
	switch m := m.GetInput().(type) {
	case *slipwayv1.ProcessInput_Stdin:
		switch {
		case t.stdin == nil:
			return failure.Userf(failure.InvalidArgument, "give -i", "input for a command that was started without any")
		case len(m.Stdin) > maxInput:
			return failure.Userf(failure.InvalidArgument, "update the client", "%d bytes of input at once, %d are allowed", len(m.Stdin), maxInput)
		case open:
			pass(t.queue, m.Stdin, t.done)
		}
	case *slipwayv1.ProcessInput_Resize:
		if t.terminal != nil {
			pass(t.sizes, windowSize(m.Resize), t.done)
		}
	case *slipwayv1.ProcessInput_Signal:
		sig, ok := signals[m.Signal]
		if !ok {
			return failure.Userf(failure.InvalidArgument, "send INT, TERM, HUP, QUIT, USR1 or USR2", "there is no signal %q to send", m.Signal)
		}
		pass(t.signals, sig, t.done)
	}
	return nil
}

func pass[T any](to chan<- T, v T, done <-chan struct{}) {
	select {
	case to <- v:
	case <-done:
	}
}

// signals are those that a client may send.
var signals = map[string]syscall.Signal{
	"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}
