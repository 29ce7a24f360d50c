package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/rescue"
)

var (
	errEnded = errors.New("process has ended")

	// runtimeEnv makes the runtime start faster: it does little and ends soon.
	runtimeEnv = []string{"PATH=" + defaultPath, "GOMAXPROCS=1", "GOGC=off"}
)

// A task is one process that the runtime starts and waits for.
type task struct {
	streams
	id      string // of the container
	dir     string // where it has files of its own
	args    []string
	watch   func(context.Context) error
	started func()
	first   bool // its end is that of the container
}

func (t *task) pidFile() string { return filepath.Join(t.dir, "pid") }
func (t *task) logFile() string { return filepath.Join(t.dir, "log.json") }

// execute runs the container of s and waits until nothing of it is left.
func (r *Runner) execute(ctx context.Context, p *Process, s *bundle) (int, error) {
	t := &task{
		streams: streams{p.Stdin, p.Stdout, p.Stderr, p.Terminal, p.Signals},
		id:      p.ID, dir: s.dir, first: true, watch: p.Watch, started: p.Started,
		args: []string{"run", "--bundle", s.dir},
	}
	if p.OutOfMemory == nil {
		return r.perform(ctx, t)
	}
	// Who looks after the runtime has removed the cgroup sees nothing.
	t.args = append(t.args, "--keep")
	code, err := r.perform(ctx, t)
	if err == nil && r.cgroups.outOfMemory(p.ID) {
		p.OutOfMemory()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return code, errors.Join(err, r.cgroups.removeChild(ctx, p.ID), os.RemoveAll(filepath.Join(r.runcDir, p.ID)))
}

// perform carries out t.
func (r *Runner) perform(ctx context.Context, t *task) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	args := []string{"--root", r.runcDir, "--log", t.logFile(), "--log-format", "json"}
	args = append(append(args, t.args...), "--pid-file", t.pidFile(), t.id)
	// Not bound to ctx: killing the runtime would not kill the container.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), r.runc, args...)
	cmd.Env = runtimeEnv
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.WaitDelay = drain
	stdout, stderr := t.outputs(ctx, cancel)
	wires, err := t.wire(cmd, cancel, stdout, stderr)
	if err != nil {
		return 0, err
	}
	err = cmd.Start()
	wires.begin(func(sig syscall.Signal) bool { return t.signal(cmd.Process.Pid, sig) })
	if err != nil {
		wires.end()
		return 0, err
	}
	if t.started != nil {
		wires.spawn(func() error {
			if wires.until(func() bool { return exists(t.pidFile()) }) {
				t.started()
			}
			return nil
		})
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	watched := make(chan error, 1)
	watching, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		err := t.look(watching)
		if err != nil && context.Cause(watching) == errEnded && (errors.Is(err, context.Canceled) || errors.Is(err, errEnded)) {
			err = nil // it only noticed that it is no longer needed
		}
		if err != nil {
			cancel(err)
		}
		watched <- err
	}()

	var waitErr, stopErr error
	select {
	case waitErr = <-exited:
	case <-ctx.Done():
		stopErr = context.Cause(ctx)
		waitErr = r.kill(cmd, t, exited)
	}
	wires.end()
	ended(errEnded)
	if err := <-watched; err != nil && stopErr == nil {
		stopErr = err
	}
	if stopErr == nil {
		// A writer failed with the last of the output.
		if cause := context.Cause(ctx); cause != nil {
			stopErr = cause
		}
	}
	if stopErr != nil {
		return 0, stopErr
	}
	return t.result(cmd, waitErr)
}

func (t *task) look(ctx context.Context) (err error) {
	defer rescue.Into(&err)
	if t.watch == nil {
		return nil
	}
	return t.watch(ctx)
}

// result tells the end of the process from the failure to start it: the
// runtime's exit code may be either.
func (t *task) result(cmd *exec.Cmd, waitErr error) (int, error) {
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return 0, waitErr
	}
	code := cmd.ProcessState.ExitCode()
	if code == 0 {
		return 0, nil
	}
	message := runtimeError(t.logFile())
	if code < 0 {
		return 0, errors.New("runc was killed: " + cmd.ProcessState.String() + " " + message)
	}
	switch {
	case exists(t.pidFile()):
		return code, nil
	case message == "":
		return 0, errors.New("runc failed without a message: " + cmd.ProcessState.String())
	}
	return 0, &StartError{Message: message}
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// kill ends t at once and returns how the runtime ended. Killing the
// container's first process takes all others with it; the runtime then cleans
// up by itself. If that cannot be done, everything is killed one by one.
func (r *Runner) kill(cmd *exec.Cmd, t *task, exited <-chan error) error {
	const patience = 3 * time.Second
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if t.signal(cmd.Process.Pid, unix.SIGKILL) {
			select {
			case err := <-exited:
				return err
			case <-time.After(patience):
			}
			break
		}
		// Not started yet, or about to be reaped.
		select {
		case err := <-exited:
			return err
		case <-tick.C:
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		r.log.Warn("kill runc", "container", t.id, "error", err)
	}
	err := <-exited
	if !t.first {
		return err // what is left of it ends with the container
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if failed := r.discard(ctx, t.id); failed != nil {
		r.log.Error("remove container", "container", t.id, "error", failed)
	}
	return err
}

// signal sends a signal to the process of t if it runs and is a child of
// parent, so that nobody else is hit should its number have been given away
// already. Killed are its descendants too, if that does not go by itself.
func (t *task) signal(parent int, sig syscall.Signal) bool {
	data, err := os.ReadFile(t.pidFile())
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return false
	}
	var below []int
	if sig == unix.SIGKILL && !t.first {
		below = descendants(pid, parent)
	}
	defer func() {
		for _, fd := range below {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
			unix.Close(fd)
		}
	}()
	return signalChild(pid, parent, sig)
}

func signalChild(pid, parent int, sig syscall.Signal) bool {
	fd, err := openChild(pid, parent)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, sig, nil, 0) == nil
}

// openChild opens a process that is a child of parent.
func openChild(pid, parent int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	if parentOf(pid) != parent {
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// descendants opens the processes below pid, itself a child of parent. Those
// that have left it, as daemons do, are not among them.
func descendants(pid, parent int) []int {
	if parentOf(pid) != parent {
		return nil
	}
	var fds []int
	lists, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for name := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			if fd, err := openChild(child, pid); err == nil {
				fds = append(append(fds, fd), descendants(child, pid)...)
			}
		}
	}
	return fds
}

// parentOf returns the parent of a process, 0 if there is none to be found.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may contain anything.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(f[1])
	return ppid
}
