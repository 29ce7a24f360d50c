package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	buildkitexec "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/grpcerrors"
	buildkit "github.com/moby/buildkit/worker"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipwayhq/slipway/builder/failure"
)

// A brief is what the other process is told of a build. It has its standard
// input to itself.
type brief struct {
	Options map[string]string
	Session string
	Product string
	Workers []client.WorkerInfo // as the frontends know them
}

// solveApart has a process without a network read the Dockerfile. It is a
// frontend as those in containers are: it asks the bridge for all else.
func (d *dockerfiles) solveApart(ctx context.Context, b frontend.FrontendLLBBridge, runs buildkitexec.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if len(d.apart) == 0 {
		return nil, failure.Userf(failure.NotSupported, "begin the sources of ADD with https://, or use COPY", "this daemon cannot read a Dockerfile with an ADD that may name an SSH server")
	}
	told, err := json.Marshal(brief{Options: opt, Session: sid, Product: apicaps.ExportedProduct, Workers: infos(d.workers)})
	if err != nil {
		return nil, err
	}
	here, there, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer there.Close()
	lbf := gateway.NewBridgeForwarder(ctx, b, runs, d.workers, inputs, sid, sm)
	defer lbf.Discard()
	stop := serveBridge(lbf, here)
	defer stop()
	if err := d.run(ctx, bytes.NewReader(told), there); err != nil {
		return nil, err
	}
	return lbf.Result()
}

func infos(w buildkit.Infos) []client.WorkerInfo {
	var out []client.WorkerInfo
	for _, i := range w.WorkerInfos() {
		out = append(out, client.WorkerInfo{ID: i.ID, Labels: i.Labels, Platforms: i.Platforms})
	}
	return out
}

// run runs the other process to its end. A result or an error that it has found
// it has returned by then.
func (d *dockerfiles) run(ctx context.Context, told io.Reader, bridge *os.File) error {
	// The thread must not end before the process, which ends with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, d.apart[0], d.apart[1:]...)
	complaint := &lastWords{left: 4 << 10}
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles, cmd.Env = told, complaint, []*os.File{bridge}, []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("read the Dockerfile: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// lastWords keeps the beginning of what a process that fails has to say.
type lastWords struct {
	bytes.Buffer
	left int
}

// Write implements io.Writer.
func (w *lastWords) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.left -= n
	w.Buffer.Write(p[:n])
	return len(p), nil
}

// socketPair returns two ends of a connection, of which the other process gets
// one.
func socketPair() (here net.Conn, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, there := os.NewFile(uintptr(fds[0]), "bridge"), os.NewFile(uintptr(fds[1]), "bridge")
	defer ours.Close()
	if here, err = net.FileConn(ours); err != nil {
		return nil, nil, errors.Join(err, there.Close())
	}
	return here, there, nil
}

// serveBridge answers the frontend at the other end of a connection until stop
// is called.
func serveBridge(lbf gateway.LLBBridgeForwarder, conn net.Conn) (stop func()) {
	s := grpc.NewServer(
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	gatewaypb.RegisterLLBBridgeServer(s, lbf)
	var serving sync.WaitGroup
	l := &single{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: conn.LocalAddr()}
	l.conns <- conn
	serving.Go(func() { _ = s.Serve(l) })
	return func() { s.Stop(); conn.Close(); serving.Wait() }
}

// single is a listener with one connection.
type single struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

// Accept implements net.Listener.
func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *single) Addr() net.Addr { return l.addr }

// ReadApart is all that the process of [Options].Apart does: it reads a
// Dockerfile for the daemon that has started it. The error is for its standard
// error; what is wrong with the Dockerfile the daemon knows.
func ReadApart(ctx context.Context) error {
	var b brief
	if err := json.NewDecoder(os.Stdin).Decode(&b); err != nil {
		return err
	}
	f := os.NewFile(3, "bridge")
	bridge, err := net.FileConn(f)
	if err != nil {
		return err
	}
	f.Close()
	once := make(chan net.Conn, 1)
	once <- bridge
	conn, err := grpc.NewClient("passthrough:///bridge", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, io.EOF
			}
		}),
		grpc.WithUnaryInterceptor(grpcerrors.UnaryClientInterceptor), grpc.WithStreamInterceptor(grpcerrors.StreamClientInterceptor),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return err
	}
	defer conn.Close()
	apicaps.ExportedProduct = b.Product
	c, err := grpcclient.New(ctx, b.Options, b.Session, b.Product, gatewaypb.NewLLBBridgeClient(conn), b.Workers)
	if err != nil {
		return err
	}
	return c.Run(ctx, dockerfile.Build)
}
