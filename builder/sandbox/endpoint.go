package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/thread"
)

// ready is how many endpoints wait for processes.
const ready = 2

const addrGenNone = 1 // no link-local IPv6 address

// Both ends of a link know each other's address: nothing is to be asked for.
var (
	hostMAC    = net.HardwareAddr{0x02, 0x73, 0x77, 0, 0, 1}
	processMAC = net.HardwareAddr{0x02, 0x73, 0x77, 0, 0, 2}
)

var errNoAddress = errors.New("no free address: too many processes at once")

// An endpoint is the network of one process: a network namespace with one link
// to the host. The namespace has no name; it lives as long as the file or a
// process in it.
type endpoint struct {
	ns      *os.File
	link    netlink.Link // the host's end
	addr    netip.Addr
	gateway netip.Addr
}

// path is a name for the namespace that other processes can open.
func (e *endpoint) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.ns.Fd())
}

// take returns an endpoint for one process. Release it when that has ended.
// An error that is not about n being closed or ctx wraps ErrNetwork.
func (n *network) take(ctx context.Context) (*endpoint, error) {
	e, err := n.obtain(ctx)
	if err != nil && !errors.Is(err, ErrClosed) && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	return e, err
}

func (n *network) obtain(ctx context.Context) (*endpoint, error) {
	if err := n.start(ctx); err != nil {
		return nil, err
	}
	if err := n.mend(); err != nil {
		return nil, err
	}
	select {
	case made := <-n.stock.made:
		if made.err == nil {
			return made.endpoint, nil
		}
		return n.create() // that was some time ago
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// release removes an endpoint, in the background: the kernel takes its time.
func (n *network) release(e *endpoint) {
	n.stock.busy.Go(func() {
		if err := n.destroy(e); err != nil {
			n.log.Warn("remove network endpoint", "error", err)
		}
	})
}

// A stock makes endpoints before they are wanted.
type stock struct {
	made chan result
	stop context.CancelFunc
	busy sync.WaitGroup
}

type result struct {
	endpoint *endpoint
	err      error
}

func newStock(n *network) *stock {
	ctx, stop := context.WithCancel(context.Background())
	s := &stock{made: make(chan result, ready-1), stop: stop}
	s.busy.Go(func() {
		for ctx.Err() == nil {
			var r result
			r.endpoint, r.err = n.create()
			select {
			case s.made <- r:
			case <-ctx.Done():
				s.drop(n, r)
			}
		}
	})
	return s
}

func (s *stock) drop(n *network, r result) {
	if r.err == nil {
		n.release(r.endpoint)
	}
}

// close waits until everything that is made or removed is done.
func (s *stock) close(n *network) {
	s.stop()
	s.busy.Wait()
	for len(s.made) > 0 {
		s.drop(n, <-s.made)
	}
	s.busy.Wait()
}

// create makes an endpoint. It does so in a thread of its own, which ends with
// the goroutine: one that has been in another network namespace is not given
// back.
func (n *network) create() (*endpoint, error) {
	addr, name, err := n.reserve()
	if err != nil {
		return nil, err
	}
	e := &endpoint{addr: addr, gateway: n.gateway}
	done := make(chan error, 1)
	thread.Go(func() { done <- n.build(e, name) })
	if err := <-done; err != nil {
		return nil, errors.Join(fmt.Errorf("make network endpoint: %w", err), n.destroy(e))
	}
	n.names.Lock()
	defer n.names.Unlock()
	n.live[e] = struct{}{}
	return e, nil
}

// reserve takes an address and a name that no other endpoint has.
func (n *network) reserve() (netip.Addr, string, error) {
	n.names.Lock()
	defer n.names.Unlock()
	if len(n.free) == 0 {
		return netip.Addr{}, "", errNoAddress
	}
	addr := n.free[0]
	n.free = n.free[1:]
	n.serial++
	return addr, fmt.Sprintf("%s%s%07x", endpointPrefix, n.id, n.serial&0xfffffff), nil
}

// build makes the namespace of e and both ends of its link.
func (n *network) build(e *endpoint, name string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	var err error
	if e.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return err
	}
	if err := setSysctls(); err != nil {
		return err
	}
	if err := n.link(e, name); err != nil {
		return err
	}
	return e.configure(inside)
}

// setSysctls prepares the network namespace of the calling thread.
func setSysctls() error {
	for name, value := range networkSysctls {
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0); err != nil {
			return err
		}
	}
	// Loopback keeps ::1; links to come have no IPv6.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nor has the kernel
	}
	return err
}

// link makes the pair of interfaces and the host's route to it.
func (n *network) link(e *endpoint, name string) error {
	veth := &netlink.Veth{
		LinkAttrs:        netlink.NewLinkAttrs(),
		PeerName:         "eth0",
		PeerHardwareAddr: processMAC,
		PeerNamespace:    netlink.NsFd(e.ns.Fd()),
	}
	veth.Name, veth.MTU, veth.HardwareAddr = name, n.mtu, hostMAC
	if err := n.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	e.link = veth
	_ = n.handle.LinkSetIP6AddrGenMode(veth, addrGenNone) // without IPv6 there is nothing to prevent
	if err := n.handle.LinkSetUp(veth); err != nil {
		return err
	}
	neighbour := &netlink.Neigh{
		LinkIndex:    veth.Index,
		IP:           e.addr.AsSlice(),
		HardwareAddr: processMAC,
		State:        netlink.NUD_PERMANENT,
	}
	if err := n.handle.NeighSet(neighbour); err != nil {
		return err
	}
	return n.handle.RouteAdd(e.route())
}

// route is the host's way to the process.
func (e *endpoint) route() *netlink.Route {
	return &netlink.Route{
		LinkIndex: e.link.Attrs().Index,
		Dst:       ipNet(netip.PrefixFrom(e.addr, 32)),
		Src:       e.gateway.AsSlice(),
		Scope:     netlink.SCOPE_LINK,
	}
}

// configure sets up the process's end with a handle inside its namespace.
func (e *endpoint) configure(inside *netlink.Handle) error {
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := inside.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(e.addr, 32))}); err != nil {
		return err
	}
	if err := inside.LinkSetUp(eth0); err != nil {
		return err
	}
	neighbour := &netlink.Neigh{
		LinkIndex:    eth0.Attrs().Index,
		IP:           e.gateway.AsSlice(),
		HardwareAddr: hostMAC,
		State:        netlink.NUD_PERMANENT,
	}
	if err := inside.NeighSet(neighbour); err != nil {
		return err
	}
	return inside.RouteAdd(&netlink.Route{
		LinkIndex: eth0.Attrs().Index,
		Gw:        e.gateway.AsSlice(),
		Flags:     int(netlink.FLAG_ONLINK),
	})
}

// destroy removes what create made and gives the address back.
func (n *network) destroy(e *endpoint) error {
	n.names.Lock()
	delete(n.live, e)
	n.names.Unlock()
	var errs []error
	if e.link != nil {
		if err := n.handle.LinkDel(e.link); err != nil && !isGone(err) {
			errs = append(errs, err)
		}
	}
	if e.ns != nil {
		errs = append(errs, e.ns.Close())
	}
	n.names.Lock()
	n.free = append(n.free, e.addr)
	n.names.Unlock()
	return errors.Join(errs...)
}
