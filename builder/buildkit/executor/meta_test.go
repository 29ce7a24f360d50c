package executor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	bkexecutor "github.com/moby/buildkit/executor"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/sys/user"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

// mapped is a reference that wants a user namespace.
type mapped struct{ *shown }

func (m mapped) Mount(context.Context, bool) (bkexecutor.MountableRef, error) {
	return mappedRef{&shownRef{m.shown}}, nil
}

type mappedRef struct{ *shownRef }

func (mappedRef) IdentityMapping() *user.IdentityMapping {
	return &user.IdentityMapping{UIDMaps: []user.IDMap{{ID: 0, ParentID: 1000, Count: 1}}}
}

// A recorder is a Runner that runs nothing.
type recorder struct {
	process sandbox.Process
	command sandbox.Command
	code    int
	err     error
	panics  bool
}

func (r *recorder) Run(_ context.Context, p sandbox.Process) (int, error) {
	if r.panics {
		panic("at the disco")
	}
	r.process = p
	return r.code, r.err
}

func (r *recorder) Exec(_ context.Context, c sandbox.Command) (int, error) {
	r.command = c
	return r.code, r.err
}

func TestMeta(t *testing.T) {
	e := newExecutor(t, executor.Options{})
	base := image(t, t.TempDir(), file{name: "etc/passwd", data: "root:x:0:0::/root:\napp:x:7:8::/home/app:\n"})
	for _, tc := range []struct {
		name string
		set  func(*bkexecutor.Meta)
		text string
		want string
	}{
		{"as stock", func(*bkexecutor.Meta) {}, "hostname; pwd; id -u; echo $HOME; tty", "buildkitsandbox / 0 /root not a tty"},
		{"environment", func(m *bkexecutor.Meta) { m.Env = []string{"A=1", "A=2", "PATH=/bin"} }, "echo $A $PATH", "2 /bin"},
		{"user and directory", func(m *bkexecutor.Meta) { m.User, m.Cwd = "app", "/new/dir" }, "id -u; id -g; pwd; echo $HOME", "7 8 /new/dir /home/app"},
		{"numeric user", func(m *bkexecutor.Meta) { m.User = "42:43" }, "id -u; id -g", "42 43"},
		{"host name", func(m *bkexecutor.Meta) { m.Hostname = "ship" }, "hostname; grep ship /etc/hosts", "ship 127.0.0.1 ship"},
		{"hosts", func(m *bkexecutor.Meta) {
			m.ExtraHosts = []bkexecutor.HostIP{{Host: "db", IP: net.IPv4(10, 1, 2, 3)}, {Host: "six", IP: net.ParseIP("fd00::1")}}
		}, "grep -E 'db$|six' /etc/hosts", "10.1.2.3 db fd00::1 six"},
		{"ulimits", func(m *bkexecutor.Meta) {
			m.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}, nil, {Name: "core", Soft: -1, Hard: -1}}
		}, "ulimit -n; ulimit -Hn; ulimit -c", "77 99 unlimited"},
		{"no network", func(m *bkexecutor.Meta) { m.NetMode = pb.NetMode_NONE }, "ls /sys/class/net", "lo"},
		{"cgroup of the client's", func(m *bkexecutor.Meta) { m.CgroupParent = "theirs" }, "grep -c theirs /proc/self/cgroup", "0"},
		{"stubs", func(m *bkexecutor.Meta) { m.RemoveMountStubsRecursive = true }, "echo ran", "ran"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := script(tc.text)
			p.Meta.ValidExitCodes = []int{0, 1}
			tc.set(&p.Meta)
			out, err := try(t, e, root(over(t, base)), nil, p)
			if got := strings.Join(strings.Fields(out), " "); got != tc.want || err != nil {
				t.Errorf("error %v, printed %q, want %q", err, got, tc.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	r := &recorder{}
	e := newExecutor(t, executor.Options{Runner: r})
	for _, tc := range []struct {
		set     func(*bkexecutor.Meta)
		want    string
		refused bool
	}{
		{func(m *bkexecutor.Meta) { m.SecurityMode = pb.SecurityMode_INSECURE }, "the security mode insecure is not supported on this daemon: leave out RUN --security", true},
		{func(m *bkexecutor.Meta) { m.CDIDevices = []*pb.CDIDevice{{Name: "vendor/gpu=0"}} }, "the device vendor/gpu=0 is not supported on this daemon: leave out RUN --device", true},
		{func(m *bkexecutor.Meta) { m.Proxy = &network.ProxyConfig{} }, "a proxy of BuildKit's", true},
		{func(m *bkexecutor.Meta) { m.NetMode = pb.NetMode_HOST }, "the network host is not supported on this daemon: leave out --network host", true},
		{func(m *bkexecutor.Meta) { m.NetMode = 17 }, "unknown network mode 17", false},
		{func(m *bkexecutor.Meta) { m.Args = nil }, "no command", false},
		{func(m *bkexecutor.Meta) { m.Hostname = "a\n10.0.0.1 b" }, `invalid host name "a\n10.0.0.1 b"`, false},
		{func(m *bkexecutor.Meta) { m.Ulimit = []*pb.Ulimit{{Name: "files"}} }, `unknown ulimit "files": want one of as, core`, false},
		{func(m *bkexecutor.Meta) { m.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: -1, Hard: 5}} }, "ulimit nofile: the soft limit -1 is above the hard limit 5", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{Memory: -1} }, "memory limit of -1 bytes", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{MemorySwap: 5} }, "a swap limit without a memory limit", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{Memory: 6, MemorySwap: 5} }, "swap limit of 5 bytes below", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{MemorySwap: -2} }, "swap limit of -2 bytes", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{CpuPeriod: 5} }, "CPU period of 5 µs: want 1000 to 1000000", false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{CpusetCpus: "0/../x"} }, `CPUs "0/../x": want a list such as 0-3,5`, false},
		{func(m *bkexecutor.Meta) { m.LinuxResources = &pb.LinuxResources{CpusetMems: "a"} }, `memory nodes "a"`, false},
	} {
		p := script("true")
		tc.set(&p.Meta)
		started := make(chan struct{})
		_, err := e.Run(t.Context(), "", root(&shown{}), nil, p, started)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || errors.Is(err, executor.ErrRefused) != tc.refused {
			t.Errorf("error %v, want %s", err, tc.want)
		}
		<-started
	}
	// Who is in a container already gets no more than it.
	p := script("true")
	p.Meta.SecurityMode = pb.SecurityMode_INSECURE
	if err := e.Exec(t.Context(), "any", p); !errors.Is(err, executor.ErrRefused) {
		t.Errorf("error %v", err)
	}
	if r.process.Args != nil || r.command.Args != nil {
		t.Error("something ran")
	}
}

