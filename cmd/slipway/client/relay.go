package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // callers may compress
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A Relay serves gRPC services by passing every call on to a daemon, with the
// client's token. Messages are not decoded, and it sets no limit to them;
// headers, trailers, statuses, deadlines and cancellations pass as they are.
type Relay struct {
	c        *Client
	services []string
	server   *grpc.Server
	sending  sync.WaitGroup
}

// relayBuffer is how much a connection's end reads or writes at a time.
const relayBuffer = 128 << 10

// NewRelay returns a relay of the services with these names. A call of any
// other ends with Unimplemented and does not get to the daemon. The client
// stays the caller's.
func NewRelay(c *Client, services ...string) *Relay {
	r := &Relay{c: c, services: services}
	r.server = grpc.NewServer(
		grpc.UnknownServiceHandler(r.call),
		grpc.ForceServerCodecV2(undecoded{}),
		grpc.MaxRecvMsgSize(math.MaxInt32),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.InitialWindowSize(4<<20),
		grpc.InitialConnWindowSize(8<<20),
		grpc.ReadBufferSize(relayBuffer),
		grpc.WriteBufferSize(relayBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	return r
}

// Serve answers the connections of l until Close. It closes l.
func (r *Relay) Serve(l net.Listener) error {
	if err := r.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Close ends all calls and waits for them.
func (r *Relay) Close() {
	r.server.Stop()
	r.sending.Wait()
}

func (r *Relay) call(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !slices.Contains(r.services, service) {
		return status.Error(codes.Unimplemented, fmt.Sprintf("slipway passes no calls of service %s on to the daemon", service))
	}
	// The caller's cancellation and deadline are those of the call to the daemon.
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	out, err := r.c.conn.NewStream(outgoing(ctx), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method,
		grpc.ForceCodecV2(undecoded{}), grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))
	if err != nil {
		return r.status(err)
	}
	// It ends with the call, which is after this function.
	r.sending.Go(func() { send(in, out, cancel) })
	err = receive(in, out)
	in.SetTrailer(out.Trailer())
	return r.status(err)
}

// outgoing passes on what a caller says about its call, but for what the
// relay's own connection says.
func outgoing(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	md = md.Copy()
	for _, own := range []string{":authority", "authorization", "content-type", "user-agent", "grpc-accept-encoding"} {
		delete(md, own)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// send passes on what the caller says. When the daemon no longer listens,
// receive learns why.
func send(in grpc.ServerStream, out grpc.ClientStream, cancel context.CancelFunc) {
	for {
		var m message
		switch err := in.RecvMsg(&m); {
		case errors.Is(err, io.EOF):
			_ = out.CloseSend()
			return
		case err != nil:
			cancel()
			return
		}
		if out.SendMsg(&m) != nil {
			return
		}
	}
}

// receive passes on what the daemon says, and returns how the call ended.
func receive(in grpc.ServerStream, out grpc.ClientStream) error {
	header, err := out.Header()
	if err == nil && header != nil {
		err = in.SendHeader(header)
	}
	for err == nil {
		var m message
		if err = out.RecvMsg(&m); err == nil {
			err = in.SendMsg(&m)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// status returns err as callers of the relay see it: what the daemon says as it
// is, and why there is no daemon as people want to read it.
func (r *Relay) status(err error) error {
	st := status.Convert(err)
	if len(st.Details()) > 0 || !strings.HasPrefix(st.Message(), "connection error: ") && r.c.wrongPort(st.Message()) == nil {
		return err
	}
	e := r.c.fail(err)
	return status.Error(st.Code(), strings.TrimSpace("slipway: "+e.GetMessage()+". "+e.GetHint()))
}

// A message is what travels, in the memory in which it came.
type message struct{ data mem.BufferSlice }

// undecoded is the codec of messages.
type undecoded struct{}

func (undecoded) Marshal(v any) (mem.BufferSlice, error) { return v.(*message).data, nil }

func (undecoded) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref()
	v.(*message).data = data
	return nil
}

// Name says that what travels is protobuf.
func (undecoded) Name() string { return "proto" }
