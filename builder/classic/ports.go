package classic

import (
	"fmt"
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
	port := spec[strings.LastIndexByte(spec, ':')+1:]
	from, to, ranged := strings.Cut(port, "-")
	first, err := parsePort(from, port)
	if err != nil {
		return nil, err
	}
	last := first
	if ranged {
		if last, err = parsePort(to, port); err != nil {
			return nil, err
		}
		if last < first {
			return nil, fmt.Errorf("invalid containerPort: %s", port)
		}
	}
	var all []string
	for p := first; p <= last; p++ {
		all = append(all, fmt.Sprintf("%d/%s", p, proto))
	}
	return all, nil
}

func parsePort(s, whole string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("invalid containerPort: %s", whole)
	}
	return int(n), nil
}
