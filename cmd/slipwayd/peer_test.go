package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
)

// connect returns a connection of a gRPC client that has no token.
func connect(t testing.TB, target string, c credentials.TransportCredentials, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(c))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func whoAmI(ctx context.Context, cc *grpc.ClientConn) (*slipwayv1.WhoAmIResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return slipwayv1.NewSystemServiceClient(cc).WhoAmI(ctx, &slipwayv1.WhoAmIRequest{})
}

// as connects as another user and group of this machine.
func as(uid, gid int) grpc.DialOption {
	return grpc.WithContextDialer(func(_ context.Context, addr string) (conn net.Conn, err error) {
		done := make(chan struct{})
		thread.Go(func() {
			defer close(done)
			if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
				err = e
				return
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
				err = e
				return
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				err = e
				return
			}
			conn, err = net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
		})
		<-done
		return conn, err
	})
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "s") // others may enter it, unlike the daemon's root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "grpc.sock")
	const group = 54321
	d := newDaemon(t, "--grpc-unix", path)
	d.start()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("the socket is %v, %v; want mode 0600", fi, err)
	}
	who, err := whoAmI(t.Context(), connect(t, "unix://"+path, insecure.NewCredentials()))
	if err != nil || who.GetType() != "admin" || who.GetOrg() != "default" {
		t.Errorf("root is %v, %v", who, err)
	}
	if _, err := whoAmI(t.Context(), connect(t, "unix://"+path, insecure.NewCredentials(), as(65534, group))); status.Code(err) != codes.Unavailable {
		t.Errorf("another user: %v; want no connection", err)
	}

	second := newDaemon(t, "--grpc-unix", path)
	second.launch()
	<-second.ended
	if !strings.Contains(second.log.String(), "--grpc-unix: socket "+path+" is in use") {
		t.Errorf("a second daemon on the socket: %v\n%s", second.exit, second.log)
	}

	// A killed daemon's socket does not keep the next one from starting.
	d.signal(syscall.SIGKILL)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("a killed daemon removed its socket: %v", err)
	}
	d.args = append(d.args, "--grpc-unix-group", fmt.Sprint(groupOfThisMachine(t)))
	d.start()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|0o660 || int(fi.Sys().(*syscall.Stat_t).Gid) != groupOfThisMachine(t) {
		t.Fatalf("the socket is %v, %v; want mode 0660 and the group", fi, err)
	}
	member := connect(t, "unix://"+path, insecure.NewCredentials(), as(65534, groupOfThisMachine(t)))
	if who, err := whoAmI(t.Context(), member); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("a member without a token: %v, %v", who, err)
	}
	who, err = whoAmI(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+d.token), member)
	if err != nil || who.GetType() != "admin" {
		t.Errorf("a member with a token: %v, %v", who, err)
	}
	if _, err := whoAmI(t.Context(), connect(t, "unix://"+path, insecure.NewCredentials(), as(65534, group))); status.Code(err) != codes.Unavailable {
		t.Errorf("who is no member: %v; want no connection", err)
	}
	if _, err := whoAmI(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer nobody"), connect(t, "unix://"+path, insecure.NewCredentials())); status.Code(err) != codes.Unauthenticated {
		t.Errorf("root with a wrong token: %v", err)
	}
	d.stop()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the daemon left its socket: %v", err)
	}
}

// groupOfThisMachine is a group that Debian and others have, and root is not
// in by itself.
func groupOfThisMachine(t testing.TB) int {
	t.Helper()
	passwd, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(passwd)) {
		var gid int
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == "daemon" {
			if _, err := fmt.Sscan(f[2], &gid); err == nil && gid != 0 {
				return gid
			}
		}
	}
	t.Skip("needs a group called daemon")
	return 0
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := selfSigned(t, dir, time.Now().Add(time.Hour))
	ca := newClientCA(t)
	d := newDaemon(t)
	d.args = []string{"--root", d.root, "--grpc", d.grpc, "--http", d.http, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca.file}
	d.start()
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(cert); err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	with := func(certs ...tls.Certificate) *grpc.ClientConn {
		return connect(t, d.grpc, credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: certs}))
	}
	shop := with(ca.sign(time.Now().Add(time.Hour), "slipway://default/shop"))
	who, err := whoAmI(t.Context(), shop)
	if err != nil || who.GetOrg() != "default" || who.GetApp() != "shop" || who.GetType() != "deploy" {
		t.Errorf("a certificate of an app: %v, %v", who, err)
	}
	for app, want := range map[string]codes.Code{"shop": codes.OK, "blog": codes.PermissionDenied} {
		if _, err := slipwayv1.NewBuildServiceClient(shop).ListBuilds(t.Context(), &slipwayv1.ListBuildsRequest{App: app}); status.Code(err) != want {
			t.Errorf("builds of %s: %v, want %v", app, err, want)
		}
	}
	who, err = whoAmI(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+d.token), shop)
	if err != nil || who.GetType() != "admin" {
		t.Errorf("a token beside a certificate: %v, %v", who, err)
	}
	if _, err := whoAmI(t.Context(), with(ca.sign(time.Now().Add(time.Hour), "https://example.com"))); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "slipway://ORG/APP") {
		t.Errorf("a certificate for nobody: %v", err)
	}
	if _, err := whoAmI(t.Context(), with(newClientCA(t).sign(time.Now().Add(time.Hour), "slipway://default"))); status.Code(err) == codes.OK {
		t.Error("a certificate of another authority was accepted")
	}
	if _, err := whoAmI(t.Context(), with()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("neither certificate nor token: %v", err)
	}
	short := with(ca.sign(time.Now().Add(3*time.Second), "slipway://default"))
	if _, err := whoAmI(t.Context(), short); err != nil {
		t.Errorf("a certificate that is still good: %v", err)
	}
	poll(t, 20*time.Second, "the certificate to expire on a connection that stands", func() bool {
		_, err := whoAmI(t.Context(), short)
		return status.Code(err) == codes.Unauthenticated && strings.Contains(err.Error(), "expired on")
	})
	// The registry's port does not ask for certificates.
	hello, err := tls.Dial("tcp", d.http, &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		t.Error("the registry asks for a client's certificate")
		return &tls.Certificate{}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	hello.Close()
}

// A clientCA signs certificates of clients.
type clientCA struct {
	t    testing.TB
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClientCA(t testing.TB) *clientCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &clientCA{t: t, key: key, file: filepath.Join(t.TempDir(), "clients.pem"), cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return ca
}

func (ca *clientCA) sign(until time.Time, uri string) tls.Certificate {
	ca.t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		ca.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ci"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{u},
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
