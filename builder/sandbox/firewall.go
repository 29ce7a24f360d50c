package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A firewall is one nftables table of our own. It sees only what comes from or
// goes to interfaces whose names begin with prefix.
type firewall struct {
	table   string
	prefix  string // of the processes' interfaces
	subnet  netip.Prefix
	gateway netip.Addr
	udp     uint16 // ports of the DNS forwarder at the gateway
	tcp     uint16
	allow   []netip.Prefix
}

// install makes the table, in place of one that exists, in one transaction.
func (f *firewall) install() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: f.table}
	// Adding a table that exists is no error, deleting one that does not is.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	f.addRules(c, table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// installed reports whether the table is there: anyone may flush the rule set.
func (f *firewall) installed() bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	return err == nil && slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == f.table
	})
}

// removeTable removes the table of that name if there is one.
func removeTable(name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	c.AddTable(table)
	c.DelTable(table)
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// addRules lays out the chains in the order in which a packet meets them.
func (f *firewall) addRules(c *nftables.Conn, table *nftables.Table) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) func(...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: prio})
		return func(parts ...[]expr.Any) {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: slices.Concat(parts...)})
		}
	}
	refuse := func(add func(...[]expr.Any), parts ...[]expr.Any) {
		match := slices.Concat(parts...)
		add(match, protocol(unix.IPPROTO_TCP), reset())
		add(match, reject())
	}
	from, to := iface(expr.MetaKeyIIFNAME, f.prefix), iface(expr.MetaKeyOIFNAME, f.prefix)
	gateway := netip.PrefixFrom(f.gateway, 32)

	// A process that sends with an address that is not its own gets nowhere, and
	// there is no IPv6.
	spoof := chain("spoof", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	spoof(from, family(unix.NFPROTO_IPV6), verdict(expr.VerdictDrop))
	spoof(from, foreignSource(), verdict(expr.VerdictDrop))

	// DNS goes to the forwarder, whose ports are whatever was free.
	dns := chain("dns", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	dns(from, destination(gateway), port(unix.IPPROTO_UDP, 53), dnat(f.gateway, f.udp))
	dns(from, destination(gateway), port(unix.IPPROTO_TCP, 53), dnat(f.gateway, f.tcp))

	// The host itself: the forwarder, and what the operator opened by name.
	input := chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	input(from, destination(gateway), port(unix.IPPROTO_UDP, f.udp), verdict(expr.VerdictAccept))
	input(from, destination(gateway), port(unix.IPPROTO_TCP, f.tcp), verdict(expr.VerdictAccept))
	for _, p := range f.allow {
		if p.Addr().Is4() && p.IsSingleIP() {
			input(from, destination(p), verdict(expr.VerdictAccept))
		}
	}
	input(from, established(), verdict(expr.VerdictAccept))
	refuse(input, from)

	// Everything else: out to the internet, never to each other, never in.
	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	refuse(forward, from, to)
	for _, p := range f.allow {
		if p.Addr().Is4() {
			forward(from, destination(p), verdict(expr.VerdictAccept))
		}
	}
	for _, p := range closedRanges {
		if p.Addr().Is4() {
			refuse(forward, from, destination(p))
		}
	}
	forward(to, established(), verdict(expr.VerdictAccept))
	forward(to, verdict(expr.VerdictDrop))

	nat := chain("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	nat(source(f.subnet), []expr.Any{&expr.Masq{}})
}

// iface matches interfaces whose name begins with prefix: a comparison that
// stops before the terminating zero.
func iface(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)},
	}
}

func family(nfproto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto}},
	}
}

func source(p netip.Prefix) []expr.Any      { return address(12, p) }
func destination(p netip.Prefix) []expr.Any { return address(16, p) }

// address matches the IPv4 address at offset of the IP header.
func address(offset uint32, p netip.Prefix) []expr.Any {
	var mask [4]byte
	binary.BigEndian.PutUint32(mask[:], uint32(uint64(0xffffffff)<<(32-p.Bits())))
	return append(family(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// port matches packets of a protocol to a port.
func port(proto byte, number uint16) []expr.Any {
	return append(protocol(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)},
	)
}

// foreignSource matches packets whose source is not routed to the interface
// that they came from.
func foreignSource() []expr.Any {
	return append(family(unix.NFPROTO_IPV4),
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	)
}

func established() []expr.Any {
	states := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: states, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind}}
}

// reset refuses a TCP connection at once. A connect that is still at work may
// miss an ICMP error and try again after a second.
func reset() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
}

// reject tells the sender, who would else wait for a time-out.
func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func dnat(to netip.Addr, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}
