package sandbox

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const defaultShm = 64 << 20

// capabilities are what Docker leaves a container: CapEff 00000000a80425fb.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var maskedPaths = []string{
	"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	"/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// networkSysctls let any user of a network namespace ping and listen on any
// port. An endpoint of the Sandbox network comes with them.
var networkSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// A container is everything that its OCI configuration is made from.
type container struct {
	process  *Process
	rootfs   string
	hostname string
	user     *user.ExecUser
	env      []string
	network  Mode
	netns    string // path, for Sandbox
	cgroup   string
	cgroup2  bool
	swap     bool // swap can be limited
	seccomp  bool
	binds    []bind
	volumes  []volume
	mounted  []specs.Mount // what the process asks for
}

// spec returns the OCI configuration, which follows Docker's.
func (c *container) spec() (*specs.Spec, error) {
	s := &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.hostname,
		Root:     &specs.Root{Path: c.rootfs, Readonly: c.process.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal: c.process.Terminal != nil, ConsoleSize: c.process.Terminal.box(),
			Args: c.process.Args,
			Env:  c.env,
			Cwd:  c.process.dir(),
			User: c.specUser(),
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  capabilities,
				Effective: capabilities,
				Permitted: capabilities,
			},
			OOMScoreAdj: new(int),
			Rlimits:     rlimits(c.process.Ulimits),
		},
		Mounts: c.mounts(),
		Linux: &specs.Linux{
			Namespaces:    c.namespaces(),
			CgroupsPath:   c.cgroup,
			Resources:     c.resources(),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if c.network == None {
		s.Linux.Sysctl = networkSysctls
	}
	if c.seccomp {
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
		s.Linux.Seccomp = profile
	}
	return s, nil
}

func (c *container) specUser() specs.User {
	u := specs.User{UID: uint32(c.user.Uid), GID: uint32(c.user.Gid)}
	// The primary group is a supplementary one too, so that a process cannot
	// shed the denials that belong to it.
	u.AdditionalGids = []uint32{u.GID}
	for _, gid := range c.user.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(gid))
	}
	return u
}

func (c *container) namespaces() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
	}
	if c.network != Host {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.netns})
	}
	if c.cgroup2 {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

func (c *container) mounts() []specs.Mount {
	shm := c.process.ShmSize
	if shm <= 0 {
		shm = defaultShm
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
	}
	for _, b := range c.binds {
		m := specs.Mount{Destination: b.target, Type: "bind", Source: b.source, Options: []string{"bind", "rprivate"}}
		if b.target == caPath || b.target == aptPath {
			m.Options = append(m.Options, "ro", "nosuid", "nodev", "noexec")
		}
		list = append(list, m)
	}
	for _, v := range c.volumes {
		list = append(list, specs.Mount{Destination: v.target, Type: "bind", Source: v.source, Options: []string{"rbind", "rprivate"}})
	}
	list = append(list, c.mounted...)
	// Outer ones first.
	own := list[len(list)-len(c.volumes)-len(c.mounted):]
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return list
}

func (c *container) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	for _, d := range []struct {
		kind         string
		major, minor int64
		access       string
	}{
		{"c", -1, -1, "m"}, {"b", -1, -1, "m"}, // anyone may make a node; few can be opened
		{"c", 1, 3, "rwm"}, {"c", 1, 5, "rwm"}, {"c", 1, 7, "rwm"}, {"c", 1, 8, "rwm"}, {"c", 1, 9, "rwm"},
		{"c", 5, 0, "rwm"}, {"c", 5, 1, "rwm"}, {"c", 5, 2, "rwm"}, {"c", 136, -1, "rwm"},
	} {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: d.kind, Access: d.access}
		if d.major >= 0 {
			rule.Major = &d.major
		}
		if d.minor >= 0 {
			rule.Minor = &d.minor
		}
		r.Devices = append(r.Devices, rule)
	}

	r.Memory, r.CPU = c.process.Limits.memory(c.swap), c.process.Limits.cpu()
	if pids := c.process.Limits.Pids; pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return r
}

// memory returns the configuration of the limits of memory, nil for none. Swap
// can be limited where the kernel counts it.
func (l Limits) memory(swap bool) *specs.LinuxMemory {
	if l.Memory <= 0 && l.Swap == 0 {
		return nil
	}
	m := &specs.LinuxMemory{}
	if l.Memory > 0 {
		m.Limit = &l.Memory
	}
	if l.Swap == 0 {
		l.Swap = l.Memory // together: no swap
	}
	if swap {
		m.Swap = &l.Swap
	}
	return m
}

// cpu is like memory.
func (l Limits) cpu() *specs.LinuxCPU {
	if l.CPUs <= 0 && l.CPUShares == 0 && l.CPUSet == "" && l.MemorySet == "" {
		return nil
	}
	c := &specs.LinuxCPU{Cpus: l.CPUSet, Mems: l.MemorySet}
	if l.CPUs > 0 {
		period := uint64(100_000)
		if l.CPUPeriod > 0 {
			period = uint64(l.CPUPeriod.Microseconds())
		}
		quota := max(int64(l.CPUs*float64(period)), 1000)
		c.Period, c.Quota = &period, &quota
	}
	if l.CPUShares > 0 {
		c.Shares = &l.CPUShares
	}
	return c
}

func rlimits(list []Ulimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, u := range list {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out
}
