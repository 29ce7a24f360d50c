package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const (
	resolvConf = "/etc/resolv.conf"

	dnsTries    = 2               // how often each resolver is asked
	dnsPatience = 3 * time.Second // for one answer
	dnsIdle     = 20 * time.Second
	dnsAtOnce   = 256 // questions, and connections
)

// A forwarder passes DNS messages between processes, which cannot reach the
// host's resolvers, and these. It does not look into them.
type forwarder struct {
	upstream func() []netip.Addr
	log      *slog.Logger
	udp      *net.UDPConn
	tcp      *net.TCPListener
	stop     context.CancelFunc
	busy     sync.WaitGroup
}

func newForwarder(ctx context.Context, at netip.Addr, resolvers []netip.Addr, log *slog.Logger) (*forwarder, error) {
	f := &forwarder{log: log, upstream: (&hostResolvers{}).list}
	if len(resolvers) > 0 {
		f.upstream = func() []netip.Addr { return resolvers }
	}
	var err error
	if f.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0))); err != nil {
		return nil, err
	}
	if f.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0))); err != nil {
		return nil, errors.Join(err, f.udp.Close())
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	f.busy.Go(func() { f.serveUDP(ctx) })
	f.busy.Go(func() { f.serveTCP(ctx) })
	return f, nil
}

func (f *forwarder) udpPort() uint16 { return f.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port() }
func (f *forwarder) tcpPort() uint16 { return f.tcp.Addr().(*net.TCPAddr).AddrPort().Port() }

func (f *forwarder) close() error {
	f.stop()
	err := errors.Join(f.udp.Close(), f.tcp.Close())
	f.busy.Wait()
	return err
}

func (f *forwarder) serveUDP(ctx context.Context) {
	slots := make(chan struct{}, dnsAtOnce)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := f.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 12 { // shorter than a header
			continue
		}
		question := append([]byte(nil), buf[:n]...)
		select {
		case slots <- struct{}{}:
		default:
			continue // the client asks again
		}
		f.busy.Go(func() {
			defer func() { <-slots }()
			if answer := f.ask(ctx, question); answer != nil {
				_, _ = f.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// ask returns the first answer to a question, nil if there is none.
func (f *forwarder) ask(ctx context.Context, question []byte) []byte {
	for range dnsTries {
		for _, r := range f.upstream() {
			answer, err := exchange(ctx, r, question)
			if err == nil {
				return answer
			}
			if ctx.Err() != nil {
				return nil
			}
			f.log.Debug("resolver did not answer", "resolver", r, "error", err)
		}
	}
	return nil
}

// exchange sends a question to one resolver, from a port that is used for
// nothing else, and returns the message that answers it.
func exchange(ctx context.Context, resolver netip.Addr, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(resolver, 53).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 12 && buf[0] == question[0] && buf[1] == question[1] {
			return buf[:n], nil
		}
	}
}

func (f *forwarder) serveTCP(ctx context.Context) {
	slots := make(chan struct{}, dnsAtOnce)
	for {
		conn, err := f.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		f.busy.Go(func() {
			defer func() { <-slots }()
			f.relay(ctx, conn)
		})
	}
}

// relay joins a process's connection with one to a resolver until either ends
// or nothing comes for a while.
func (f *forwarder) relay(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	for _, r := range f.upstream() {
		d := net.Dialer{Timeout: dnsPatience}
		up, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(r, 53).String())
		if err != nil {
			f.log.Debug("resolver did not answer", "resolver", r, "error", err)
			continue
		}
		defer up.Close()
		defer context.AfterFunc(ctx, func() { conn.Close(); up.Close() })()
		var back sync.WaitGroup
		back.Go(func() { pump(conn, up) })
		pump(up, conn)
		back.Wait()
		return
	}
}

// pump copies from src to dst. When that ends it ends the other direction too.
func pump(dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		src.SetReadDeadline(time.Now().Add(dnsIdle))
		n, err := src.Read(buf)
		if n > 0 {
			dst.SetWriteDeadline(time.Now().Add(dnsPatience))
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
		}
		if errors.Is(err, io.EOF) {
			if half, ok := dst.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
			return
		}
		if err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
}

// hostResolvers are those of /etc/resolv.conf, read again when it changes.
type hostResolvers struct {
	mu      sync.Mutex
	changed time.Time
	addrs   []netip.Addr
}

func (h *hostResolvers) list() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	info, err := os.Stat(resolvConf)
	if err != nil || info.ModTime().Equal(h.changed) {
		return h.addrs
	}
	if conf, err := os.ReadFile(resolvConf); err == nil {
		h.changed, h.addrs = info.ModTime(), nameservers(conf)
	}
	return h.addrs
}
