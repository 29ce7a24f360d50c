package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/agent"
	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// mcpServer is one run of the command mcp.
type mcpServer struct {
	p    *program
	root string
	any  bool

	listen      string
	allowRemote bool
	certFile    string
	keyFile     string
	maxExpiry   time.Duration
}

func (p *program) mcp() *cobra.Command {
	s := &mcpServer{p: p}
	cmd := &cobra.Command{
		Use: "mcp", Short: "Serve a coding agent: build, read logs and errors, make tokens, by MCP", Args: exactly(),
		Long: `Mcp speaks the Model Context Protocol on standard input and output, with the
token that other commands use. The agent gets tools for what the token may do.
It builds directories below the one where this is started, or --root.

With --http it serves the protocol over HTTP instead, and every request brings
a token of its own: Authorization: Bearer TOKEN.`,
		Example: `  claude mcp add slipway -- slipway mcp
  slipway mcp --http 127.0.0.1:7080`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(cmd.Flags().Changed("root")); err != nil {
				return err
			}
			if s.listen != "" {
				return s.serveHTTP(cmd.Context())
			}
			return s.serveStdio(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.root, "root", ".", "let the agent build `DIR` and what is below it")
	f.BoolVar(&s.any, "any-dir", false, "let the agent build any directory that you can read")
	f.StringVar(&s.listen, "http", "", "serve HTTP at `HOST:PORT` instead of standard input and output")
	f.BoolVar(&s.allowRemote, "allow-remote", false, "with --http, serve other machines; needs --tls-cert and --tls-key, and builds only with --root or --any-dir")
	f.StringVar(&s.certFile, "tls-cert", "", "with --http, certificate in `FILE`")
	f.StringVar(&s.keyFile, "tls-key", "", "with --http, its key in `FILE`")
	f.DurationVar(&s.maxExpiry, "max-token-expiry", 24*time.Hour, "how long tokens live that the agent makes, at most")
	return cmd
}

// check reads the flags.
func (s *mcpServer) check(rootGiven bool) error {
	root, err := filepath.Abs(s.root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return client.UserError(fmt.Sprintf("--root: %v", err), "")
	}
	s.root = root
	switch {
	case s.maxExpiry <= 0:
		return client.UserError("--max-token-expiry: tokens cannot expire before they are made", "Give a duration such as 24h.")
	case (s.certFile == "") != (s.keyFile == ""):
		return client.UserError("--tls-cert and --tls-key belong together", "")
	case s.listen == "" && (s.allowRemote || s.certFile != ""):
		return client.UserError("--allow-remote, --tls-cert and --tls-key go with --http", "")
	case s.allowRemote && s.certFile == "":
		return client.UserError("--allow-remote: tokens would travel in plaintext", "Give --tls-cert and --tls-key.")
	case s.listen == "":
		return nil
	}
	host, _, err := net.SplitHostPort(s.listen)
	if err != nil {
		return client.UserError(fmt.Sprintf("--http: %v", err), "Write it like 127.0.0.1:7080.")
	}
	if !isLoopback(host) && !s.allowRemote {
		return client.UserError(fmt.Sprintf("--http %s serves other machines", s.listen), "Use 127.0.0.1, or give --allow-remote with --tls-cert and --tls-key.")
	}
	if s.allowRemote && !rootGiven && !s.any {
		s.root = "" // nobody said what strangers may read here
	}
	return nil
}

// isLoopback reports whether only this machine gets to a host's name.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (s *mcpServer) options(c *client.Client, p *program, keys authn.Keychain) agent.Options {
	o := agent.Options{Client: c, Version: s.p.version, MaxExpiry: s.maxExpiry}
	if s.root != "" {
		o.Build = func(ctx context.Context, r agent.BuildRequest, show progress.Display) (*slipwayv1.Result, error) {
			return s.build(ctx, p, keys, r, show)
		}
	}
	return o
}

func (s *mcpServer) serveStdio(ctx context.Context) error {
	c, conn, err := s.p.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	server, err := agent.New(ctx, s.options(c, s.p, nil))
	if err != nil {
		return conn.explain(err)
	}
	in, ok := s.p.stdin.(io.ReadCloser)
	if !ok {
		in = io.NopCloser(s.p.stdin)
	}
	err = server.Run(ctx, &mcp.IOTransport{Reader: in, Writer: unclosed{s.p.stdout}})
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil // the agent has left
	}
	return err
}

