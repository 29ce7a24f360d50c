package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// mend puts back what somebody took away of a network that is up: rules,
// bridge, address of the gateway, and with that address the routes to the
// processes there are.
func (n *network) mend() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up {
		return ErrClosed
	}
	if !n.fw.installed() {
		n.log.Warn("the rules of the sandbox network are gone, put them back", "table", n.fw.table)
		if err := n.fw.install(); err != nil {
			return err
		}
	}
	whole, err := n.bridgeWhole()
	if err != nil || whole {
		return err
	}
	n.log.Warn("the bridge of the sandbox network is gone or was changed, put it back", "bridge", n.bridge(), "gateway", n.gateway)
	if err := n.mendBridge(); err != nil {
		return err
	}
	return n.mendRoutes()
}

// gatewayAddr is the address that the bridge has.
func (n *network) gatewayAddr() *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.gateway, n.subnet.Bits()))}
}

// bridgeWhole reports whether the bridge is there, up and has its address.
func (n *network) bridgeWhole() (bool, error) {
	link, err := n.handle.LinkByName(n.bridge())
	if err != nil {
		if isGone(err) {
			return false, nil
		}
		return false, fmt.Errorf("look for bridge %s: %w", n.bridge(), err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return false, nil
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return n.handle.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return false, fmt.Errorf("addresses of bridge %s: %w", n.bridge(), err)
	}
	want := n.gatewayAddr()
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Equal(*want) }), nil
}

// mendBridge makes the bridge as it was, in place of what is left of it. The
// forwarder and the processes know its address: there is no choosing another.
func (n *network) mendBridge() error {
	old, err := n.handle.LinkByName(n.bridge())
	switch {
	case err == nil && old.Type() != "bridge":
		return fmt.Errorf("add bridge %s: a link of this name and of type %s is in the way", n.bridge(), old.Type())
	case err == nil:
		err = n.handle.LinkDel(old)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("replace bridge %s: %w", n.bridge(), err)
	}
	br, err := n.addBridge()
	if err != nil {
		return err
	}
	alone, err := n.alone(br.Index, n.subnet)
	if err == nil && !alone {
		err = errors.New("somebody else uses its subnet now")
	}
	if err == nil {
		err = n.handle.AddrAdd(br, n.gatewayAddr())
	}
	if err != nil {
		return fmt.Errorf("give bridge %s its address %s: %w", n.bridge(), n.gatewayAddr(), err)
	}
	return nil
}

// mendRoutes makes the routes again that went with the gateway's address.
func (n *network) mendRoutes() error {
	n.names.Lock()
	defer n.names.Unlock()
	for e := range n.live {
		if err := n.handle.RouteReplace(e.route()); err != nil && !isGone(err) {
			return fmt.Errorf("route to %s: %w", e.addr, err)
		}
	}
	return nil
}
