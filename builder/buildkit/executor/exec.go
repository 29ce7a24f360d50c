package executor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/rescue"
)

// Exec runs one more process in a container that Run has begun with that id,
// with the environment, directory and user of its first process where
// process.Meta does not say. It waits for a container that is being made.
// Errors are those of Run.
func (e *Executor) Exec(ctx context.Context, id string, process executor.ProcessInfo) (err error) {
	defer rescue.Into(&err)
	if process.Stdin != nil {
		defer process.Stdin.Close()
	}
	if err := refuse(process.Meta); err != nil {
		return err
	}
	c := e.lookup(id)
	if c == nil {
		return fmt.Errorf("container %s not found", id)
	}
	select {
	case <-c.up:
	case <-c.over:
		return c.ended(id)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := make(chan struct{})
	var resizing sync.WaitGroup
	cmd := sandbox.Command{
		Container: c.name,
		Args:      process.Meta.Args, Env: process.Meta.Env, Dir: process.Meta.Cwd, User: process.Meta.User,
		Stdin: process.Stdin, Stdout: process.Stdout, Stderr: process.Stderr, Signals: process.Signal,
	}
	if process.Meta.Tty {
		cmd.Terminal = terminal(process.Resize, done, &resizing)
	}
	code, err := e.opts.Runner.Exec(ctx, cmd)
	close(done)
	resizing.Wait()
	if errors.Is(err, sandbox.ErrNotRunning) {
		return fmt.Errorf("container %s has stopped", id)
	}
	return e.outcome(ctx, code, err, false, process.Meta.ValidExitCodes)
}

// terminal returns a terminal that gets the sizes of a client until done.
func terminal(sizes <-chan executor.WinSize, done <-chan struct{}, wg *sync.WaitGroup) *sandbox.Terminal {
	if sizes == nil {
		return &sandbox.Terminal{}
	}
	out := make(chan sandbox.Size)
	wg.Go(func() {
		for {
			var size executor.WinSize
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				size = s
			case <-done:
				return
			}
			select {
			case out <- sandbox.Size{Rows: short(size.Rows), Cols: short(size.Cols)}:
			case <-done:
				return
			}
		}
	})
	return &sandbox.Terminal{Resize: out}
}

func short(n uint32) uint16 { return uint16(min(n, math.MaxUint16)) }

// A container is one that has an id by which it can be found.
type container struct {
	name string        // in the sandbox; may be read when up
	up   chan struct{} // its process runs
	over chan struct{} // Run has returned
	err  error         // what Run returned; may be read when over
}

// begin says that the process runs.
func (c *container) begin(name string) {
	if c.up != nil {
		c.name = name
		close(c.up)
	}
}

// ended says why nothing can be run in a container any more.
func (c *container) ended(id string) error {
	if c.err == nil {
		return fmt.Errorf("container %s has stopped", id)
	}
	return fmt.Errorf("container %s has exited with error: %w", id, c.err)
}

// register makes a container known until forget is called.
func (e *Executor) register(id string) (*container, error) {
	if err := executor.ValidContainerID(id); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil {
		return nil, fmt.Errorf("a container %s is there already: choose another id", id)
	}
	c := &container{up: make(chan struct{}), over: make(chan struct{})}
	e.running[id] = c
	return c, nil
}

func (e *Executor) forget(id string, c *container, err error) {
	e.mu.Lock()
	delete(e.running, id)
	e.mu.Unlock()
	c.err = err
	close(c.over)
}

func (e *Executor) lookup(id string) *container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.running[id]
}

// newID returns a name for a container in the sandbox, where the names of all
// clients are side by side: theirs are not used.
func newID() string {
	var id [16]byte
	rand.Read(id[:])
	return "bk-" + hex.EncodeToString(id[:])
}
