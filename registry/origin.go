package registry

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// An origin is how a client reached us.
type origin struct {
	scheme string // http or https
	host   string // HOST[:PORT]
	addr   string // of the client, without a port
}

// originOf returns the origin of a request, as a proxy reports it if there is
// one to be believed.
func originOf(r *http.Request, proxied bool) origin {
	o := origin{scheme: "http", host: r.Host, addr: r.RemoteAddr}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		o.addr = host
	}
	if r.TLS != nil {
		o.scheme = "https"
	}
	if !proxied {
		return o
	}
	if proto := last(r.Header.Values("X-Forwarded-Proto")); proto == "http" || proto == "https" {
		o.scheme = proto
	}
	if host := last(r.Header.Values("X-Forwarded-Host")); host != "" {
		o.host = host
	}
	if addr, err := netip.ParseAddr(last(r.Header.Values("X-Forwarded-For"))); err == nil {
		o.addr = addr.String()
	}
	return o
}

// last returns the entry of a list that the nearest proxy added: those before
// it may come from the client.
func last(values []string) string {
	list := strings.Join(values, ",")
	return strings.TrimSpace(list[strings.LastIndexByte(list, ',')+1:])
}

type addrKey struct{}

// RemoteAddr returns the IP address of the client on whose behalf an [Access]
// is asked or an [Event] is reported; "" in other contexts.
func RemoteAddr(ctx context.Context) string {
	addr, _ := ctx.Value(addrKey{}).(string)
	return addr
}
