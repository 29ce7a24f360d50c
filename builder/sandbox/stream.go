package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/rescue"
)

// drain is how long output is waited for that something outside the container
// has got hold of.
const drain = time.Minute

// streams are the ways between a process and whoever runs it.
type streams struct {
	stdin          io.ReadCloser
	stdout, stderr io.Writer
	terminal       *Terminal
	signals        <-chan syscall.Signal
}

// A wiring joins streams with a runtime process.
type wiring struct {
	streams
	cmd    *exec.Cmd
	cancel context.CancelCauseFunc

	theirs []*os.File // the runtime's ends
	in     *os.File   // what becomes the process's input
	pty    *os.File   // our end of its terminal

	ended  chan struct{}
	copies sync.WaitGroup
}

// wire connects what cmd reads and writes with s, before it is started. The
// outputs are those that may be written to.
func (s streams) wire(cmd *exec.Cmd, cancel context.CancelCauseFunc, stdout, stderr io.Writer) (w *wiring, err error) {
	w = &wiring{streams: s, cmd: cmd, cancel: cancel, ended: make(chan struct{})}
	switch {
	case s.terminal != nil:
		var theirs *os.File
		if w.pty, theirs, err = openPTY(s.terminal.Size); err != nil {
			return nil, err
		}
		w.in, w.theirs = w.pty, append(w.theirs, theirs)
		w.stdout = stdout
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	case s.stdin != nil:
		// Not the reader itself: the command would wait for that, however long
		// the process has ended.
		var theirs *os.File
		if theirs, w.in, err = os.Pipe(); err != nil {
			return nil, err
		}
		w.theirs = append(w.theirs, theirs)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, stdout, stderr
	default:
		cmd.Stdout, cmd.Stderr = stdout, stderr
	}
	return w, nil
}

// begin passes on what comes, once the command was started or failed to. send
// sends the process a signal and reports whether there is one to get it.
func (w *wiring) begin(send func(syscall.Signal) bool) {
	for _, f := range w.theirs {
		f.Close()
	}
	if w.stdin != nil {
		w.spawn(w.feed)
	}
	if w.pty != nil {
		w.spawn(func() error {
			_, _ = io.Copy(w.stdout, w.pty) // ends when the last of the other end is closed
			return nil
		})
		w.spawn(w.resize)
	}
	if w.signals != nil {
		w.spawn(func() error { return w.deliver(send) })
	}
}

// end stops that when the runtime has ended, and waits until all is stopped.
func (w *wiring) end() {
	close(w.ended)
	if w.stdin != nil {
		w.stdin.Close()
	}
	if w.pty != nil {
		now := time.Now()
		_ = w.pty.SetWriteDeadline(now)
		_ = w.pty.SetReadDeadline(now.Add(drain))
	} else if w.in != nil {
		w.in.Close()
	}
	w.copies.Wait()
	if w.pty != nil {
		w.pty.Close()
	}
}

func (w *wiring) spawn(f func() error) {
	w.copies.Go(func() {
		if err := rescue.Run(f); err != nil {
			w.cancel(err)
		}
	})
}

// feed gives the process its input. A process that does not want it all is none
// of our business; an input that breaks off is.
func (w *wiring) feed() error {
	if w.pty == nil {
		defer w.in.Close()
	}
	buf := make([]byte, 32<<10)
	last := byte('\n')
	for {
		n, err := w.stdin.Read(buf)
		if n > 0 {
			last = buf[n-1]
			if _, err := w.in.Write(buf[:n]); err != nil {
				return nil
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			w.endInput(last)
			return nil
		case errors.Is(err, io.ErrClosedPipe), errors.Is(err, os.ErrClosed):
			return nil
		default:
			return fmt.Errorf("read standard input: %w", err)
		}
	}
}

// endInput types the end of input on a terminal: at the begin of a line once, as
// people do.
func (w *wiring) endInput(last byte) {
	const end = "\x04"
	switch {
	case w.pty == nil:
	case last == '\n' || last == '\r':
		_, _ = io.WriteString(w.in, end)
	default:
		_, _ = io.WriteString(w.in, end+end)
	}
}

// resize changes the size of the terminal. The runtime has one between ours and
// the process's, and looks when it is told.
func (w *wiring) resize() error {
	for {
		select {
		case size, ok := <-w.terminal.Resize:
			if !ok {
				return nil
			}
			if err := setSize(w.pty, size); err != nil {
				return err
			}
			_ = w.cmd.Process.Signal(unix.SIGWINCH) // may have ended
		case <-w.ended:
			return nil
		}
	}
}

// deliver sends signals. One that comes before the process runs waits for it.
func (w *wiring) deliver(send func(syscall.Signal) bool) error {
	for {
		select {
		case sig, ok := <-w.signals:
			if !ok {
				return nil
			}
			if !w.until(func() bool { return send(sig) }) {
				return nil
			}
		case <-w.ended:
			return nil
		}
	}
}

// until waits for done to become true, and reports whether it did before the
// runtime ended.
func (w *wiring) until(done func() bool) bool {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		if done() {
			return true
		}
		select {
		case <-tick.C:
		case <-w.ended:
			return done()
		}
	}
}

// pollPause is between two looks for a file that the runtime makes.
const pollPause = 2 * time.Millisecond
