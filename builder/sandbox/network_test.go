package sandbox_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside is a server that the test machine reaches on the internet.
const outside = "deb.debian.org"

// wantNoNetwork fails the test if links, rules or cgroups of root are left.
func wantNoNetwork(t testing.TB, root string) {
	t.Helper()
	name := networkName(t, root)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == name || strings.HasPrefix(l.Name, "sw"+strings.TrimPrefix(name, "slipway-")) {
			t.Errorf("link %s is left", l.Name)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == name {
			t.Errorf("nftables table %s is left", name)
		}
	}
	for _, dir := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/memory/", "/sys/fs/cgroup/unified/"} {
		if _, err := os.Stat(dir + name); err == nil {
			t.Errorf("cgroup %s%s is left", dir, name)
		}
	}
}

// tcpServer listens at addr and answers each connection with a word.
func tcpServer(t *testing.T, addr string) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "reached\n")
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// hostAddr returns the address that the machine goes out with.
func hostAddr(t *testing.T) netip.Addr {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "udp", "198.51.100.1:9")
	if err != nil {
		t.Skip("needs a default route:", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

// connect is a script that prints what a server says, or that it says nothing.
func connect(addr, port string) string {
	return fmt.Sprintf("nc -w 2 %s %s </dev/null 2>/dev/null || echo closed", addr, port)
}

func needInternet(t *testing.T) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", outside+":80")
	if err != nil {
		t.Skip("needs the internet:", err)
	}
	c.Close()
}

func TestEgress(t *testing.T) {
	r := newRunner(t, sandbox.Options{})
	needInternet(t)
	p := step(t, "timeout 20 wget -q -O - http://"+outside+"/debian/dists/stable/Release | grep -c ^Origin")
	want(t, r, p, "1")

	host := step(t, "timeout 20 wget -q -O - http://"+outside+"/debian/dists/stable/Release | grep -c ^Origin")
	host.Network = sandbox.Host
	want(t, r, host, "1")
}

func TestHostIsClosed(t *testing.T) {
	r := newRunner(t, sandbox.Options{})
	port := tcpServer(t, "0.0.0.0:0")
	addr := hostAddr(t)
	want(t, r, step(t, strings.Join([]string{
		connect("127.0.0.1", port),
		connect(addr.String(), port),
		"gw=$(ip route | awk '/^default/ {print $3}')",
		connect("$gw", port),
		connect("$gw", "22"),
		"ping -c 1 -W 1 $gw >/dev/null && echo pinged || echo closed",
		"ip -6 addr show dev eth0 | wc -l",
	}, "\n")), "closed", "closed", "closed", "closed", "closed", "0")

	// The same server can be reached: from the host's network, and where the
	// operator names the host.
	p := step(t, connect("127.0.0.1", port))
	p.Network = sandbox.Host
	want(t, r, p, "reached")
	open := newRunner(t, sandbox.Options{AllowEgress: []netip.Prefix{netip.PrefixFrom(addr, 32)}})
	want(t, open, step(t, connect(addr.String(), port)), "reached")
	wide := newRunner(t, sandbox.Options{AllowEgress: []netip.Prefix{netip.PrefixFrom(addr, 24).Masked()}})
	want(t, wide, step(t, connect(addr.String(), port)), "closed")
}

// A closed range is refused and not left to time out.
func TestPrivateRanges(t *testing.T) {
	r := newRunner(t, sandbox.Options{})
	var script, lines []string
	for _, addr := range []string{"10.255.255.53", "10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "169.254.169.254", "240.0.0.1"} {
		script = append(script, "nc -w 5 "+addr+" 80 2>&1 </dev/null | grep -o refused || echo "+addr)
		lines = append(lines, "refused")
	}
	want(t, r, step(t, strings.Join(script, "\n")), lines...)
}

// Also where the operator opened the range that their addresses are in.
func TestProcessesAreApart(t *testing.T) {
	r := newRunner(t, sandbox.Options{AllowEgress: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")}})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	server := step(t, "ip -4 addr show dev eth0 | awk '/inet/ {sub(\"/.*\", \"\", $2); print $2}'; while :; do echo reached | nc -l -p 80; done")
	addr := make(chan string, 1)
	server.Stdout = writerFunc(func(b []byte) (int, error) {
		select {
		case addr <- strings.TrimSpace(string(b)):
		default:
		}
		return len(b), nil
	})
	ended := make(chan error, 1)
	go func() { _, err := r.Run(ctx, server); ended <- err }()
	a := <-addr
	if ip, err := netip.ParseAddr(a); err != nil || !ip.IsPrivate() {
		t.Fatalf("address %q", a)
	}
	want(t, r, step(t, connect(a, "80")), "closed")
	stop()
	<-ended
}

// A packet with an address that is not the sender's goes nowhere.
func TestSpoofedSource(t *testing.T) {
	host := hostAddr(t)
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root, AllowEgress: []netip.Prefix{netip.PrefixFrom(host, 32)}})
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	p := step(t, "ip -4 addr show dev eth0 | awk '/inet/ {sub(\"/.*\", \"\", $2); print $2}'; sleep 1000")
	p.ID = "sender"
	addr := make(chan string, 1)
	p.Stdout = writerFunc(func(b []byte) (int, error) { addr <- strings.TrimSpace(string(b)); return len(b), nil })
	p.Watch = func(context.Context) error {
		own := netip.MustParseAddr(<-addr)
		pid := firstProcess(t, root, "sender")
		to := server.LocalAddr().(*net.UDPAddr).AddrPort()
		err = inNetworkOf(pid, func() error {
			return errors.Join(sendRaw(own.Prev(), to, "spoofed"), sendRaw(own, to, "own"))
		})
		if err != nil {
			return err
		}
		buf := make([]byte, 100)
		n, err := server.Read(buf)
		if err == nil && string(buf[:n]) != "own" {
			err = fmt.Errorf("a %s packet arrived", buf[:n])
		}
		return errors.Join(err, io.EOF)
	}
	if _, err := r.Run(t.Context(), p); err != io.EOF && err.Error() != "EOF" {
		t.Error(err)
	}
}

// firstProcess returns the id of a container's first process, which the runtime
// writes down soon after that began to run.
func firstProcess(t *testing.T, root, id string) string {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; {
		pid, err := os.ReadFile(filepath.Join(root, "run", id, "pid"))
		if err == nil && len(pid) > 0 {
			return string(pid)
		}
	}
	t.Error("container has no process")
	return ""
}

// inNetworkOf calls do in the network namespace of a process.
func inNetworkOf(pid string, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever
		ns, err := os.Open("/proc/" + pid + "/ns/net")
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// sendRaw sends a UDP packet whose source is from.
func sendRaw(from netip.Addr, to netip.AddrPort, data string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	udp := binary.BigEndian.AppendUint16(nil, 9)
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(data)))
	udp = append(append(udp, 0, 0), data...)
	// The kernel fills in length, id and checksum.
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.Addr().AsSlice()...)
	return unix.Sendto(fd, append(ip, udp...), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
}

