package executor

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// ErrRefused is wrapped when a process asks for what none may have here.
var ErrRefused = errors.New("not supported on this daemon")

// refusal says what is refused, with its verb, and what to do.
func refusal(what, remedy string) error { return fmt.Errorf("%s %w: %s", what, ErrRefused, remedy) }

// defaultHostname is what stock BuildKit calls every container.
const defaultHostname = "buildkitsandbox"

// process returns what meta says of a process. BuildKit does not say which
// variables are secrets: all of them, if one may be.
func (e *Executor) process(meta executor.Meta, secret bool) (*sandbox.Process, error) {
	if err := refuse(meta); err != nil {
		return nil, err
	}
	p := &sandbox.Process{
		Args: meta.Args, Dir: meta.Cwd, User: meta.User, Hostname: meta.Hostname,
		Volatile:     !e.opts.Flush,
		ReadOnlyRoot: meta.ReadonlyRootFS,
	}
	if secret {
		p.SecretEnv = meta.Env
	} else {
		p.Env = meta.Env
	}
	if p.Hostname == "" {
		p.Hostname = defaultHostname
	}
	if !validHostname.MatchString(p.Hostname) {
		return nil, fmt.Errorf("invalid host name %q: want at most 64 letters, digits, dots and hyphens", p.Hostname)
	}
	for _, h := range meta.ExtraHosts {
		p.ExtraHosts = append(p.ExtraHosts, h.Host+":"+h.IP.String())
	}
	var err error
	if p.Network, err = e.network(meta.NetMode); err != nil {
		return nil, err
	}
	if p.Network == sandbox.None {
		p.ExtraHosts = append(p.ExtraHosts, p.Hostname+":127.0.0.1") // as it has no other address
	}
	if p.Ulimits, err = ulimits(meta.Ulimit); err != nil {
		return nil, err
	}
	p.Limits, err = restrict(e.opts.Limits, meta.LinuxResources)
	return p, err
}

var validHostname = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// refuse refuses what no process may have. BuildKit checks entitlements before,
// where there are some.
func refuse(meta executor.Meta) error {
	switch {
	case meta.SecurityMode != pb.SecurityMode_SANDBOX:
		return refusal("the security mode "+strings.ToLower(meta.SecurityMode.String())+" is",
			"leave out RUN --security; steps always run with Docker's default rights and are root in their container")
	case len(meta.CDIDevices) > 0:
		return refusal("the device "+meta.CDIDevices[0].GetName()+" is", "leave out RUN --device; steps see none of the daemon's devices")
	case meta.Proxy != nil:
		return refusal("a proxy of BuildKit's for the network of steps is", "leave the option out; steps reach the internet by themselves")
	case len(meta.Args) == 0:
		return errors.New("no command to run")
	}
	return nil
}

func (e *Executor) network(mode pb.NetMode) (sandbox.Mode, error) {
	switch mode {
	case pb.NetMode_UNSET:
		return e.opts.Network, nil
	case pb.NetMode_NONE:
		return sandbox.None, nil
	case pb.NetMode_HOST:
		if e.opts.Network != sandbox.Host && !e.opts.AllowHost {
			return "", fmt.Errorf("the network host is %w: leave out --network host; the operator allows it with --network host", ErrRefused)
		}
		return sandbox.Host, nil
	}
	return "", fmt.Errorf("unknown network mode %s", mode)
}

// ulimitNames are those that Linux has.
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
	"rttime", "sigpending", "stack",
}

func ulimits(list []*pb.Ulimit) ([]sandbox.Ulimit, error) {
	var out []sandbox.Ulimit
	for _, u := range list {
		if u == nil {
			continue
		}
		name := strings.ToLower(u.Name)
		if !slices.Contains(ulimitNames, name) {
			return nil, fmt.Errorf("unknown ulimit %q: want one of %s", u.Name, strings.Join(ulimitNames, ", "))
		}
		if uint64(u.Soft) > uint64(u.Hard) { // -1 is the largest
			return nil, fmt.Errorf("ulimit %s: the soft limit %d is above the hard limit %d", name, u.Soft, u.Hard)
		}
		out = append(out, sandbox.Ulimit{Name: name, Soft: u.Soft, Hard: u.Hard})
	}
	return out, nil
}

// The shares of the CPUs that every container has that does not choose, and the
// periods that the kernel takes, in microseconds.
const (
	usualShares = 1024
	shortPeriod = 1_000
	longPeriod  = 1_000_000
)

var validSet = regexp.MustCompile(`^[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*$`)

// restrict returns the operator's limits made as strict as a client wants them.
func restrict(l sandbox.Limits, want *pb.LinuxResources) (sandbox.Limits, error) {
	if want == nil {
		return l, nil
	}
	if err := restrictMemory(&l, want.Memory, want.MemorySwap); err != nil {
		return l, err
	}
	if want.CpuPeriod != 0 {
		if want.CpuPeriod < shortPeriod || want.CpuPeriod > longPeriod {
			return l, fmt.Errorf("CPU period of %d µs: want %d to %d", want.CpuPeriod, shortPeriod, longPeriod)
		}
		l.CPUPeriod = time.Duration(want.CpuPeriod) * time.Microsecond
	}
	if want.CpuQuota > 0 {
		period := l.CPUPeriod
		if period == 0 {
			period = 100 * time.Millisecond
		}
		cpus := float64(want.CpuQuota) / float64(period.Microseconds())
		if l.CPUs <= 0 || cpus < l.CPUs {
			l.CPUs = cpus
		}
	}
	if want.CpuShares > 0 {
		most := l.CPUShares
		if most == 0 {
			most = usualShares
		}
		l.CPUShares = min(want.CpuShares, most)
	}
	for _, set := range []struct {
		name, want string
		have       *string
	}{
		{"CPUs", want.CpusetCpus, &l.CPUSet},
		{"memory nodes", want.CpusetMems, &l.MemorySet},
	} {
		if set.want != "" && !validSet.MatchString(set.want) {
			return l, fmt.Errorf("%s %q: want a list such as 0-3,5", set.name, set.want)
		}
		if *set.have == "" {
			*set.have = set.want
		}
	}
	return l, nil
}

// restrictMemory does so for memory, and for memory and swap together.
func restrictMemory(l *sandbox.Limits, memory, swap int64) error {
	switch {
	case memory < 0:
		return fmt.Errorf("memory limit of %d bytes: want a positive number", memory)
	case swap < -1:
		return fmt.Errorf("swap limit of %d bytes: want a positive number, or -1 for none", swap)
	case swap > 0 && memory == 0:
		return errors.New("a swap limit without a memory limit: give both")
	case swap > 0 && swap < memory:
		return fmt.Errorf("swap limit of %d bytes below the memory limit of %d: it counts memory too", swap, memory)
	}
	if memory == 0 {
		return nil
	}
	most := unlimited(l.Memory)
	together := most
	if l.Swap != 0 {
		together = unlimited(l.Swap)
	}
	l.Memory, l.Swap = min(memory, most), 0
	if swap != 0 {
		if l.Swap = min(unlimited(swap), together); l.Swap == math.MaxInt64 {
			l.Swap = -1
		}
	}
	return nil
}

// unlimited returns a limit as a number that none is above of.
func unlimited(limit int64) int64 {
	if limit <= 0 {
		return math.MaxInt64
	}
	return limit
}
