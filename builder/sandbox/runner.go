package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Runner runs processes in containers. Its methods may be called from many
// goroutines at once. Close it when done.
type Runner struct {
	opts    Options
	log     *slog.Logger
	runc    string // path of the runtime
	seccomp bool   // the runtime can filter system calls
	runcDir string // the runtime's state
	runDir  string // a directory for each process
	inits   initPool
	cgroups cgroups
	network *network

	stop    context.CancelCauseFunc
	stopped context.Context // done once Close was called
	running sync.WaitGroup
	mu      sync.Mutex // between running.Add and stop, and of live
	live    map[string]*instance
}

// New returns a Runner after it has removed what an earlier one left in the
// root: containers, mounts, cgroups, network. It wraps ErrInUse if the earlier
// one is still there. Where opts.Network is Sandbox, the network is set up
// before New returns, else with the first process that wants it.
func New(ctx context.Context, opts Options) (*Runner, error) {
	r, err := prepare(ctx, opts)
	if err == nil {
		err = r.network.claim(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := r.cgroups.vacate(); err != nil {
		r.log.Warn("no RUN step can run: the root of cgroups has processes", "error", err) // Check says so too
	}
	err = r.sweep(ctx)
	if err == nil {
		if failed := r.cgroups.probe(); failed != nil {
			r.log.Warn("look for limits of memory and swap", "error", failed)
		}
	}
	if err == nil && r.opts.Network == Sandbox {
		err = r.network.start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", errors.Join(err, r.Close(context.WithoutCancel(ctx))))
	}
	return r, nil
}

func prepare(ctx context.Context, opts Options) (*Runner, error) {
	if opts.Network == "" {
		opts.Network = Sandbox
	}
	if _, err := ParseMode(string(opts.Network)); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(opts.Root)
	if err != nil {
		return nil, err
	}
	if opts.Root == "" {
		return nil, errors.New("no root directory")
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	// The runtime wants a root file system's path without links.
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	r := &Runner{
		live:    map[string]*instance{},
		opts:    opts,
		log:     opts.log(),
		runcDir: filepath.Join(root, "runc"),
		runDir:  filepath.Join(root, "run"),
	}
	r.inits.dir = r.runDir
	for _, dir := range []string{r.runcDir, r.runDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	name := opts.Runc
	if name == "" {
		name = "runc"
	}
	if r.runc, err = exec.LookPath(name); err != nil {
		return nil, err
	}
	version, err := r.runcVersion(ctx)
	if err != nil {
		return nil, err
	}
	r.seccomp = strings.Contains(version, "libseccomp")

	id, err := rootID(root)
	if err != nil {
		return nil, err
	}
	if r.cgroups, err = findCgroups(filepath.Join("/", opts.CgroupParent, "slipway-"+id)); err != nil {
		return nil, err
	}
	if r.network, err = newNetwork(id, &r.opts, r.log); err != nil {
		return nil, err
	}
	r.stopped, r.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	return r, nil
}

// rootID returns a short name for a root, the same whenever it is opened and
// different for each root of a machine.
func rootID(root string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: root, Err: err}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", st.Dev, st.Ino))
	return hex.EncodeToString(sum[:3]), nil
}

// enter joins ctx with the life of r. It fails once r is closed; the caller
// calls leave when it is done.
func (r *Runner) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped.Err() != nil {
		return nil, nil, ErrClosed
	}
	r.running.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(r.stopped, func() { cancel(context.Cause(r.stopped)) })
	return ctx, func() {
		unhook()
		cancel(nil)
		r.running.Done()
	}, nil
}

// Close stops what still runs with ErrClosed, waits for it and removes the
// network and the cgroup. It may be called more than once.
func (r *Runner) Close(ctx context.Context) error {
	r.mu.Lock()
	r.stop(ErrClosed)
	r.mu.Unlock()

	r.running.Wait()
	return errors.Join(r.network.close(), r.cgroups.remove(ctx), r.inits.clear())
}
