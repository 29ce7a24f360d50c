package sandbox

import (
	"net/netip"
	"slices"
)

// closedRanges are what a build may not reach unless the operator says so: they
// lead to the host, to its neighbours, to the metadata services of clouds, or
// nowhere.
var closedRanges = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
	netip.MustParsePrefix("::/127"),
	netip.MustParsePrefix("64:ff9b::/96"), // stands for any IPv4 address
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// EgressAllowed reports whether a process in the [Sandbox] network may connect
// to a, where allow lists the ranges that are opened as in
// [Options.AllowEgress]. What else connects on behalf of a build may ask it
// too, with each address that it is about to connect to. It does not know the
// addresses of the host, which the Sandbox network closes as well.
func EgressAllowed(a netip.Addr, allow []netip.Prefix) bool {
	a = a.Unmap().WithZone("")
	has := func(p netip.Prefix) bool { return p.Contains(a) }
	return a.IsValid() && (slices.ContainsFunc(allow, has) || !slices.ContainsFunc(closedRanges, has))
}
