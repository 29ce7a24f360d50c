package client

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// DefaultAddress is where a daemon listens unless told otherwise.
const DefaultAddress = "127.0.0.1:7070"

const defaultPort = "7070"

// Address says where a daemon listens and whether it speaks TLS.
type Address struct {
	Host string
	Port string
	TLS  bool
}

// ParseAddress reads "host", "host:port", "https://host:port" (TLS) or
// "http://host:port" (plaintext). Where the port is missing it is 7070, or
// 443 after https.
func ParseAddress(s string) (Address, error) {
	rest, port := s, defaultPort
	var a Address
	if after, ok := strings.CutPrefix(rest, "https://"); ok {
		rest, port, a.TLS = after, "443", true
	} else if after, ok := strings.CutPrefix(rest, "http://"); ok {
		rest = after
	}
	rest = strings.TrimSuffix(rest, "/")
	if rest == "" || strings.ContainsAny(rest, "/@?# \t\r\n") {
		return Address{}, fmt.Errorf("%q is not an address: want HOST:PORT or https://HOST:PORT", s)
	}
	if host, p, err := net.SplitHostPort(rest); err == nil {
		rest, port = host, p
	} else if strings.Count(rest, ":") == 1 || strings.HasPrefix(rest, "[") != strings.HasSuffix(rest, "]") {
		return Address{}, fmt.Errorf("%q is not an address: %v", s, err)
	}
	a.Host, a.Port = strings.Trim(rest, "[]"), port
	if a.Host == "" || a.Port == "" {
		return Address{}, fmt.Errorf("%q is not an address: host or port is empty", s)
	}
	return a, nil
}

// HostPort returns "host:port", with brackets around an IPv6 host.
func (a Address) HostPort() string { return net.JoinHostPort(a.Host, a.Port) }

// String returns the address as [ParseAddress] reads it.
func (a Address) String() string {
	if a.TLS {
		return "https://" + a.HostPort()
	}
	return a.HostPort()
}

// Loopback reports whether nothing sent to the address leaves this machine.
func (a Address) Loopback() bool {
	if a.Host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip.Unmap().IsLoopback()
}
