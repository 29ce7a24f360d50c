package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Process is one process to run in a container of its own.
type Process struct {
	// ID names the container: letters, digits, underscore, dot, minus; at most
	// 64. No two processes of a Runner may have the same at once. Empty means a
	// random one.
	ID string

	// Lowers are the directories of the image's layers, topmost first. There
	// may be none. Upper gets what the process changes, in the form of
	// overlayfs, and Work is the working directory that overlayfs wants on the
	// same file system. What Upper has already is seen by the process. Both may
	// be left out with ReadOnlyRoot.
	Lowers      []string
	Upper, Work string

	// Root, in place of Lowers, Upper and Work, is a directory that is the root
	// file system already, such as an overlay that somebody else has mounted and
	// that cannot be an overlay's upper directory. What Run has to make there for
	// its mounts is removed in the end. With ReadOnlyRoot it is not touched.
	Root string

	// ReadOnlyRoot lets the process change nothing but what it has mounted.
	ReadOnlyRoot bool

	// Volatile skips flushing what the process wrote to disk, also where the
	// process asks for it. It is much faster. Upper is then whole for anyone who
	// reads it while the machine is up, and of unknown content after it crashed.
	Volatile bool

	Args []string

	// Idle, in place of Args, makes a container whose first process does nothing
	// but inherit orphans, until ctx is done: for processes that [Runner.Exec]
	// runs there. It needs nothing of the root file system.
	Idle bool

	Env  []string // NAME=VALUE; PATH, HOSTNAME and HOME are added where missing
	Dir  string   // working directory, made where missing; empty means /
	User string   // name or id, optionally with :group; empty means root

	Hostname   string   // empty means the first 12 characters of ID
	ExtraHosts []string // NAME:ADDRESS, for /etc/hosts
	Network    Mode     // empty means the Runner's

	// Stdin is what the process reads until it ends. It is closed then, which
	// must end a Read that is under way. Nil is an empty input. On a terminal its
	// end is typed, as people do with ^D.
	Stdin io.ReadCloser

	// Terminal, if not nil, is what the process runs on. Its output is that of
	// Stdout, and Stderr gets none.
	Terminal *Terminal

	// Signals are sent to the process, from the time when it runs. It may be nil
	// and may be closed.
	Signals <-chan syscall.Signal

	// Stdout and Stderr get the output as it comes. Nil discards it. They are
	// called from different goroutines unless they are the same. An error stops
	// the process, and Run returns it. A Write that blocks makes the process
	// wait, and Run too.
	Stdout, Stderr io.Writer

	// Mounts are shown where the image has something else, or nothing. An outer
	// one may hold an inner one's target.
	Mounts []Mount

	// SecretEnv is like Env, and reaches no disk.
	SecretEnv []string

	// Volumes are directories whose changes are discarded. Directories made for
	// them where the image has none are not.
	Volumes []string

	Limits  Limits
	Ulimits []Ulimit
	ShmSize int64 // of /dev/shm; 0 means 64 MiB

	// Started, if not nil, is called once when the process runs.
	Started func()

	// OutOfMemory, if not nil, is called when the process has ended if the
	// kernel killed it or one of its children for want of memory.
	OutOfMemory func()

	// Watch, if not nil, runs beside the process. An error stops the process,
	// and Run returns it. The context is done when the process has ended; Run
	// returns after Watch has.
	Watch func(context.Context) error
}

// Limits are what a process and its children may use together. Zero is no limit.
type Limits struct {
	Memory int64 // bytes
	CPUs   float64
	Pids   int64

	// Swap is how many bytes of memory and swap together; -1 is no limit. Zero
	// means no swap where Memory is limited.
	Swap int64

	CPUPeriod time.Duration // over which CPUs is counted; 0 means 100 ms
	CPUShares uint64        // of the CPUs when there are too few; 0 means 1024
	CPUSet    string        // CPUs to run on, such as 0-3,5; empty means all
	MemorySet string        // memory nodes to use, likewise
}

// An Ulimit is a limit of each process of a container, such as nofile. -1 is
// no limit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (p *Process) dir() string {
	return path.Clean("/" + p.Dir)
}

// name gives p an id.
func (p *Process) name() {
	if p.ID == "" {
		var id [32]byte
		rand.Read(id[:])
		p.ID = hex.EncodeToString(id[:])
	}
}

