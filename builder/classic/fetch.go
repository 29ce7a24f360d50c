package classic

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/slipwayhq/slipway/builder/gitfetch"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

// A Dial connects to a host, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// NewDial returns a Dial for what Dockerfiles name by address. It reaches public
// addresses and those that allow lists: the address is checked after name
// resolution.
func NewDial(allow []netip.Prefix) Dial {
	dial := &net.Dialer{
		Timeout: 30 * time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			return checkAddress(address, allow)
		},
	}
	return dial.DialContext
}

// NewFetch returns a transport for what Dockerfiles name by URL. It reaches
// what [NewDial] reaches, for redirects too.
func NewFetch(allow []netip.Prefix) http.RoundTripper {
	return &http.Transport{
		DialContext: NewDial(allow), ForceAttemptHTTP2: true, TLSHandshakeTimeout: 30 * time.Second,
		ResponseHeaderTimeout: time.Minute, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
	}
}

// checkAddress refuses what RUN steps may not reach either, and the machine
// itself.
func checkAddress(address string, allow []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := ap.Addr().Unmap().WithZone("")
	if slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	if !sandbox.EgressAllowed(ip, nil) {
		return &closedError{ip, "is not a public address"}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == ip {
			return &closedError{ip, "is the daemon's machine"}
		}
	}
	return nil
}

// A closedError says that a URL leads to an address that builds may not reach.
type closedError struct {
	ip     netip.Addr
	reason string
}

func (e *closedError) Error() string {
	return fmt.Sprintf("%s %s, and the operator does not allow it with --allow-egress", e.ip, e.reason)
}

// Unwrap tells package gitfetch, which does not know where it may not go.
func (e *closedError) Unwrap() error { return gitfetch.ErrClosed }
