package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/rescue"
)

var (
	errEnded = errors.New("process has ended")

	// runtimeEnv makes the runtime start faster: it does little and ends soon.
	runtimeEnv = []string{"PATH=" + defaultPath, "GOMAXPROCS=1", "GOGC=off"}
)

// execute runs the container of s and waits until nothing of it is left.
func (r *Runner) execute(ctx context.Context, p *Process, s *bundle) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	pidFile, logFile := filepath.Join(s.dir, "pid"), filepath.Join(s.dir, "log.json")
	// Not bound to ctx: killing the runtime would not kill the container.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), r.runc, "--root", r.runcDir, "--log", logFile, "--log-format", "json",
		"run", "--bundle", s.dir, "--pid-file", pidFile, p.ID)
	cmd.Env = runtimeEnv
	cmd.Stdout, cmd.Stderr = outputs(ctx, cancel, p.Stdout, p.Stderr, pidFile)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Minute // should something outside the container have got hold of the output
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	watched := make(chan error, 1)
	watching, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		err := p.watch(watching)
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
		waitErr = r.kill(cmd, p.ID, pidFile, exited)
	}
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
	return r.result(cmd, waitErr, pidFile, logFile)
}

func (p *Process) watch(ctx context.Context) (err error) {
	defer rescue.Into(&err)
	if p.Watch == nil {
		return nil
	}
	return p.Watch(ctx)
}

// result tells the end of the process from the failure to start it: the
// runtime's exit code may be either.
func (r *Runner) result(cmd *exec.Cmd, waitErr error, pidFile, logFile string) (int, error) {
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return 0, waitErr
	}
	code := cmd.ProcessState.ExitCode()
	if code == 0 {
		return 0, nil
	}
	message := runtimeError(logFile)
	if code < 0 {
		return 0, errors.New("runc was killed: " + cmd.ProcessState.String() + " " + message)
	}
	switch {
	case exists(pidFile):
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

// kill ends the container at once and returns how the runtime ended. Killing
// the container's first process takes all others with it; the runtime then
// cleans up by itself. If that cannot be done, everything is killed one by one.
func (r *Runner) kill(cmd *exec.Cmd, id, pidFile string, exited <-chan error) error {
	const patience = 3 * time.Second
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if killInit(pidFile, cmd.Process.Pid) {
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
		r.log.Warn("kill runc", "container", id, "error", err)
	}
	err := <-exited
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if failed := r.discard(ctx, id); failed != nil {
		r.log.Error("remove container", "container", id, "error", failed)
	}
	return err
}

// killInit kills the process that pidFile names if it is a child of parent, so
// that nobody else is hit should the number have been given away already.
func killInit(pidFile string, parent int) bool {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return parentOf(pid) == parent && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
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
