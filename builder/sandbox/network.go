package sandbox

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgePrefix   = "slipway-" // of the device that holds a gateway's address
	endpointPrefix = "sw"       // of the host's end of each process's interface
	forwarding     = "/proc/sys/net/ipv4/ip_forward"
)

// A network connects processes to the internet. Each has a point-to-point link
// to the host, which routes: processes share no segment on which one could
// pretend to be another. The gateway's address is on a bridge without ports, a
// device that exists everywhere; it also marks the subnet as taken.
type network struct {
	id   string
	opts *Options
	log  *slog.Logger
	lock net.PacketConn // open while the network may exist

	mu     sync.Mutex // held while starting and closing
	up     bool
	closed bool

	// Set by start, constant until close.
	handle  *netlink.Handle
	subnet  netip.Prefix
	gateway netip.Addr
	mtu     int
	fw      firewall
	dns     *forwarder
	enabled bool // forwarding was off before us
	stock   *stock

	names  sync.Mutex // for what follows
	free   []netip.Addr
	live   map[*endpoint]struct{}
	serial uint32
}

func newNetwork(id string, opts *Options, log *slog.Logger) (*network, error) {
	for _, p := range opts.AllowEgress {
		if !p.IsValid() {
			return nil, errors.New("invalid range in allowed egress")
		}
	}
	return &network{id: id, opts: opts, log: log}, nil
}

func (n *network) bridge() string { return bridgePrefix + n.id }

// claim makes this process the owner of the network's names in this network
// namespace, until it closes or dies.
func (n *network) claim(ctx context.Context) error {
	var lc net.ListenConfig
	lock, err := lc.ListenPacket(ctx, "unixgram", ownerSocket(n.id))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: %s", ErrInUse, n.opts.Root)
	}
	if err != nil {
		return err
	}
	n.lock = lock
	return nil
}

// ownerSocket is an abstract socket that is open while the owner of a network
// lives.
func ownerSocket(id string) string { return "@slipway-sandbox-" + id }

func hasOwner(id string) bool {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: ownerSocket(id)})
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// sweep removes networks whose owners are dead: our own of an earlier life, and
// those of roots that may not come back.
func (n *network) sweep() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	all, err := links(h)
	if err != nil {
		return err
	}
	dead := map[string]bool{n.id: true}
	for _, l := range all {
		id, ok := strings.CutPrefix(l.Attrs().Name, bridgePrefix)
		if ok && l.Type() == "bridge" && len(id) == len(n.id) && id != n.id && !hasOwner(id) {
			dead[id] = true
		}
	}
	for id := range dead {
		if err := removeNetwork(h, all, id); err != nil {
			return fmt.Errorf("remove left network %s: %w", id, err)
		}
	}
	return nil
}

// removeNetwork removes the links of a network, then its rules.
func removeNetwork(h *netlink.Handle, all []netlink.Link, id string) error {
	for _, l := range all {
		name := l.Attrs().Name
		if name != bridgePrefix+id && !strings.HasPrefix(name, endpointPrefix+id) {
			continue
		}
		if err := h.LinkDel(l); err != nil && !isGone(err) {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	err := removeTable(bridgePrefix + id)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // then there is none either
	}
	return err
}

// isGone reports whether err says that a link does not exist. Its network
// namespace may have taken it along.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

// start sets the network up unless it is.
func (n *network) start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	if n.up {
		return nil
	}
	if err := n.setUp(ctx); err != nil {
		return errors.Join(fmt.Errorf("set up network: %w", err), n.tearDown())
	}
	n.up = true
	n.stock = newStock(n)
	return nil
}

func (n *network) setUp(ctx context.Context) error {
	var err error
	if n.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if n.mtu, err = uplinkMTU(n.handle); err != nil {
		return err
	}
	if err := n.makeBridge(); err != nil {
		return err
	}
	if n.dns, err = newForwarder(ctx, n.gateway, n.opts.DNS, n.log); err != nil {
		return fmt.Errorf("DNS forwarder: %w", err)
	}
	n.fw = firewall{
		table:   n.bridge(),
		prefix:  endpointPrefix + n.id,
		subnet:  n.subnet,
		gateway: n.gateway,
		udp:     n.dns.udpPort(),
		tcp:     n.dns.tcpPort(),
		allow:   n.opts.AllowEgress,
	}
	// Rules before routes: there is no moment without them.
	if err := n.fw.install(); err != nil {
		return err
	}
	return n.enableForwarding()
}

