package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder/thread"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
)

// listen serves d by its real credentials.
func (d *daemon) listen(l net.Listener, config *tls.Config) {
	g := grpc.NewServer(append(d.srv.ServerOptions(), grpc.Creds(server.Credentials(config)))...)
	d.srv.Register(g)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) })
	d.t.Cleanup(func() { g.Stop(); serving.Wait() })
}

func dial(t *testing.T, target string, c credentials.TransportCredentials, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(c))...)
	check(t, err)
	t.Cleanup(func() { cc.Close() })
	return cc
}

// send returns a context of a call with an authorization, none if that is "".
func send(t *testing.T, authorization string) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	if authorization == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
}

// dialAs connects as another user of this machine.
func dialAs(uid int, path string) (conn net.Conn, err error) {
	done := make(chan struct{})
	thread.Go(func() {
		defer close(done)
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			err = e
			return
		}
		conn, err = net.Dial("unix", path)
	})
	<-done
	return conn, err
}

func TestUnixSocketKnowsWhoConnects(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	d := start(t, &script{}, 0)
	dir, err := os.MkdirTemp("", "s")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	check(t, err)
	check(t, os.Chmod(path, 0o666))
	d.listen(l, &tls.Config{}) // which is for TCP

	for _, tc := range []struct {
		uid           int
		authorization string
		name          string // "": refused
		says          string
	}{
		{0, "", "local user 0", ""},
		{0, "Bearer shop", "ci", ""},
		{0, "Bearer nobody", "", "token not recognized"},
		{0, "Bearer expired", "", "token expired"},
		{0, "Bearer ", "", "no token was given"},
		{0, "Basic shop", "", "no token was given"},
		{65534, "", "", "user 65534 of this machine is neither root nor the daemon's own"},
		{65534, "Bearer shop", "ci", ""},
		{65534, "Bearer nobody", "", "token not recognized"},
	} {
		cc := dial(t, "unix://"+path, insecure.NewCredentials(), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return dialAs(tc.uid, path)
		}))
		who, err := slipwayv1.NewSystemServiceClient(cc).WhoAmI(send(t, tc.authorization), &slipwayv1.WhoAmIRequest{})
		switch {
		case tc.name != "" && (err != nil || who.GetName() != tc.name):
			t.Errorf("user %d, %q: %v, %v; want %s", tc.uid, tc.authorization, who, err, tc.name)
		case tc.name == "" && (status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), tc.says)):
			t.Errorf("user %d, %q: %v, %v; want a refusal that says %q", tc.uid, tc.authorization, who, err, tc.says)
		}
	}
	// A stream is authenticated like a call.
	for uid, want := range map[int]codes.Code{0: codes.InvalidArgument, 65534: codes.Unauthenticated} {
		cc := dial(t, "unix://"+path, insecure.NewCredentials(), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return dialAs(uid, path)
		}))
		s, err := slipwayv1.NewBuildServiceClient(cc).Build(send(t, ""))
		check(t, err)
		check(t, s.CloseSend())
		if _, err := s.Recv(); status.Code(err) != want {
			t.Errorf("user %d: Build: %v, want %v", uid, err, want)
		}
	}
}