// complete checks p and fills in what was left to us.
func (p *Process) complete(def Mode) error {
	p.name()
	if !validID.MatchString(p.ID) {
		return fmt.Errorf("invalid id %q", p.ID)
	}
	if p.Idle {
		if err := p.idle(); err != nil {
			return err
		}
	}
	if len(p.Args) == 0 {
		return errors.New("no command")
	}
	if err := p.checkRoot(); err != nil {
		return err
	}
	if p.Network == "" {
		p.Network = def
	}
	if _, err := ParseMode(string(p.Network)); err != nil {
		return err
	}
	if p.Hostname == "" && p.Network == Host {
		p.Hostname, _ = os.Hostname()
	}
	if p.Hostname == "" {
		p.Hostname = p.ID[:min(12, len(p.ID))]
	}
	return nil
}

// Run runs p to its end and returns its exit code, 128 and the signal's number
// if a signal ended it. An error means that it could not run or was stopped:
// [StartError] and ErrUser where p asks for what its root file system does not
// have, ErrNetwork, the cause of ctx if that was done, the error of Watch or of
// a writer, ErrClosed. When Run returns, no process of the container is left,
// nothing is mounted, and Upper is complete.
func (r *Runner) Run(ctx context.Context, p Process) (int, error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if p.Stdin != nil {
		defer p.Stdin.Close()
	}
	if err := p.complete(r.opts.Network); err != nil {
		return 0, fmt.Errorf("run process: %w", err)
	}
	in, err := r.register(p.ID)
	if err != nil {
		return 0, err
	}
	defer r.forget(in)
	code, err := r.run(ctx, &p, in)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	return code, err
}

func (r *Runner) run(ctx context.Context, p *Process, in *instance) (code int, err error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	s, err := r.stage(ctx, p)
	// What was begun is taken down whatever became of ctx.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if failed := s.close(ctx); failed != nil {
			err = errors.Join(err, fmt.Errorf("clean up after process %s: %w", p.ID, failed))
		}
		r.running.Go(func() { // nobody need wait for that but Close
			if failed := s.remove(); failed != nil {
				r.log.Warn("remove what a process used", "dir", s.dir, "err", failed)
			}
		})
	}()
	if err != nil {
		return 0, err
	}
	in.begin(s)
	defer in.end()
	return r.execute(ctx, p, s)
}

// A bundle is what a container is made of while it exists.
type bundle struct {
	dir   string
	undo  []func(context.Context) error // last first
	spec  *container
	owned bool // dir is ours to remove

	env      []string       // what was asked for
	defaults []string       // what we add unless it is set
	first    *specs.Process // the container's

	inMemory bool // there is a directory in memory
}

// close undoes stage, but for removing the directory: that is for later, and
// only when nothing is mounted in it any more.
func (s *bundle) close(ctx context.Context) error {
	for i := len(s.undo) - 1; i >= 0; i-- {
		if err := s.undo[i](ctx); err != nil {
			s.owned = false
			return err
		}
	}
	return nil
}

