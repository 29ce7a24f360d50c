package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// A bind shows a file of the host read-only in the container.
type bind struct{ source, target string }

func newline() io.Reader { return strings.NewReader("\n") }

const hostsHeader = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// hostsFile returns /etc/hosts for a process. The address is invalid where the
// process has none but loopback.
func hostsFile(m Mode, addr netip.Addr, hostname string, extra []string) ([]byte, error) {
	var b bytes.Buffer
	if m == Host {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		b.Write(own)
		if len(own) > 0 && own[len(own)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString(hostsHeader)
	}
	for _, h := range extra {
		name, ip, ok := strings.Cut(h, ":")
		if name, ip = strings.TrimSpace(name), strings.Trim(ip, "[]"); !ok || name == "" || strings.ContainsAny(name, " \t\n#") {
			return nil, fmt.Errorf("extra host %q: want NAME:ADDRESS", h)
		}
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, fmt.Errorf("extra host %q: %w", h, err)
		}
		fmt.Fprintf(&b, "%s\t%s\n", a, name)
	}
	if addr.IsValid() {
		fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
	}
	return b.Bytes(), nil
}

// resolvFile returns /etc/resolv.conf for a process: the host's with our
// forwarder, where there is one, for its resolvers.
func resolvFile(host []byte, forwarder netip.Addr) []byte {
	if !forwarder.IsValid() {
		return host
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "nameserver %s\n", forwarder)
	for line := range strings.Lines(string(host)) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain" || f[0] == "options") {
			fmt.Fprintln(&b, strings.Join(f, " "))
		}
	}
	return b.Bytes()
}

// nameservers returns the resolvers that a resolv.conf lists.
func nameservers(conf []byte) []netip.Addr {
	var list []netip.Addr
	for line := range strings.Lines(string(conf)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, a.Unmap())
		}
	}
	return list
}

// stageFiles writes the files that tell a process its names into dir.
func stageFiles(dir string, hosts, resolv []byte, hostname string) ([]bind, error) {
	var binds []bind
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"resolv.conf", resolv},
		{"hostname", []byte(hostname + "\n")},
		{"hosts", hosts},
	} {
		b := bind{filepath.Join(dir, f.name), "/etc/" + f.name}
		if err := os.WriteFile(b.source, f.data, 0o644); err != nil {
			return nil, err
		}
		binds = append(binds, b)
	}
	return binds, nil
}