func TestNetwork(t *testing.T) {
	for _, tc := range []struct {
		opts executor.Options
		mode pb.NetMode
		want sandbox.Mode
	}{
		{executor.Options{Network: sandbox.Sandbox}, pb.NetMode_UNSET, sandbox.Sandbox},
		{executor.Options{Network: sandbox.Host}, pb.NetMode_UNSET, sandbox.Host},
		{executor.Options{Network: sandbox.Host}, pb.NetMode_HOST, sandbox.Host},
		{executor.Options{Network: sandbox.Sandbox, AllowHost: true}, pb.NetMode_HOST, sandbox.Host},
		{executor.Options{Network: sandbox.Host}, pb.NetMode_NONE, sandbox.None},
	} {
		r := &recorder{}
		tc.opts.Runner = r
		p := script("true")
		p.Meta.NetMode = tc.mode
		if _, err := executor.New(tc.opts).Run(t.Context(), "", root(over(t, "/low")), nil, p, nil); err != nil || r.process.Network != tc.want {
			t.Errorf("%v, %s: network %q, %v, want %q", tc.opts.Network, tc.mode, r.process.Network, err, tc.want)
		}
	}
	r := &recorder{}
	e := executor.New(executor.Options{Runner: r})
	if _, err := e.Run(t.Context(), "", root(over(t, "/low")), nil, script("true"), nil); err != nil || r.process.Network != sandbox.Sandbox {
		t.Errorf("network %q, %v, want the sandbox's", r.process.Network, err)
	}
}

// A client gets what it asks for, and never more than the operator gives.
func TestLimits(t *testing.T) {
	const mb = 1 << 20
	op := sandbox.Limits{Memory: 512 * mb, CPUs: 2, Pids: 100}
	for _, tc := range []struct {
		name string
		op   sandbox.Limits
		want *pb.LinuxResources
		get  sandbox.Limits
	}{
		{"nothing", op, nil, op},
		{"empty", op, &pb.LinuxResources{}, op},
		{"less memory", op, &pb.LinuxResources{Memory: 64 * mb}, sandbox.Limits{Memory: 64 * mb, CPUs: 2, Pids: 100}},
		{"more memory", op, &pb.LinuxResources{Memory: 1024 * mb}, op},
		{"swap within", op, &pb.LinuxResources{Memory: 64 * mb, MemorySwap: 128 * mb}, sandbox.Limits{Memory: 64 * mb, Swap: 128 * mb, CPUs: 2, Pids: 100}},
		{"swap above", op, &pb.LinuxResources{Memory: 64 * mb, MemorySwap: 1024 * mb}, sandbox.Limits{Memory: 64 * mb, Swap: 512 * mb, CPUs: 2, Pids: 100}},
		{"swap without end", op, &pb.LinuxResources{Memory: 64 * mb, MemorySwap: -1}, sandbox.Limits{Memory: 64 * mb, Swap: 512 * mb, CPUs: 2, Pids: 100}},
		{"swap where none is limited", sandbox.Limits{}, &pb.LinuxResources{Memory: 64 * mb, MemorySwap: -1}, sandbox.Limits{Memory: 64 * mb, Swap: -1}},
		{"half a CPU", op, &pb.LinuxResources{CpuQuota: 50_000}, sandbox.Limits{Memory: 512 * mb, CPUs: 0.5, Pids: 100}},
		{"half a CPU, of its own period", op, &pb.LinuxResources{CpuQuota: 10_000, CpuPeriod: 20_000}, sandbox.Limits{Memory: 512 * mb, CPUs: 0.5, CPUPeriod: 20 * time.Millisecond, Pids: 100}},
		{"many CPUs", op, &pb.LinuxResources{CpuQuota: 900_000}, op},
		{"no quota", op, &pb.LinuxResources{CpuQuota: -1}, op},
		{"few shares", sandbox.Limits{}, &pb.LinuxResources{CpuShares: 2}, sandbox.Limits{CPUShares: 2}},
		{"many shares", sandbox.Limits{}, &pb.LinuxResources{CpuShares: 262144}, sandbox.Limits{CPUShares: 1024}},
		{"sets", sandbox.Limits{}, &pb.LinuxResources{CpusetCpus: "0-1,3", CpusetMems: "0"}, sandbox.Limits{CPUSet: "0-1,3", MemorySet: "0"}},
		{"sets of the operator's", sandbox.Limits{CPUSet: "1"}, &pb.LinuxResources{CpusetCpus: "0-1"}, sandbox.Limits{CPUSet: "1"}},
	} {
		r := &recorder{}
		p := script("true")
		p.Meta.LinuxResources = tc.want
		e := newExecutor(t, executor.Options{Runner: r, Limits: tc.op})
		if _, err := e.Run(t.Context(), "", root(over(t, "/low")), nil, p, nil); err != nil || r.process.Limits != tc.get {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, r.process.Limits, err, tc.get)
		}
	}
}

