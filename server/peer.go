package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	creds "google.golang.org/grpc/credentials" // credentials are those of a registry here
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/slipwayhq/slipway/tokens"
)

// Credentials returns the credentials of a gRPC server with these services. Its
// TCP connections speak TLS as config says, plaintext if that is nil; if config
// has ClientCAs, a client may show a certificate that one of them signed. Unix
// sockets speak plaintext, and the kernel tells who connected. So does a
// connection inside the process, where nobody tells.
func Credentials(config *tls.Config) creds.TransportCredentials {
	t := transport{TransportCredentials: insecure.NewCredentials()}
	if config != nil {
		t.config = config.Clone()
		t.config.NextProtos = []string{"h2"}
		t.config.ClientAuth = tls.NoClientCert
		if config.ClientCAs != nil {
			t.config.ClientAuth = tls.VerifyClientCertIfGiven
		}
	}
	return t
}

// transport are the credentials of all connections; those it embeds are for
// plaintext.
type transport struct {
	creds.TransportCredentials
	config *tls.Config // nil for none
}

func (t transport) ServerHandshake(conn net.Conn) (net.Conn, creds.AuthInfo, error) {
	if c, ok := conn.(*net.UnixConn); ok {
		uid, err := peerUID(c)
		return conn, localInfo{private, uid}, err
	}
	if t.config == nil || conn.LocalAddr().Network() == inside {
		return t.TransportCredentials.ServerHandshake(conn)
	}
	// gRPC's own credentials refuse clients that do not say that they are going
	// to speak HTTP/2, such as docker buildx.
	secure := tls.Server(conn, t.config)
	if err := secure.HandshakeContext(context.Background()); err != nil { // gRPC has set a deadline
		return nil, nil, err
	}
	return secure, creds.TLSInfo{State: secure.ConnectionState(), CommonAuthInfo: private}, nil
}

// inside is the network of connections that do not leave the process: those of
// bufconn.
const inside = "bufconn"

// private says that nobody else on the way reads or writes.
var private = creds.CommonAuthInfo{SecurityLevel: creds.PrivacyAndIntegrity}

func (t transport) Clone() creds.TransportCredentials {
	return transport{t.TransportCredentials.Clone(), t.config.Clone()} // of nil it is nil
}

// localInfo says which user of this machine made a connection.
type localInfo struct {
	creds.CommonAuthInfo
	uid int
}

func (localInfo) AuthType() string { return "local" }

// peerUID returns who connected, as it was then.
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return -1, e
	}
	if err != nil {
		return -1, os.NewSyscallError("getsockopt", err)
	}
	return int(cred.Uid), nil
}

// peerPrincipal returns whom a call without a token is from, as its connection
// tells.
func peerPrincipal(ctx context.Context) (tokens.Principal, error) {
	connection, ok := peer.FromContext(ctx)
	if !ok {
		return tokens.Principal{}, noToken()
	}
	var p tokens.Principal
	var err error
	switch info := connection.AuthInfo.(type) {
	case localInfo:
		p, err = tokens.Local(info.uid, os.Geteuid())
	case creds.TLSInfo:
		if len(info.State.VerifiedChains) == 0 {
			return tokens.Principal{}, noToken()
		}
		p, err = tokens.Certificate(info.State.VerifiedChains)
	default:
		return tokens.Principal{}, noToken()
	}
	if err != nil {
		return tokens.Principal{}, unauthorized(err.Error(), err)
	}
	if p.Expired(time.Now()) { // since the connection began
		return tokens.Principal{}, unauthorized(fmt.Sprintf("the %s, or an authority that it rests on, expired on %s", p.Name, p.Expires.UTC().Format(time.RFC3339)), tokens.ErrExpired)
	}
	return p, nil
}