// An authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	a := &authority{t: t, key: key}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	check(t, err)
	a.cert, err = x509.ParseCertificate(der)
	check(t, err)
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) sign(use x509.ExtKeyUsage, until time.Time, uri string) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ci"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if uri != "" {
		u, err := url.Parse(uri)
		check(a.t, err)
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	check(a.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestClientCertificates(t *testing.T) {
	d := start(t, &script{}, 0)
	ours, theirs := newAuthority(t), newAuthority(t)
	future := time.Now().Add(time.Hour)
	config := func(clients *x509.CertPool, now func() time.Time) (target string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		d.listen(l, &tls.Config{Certificates: []tls.Certificate{*ours.sign(x509.ExtKeyUsageServerAuth, future, "")}, ClientCAs: clients, Time: now})
		return l.Addr().String()
	}
	on, off := config(ours.pool(), nil), config(nil, nil)
	// Its handshakes happen two hours ago, its calls now.
	old := config(ours.pool(), func() time.Time { return time.Now().Add(-2 * time.Hour) })

	client := x509.ExtKeyUsageClientAuth
	acme, shop := ours.sign(client, future, "slipway://acme"), ours.sign(client, future, "slipway://acme/shop")
	expired := ours.sign(client, time.Now().Add(-time.Hour), "slipway://acme")
	const handshake = "" // what a client gets to see of it depends on the moment
	for _, tc := range []struct {
		name, target  string
		cert          *tls.Certificate
		authorization string
		org, app      string // "": refused
		says          string
	}{
		{"an org", on, acme, "", "acme", "", ""},
		{"an app", on, shop, "", "acme", "shop", ""},
		{"any org", on, ours.sign(client, future, "slipway://globex"), "", "globex", "", ""},
		{"a token wins", on, acme, "Bearer globex", "globex", "", ""},
		{"a wrong token wins", on, acme, "Bearer nobody", "", "", "token not recognized"},
		{"something that is no token wins", on, acme, "Basic acme", "", "", "no token was given"},
		{"a token alone", on, nil, "Bearer acme", "acme", "", ""},
		{"nothing", on, nil, "", "", "", "no token was given"},
		{"for nobody", on, ours.sign(client, future, ""), "", "", "", "slipway://ORG or slipway://ORG/APP"},
		{"for somebody else", on, ours.sign(client, future, "spiffe://acme/shop"), "", "", "", "slipway://ORG or slipway://ORG/APP"},
		{"a token beside one for nobody", on, ours.sign(client, future, ""), "Bearer acme", "acme", "", ""},
		{"of another authority", on, theirs.sign(client, future, "slipway://acme"), "", "", "", handshake},
		{"a server's", on, ours.sign(x509.ExtKeyUsageServerAuth, future, "slipway://acme"), "", "", "", handshake},
		{"expired before", on, expired, "", "", "", handshake},
		{"expired since", old, expired, "", "", "", "expired on"},
		{"not expired since", old, acme, "", "acme", "", ""},
		{"a token beside one that expired since", old, expired, "Bearer acme", "acme", "", ""},
		{"where none are asked for", off, acme, "", "", "", "no token was given"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: ours.pool()}
			if tc.cert != nil { // shown whatever the server asks for
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tc.cert, nil }
			}
			cc := dial(t, tc.target, credentials.NewTLS(config))
			who, err := slipwayv1.NewSystemServiceClient(cc).WhoAmI(send(t, tc.authorization), &slipwayv1.WhoAmIRequest{})
			if tc.org != "" {
				if err != nil || who.GetOrg() != tc.org || who.GetApp() != tc.app {
					t.Errorf("%v, %v; want %s/%s", who, err, tc.org, tc.app)
				}
				return
			}
			want := codes.Unauthenticated
			if tc.says == handshake {
				want = codes.Unavailable
			}
			if status.Code(err) != want || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, %v; want a refusal that says %q", who, err, tc.says)
			}
		})
	}

	// Docker buildx does TLS by itself, and does not say which protocol is next.
	for protocols, want := range map[string]codes.Code{"": codes.OK, "h2": codes.OK, "spdy/3": codes.Unavailable} {
		cc := dial(t, "passthrough:///"+on, insecure.NewCredentials(), grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) {
			config := &tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{*acme}, ServerName: "127.0.0.1"}
			if protocols != "" {
				config.NextProtos = []string{protocols}
			}
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return nil, err
			}
			return tls.Client(conn, config), nil
		}))
		if _, err := slipwayv1.NewSystemServiceClient(cc).WhoAmI(send(t, ""), &slipwayv1.WhoAmIRequest{}); status.Code(err) != want {
			t.Errorf("a client that says it will speak %q: %v, want %v", protocols, err, want)
		}
	}

	// It counts as a deploy token.
	cc := dial(t, on, credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{*shop}}))
	for app, want := range map[string]codes.Code{"shop": codes.OK, "blog": codes.PermissionDenied} {
		if _, err := slipwayv1.NewBuildServiceClient(cc).ListBuilds(send(t, ""), &slipwayv1.ListBuildsRequest{App: app}); status.Code(err) != want {
			t.Errorf("builds of %s: %v, want %v", app, err, want)
		}
	}
	if _, err := slipwayv1.NewCacheServiceClient(cc).Prune(send(t, ""), &slipwayv1.PruneRequest{App: "shop"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("prune: %v", err)
	}
}