func TestNoNetwork(t *testing.T) {
	r := newRunner(t, sandbox.Options{Network: sandbox.None})
	want(t, r, step(t, "ls /sys/class/net; ip route | wc -l; ip -4 addr show dev lo | grep -c 127.0.0.1; nc -w 1 192.0.2.1 80 2>&1 </dev/null | grep -o unreachable"),
		"lo", "0", "1", "unreachable")
}

func TestResolver(t *testing.T) {
	needRoot(t)
	// A resolver of our own in a range that processes cannot reach.
	dns, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 77, 0, 53), Port: 53})
	if err != nil {
		t.Skip("needs port 53 of a loopback address:", err)
	}
	t.Cleanup(func() { dns.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := dns.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = dns.WriteToUDPAddrPort(answer(buf[:n]), from)
		}
	}()
	var lc net.ListenConfig
	tcp, err := lc.Listen(t.Context(), "tcp4", "127.77.0.53:53")
	if err != nil {
		t.Skip("needs port 53 of a loopback address:", err)
	}
	t.Cleanup(func() { tcp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	// The first does not answer: nothing listens there.
	r := newRunner(t, sandbox.Options{DNS: []netip.Addr{netip.MustParseAddr("127.77.0.54"), netip.MustParseAddr("127.77.0.53")}})
	want(t, r, step(t, `nslookup ship.test 2>&1 | awk '/^Address: 203/ {print $2}'`), "203.0.113.7")
	want(t, r, step(t, `echo over tcp | nc -w 2 $(awk '/nameserver/ {print $2}' /etc/resolv.conf) 53`), "over tcp")
	for _, c := range r.Check(t.Context()) {
		if !c.OK {
			t.Errorf("check %+v", c)
		}
	}
}

// answer returns a DNS message that gives 203.0.113.7 for any name's A.
func answer(question []byte) []byte {
	end := 12
	for end < len(question) && question[end] != 0 {
		end += int(question[end]) + 1
	}
	end += 5
	if end > len(question) {
		return nil
	}
	m := append([]byte(nil), question[:end]...)
	m[2], m[3] = 0x81, 0x80 // an answer, recursion available
	m[6], m[7], m[8], m[9], m[10], m[11] = 0, 0, 0, 0, 0, 0
	if question[end-3] == 1 { // type A
		m[7] = 1
		m = append(m, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7)
	}
	return m
}

// Somebody flushed all rules: no process may run without.
func TestRulesComeBack(t *testing.T) {
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root})
	port, addr := tcpServer(t, "0.0.0.0:0"), hostAddr(t).String()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: networkName(t, root)})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	want(t, r, step(t, connect(addr, port)), "closed")
}

