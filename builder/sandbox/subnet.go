package sandbox

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ranges that a Runner's own subnet, a /24, is taken from.
var subnetRanges = []netip.Prefix{
	netip.MustParsePrefix("10.192.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"),
}

var errNoSubnet = errors.New("no free subnet: every /24 of 10.192.0.0/10 and 172.16.0.0/12 is in use")

// freeSubnet returns a /24 that overlaps none of used. Different seeds begin to
// look at different places.
func freeSubnet(seed uint32, used []netip.Prefix) (netip.Prefix, error) {
	for p := range subnets(seed) {
		if !slices.ContainsFunc(used, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errNoSubnet
}

func subnets(seed uint32) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, r := range subnetRanges {
			first := binary.BigEndian.Uint32(r.Addr().AsSlice())
			count := uint32(1) << (24 - r.Bits())
			for i := range count {
				var b [4]byte
				binary.BigEndian.PutUint32(b[:], first+(seed+i)%count<<8)
				if !yield(netip.PrefixFrom(netip.AddrFrom4(b), 24)) {
					return
				}
			}
		}
	}
}

// usedRanges returns what the host has addresses in or routes to, but for the
// default route.
func usedRanges(h *netlink.Handle) ([]netip.Prefix, error) {
	var used []netip.Prefix
	addrs, err := addresses(h)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		used = appendNet(used, a.IP, a.Mask)
	}
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V4, all, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst != nil {
			used = appendNet(used, r.Dst.IP, r.Dst.Mask)
		}
	}
	return used, nil
}

func appendNet(list []netip.Prefix, ip, mask []byte) []netip.Prefix {
	a, ok := netip.AddrFromSlice(ip)
	bits := 0
	for _, b := range mask {
		for ; b != 0; b <<= 1 {
			bits++
		}
	}
	if !ok || bits == 0 {
		return list
	}
	return append(list, netip.PrefixFrom(a.Unmap(), bits).Masked())
}
