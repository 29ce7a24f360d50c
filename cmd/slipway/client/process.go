package client

import (
	"context"
	"errors"
	"io"
	"sync"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A Process joins a process on the daemon with this program.
type Process struct {
	Stdin          io.Reader // nil is an empty input
	Stdout, Stderr io.Writer
	Resize         <-chan *slipwayv1.WindowSize // of the terminal; may be nil
	Notice         func(string)                 // what the daemon has to say; may be nil
}

// Shell runs a command, or a shell, where a build failed, and returns its exit
// code. Ending ctx ends it. The reader of p.Stdin may be read from once more
// after that.
func (c *Client) Shell(ctx context.Context, start *slipwayv1.ShellStart, p Process) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.shells.Shell(ctx)
	if err != nil {
		return 0, c.fail(err)
	}
	err = s.Send(&slipwayv1.ShellRequest{Message: &slipwayv1.ShellRequest_Start{Start: start}})
	return c.attend(ctx, p, err, &stream{
		send: func(in *slipwayv1.ProcessInput) error {
			return s.Send(&slipwayv1.ShellRequest{Message: &slipwayv1.ShellRequest_Input{Input: in}})
		},
		recv: func() (*slipwayv1.ProcessOutput, error) {
			m, err := s.Recv()
			return m.GetOutput(), err
		},
	})
}

// Exec runs a command in an app's image, as Shell does.
func (c *Client) Exec(ctx context.Context, start *slipwayv1.ExecStart, p Process) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.shells.Exec(ctx)
	if err != nil {
		return 0, c.fail(err)
	}
	err = s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Start{Start: start}})
	return c.attend(ctx, p, err, &stream{
		send: func(in *slipwayv1.ProcessInput) error {
			return s.Send(&slipwayv1.ExecRequest{Message: &slipwayv1.ExecRequest_Input{Input: in}})
		},
		recv: func() (*slipwayv1.ProcessOutput, error) {
			m, err := s.Recv()
			return m.GetOutput(), err
		},
	})
}

// A stream is a call by which a process is reached.
type stream struct {
	mu   sync.Mutex // around send
	send func(*slipwayv1.ProcessInput) error
	recv func() (*slipwayv1.ProcessOutput, error)
}

func (s *stream) say(in *slipwayv1.ProcessInput) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.send(in)
}

// attend passes on what comes and goes until the process has ended; begun is what
// the begin failed with.
func (c *Client) attend(ctx context.Context, p Process, begun error, s *stream) (int, error) {
	if begun == nil {
		// Nobody can wait for these: a read of a terminal ends when somebody types.
		if p.Stdin != nil {
			go s.feed(p.Stdin)
		}
		if p.Resize != nil {
			go s.resize(ctx, p.Resize)
		}
	}
	for { // Recv says why Send has failed
		m, err := s.recv()
		if err != nil {
			return 0, c.broken(ctx, err)
		}
		done, code, err := p.hear(m)
		if err != nil || done {
			return code, err
		}
	}
}

// broken says why a call ended without an exit code.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return cancelled("interrupted; the process was ended")
	}
	if errors.Is(err, io.EOF) {
		return NewError(CodeInternal, slipwayv1.Blame_BLAME_BUILDER, "the daemon ended the call without an exit code", "")
	}
	e := c.fail(err)
	if _, told := detail(err); !told && isLost(err) {
		e = lostError(c.opts.Address, err)
	}
	return e
}

func (p *Process) hear(m *slipwayv1.ProcessOutput) (done bool, code int, err error) {
	switch m := m.GetOutput().(type) {
	case *slipwayv1.ProcessOutput_Stdout:
		_, err = p.Stdout.Write(m.Stdout)
	case *slipwayv1.ProcessOutput_Stderr:
		_, err = p.Stderr.Write(m.Stderr)
	case *slipwayv1.ProcessOutput_Notice:
		if p.Notice != nil {
			p.Notice(m.Notice)
		}
	case *slipwayv1.ProcessOutput_Exit:
		return true, int(m.Exit.GetCode()), nil
	}
	if err != nil {
		err = NewError(CodeInternal, slipwayv1.Blame_BLAME_USER, "write the output: "+err.Error(), "")
	}
	return false, 0, err
}

// feed sends input until it ends.
func (s *stream) feed(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			data := append([]byte(nil), buf[:n]...)
			if s.say(&slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Stdin{Stdin: data}}) != nil {
				return
			}
		}
		if err != nil {
			_ = s.say(&slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Eof{Eof: &slipwayv1.EndOfInput{}}}) // Recv says why it failed
			return
		}
	}
}

func (s *stream) resize(ctx context.Context, sizes <-chan *slipwayv1.WindowSize) {
	for {
		select {
		case size := <-sizes:
			if s.say(&slipwayv1.ProcessInput{Input: &slipwayv1.ProcessInput_Resize{Resize: size}}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