// unclosed is a writer that stays open.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// build is start_build.
func (s *mcpServer) build(ctx context.Context, p *program, keys authn.Keychain, r agent.BuildRequest, show progress.Display) (*slipwayv1.Result, error) {
	dir, file, err := s.locate(r.Dir, r.Dockerfile)
	if err != nil {
		return nil, err
	}
	flags := &deployFlags{app: r.App, dockerfile: file, target: r.Target, noCache: r.NoCache, environment: r.Environment, buildOnly: r.BuildOnly, detach: !r.Wait, warnSize: "100MB"}
	for name, value := range r.BuildArgs {
		flags.buildArgs = append(flags.buildArgs, name+"="+value)
	}
	d := &deployment{p: p, flags: flags, dir: dir, keys: keys, show: show, build: &buildLog{show: show, reattach: time.Minute}}
	return d.deploy(ctx)
}

// locate returns the directory and the Dockerfile to build. Neither may lie
// outside of the root, by whatever links: what they hold gets to be read.
func (s *mcpServer) locate(dir, dockerfile string) (string, string, error) {
	dir, err := s.inside(s.root, dir)
	if err != nil {
		return "", "", err
	}
	if dockerfile != "" {
		dockerfile, err = s.inside(dir, dockerfile)
		return dir, dockerfile, err
	}
	for _, name := range []string{"Dockerfile", "dockerfile"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			dockerfile, err = s.inside(dir, name)
			return dir, dockerfile, err
		}
	}
	return dir, "", nil
}

// inside resolves a path and checks that it is within the root.
func (s *mcpServer) inside(from, path string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(from, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", client.UserError(err.Error(), "")
	}
	if rel, err := filepath.Rel(s.root, real); !s.any && (err != nil || !filepath.IsLocal(rel)) {
		return "", client.NewError(client.CodePermissionDenied, slipwayv1.Blame_BLAME_USER, fmt.Sprintf("%s is outside of %s, which is all that this server builds", path, s.root),
			"Ask the user to start slipway mcp with --root or --any-dir.")
	}
	return real, nil
}

func (s *mcpServer) serveHTTP(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return client.UserError(fmt.Sprintf("--http: %v", err), "")
	}
	h := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	scheme := "http"
	if s.certFile != "" {
		cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
		if err != nil {
			l.Close()
			return client.UserError(fmt.Sprintf("--tls-cert: %v", err), "")
		}
		h.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		l, scheme = tls.NewListener(l, h.TLSConfig), "https"
	}
	fmt.Fprintf(s.p.stderr, "serving MCP at %s://%s\n", scheme, l.Addr())
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	err = h.Close() // ends the calls: builds that wait here are cancelled
	<-served
	return err
}

// handler serves requests, each with its own token.
func (s *mcpServer) handler() http.Handler {
	protocol := mcp.NewStreamableHTTPHandler(func(r *http.Request) *mcp.Server {
		server, _ := r.Context().Value(serverKey{}).(*mcp.Server)
		return server
	}, &mcp.StreamableHTTPOptions{Stateless: true, PropagateRequestCancellation: true})
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if token = strings.TrimSpace(token); !ok || token == "" {
			unauthorized(w, "give a token: Authorization: Bearer TOKEN")
			return
		}
		c, p, err := s.callAs(token)
		if err != nil {
			http.Error(w, "the daemon's address cannot be used", http.StatusInternalServerError)
			return
		}
		defer c.Close()
		server, err := agent.New(r.Context(), s.options(c, p, authn.NewMultiKeychain()))
		if err != nil {
			refuseCall(w, client.AsError(err))
			return
		}
		protocol.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), serverKey{}, server)))
	})
	return s.sameMachine(http.NewCrossOriginProtection().Handler(own))
}

type serverKey struct{}

func unauthorized(w http.ResponseWriter, text string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="slipway"`)
	http.Error(w, text, http.StatusUnauthorized)
}

// refuseCall answers a request with whose token nothing can be done.
func refuseCall(w http.ResponseWriter, e *client.Error) {
	if e.GetCode() == client.CodeUnauthorized {
		unauthorized(w, e.GetMessage())
		return
	}
	http.Error(w, e.GetMessage(), http.StatusBadGateway)
}

// sameMachine refuses requests by names that a page in a browser of this
// machine could have brought here. With --allow-remote the certificate does.
func (s *mcpServer) sameMachine(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !s.allowRemote && !isLoopback(strings.Trim(host, "[]")) {
			http.Error(w, "this server is for its own machine; call it 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// callAs returns a client with a caller's token, and a program that has no
// other.
func (s *mcpServer) callAs(token string) (*client.Client, *program, error) {
	p := &program{environment: s.p.environment, flags: s.p.flags, caller: "the request"}
	p.flags.token = token
	c, _, err := p.connect()
	return c, p, err
}