// remove removes the directory of a bundle that was closed.
func (s *bundle) remove() error {
	if !s.owned {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// stage makes everything that the runtime needs to run p. The bundle is to be
// closed also when there is an error.
func (r *Runner) stage(ctx context.Context, p *Process) (*bundle, error) {
	s := &bundle{dir: filepath.Join(r.runDir, p.ID)}
	if err := os.Mkdir(s.dir, 0o711); err != nil {
		return s, err
	}
	s.owned = true

	var ep *endpoint
	if p.Network == Sandbox {
		var err error
		if ep, err = r.network.take(ctx); err != nil {
			return s, err
		}
		s.undo = append(s.undo, func(context.Context) error { r.network.release(ep); return nil })
	}

	if err := s.exposeMounts(ctx, p); err != nil {
		return s, err
	}
	rootfs, mounts, err := s.mountRoot(ctx, p, &r.inits)
	if err != nil {
		return s, err
	}
	c := &container{
		process:  p,
		rootfs:   rootfs,
		hostname: p.Hostname,
		network:  p.Network,
		cgroup:   filepath.Join(r.cgroups.parent, p.ID),
		cgroup2:  r.cgroups.unified,
		swap:     r.cgroups.swap,
		seccomp:  r.seccomp,
	}
	s.spec = c
	if c.user, err = lookupUser(rootfs, p.User); err != nil {
		return s, err
	}
	if err := makeDir(rootfs, p.dir()); err != nil {
		return s, err
	}
	if err := s.mountVolumes(p); err != nil {
		return s, err
	}
	if err := s.prepareMounts(ctx, mounts); err != nil {
		return s, err
	}
	s.env = slices.Concat(p.Env, p.SecretEnv)
	if r.opts.BuildCA != "" {
		binds, err := stageCA(s.dir, r.opts.BuildCA, rootfs)
		if err != nil {
			return s, err
		}
		c.binds = append(c.binds, binds...)
		for _, name := range caVariables {
			s.defaults = append(s.defaults, name+"="+caPath)
		}
		s.defaults = append(s.defaults, "APT_CONFIG="+aptPath)
	}
	c.env = s.environment(s.env, c.user.Home, p.Terminal)
	return s, s.finish(ep)
}

// finish writes the files that the configuration refers to, and then itself.
func (s *bundle) finish(ep *endpoint) error {
	c := s.spec
	var addr, forwarder netip.Addr
	if ep != nil {
		c.netns, addr, forwarder = ep.path(), ep.addr, ep.gateway
	}
	hosts, err := hostsFile(c.network, addr, c.hostname, c.process.ExtraHosts)
	if err != nil {
		return err
	}
	resolv, err := os.ReadFile(resolvConf)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	binds, err := stageFiles(s.dir, hosts, resolvFile(resolv, forwarder), c.hostname)
	if err != nil {
		return err
	}
	c.binds = append(c.binds, binds...)

	spec, err := c.spec()
	if err != nil {
		return err
	}
	s.first = spec.Process
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return s.writeConfig(config)
}

// writeConfig writes the configuration where the runtime reads it, and to
// memory if there is a secret in it.
func (s *bundle) writeConfig(config []byte) error {
	at := filepath.Join(s.dir, "config.json")
	if len(s.spec.process.SecretEnv) == 0 {
		return os.WriteFile(at, config, 0o600)
	}
	dir, err := s.memory()
	if err != nil {
		return err
	}
	if err := os.Symlink("memory/config.json", at); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
}

// mountRoot mounts the root file system of p and returns where, and the places
// of the mounts in it.
func (s *bundle) mountRoot(ctx context.Context, p *Process, inits *initPool) (string, []point, error) {
	rootfs := filepath.Join(s.dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		return "", nil, err
	}
	if p.Root != "" {
		list, err := s.bindRoot(p, rootfs)
		return rootfs, list, err
	}
	if err := s.upper(p); err != nil {
		return "", nil, err
	}
	below, err := inits.take(p.Lowers)
	if err != nil {
		return "", nil, err
	}
	s.undo = append(s.undo, func(context.Context) error { return inits.give(below) })
	o := &overlay{
		lowers:   append(stack{below.path}, p.Lowers...),
		upper:    p.Upper,
		work:     p.Work,
		volatile: p.Volatile,
	}
	if err := o.mount(rootfs); err != nil {
		return "", nil, err
	}
	list, err := s.addStubs(ctx, o, rootfs, p)
	if err == nil || !errors.Is(err, errNotMounted) {
		s.mounted(o, rootfs)
	}
	return rootfs, list, err
}

// errNotMounted is wrapped when a root file system could not be mounted again.
var errNotMounted = errors.New("not mounted")

// addStubs finds the places of the mounts in rootfs and makes those that it
// lacks. What is below a mounted overlay must not change, so it is mounted anew.
func (s *bundle) addStubs(ctx context.Context, o *overlay, rootfs string, p *Process) ([]point, error) {
	if len(p.Mounts) == 0 {
		return nil, nil
	}
	list, err := points(rootfs, p)
	if err != nil {
		return nil, err
	}
	stubs := filepath.Join(s.dir, "stubs")
	if made, err := makeStubs(stubs, rootfs, list); err != nil || !made {
		return list, err
	}
	if err := o.unmount(ctx, rootfs); err != nil {
		return nil, err
	}
	o.lowers = append(stack{stubs}, o.lowers...)
	if err := o.mount(rootfs); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMounted, err)
	}
	return list, nil
}

func (s *bundle) mounted(o *overlay, target string) {
	s.undo = append(s.undo, func(ctx context.Context) error { return o.unmount(ctx, target) })
}

func (s *bundle) mountVolumes(p *Process) error {
	paths, err := volumePaths(p.Volumes)
	if err != nil {
		return err
	}
	s.spec.volumes, err = makeVolumes(filepath.Join(s.dir, "volumes"), s.spec.rootfs, paths, s.mounted)
	return err
}

// makeDir makes dir and its parents in rootfs. Symbolic links do not lead out.
func makeDir(rootfs, dir string) error {
	p, err := fs.RootPath(rootfs, dir)
	if err != nil {
		return &StartError{Message: fmt.Sprintf("Cannot mkdir: %s: %v", dir, err)}
	}
	err = os.MkdirAll(p, 0o755)
	if info, statErr := os.Stat(p); statErr == nil && !info.IsDir() {
		return &StartError{Message: "Cannot mkdir: " + dir + " is not a directory"}
	}
	return err
}
