package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/thread"
)

// A Check says whether the machine has one thing that processes need.
type Check struct {
	Name   string // such as "runc"
	OK     bool
	Detail string // what was found
	Hint   string // what to do; empty where there is nothing to be done
}

// Check looks at the runtime, overlayfs, cgroups and, unless processes have
// none, the network. It runs no container.
func (r *Runner) Check(ctx context.Context) []Check {
	checks := []Check{r.checkRunc(ctx), r.checkOverlay(ctx), r.checkCgroups()}
	if r.opts.Network == Sandbox {
		checks = append(checks, r.checkNetwork(ctx), r.checkDNS(ctx))
	}
	return checks
}

func failed(name string, err error, hint string) Check {
	return Check{Name: name, Detail: err.Error(), Hint: hint}
}

func (r *Runner) checkRunc(ctx context.Context) Check {
	version, err := r.runcVersion(ctx)
	if err != nil {
		return failed("runc", err, "install runc (Debian, Ubuntu: apt-get install runc)")
	}
	first, _, _ := strings.Cut(version, "\n")
	c := Check{Name: "runc", OK: r.seccomp, Detail: first + " at " + r.runc}
	if !r.seccomp {
		c.Detail += ", built without seccomp: system calls are not filtered"
		c.Hint = "use a runc that is built with seccomp, such as that of the distribution"
	}
	return c
}

func (r *Runner) checkOverlay(ctx context.Context) Check {
	const hint = "put the root on ext4, xfs, btrfs or tmpfs, and give the daemon CAP_SYS_ADMIN"
	dir, err := os.MkdirTemp(r.runDir, "check-")
	if err != nil {
		return failed("overlayfs", err, "")
	}
	target := filepath.Join(dir, "merged")
	o := overlay{lowers: stack{filepath.Join(dir, "lower")}, upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work")}
	for _, d := range []string{target, o.lowers[0], o.upper, o.work} {
		err = errors.Join(err, os.Mkdir(d, 0o755))
	}
	if err == nil {
		if err = o.mount(target); err == nil {
			err = o.unmount(ctx, target)
		}
	}
	if err != nil {
		return failed("overlayfs", err, hint)
	}
	if err := os.RemoveAll(dir); err != nil {
		return failed("overlayfs", err, "")
	}
	return Check{Name: "overlayfs", OK: true, Detail: "works at " + r.runDir}
}

func (r *Runner) checkCgroups() Check {
	c := Check{Name: "cgroups", OK: true, Detail: "version 1"}
	if r.cgroups.unified {
		c.Detail = "version 2"
	} else if len(r.cgroups.hierarchies) == 0 {
		return Check{Name: "cgroups", Detail: "none mounted", Hint: "mount the cgroup file system at " + cgroupRoot}
	}
	for _, mnt := range r.cgroups.hierarchies {
		if unix.Access(mnt, unix.W_OK) != nil {
			return Check{Name: "cgroups", Detail: mnt + " is read-only", Hint: "run the daemon with a writable cgroup file system"}
		}
	}
	if missing := r.cgroups.missing(); len(missing) > 0 {
		c.OK, c.Detail = false, c.Detail+" without "+strings.Join(missing, ", ")
		c.Hint = "let the kernel or the container that the daemon runs in have these controllers: their limits cannot be set"
	}
	if n := len(r.cgroups.occupants()); n > 0 {
		c.OK, c.Detail = false, fmt.Sprintf("version 2, with %d processes in %s itself: nothing below it can be limited", n, cgroupRoot)
		c.Hint = "restart the daemon: it moves them to a group of their own, or logs why it cannot"
	}
	return c
}

func (r *Runner) checkNetwork(ctx context.Context) Check {
	e, err := r.network.take(ctx)
	if err != nil {
		return failed("network", err, "give the daemon CAP_NET_ADMIN and a kernel with nftables, bridge and veth, or choose --network none")
	}
	r.network.release(e)
	n := r.network
	c := Check{Name: "network", OK: true, Detail: fmt.Sprintf("%s, %s, MTU %d", n.bridge(), n.subnet, n.mtu)}
	if on, err := os.ReadFile(forwarding); err != nil || strings.TrimSpace(string(on)) != "1" {
		c.OK, c.Detail = false, "IPv4 forwarding was turned off"
		c.Hint = "set net.ipv4.ip_forward = 1"
	}
	return c
}

// checkDNS asks the forwarder for the root name servers, as a process would.
func (r *Runner) checkDNS(ctx context.Context) Check {
	const hint = "check the host's resolvers, and that no other firewall drops what comes from interfaces sw* to port 53"
	e, err := r.network.take(ctx)
	if err != nil {
		return failed("dns", err, "")
	}
	defer r.network.release(e)
	conn, err := e.dialUDP(netip.AddrPortFrom(e.gateway, 53))
	if err != nil {
		return failed("dns", err, "")
	}
	defer conn.Close()
	//                 id    RD      1 question        . NS IN
	question := []byte{7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}
	deadline := time.Now().Add(2 * dnsTries * dnsPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return failed("dns", err, "")
	}
	if _, err := conn.Write(question); err != nil {
		return failed("dns", err, hint)
	}
	answer := make([]byte, 4096)
	if n, err := conn.Read(answer); err != nil || n < 12 {
		return Check{Name: "dns", Detail: fmt.Sprintf("no answer from %v", r.network.dns.upstream()), Hint: hint}
	}
	return Check{Name: "dns", OK: true, Detail: fmt.Sprintf("forwarded to %v", r.network.dns.upstream())}
}

// dialUDP returns a socket in the namespace of e.
func (e *endpoint) dialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	var conn *net.UDPConn
	done := make(chan error, 1)
	thread.Go(func() {
		err := unix.Setns(int(e.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		}
		done <- err
	})
	err := <-done
	return conn, err
}
