package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/unixsocket"
)

// buildkitServices are what BuildKit's clients call. Nothing else goes through
// the proxy: it would go with the user's token.
var buildkitServices = []string{
	"moby.buildkit.v1.Control",
	"moby.buildkit.v1.frontend.LLBBridge",
	"containerd.services.content.v1.Content",
	"opentelemetry.proto.collector.trace.v1.TraceService",
}

func (p *program) buildkitProxy() *cobra.Command {
	listen := ""
	cmd := &cobra.Command{
		Use:   "buildkit-proxy [-- COMMAND [ARG...]]",
		Short: "Let buildctl, docker buildx and flyctl build on the daemon, with your token",
		Long: "Serves BuildKit's API on this machine and passes it on to the daemon, with your token, until it is\n" +
			"interrupted; or while COMMAND runs, which finds it by BUILDKIT_HOST.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return fmt.Errorf("%s takes a command after --, and no other arguments", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return p.proxy(cmd.Context(), listen, args) },
	}
	cmd.Flags().StringVar(&listen, "listen", "", "`ADDRESS` for the clients, unix:///PATH or tcp://127.0.0.1:PORT (default a socket of your own)")
	return cmd
}

// proxy serves until ctx ends or the command does, if there is one.
func (p *program) proxy(ctx context.Context, listen string, command []string) error {
	c, conn, err := p.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	who, err := c.WhoAmI(ctx)
	if err != nil {
		return conn.explain(err)
	}
	if listen == "" {
		var done func()
		if listen, done, err = p.proxyAddress(len(command) > 0); err != nil {
			return err
		}
		defer done()
	}
	l, err := listenLocal(ctx, listen)
	if err != nil {
		return client.UserError(fmt.Sprintf("--listen: %v", err), "")
	}
	relay := client.NewRelay(c, buildkitServices...)
	var serving sync.WaitGroup
	failed := make(chan error, 1)
	serving.Go(func() { failed <- relay.Serve(l) })
	defer func() { relay.Close(); serving.Wait() }()

	address := l.Addr().Network() + "://" + l.Addr().String()
	if l.Addr().Network() == "tcp" {
		fmt.Fprintf(p.stderr, "! every user of this machine can build with your token by %s; a unix:// address is yours alone\n", address)
	}
	if len(command) > 0 {
		return p.runWith(ctx, address, command)
	}
	served := &proxied{BuildkitHost: address, Address: conn.Address.String()}
	if err := p.print(served, func(w io.Writer) { served.write(w, newIdentity(who, conn).title()) }); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// proxied says where BuildKit's clients are served, as JSON has it.
type proxied struct {
	BuildkitHost string `json:"buildkit_host"`
	Address      string `json:"addr"`
}

func (s *proxied) write(w io.Writer, who string) {
	fmt.Fprintf(w, "BuildKit's clients build on %s as %s, until this is interrupted:\n\n", s.Address, who)
	for _, line := range []string{
		"export BUILDKIT_HOST=" + s.BuildkitHost,
		"buildctl --addr " + s.BuildkitHost + " build …",
		"docker buildx create --name slipway --driver remote " + s.BuildkitHost,
		"docker buildx build --builder slipway …",
		"flyctl deploy --buildkit-addr " + s.BuildkitHost,
	} {
		fmt.Fprintln(w, "    "+line)
	}
}

// proxyAddress returns where to listen if the user does not say: at a socket of
// the user's, or, for one command, of the command's. done removes what was made
// for it.
func (p *program) proxyAddress(private bool) (address string, done func(), err error) {
	if runtime.GOOS == "windows" { // its clients have no Unix sockets
		return "tcp://127.0.0.1:0", func() {}, nil
	}
	if private {
		dir, err := os.MkdirTemp("", "slipway-") // mode 0700
		if err != nil {
			return "", nil, err
		}
		return "unix://" + filepath.Join(dir, "buildkit.sock"), func() { os.RemoveAll(dir) }, nil
	}
	dir := p.getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		if dir, err = os.UserCacheDir(); err != nil {
			return "", nil, client.UserError(fmt.Sprintf("no place for a socket: %v", err), "Give --listen unix:///PATH.")
		}
	}
	dir = filepath.Join(dir, "slipway")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	return "unix://" + filepath.Join(dir, "buildkit.sock"), func() {}, nil
}

// listenLocal listens where only this machine gets to, and on a socket only
// this user.
func listenLocal(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		return unixsocket.Listen(ctx, path, 0o600)
	}
	hostPort, ok := strings.CutPrefix(address, "tcp://")
	host, _, err := net.SplitHostPort(hostPort)
	if !ok || err != nil {
		return nil, fmt.Errorf("%q is no address: want unix:///PATH or tcp://127.0.0.1:PORT", address)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s would let everybody who reaches it build with your token: want tcp://127.0.0.1:PORT or unix:///PATH", address)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", hostPort)
	if err != nil {
		return nil, err
	}
	if at, ok := l.Addr().(*net.TCPAddr); !ok || !at.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%s is %s here, which others reach: want tcp://127.0.0.1:PORT", address, l.Addr()), l.Close())
	}
	return l, nil
}

// runWith runs a command that finds BuildKit at the address. It ends with the
// command's exit code. When ctx ends the command is asked to.
func (p *program) runWith(ctx context.Context, address string, command []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.stdin, p.stdout, p.stderr
	cmd.Env = append(cmd.Environ(), "BUILDKIT_HOST="+address)
	cmd.Cancel = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err == nil || errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return cmd.Process.Kill() // no such signal here
	}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return client.UserError(fmt.Sprintf("run %s: %v", command[0], err), "")
	}
	if code := exitCode(cmd.ProcessState); code != 0 {
		return &shownError{code}
	}
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("run %s: %w", command[0], err)
}

// exitCode is a command's exit code as shells have it.
func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}