// What the sandbox says comes as text for people, and as the type that clients
// look for.
func TestErrors(t *testing.T) {
	full := errors.New("full")
	for _, tc := range []struct {
		err  error
		want string
		code uint32
	}{
		{&sandbox.StartError{Message: `exec: "nope": not found`}, `exec: "nope": not found`, gatewaypb.UnknownExitStatus},
		{sandbox.ErrUser, "cannot resolve user: name a user that the image has, or a numeric id", 0},
		{sandbox.ErrNetwork, "the daemon cannot set up the network of steps; the operator sees why", 0},
		{sandbox.ErrClosed, "the daemon is shutting down: run the build again", 0},
		{full, "full", 0},
	} {
		e := newExecutor(t, executor.Options{Runner: &recorder{err: tc.err}})
		_, err := e.Run(t.Context(), "", root(over(t, "/low")), nil, script("true"), nil)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || !errors.Is(err, tc.err) {
			t.Errorf("error %v, want %s", err, tc.want)
		}
		if tc.code != 0 {
			wantExit(t, err, tc.code)
		}
	}
	e := newExecutor(t, executor.Options{Runner: &recorder{panics: true}})
	s := over(t, "/low")
	started := make(chan struct{})
	if _, err := e.Run(t.Context(), "x", root(s), nil, script("true"), started); err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("error %v", err)
	}
	<-started
	if s.open != 0 || s.released != 1 {
		t.Errorf("the root file system is in use %d times", s.open)
	}
	if err := e.Exec(t.Context(), "x", script("true")); err == nil || err.Error() != "container x not found" {
		t.Errorf("error %v", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	e := newExecutor(t, executor.Options{Limits: sandbox.Limits{Memory: 32 << 20}})
	base := image(t, t.TempDir())
	_, err := try(t, e, root(over(t, base)), nil, script("x=; while :; do x=$x$x-; done"))
	wantExit(t, err, 137)
	if !errors.Is(err, syscall.ENOMEM) || err.Error() != "cannot allocate memory" {
		t.Errorf("told as %v", err)
	}
	_, err = try(t, e, root(over(t, base)), nil, script("exit 137"))
	wantExit(t, err, 137)
	if errors.Is(err, syscall.ENOMEM) {
		t.Errorf("told as %v", err)
	}
}

func TestWatch(t *testing.T) {
	over20 := errors.New("image too large")
	type key struct{}
	base := image(t, t.TempDir())
	s := over(t, base)
	up := make(chan struct{})
	e := newExecutor(t, executor.Options{Watch: func(ctx context.Context, at executor.Root) error {
		if ctx.Value(key{}) != "build" || at.Upper != s.upper() || strings.Join(at.Lowers, ":") != base || at.Args[0] != "/bin/busybox" || at.Container != "" {
			t.Errorf("watched is %+v, of %v", at, ctx.Value(key{}))
		}
		<-up
		if _, err := os.Stat(at.Upper + "/written"); err != nil {
			t.Error(err)
		}
		return &limit{over20}
	}})
	p := script("echo x >/written; echo up; sleep 1000")
	p.Stdout = &sink{on: func(string) { close(up) }}
	_, err := e.Run(context.WithValue(t.Context(), key{}, "build"), "", root(s), nil, p, nil)
	if l, ok := errors.AsType[*limit](err); !ok || !errors.Is(err, over20) || l.Error() != err.Error() {
		t.Errorf("error %v, want %v", err, over20)
	}
}

type limit struct{ err error }

func (l *limit) Error() string { return l.err.Error() }
func (l *limit) Unwrap() error { return l.err }
