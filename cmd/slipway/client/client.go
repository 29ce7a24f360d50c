package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// maxMessage bounds one message from the daemon.
const maxMessage = 16 << 20

// Options says where the daemon is and how to speak to it.
type Options struct {
	Address    Address
	Token      string        // bearer token; empty sends none
	CAFile     string        // PEM certificates to trust instead of the system's
	SkipVerify bool          // accept any certificate
	Insecure   bool          // allow plaintext to other machines
	Version    string        // of this program, for the daemon's log
	Timeout    time.Duration // of one short call; 0 means 30 s

	// Source gives the bearer token if there is no Token, the first time that a
	// call needs it; nil gives none. What it fails with, calls fail with.
	Source func(context.Context) (string, error)

	// Reattach is how long a build is looked for after its connection broke;
	// 0 means 60 s.
	Reattach time.Duration
	// CancelWait is how long a cancelled build's result is waited for; 0
	// means 5 s.
	CancelWait time.Duration
}

func (o *Options) timeout() time.Duration    { return orDefault(o.Timeout, 30*time.Second) }
func (o *Options) reattach() time.Duration   { return orDefault(o.Reattach, time.Minute) }
func (o *Options) cancelWait() time.Duration { return orDefault(o.CancelWait, 5*time.Second) }

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Client is a connection to one daemon. Its methods may be called
// concurrently; every error they return is an [Error].
type Client struct {
	opts   Options
	conn   *grpc.ClientConn
	builds slipwayv1.BuildServiceClient
	cache  slipwayv1.CacheServiceClient
	system slipwayv1.SystemServiceClient
	tokens slipwayv1.TokenServiceClient
	orgs   slipwayv1.OrgServiceClient
	envs   slipwayv1.EnvironmentServiceClient
	shells slipwayv1.ShellServiceClient
}

// New returns a client of the daemon that o names. It does not connect yet:
// the first call does, and fails when that does.
func New(o Options) (*Client, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("slipway/" + o.Version),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
		// A network that swallows packets is noticed in half a minute.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 15 * time.Second}),
	}
	switch {
	case o.Token != "":
		opts = append(opts, grpc.WithPerRPCCredentials(bearer{o.Token, o.Address.TLS}))
	case o.Source != nil:
		opts = append(opts, grpc.WithPerRPCCredentials(&sourced{get: o.Source, tls: o.Address.TLS}))
	}
	conn, err := grpc.NewClient("dns:///"+o.Address.HostPort(), opts...)
	if err != nil {
		return nil, UserError(fmt.Sprintf("address %s: %v", o.Address, err), "")
	}
	return &Client{
		opts:   o,
		conn:   conn,
		builds: slipwayv1.NewBuildServiceClient(conn),
		cache:  slipwayv1.NewCacheServiceClient(conn),
		system: slipwayv1.NewSystemServiceClient(conn),
		tokens: slipwayv1.NewTokenServiceClient(conn),
		orgs:   slipwayv1.NewOrgServiceClient(conn),
		envs:   slipwayv1.NewEnvironmentServiceClient(conn),
		shells: slipwayv1.NewShellServiceClient(conn),
	}, nil
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

// Address returns the daemon's address.
func (c *Client) Address() Address { return c.opts.Address }

func (o *Options) transport() (credentials.TransportCredentials, error) {
	if !o.Address.TLS {
		if o.CAFile != "" || o.SkipVerify {
			return nil, UserError("options for TLS with the plaintext address "+o.Address.String(), "Give --tls, or the address as https://"+o.Address.HostPort()+".")
		}
		if !o.Address.Loopback() && !o.Insecure {
			return nil, UserError(fmt.Sprintf("%s is another machine, and plaintext would show it your token and sources on the way", o.Address),
				"Use https://"+o.Address.HostPort()+", or give --insecure if the network is safe.")
		}
		return insecure.NewCredentials(), nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerify}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, UserError(fmt.Sprintf("CA file: %v", err), "")
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, UserError("CA file "+o.CAFile+" holds no PEM certificate", "")
		}
	}
	return credentials.NewTLS(cfg), nil
}

// bearer adds a token to every call. Where TLS is on it refuses to go without
// it; plaintext was decided about before it is made.
type bearer struct {
	token string
	tls   bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.tls }

