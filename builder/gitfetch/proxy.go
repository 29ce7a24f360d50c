package gitfetch

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// A proxy is git's only way out. It connects by the fetcher's Dial, and
// remembers why that refused: git would tell it in other words.
type proxy struct {
	ctx      context.Context // of one fetch
	server   *http.Server
	address  string
	password string
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	only     atomic.Pointer[string] // the one host:port to reach; nil is any
	plain    *httputil.ReverseProxy
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	err    error
}

func newProxy(ctx context.Context, l net.Listener, dial func(context.Context, string, string) (net.Conn, error)) *proxy {
	ctx, cancel := context.WithCancel(ctx)
	p := &proxy{ctx: ctx, cancel: cancel, address: l.Addr().String(), password: rand.Text(), dial: dial}
	transport := &http.Transport{
		DialContext: p.connect, DisableCompression: true, DisableKeepAlives: true, ResponseHeaderTimeout: 2 * time.Minute,
	}
	p.plain = &httputil.ReverseProxy{
		Rewrite: func(*httputil.ProxyRequest) {}, Transport: transport, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	p.running.Go(func() { _ = p.server.Serve(l) }) // until it is closed
	return p
}

// close ends all connections and waits for them.
func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	_ = p.server.Close()
	p.running.Wait()
}

func (p *proxy) url() string {
	return (&url.URL{Scheme: "http", User: url.UserPassword("git", p.password), Host: p.address}).String()
}

// restrict lets nothing but u's server be reached.
func (p *proxy) restrict(u *url.URL) {
	address := withPort(u)
	p.only.Store(&address)
}

func withPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// cause is why the first connection failed; nil if none did.
func (p *proxy) cause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *proxy) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := net.Conn(nil), error(nil)
	if only := p.only.Load(); only != nil && *only != address {
		err = fmt.Errorf("%s %w, to %s", *only, ErrRedirect, address)
	} else if conn, err = p.dial(ctx, network, address); err != nil {
		err = fmt.Errorf("connect to %s: %w", address, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.err == nil {
		p.err = err
	}
	return conn, err
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !p.begin() {
		return
	}
	defer p.running.Done()
	if !p.allows(r) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="git"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case r.URL.Scheme == "http":
		p.plain.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

// begin counts a request, unless the proxy is closed.
func (p *proxy) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Add(1)
	}
	return !p.closed
}

func (p *proxy) allows(r *http.Request) bool {
	as := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	_, password, ok := as.BasicAuth()
	return ok && subtle.ConstantTimeCompare([]byte(password), []byte(p.password)) == 1
}

// tunnel passes bytes on until a side ends, or the fetch does.
func (p *proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	out, err := p.connect(p.ctx, "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer out.Close()
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer in.Close()
	defer context.AfterFunc(p.ctx, func() { in.Close(); out.Close() })()
	if _, err := io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(out, buffered)
		out.Close()
	})
	_, _ = io.Copy(in, out)
	in.Close()
	up.Wait()
}