// makeBridge makes the device with the gateway's address in a subnet that
// nobody uses. Two daemons may have chosen at once: who sees the other's
// address after giving out its own chooses again.
func (n *network) makeBridge() error {
	br, err := n.addBridge()
	if err != nil {
		return err
	}
	seed := fnv.New32a()
	seed.Write([]byte(n.id))
	avoid := n.avoid()
	for {
		used, err := usedRanges(n.handle)
		if err != nil {
			return err
		}
		subnet, err := freeSubnet(seed.Sum32(), append(used, avoid...))
		if errors.Is(err, errNoSubnet) { // what is opened is wide
			subnet, err = freeSubnet(seed.Sum32(), used)
		}
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits()))}
		if err := n.handle.AddrAdd(br, addr); err != nil {
			return fmt.Errorf("add address %s: %w", addr, err)
		}
		alone, err := n.alone(br.Index, subnet)
		if err != nil {
			return err
		}
		if alone {
			n.useSubnet(subnet)
			return nil
		}
		if err := n.handle.AddrDel(br, addr); err != nil {
			return err
		}
		seed.Write([]byte{0})
	}
}

// addBridge makes the device and brings it up. It has no address yet.
func (n *network) addBridge() (*netlink.Bridge, error) {
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name, br.MTU = n.bridge(), n.mtu
	if err := n.handle.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", br.Name, err)
	}
	_ = n.handle.LinkSetIP6AddrGenMode(br, addrGenNone) // without IPv6 there is nothing to prevent
	if err := n.handle.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bring up bridge %s: %w", br.Name, err)
	}
	return br, nil
}

// avoid returns addresses that must stay where they are although no route
// shows where that is.
func (n *network) avoid() []netip.Prefix {
	list := append([]netip.Prefix(nil), n.opts.AllowEgress...)
	conf, _ := os.ReadFile(resolvConf)
	for _, a := range append(nameservers(conf), n.opts.DNS...) {
		list = append(list, netip.PrefixFrom(a.WithZone(""), a.BitLen()))
	}
	return list
}

// alone reports whether no other link has an address in subnet.
func (n *network) alone(index int, subnet netip.Prefix) (bool, error) {
	addrs, err := addresses(n.handle)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		if a.LinkIndex != index && subnet.Contains(ip.Unmap()) {
			return false, nil
		}
	}
	return true, nil
}

func (n *network) useSubnet(subnet netip.Prefix) {
	n.subnet, n.gateway = subnet, subnet.Addr().Next()
	n.free, n.live = nil, map[*endpoint]struct{}{}
	for a := n.gateway.Next(); subnet.Contains(a.Next()); a = a.Next() {
		n.free = append(n.free, a)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// uplinkMTU returns the largest packet that the default route takes.
func uplinkMTU(h *netlink.Handle) (int, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0, err
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().MTU, nil
		}
	}
	return 1500, nil
}

func (n *network) enableForwarding() error {
	now, err := os.ReadFile(forwarding)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	n.enabled = true
	n.log.Info("turn on IPv4 forwarding")
	return os.WriteFile(forwarding, []byte("1"), 0)
}

// restoreForwarding turns forwarding off if it was before us and no other
// bridge suggests that somebody else came to rely on it.
func (n *network) restoreForwarding() error {
	if !n.enabled {
		return nil
	}
	n.enabled = false
	all, err := links(n.handle)
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Type() == "bridge" {
			return nil
		}
	}
	return os.WriteFile(forwarding, []byte("0"), 0)
}

// close removes everything. No process uses the network any more.
func (n *network) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	var err error
	if n.up {
		n.stock.close(n)
		n.up = false
		err = n.tearDown()
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.Close())
		n.lock = nil
	}
	return err
}

// tearDown removes as much as setUp made.
func (n *network) tearDown() error {
	var errs []error
	if n.dns != nil {
		errs = append(errs, n.dns.close())
		n.dns = nil
	}
	if n.handle == nil {
		return errors.Join(errs...)
	}
	all, err := links(n.handle)
	if err == nil {
		err = removeNetwork(n.handle, all, n.id)
	}
	errs = append(errs, err, n.restoreForwarding())
	n.handle.Close()
	n.handle = nil
	return errors.Join(errs...)
}
