package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Command is one more process in the container of a [Process], with the same
// rights and limits.
type Command struct {
	Container string // ID of the Process
	Args      []string

	// What is left empty is as the Process has it. PATH, HOSTNAME and HOME are
	// added to Env where missing. None of it reaches a disk.
	Env  []string
	Dir  string
	User string

	// As in a Process.
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
	Terminal       *Terminal
	Signals        <-chan syscall.Signal
	Started        func()
}

// Exec runs c to its end and returns its exit code as Run does. It waits for a
// container that is being made. Errors are those of Run, and ErrNotRunning. A
// process that c leaves behind lives as long as the container; one that keeps
// the output open keeps Exec waiting, until ctx is done.
func (r *Runner) Exec(ctx context.Context, c Command) (int, error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if c.Stdin != nil {
		defer c.Stdin.Close()
	}
	code, err := r.exec(ctx, &c)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	return code, err
}

func (r *Runner) exec(ctx context.Context, c *Command) (code int, err error) {
	if len(c.Args) == 0 {
		return 0, errors.New("run process: no command")
	}
	in, err := r.await(ctx, c.Container)
	if err != nil {
		return 0, err
	}
	var id Process
	id.name()
	s := &bundle{dir: filepath.Join(r.runDir, id.ID), owned: true}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return 0, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if failed := errors.Join(s.close(ctx), s.remove()); failed != nil {
			err = errors.Join(err, fmt.Errorf("clean up after process in %s: %w", c.Container, failed))
		}
	}()
	file, err := s.writeProcess(in.bundle, c)
	if err != nil {
		return 0, err
	}
	code, err = r.perform(ctx, &task{
		streams: streams{c.Stdin, c.Stdout, c.Stderr, c.Terminal, c.Signals},
		id:      c.Container, dir: s.dir, started: c.Started,
		args: []string{"exec", "--process", file},
	})
	if start, ok := errors.AsType[*StartError](err); ok && in.isEnding(start) {
		err = notRunning(c.Container)
	}
	return code, err
}

// writeProcess writes what the runtime is to run to memory.
func (s *bundle) writeProcess(container *bundle, c *Command) (string, error) {
	p, err := container.another(c)
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	dir, err := s.memory()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "process.json")
	return file, os.WriteFile(file, data, 0o600)
}

// another returns the configuration of one more process in a container.
func (s *bundle) another(c *Command) (*specs.Process, error) {
	p := *s.first
	p.Args, p.Terminal, p.ConsoleSize = c.Args, c.Terminal != nil, c.Terminal.box()
	who, set := *s.spec, s.env
	if c.User != "" {
		var err error
		if who.user, err = lookupUser(s.spec.rootfs, c.User); err != nil {
			return nil, err
		}
	}
	p.User = who.specUser()
	if c.Dir != "" {
		p.Cwd = path.Clean("/" + c.Dir)
	}
	if len(c.Env) > 0 {
		set = c.Env
	}
	p.Env = s.environment(set, who.user.Home, c.Terminal)
	return &p, nil
}

// An instance is a container from the call of Run on.
type instance struct {
	id     string
	bundle *bundle       // may be read when made
	made   chan struct{} // the runtime is about to be started
	ended  chan struct{} // its process is no more
	over   chan struct{} // Run has returned
}

func (in *instance) begin(s *bundle) {
	in.bundle = s
	close(in.made)
}

func (in *instance) end() { close(in.ended) }

// isEnding reports whether a process could not be started because the container
// has ended.
func (in *instance) isEnding(err *StartError) bool {
	select {
	case <-in.ended:
		return true
	default:
	}
	return strings.Contains(err.Message, "stopped container") || strings.Contains(err.Message, "container does not exist")
}

// register makes an id known until forget is called.
func (r *Runner) register(id string) (*instance, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[id] != nil {
		return nil, fmt.Errorf("run process: a container %s is there already", id)
	}
	in := &instance{id: id, made: make(chan struct{}), ended: make(chan struct{}), over: make(chan struct{})}
	r.live[id] = in
	return in, nil
}

func (r *Runner) forget(in *instance) {
	r.mu.Lock()
	delete(r.live, in.id)
	r.mu.Unlock()
	close(in.over)
}

func notRunning(id string) error { return fmt.Errorf("%w: %s", ErrNotRunning, id) }

// await returns the container id once its process runs.
func (r *Runner) await(ctx context.Context, id string) (*instance, error) {
	r.mu.Lock()
	in := r.live[id]
	r.mu.Unlock()
	if in == nil {
		return nil, notRunning(id)
	}
	select {
	case <-in.made:
	case <-in.over:
		return nil, notRunning(id)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for !exists(filepath.Join(in.bundle.dir, "pid")) {
		select {
		case <-tick.C:
		case <-in.ended:
			return nil, notRunning(id)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return in, nil
}