// sourced is a bearer whose token is got when it is needed, once.
type sourced struct {
	get func(context.Context) (string, error)
	tls bool

	mu    sync.Mutex
	token string
}

func (s *sourced) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == "" {
		token, err := s.get(ctx)
		if err != nil {
			return nil, asStatus(AsError(err))
		}
		s.token = token
	}
	return bearer{s.token, s.tls}.GetRequestMetadata(ctx, uri...)
}

func (s *sourced) RequireTransportSecurity() bool { return s.tls }

// asStatus wraps an error so that it comes out of a call as it went in.
func asStatus(e *Error) error {
	st, err := status.New(codes.Unauthenticated, e.GetMessage()).WithDetails(e.Proto())
	if err != nil {
		return e
	}
	return st.Err()
}

// fail returns err as users see it. Before the connection stood, it says why
// it does not.
func (c *Client) fail(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := detail(err); ok {
		return e
	}
	st := status.Convert(err)
	if e := c.wrongPort(st.Message()); e != nil {
		return e
	}
	if st.Code() == codes.Unavailable {
		return c.unavailable(st.Message())
	}
	var x *Error
	if errors.As(err, &x) {
		return x
	}
	e := AsError(err)
	if e.Code == CodeTimeout {
		e.Message = fmt.Sprintf("%s did not answer within %s", c.opts.Address, c.opts.timeout())
	}
	return e
}

// wrongPort returns an error if gRPC's text is about a web server, nil else:
// who gives the daemon's HTTP address instead of its gRPC address gets there.
// Plaintext, it answers in HTTP/1; with TLS in HTTP/2, but not as gRPC does.
func (c *Client) wrongPort(text string) *Error {
	if !strings.Contains(text, "looked like an HTTP/1") && !strings.Contains(text, "unexpected HTTP status code received from server: 404") {
		return nil
	}
	e := NewError(CodeUnavailable, slipwayv1.Blame_BLAME_USER, c.opts.Address.HostPort()+" is a web server, like the daemon's HTTP port",
		"Give the daemon's gRPC port, usually "+defaultPort+".")
	e.Phase = "connect"
	return e
}

// unavailable explains gRPC's text about a connection that failed.
func (c *Client) unavailable(text string) *Error {
	cause, handshake := connectCause(text)
	addr := c.opts.Address
	if handshake {
		e := NewError(CodeTLS, slipwayv1.Blame_BLAME_NETWORK, fmt.Sprintf("TLS with %s: %s", addr.HostPort(), cause), tlsHint(cause))
		e.Phase = "connect"
		return e
	}
	e := NewError(CodeUnavailable, slipwayv1.Blame_BLAME_BUILDER, fmt.Sprintf("no daemon at %s (%s)", addr.HostPort(), cause),
		"Start one with slipwayd, or set SLIPWAY_ADDR.")
	e.Phase, e.Retryable = "connect", true
	if strings.Contains(cause, "server preface") {
		e.Message = fmt.Sprintf("%s does not answer as a daemon (%s)", addr.HostPort(), cause)
		e.Hint = "If it speaks TLS, give the address as https://" + addr.HostPort() + "."
	}
	return e
}

// connectCause takes what matters out of gRPC's
// `connection error: desc = "transport: …: CAUSE"`.
func connectCause(text string) (cause string, handshake bool) {
	if _, after, ok := strings.Cut(text, "desc = "); ok {
		if inner, err := strconv.Unquote(after); err == nil {
			text = inner
		}
	}
	text = strings.TrimPrefix(text, "transport: ")
	if after, ok := strings.CutPrefix(text, "authentication handshake failed: "); ok {
		return after, true
	}
	text = strings.TrimPrefix(text, "Error while dialing: ")
	for _, known := range []string{"connection refused", "no such host", "i/o timeout", "network is unreachable", "no route to host"} {
		if strings.Contains(text, known) {
			return known, false
		}
	}
	return text, false
}

func tlsHint(cause string) string {
	switch {
	case strings.Contains(cause, "has expired"):
		return "The daemon's certificate has to be renewed."
	case strings.Contains(cause, "first record does not look like"):
		return "The daemon speaks plaintext: leave https:// and --tls out."
	case strings.Contains(cause, "unknown authority"):
		return "Give the authority that signed it with --tls-ca."
	}
	return ""
}
