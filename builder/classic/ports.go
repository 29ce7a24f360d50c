package classic

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parsePorts returns the container ports, "80/tcp", of an EXPOSE word:
// [[IP:]HOST:]PORT[-PORT][/PROTO].
func parsePorts(word string) ([]string, error) {
	spec, proto, _ := strings.Cut(word, "/")
	proto = strings.ToLower(proto)
	switch proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid proto: %s", proto)
	}
	at := strings.LastIndexByte(spec, ':')
	port := spec[at+1:]
	if port == "" {
		return nil, fmt.Errorf("no port specified: %s<empty>", word)
	}
	first, last, ok := portRange(port)
	if !ok {
		return nil, fmt.Errorf("invalid containerPort: %s", port)
	}
	if err := checkHost(spec[:max(at, 0)], port, last-first); err != nil {
		return nil, err
	}
	var all []string
	for p := first; p <= last; p++ {
		all = append(all, fmt.Sprintf("%d/%s", p, proto))
	}
	return all, nil
}

// checkHost checks the part that EXPOSE drops, [IP:]HOST, beside a port or a
// range of ports that spans more.
func checkHost(host, port string, span int) error {
	ip, hostPort := "", host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, hostPort = host[:i], host[i+1:]
	}
	if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")); ip != "" && err != nil {
		return fmt.Errorf("invalid IP address: %s", ip)
	}
	if hostPort == "" {
		return nil
	}
	first, last, ok := portRange(hostPort)
	if !ok {
		return fmt.Errorf("invalid hostPort: %s", hostPort)
	}
	if span > 0 && last-first != span {
		return fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", port, hostPort)
	}
	return nil
}

// portRange reads PORT or FROM-TO.
func portRange(s string) (first, last int, ok bool) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	return int(a), int(b), errA == nil && errB == nil && a <= b
}