// Somebody removed the bridge, took it down or took its address: the next
// process finds everything as it was, and so does one that runs meanwhile.
func TestBridgeComesBack(t *testing.T) {
	root := t.TempDir()
	host := hostAddr(t)
	r := newRunner(t, sandbox.Options{Root: root, AllowEgress: []netip.Prefix{netip.PrefixFrom(host, 32)}})
	port, name := tcpServer(t, "0.0.0.0:0"), networkName(t, root)
	for _, harm := range []struct {
		name   string
		breaks bool // what runs
		do     func(*testing.T, netlink.Link) error
	}{
		{"removed", true, func(_ *testing.T, br netlink.Link) error { return netlink.LinkDel(br) }},
		{"down", false, func(_ *testing.T, br netlink.Link) error { return netlink.LinkSetDown(br) }},
		{"without address", true, func(t *testing.T, br netlink.Link) error {
			addrs, err := netlink.AddrList(br, netlink.FAMILY_V4)
			if err != nil || len(addrs) != 1 {
				t.Fatalf("addresses %v, %v", addrs, err)
			}
			return netlink.AddrDel(br, &addrs[0])
		}},
	} {
		t.Run(harm.name, func(t *testing.T) {
			try := "timeout 2 nc -w 1 " + host.String() + " " + port + " </dev/null >/dev/null 2>&1"
			p := step(t, "until "+try+"; do :; done; echo begun; while "+try+"; do :; done; echo broken; until "+try+"; do :; done; echo mended")
			heard := make(chan string, 3)
			p.Stdout = writerFunc(func(b []byte) (int, error) { heard <- strings.TrimSpace(string(b)); return len(b), nil })
			ended := make(chan error, 1)
			ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
			defer stop()
			go func() { _, err := r.Run(ctx, p); ended <- err; close(heard) }()
			if got := <-heard; got != "begun" {
				t.Fatalf("the process says %q", got)
			}
			br, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm.do(t, br); err != nil {
				t.Fatal(err)
			}
			if harm.breaks {
				if got := <-heard; got != "broken" {
					t.Fatalf("the process says %q", got)
				}
			}
			for range 3 { // more than are in stock
				want(t, r, step(t, connect(host.String(), port)), "reached")
			}
			if !harm.breaks {
				stop()
				<-ended
			} else if err := <-ended; err != nil || <-heard != "mended" {
				t.Errorf("the process that ran meanwhile: %v", err)
			}
			for _, c := range r.Check(t.Context()) {
				if !c.OK {
					t.Errorf("check %+v", c)
				}
			}
		})
	}
}

// A bridge that cannot be made again is an error that says so.
func TestBridgeCannotComeBack(t *testing.T) {
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root})
	want(t, r, step(t, "echo fine"), "fine")
	br, err := netlink.LinkByName(networkName(t, root))
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(br); err != nil {
		t.Fatal(err)
	}
	other := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: networkName(t, root)}}
	if err := netlink.LinkAdd(other); err != nil {
		t.Skip("needs dummy links:", err)
	}
	p := step(t, "echo fine")
	_, err = r.Run(t.Context(), p)
	if !errors.Is(err, sandbox.ErrNetwork) || !strings.Contains(err.Error(), networkName(t, root)) {
		t.Errorf("Run: %v; want %v and the name of the bridge", err, sandbox.ErrNetwork)
	}
	if err := netlink.LinkDel(other); err != nil {
		t.Fatal(err)
	}
	want(t, r, step(t, "echo fine"), "fine")

	// Who was stopped while waiting did not fail for the network.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrClosedPipe)
	if _, err := r.Run(ctx, step(t, "echo fine")); !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, sandbox.ErrNetwork) {
		t.Errorf("Run with a context that was done: %v", err)
	}
}

func TestSideBySide(t *testing.T) {
	r, other := newRunner(t, sandbox.Options{}), newRunner(t, sandbox.Options{})
	type result struct {
		code int
		err  error
	}
	results := make(chan result)
	const n = 6
	for i := range n {
		runner := r
		if i%2 == 1 {
			runner = other
		}
		p := step(t, "nslookup "+outside+" >/dev/null || true; ip route | grep -c default >/dev/null")
		go func() {
			code, err := runner.Run(t.Context(), p)
			results <- result{code, err}
		}()
	}
	for range n {
		if got := <-results; got.code != 0 || got.err != nil {
			t.Errorf("exit code %d, error %v", got.code, got.err)
		}
	}
}

func TestEgressAllowed(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	for addr, want := range map[string]bool{
		"203.0.113.1": true, "2001:db8::1": true, "10.1.2.3": true, "::ffff:10.1.2.3": true,
		"10.2.0.1": false, "127.0.0.1": false, "::1": false, "169.254.169.254": false, "fe80::1%eth0": false,
		"fd00::1": false, "::ffff:192.168.0.1": false, "64:ff9b::a00:1": false, "0.0.0.0": false, "255.255.255.255": false, "100.127.0.1": false,
	} {
		if got := sandbox.EgressAllowed(netip.MustParseAddr(addr), allow); got != want {
			t.Errorf("EgressAllowed(%s) = %v, want %v", addr, got, want)
		}
	}
	if sandbox.EgressAllowed(netip.Addr{}, nil) {
		t.Error("no address is allowed")
	}
}

// networkName returns the name of the network of a root, as its bridge, rules
// and cgroup are called.
func networkName(t testing.TB, root string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", st.Dev, st.Ino))
	return "slipway-" + hex.EncodeToString(sum[:3])
}
