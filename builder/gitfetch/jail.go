package gitfetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/builder/thread"
)

// nobody is the user and the group that git runs as.
const nobody = 65534

// inside is where git finds its directory. Every machine has it, and all users
// may go there.
const inside = "/tmp"

// A jail is a thread whose mounts, network and umask are its own, for git to
// run from.
type jail struct {
	ctx    context.Context // of one Resolve or Fetch
	room   string          // its directory, as all others see it
	proxy  *proxy
	env    []string
	secret string // never shown
}

// jailed runs do in a new jail in the room, on a thread that ends with it. On
// that thread, the room is found at inside and perhaps nowhere else.
func (f *Fetcher) jailed(ctx context.Context, src Source, room string, do func(*jail) error) error {
	var pem []byte
	if f.opts.CA != "" {
		var err error
		if pem, err = os.ReadFile(f.opts.CA); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	thread.Go(func() {
		j := &jail{ctx: ctx, room: room, secret: src.Authorization}
		l, err := j.enter()
		if err != nil {
			done <- fmt.Errorf("prepare git: %w", err)
			return
		}
		defer func() { done <- err }()
		j.proxy = newProxy(ctx, l, f.opts.Dial)
		defer j.proxy.close()
		if err = j.configure(pem, src); err != nil {
			return
		}
		if err = do(j); err != nil && j.proxy.cause() != nil {
			err = j.proxy.cause()
		}
	})
	err := <-done
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// newRoom makes the directories of one fetch. The caller removes them.
func (f *Fetcher) newRoom() (string, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return "", fmt.Errorf("%w: %v", ErrNoGit, err)
	}
	room, err := os.MkdirTemp(f.opts.Root, "fetch-")
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"tree", "home"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(room, dir), 0o755))
	}
	for _, dir := range []string{".", "tree", "home"} {
		err = errors.Join(err, os.Lchown(filepath.Join(room, dir), nobody, nobody))
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(room))
	}
	return room, nil
}

// enter moves the thread, for ever, and listens where git will find the proxy.
func (j *jail) enter() (net.Listener, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	unix.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{
		{"", "/", unix.MS_SLAVE | unix.MS_REC}, {j.room, inside, unix.MS_BIND}, {"", inside, unix.MS_BIND | unix.MS_REMOUNT | flags},
	} {
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	return lc.Listen(j.ctx, "tcp", "127.0.0.1:0")
}

// configure writes the only settings that git reads.
func (j *jail) configure(ca []byte, src Source) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "[http]\n\tproxy = %s\n\tproxyAuthMethod = basic\n\tlowSpeedLimit = 1\n\tlowSpeedTime = 60\n", quote(j.proxy.url()))
	b.WriteString("[core]\n\thooksPath = /dev/null\n\tfsmonitor = false\n\tlogAllRefUpdates = false\n\tautocrlf = false\n")
	b.WriteString("[init]\n\tdefaultBranch = master\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[advice]\n\tdetachedHead = false\n")
	b.WriteString("[fetch]\n\tfsckObjects = false\n[transfer]\n\tbundleURI = false\n")
	if src.Authorization != "" {
		u, err := url.Parse(src.Remote)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "[http %s]\n\textraHeader = %s\n", quote(scope(src.Remote)), quote("Authorization: "+src.Authorization))
		j.proxy.restrict(u)
	}
	if err := write(inside+"/home/config", b.Bytes()); err != nil {
		return err
	}
	j.env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + inside + "/home", "TMPDIR=" + inside + "/home",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + inside + "/home/config", "GIT_ATTR_NOSYSTEM=1",
		"GIT_ALLOW_PROTOCOL=http:https", "GIT_TERMINAL_PROMPT=0",
	}
	if len(ca) == 0 {
		return nil
	}
	j.env = append(j.env, "GIT_SSL_CAINFO="+inside+"/home/ca.pem")
	return write(inside+"/home/ca.pem", ca)
}

// write makes a file that nobody but git reads.
func write(file string, data []byte) error {
	return errors.Join(os.WriteFile(file, data, 0o600), os.Lchown(file, nobody, nobody))
}

// quote writes a value of a settings file.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", "", "\x00", "").Replace(s) + `"`
}

// scope is where credentials count: at the remote, or for all of GitHub, as
// its submodules are mostly there too.
func scope(remote string) string {
	for _, host := range []string{"https://github.com/", "https://www.github.com/"} {
		if strings.HasPrefix(remote, host) {
			return host
		}
	}
	return remote
}

// all runs commands until one fails.
func (j *jail) all(commands ...[]string) error {
	for _, args := range commands {
		if _, err := j.git(args...); err != nil {
			return err
		}
	}
	return nil
}

// git runs one command in the tree and returns what it prints. It must be
// called on the jail's thread.
func (j *jail) git(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(j.ctx, "git", args...)
	cmd.Dir, cmd.Env = inside+"/tree", j.env
	out, complaint := &capped{left: 1 << 20}, &capped{left: 64 << 10}
	cmd.Stdout, cmd.Stderr = out, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if cause := context.Cause(j.ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, j.complain(complaint.String(), err)
	}
	return out.Bytes(), nil
}

// complain makes an error of what git wrote. Only its last words are of use.
func (j *jail) complain(text string, err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("git: %w", err)
	}
	var kept []string
	for line := range strings.Lines(text) {
		for _, prefix := range []string{"fatal: ", "error: "} {
			if said, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				kept = append(kept, said)
			}
		}
	}
	if len(kept) == 0 {
		kept = []string{"git: " + err.Error()}
	}
	said := strings.Join(kept[:min(len(kept), 3)], "; ")
	if j.secret != "" {
		said = strings.ReplaceAll(said, j.secret, "***")
	}
	e := &Error{Text: said}
	for _, sign := range []string{"could not read Username", "could not read Password", "Authentication failed", "error: 401", "error: 403"} {
		e.Auth = e.Auth || strings.Contains(said, sign)
	}
	return e
}

// watch ends the commands of a jail that write too much, until stop is called.
func (j *jail) watch(most int64) (done <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancelCause(j.ctx)
	j.ctx = ctx
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		gauge := rootfs.NewGauge(j.room)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for most >= 0 {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if n, _, err := gauge.Look(ctx, 2*most); err == nil && n > 2*most {
				cancel(ErrTooLarge)
			}
		}
	}()
	return ended, func() { cancel(nil) }
}

// weigh returns ErrTooLarge if a room has too much in it.
func weigh(ctx context.Context, room string, most int64) error {
	n, _, err := rootfs.NewGauge(room).Look(ctx, 2*most)
	if err == nil && n > 2*most {
		err = ErrTooLarge
	}
	return err
}

// A capped buffer drops what is too much.
type capped struct {
	bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.left)
	c.left -= keep
	c.Buffer.Write(p[:keep])
	return len(p), nil
}
