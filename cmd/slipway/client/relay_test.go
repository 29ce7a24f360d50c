package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

const relayed = "moby.buildkit.v1.Control"

// both ways, as in most methods that carry bytes.
var bidi = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}

// serve runs a gRPC server that has every method, until the test ends or stop
// is called.
func serve(t testing.TB, l net.Listener, handler grpc.StreamHandler) (stop func()) {
	t.Helper()
	s := grpc.NewServer(grpc.UnknownServiceHandler(handler), grpc.MaxRecvMsgSize(32<<20), grpc.MaxSendMsgSize(32<<20),
		grpc.InitialWindowSize(4<<20), grpc.InitialConnWindowSize(8<<20), grpc.WaitForHandlers(true))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	stop = sync.OnceFunc(func() { s.Stop(); serving.Wait() })
	t.Cleanup(stop)
	return stop
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// relay passes calls on to the address and returns a client's connection to it.
func relay(t testing.TB, address string) *grpc.ClientConn {
	t.Helper()
	a, err := client.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Options{Address: a, Token: "good"})
	if err != nil {
		t.Fatal(err)
	}
	r := client.NewRelay(c, "moby.buildkit.v1.frontend.LLBBridge", relayed)
	l := listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := r.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { r.Close(); serving.Wait(); c.Close() })
	return dial(t, "unix://"+l.Addr().String())
}

func dial(t testing.TB, target string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20), grpc.MaxCallSendMsgSize(32<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// echo sends back what it receives.
func echo(_ any, s grpc.ServerStream) error {
	for {
		var m wrapperspb.BytesValue
		if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&m); err != nil {
			return err
		}
	}
}

// relayTo is a relay to a server with that handler.
func relayTo(t testing.TB, handler grpc.StreamHandler) *grpc.ClientConn {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, l, handler)
	return relay(t, l.Addr().String())
}

func TestRelayPassesEverythingOn(t *testing.T) {
	var got metadata.MD
	var method string
	cc := relayTo(t, func(srv any, s grpc.ServerStream) error {
		got, _ = metadata.FromIncomingContext(s.Context())
		method, _ = grpc.MethodFromServerStream(s)
		if err := s.SetHeader(metadata.Pairs("h", "1", "h", "2", "h-bin", "\x00\xff")); err != nil {
			return err
		}
		s.SetTrailer(metadata.Pairs("t", "3", "t-bin", "\x01\xfe"))
		return echo(srv, s)
	})
	sent := metadata.Pairs("build", "7", "build", "8", "build-bin", "\x00\x80", "authorization", "Bearer of the caller", "grpc-trace-bin", "\x00trace")
	var header, trailer metadata.MD
	for name, size := range map[string]int{"nothing": 0, "little": 5, "containerd's most": 16<<20 - 16} {
		want := wrapperspb.Bytes(bytes.Repeat([]byte{7}, size))
		var have wrapperspb.BytesValue
		err := cc.Invoke(metadata.NewOutgoingContext(t.Context(), sent), "/"+relayed+"/Solve", want, &have, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil || !bytes.Equal(want.Value, have.Value) {
			t.Errorf("%s: %d bytes came back, %v; want %d", name, len(have.Value), err, size)
		}
	}
	if method != "/"+relayed+"/Solve" {
		t.Errorf("the daemon was asked for %s", method)
	}
	for key, want := range map[string]string{
		"build": "[7 8]", "build-bin": "[\x00\x80]", "authorization": "[Bearer good]", "grpc-trace-bin": "[\x00trace]", "content-type": "[application/grpc+proto]",
	} {
		if s := fmt.Sprint(got.Get(key)); s != want {
			t.Errorf("the daemon got %s %q, want %q", key, s, want)
		}
	}
	for key, want := range map[string]string{"h": "[1 2]", "h-bin": "[\x00\xff]"} {
		if s := fmt.Sprint(header.Get(key)); s != want {
			t.Errorf("header %s is %q, want %q", key, s, want)
		}
	}
	for key, want := range map[string]string{"t": "[3]", "t-bin": "[\x01\xfe]"} {
		if s := fmt.Sprint(trailer.Get(key)); s != want {
			t.Errorf("trailer %s is %q, want %q", key, s, want)
		}
	}
	var have wrapperspb.BytesValue
	if err := cc.Invoke(t.Context(), "/"+relayed+"/Solve", wrapperspb.Bytes(make([]byte, 5000)), &have, grpc.UseCompressor(gzip.Name)); err != nil || len(have.Value) != 5000 {
		t.Errorf("compressed: %d bytes, %v", len(have.Value), err)
	}
}

// What a stream says comes in order, at once, and to its end in either
// direction.
func TestRelayStreams(t *testing.T) {
	cc := relayTo(t, func(srv any, s grpc.ServerStream) error {
		if err := s.SendHeader(metadata.Pairs("ready", "yes")); err != nil {
			return err
		}
		if err := echo(srv, s); err != nil {
			return err
		}
		return s.SendMsg(wrapperspb.Bytes([]byte("bye"))) // when the client has said all
	})
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() {
			s, err := cc.NewStream(t.Context(), bidi, "/"+relayed+"/Session")
			if err != nil {
				t.Error(err)
				return
			}
			if h, err := s.Header(); err != nil || fmt.Sprint(h.Get("ready")) != "[yes]" {
				t.Errorf("header before any message: %v, %v", h, err)
			}
			for i := range 200 {
				want := bytes.Repeat([]byte{byte(i)}, i*i)
				var m wrapperspb.BytesValue
				if err := errors.Join(s.SendMsg(wrapperspb.Bytes(want)), s.RecvMsg(&m)); err != nil || !bytes.Equal(m.Value, want) {
					t.Errorf("message %d: %d bytes, %v", i, len(m.Value), err)
					return
				}
			}
			var m wrapperspb.BytesValue
			if err := errors.Join(s.CloseSend(), s.RecvMsg(&m)); err != nil || string(m.Value) != "bye" {
				t.Errorf("after the client's last: %q, %v", m.Value, err)
			}
			if err := s.RecvMsg(&m); !errors.Is(err, io.EOF) {
				t.Errorf("the end: %v", err)
			}
		})
	}
	streams.Wait()
}

func TestRelayStatus(t *testing.T) {
	want, err := status.New(codes.FailedPrecondition, "no such frontend").WithDetails(durationpb.New(42))
	if err != nil {
		t.Fatal(err)
	}
	for _, messages := range []int{0, 1} { // an error alone has no header
		cc := relayTo(t, func(_ any, s grpc.ServerStream) error {
			for range messages {
				if err := s.SendMsg(wrapperspb.Bytes([]byte("first"))); err != nil {
					return err
				}
			}
			s.SetTrailer(metadata.Pairs("t", "3"))
			return want.Err()
		})
		s, err := cc.NewStream(t.Context(), bidi, "/"+relayed+"/Status")
		if err != nil {
			t.Fatal(err)
		}
		var m wrapperspb.BytesValue
		for range messages {
			if err := s.RecvMsg(&m); err != nil {
				t.Error(err)
			}
		}
		err = s.RecvMsg(&m)
		got := status.Convert(err)
		if got.Code() != want.Code() || got.Message() != want.Message() || fmt.Sprint(got.Details()) != fmt.Sprint(want.Details()) || fmt.Sprint(s.Trailer().Get("t")) != "[3]" {
			t.Errorf("after %d messages: %v, details %v, trailer %v", messages, err, got.Details(), s.Trailer())
		}
	}
}

func TestRelayOfOtherServices(t *testing.T) {
	cc := relayTo(t, func(any, grpc.ServerStream) error {
		t.Error("the call got to the daemon")
		return nil
	})
	for _, method := range []string{"/slipway.v1.SystemService/WhoAmI", "/grpc.health.v1.Health/Check", "/moby.buildkit.v1.ControlX/Solve", "/moby.buildkit.v1/Control"} {
		err := cc.Invoke(t.Context(), method, wrapperspb.Bytes(nil), &wrapperspb.BytesValue{})
		if status.Code(err) != codes.Unimplemented || strings.Contains(err.Error(), "good") {
			t.Errorf("%s: %v, want Unimplemented", method, err)
		}
	}
}

func TestRelayPassesCancellationOn(t *testing.T) {
	t.Parallel()
	type end struct {
		err      error
		deadline bool
	}
	ends := make(chan end, 1)
	cc := relayTo(t, func(_ any, s grpc.ServerStream) error {
		if err := s.SendMsg(wrapperspb.Bytes(nil)); err != nil {
			return err
		}
		_, deadline := s.Context().Deadline()
		<-s.Context().Done()
		ends <- end{s.Context().Err(), deadline}
		return s.Context().Err()
	})
	for _, tc := range []struct {
		name     string
		ctx      func() (context.Context, context.CancelFunc)
		deadline bool
	}{
		{"cancel", func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }, false},
		{"deadline", func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), time.Second) }, true},
	} {
		ctx, cancel := tc.ctx()
		s, err := cc.NewStream(ctx, bidi, "/"+relayed+"/Session")
		if err != nil {
			t.Fatal(err)
		}
		var m wrapperspb.BytesValue
		if err := s.RecvMsg(&m); err != nil {
			t.Fatal(err)
		}
		if !tc.deadline {
			cancel()
		}
		if e := <-ends; e.err == nil || e.deadline != tc.deadline {
			t.Errorf("%s: the daemon's call ended with %+v", tc.name, e)
		}
		cancel()
	}
}

// A daemon that does not read is not read for.
func TestRelayHoldsBack(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	cc := relayTo(t, func(_ any, s grpc.ServerStream) error {
		<-s.Context().Done()
		return nil
	})
	s, err := cc.NewStream(ctx, bidi, "/"+relayed+"/Session")
	if err != nil {
		t.Fatal(err)
	}
	m := wrapperspb.Bytes(make([]byte, 1<<20))
	sent := 0
	for ; s.SendMsg(m) == nil; sent++ {
		if sent > 64 {
			t.Fatalf("%d MiB went into the relay, and none came out", sent)
		}
	}
	if sent == 0 {
		t.Error("nothing was sent")
	}
}

func TestRelayWithoutDaemon(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	address := l.Addr().String()
	l.Close()
	cc := relay(t, address)
	call := func() error {
		return cc.Invoke(t.Context(), "/"+relayed+"/Info", wrapperspb.Bytes(nil), &wrapperspb.BytesValue{})
	}
	if err := call(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "slipway: no daemon at "+address+" (connection refused). Start one") {
		t.Errorf("without a daemon: %v", err)
	}
	// It comes, dies in the middle of a call, and comes again.
	calls := make(chan struct{}, 1)
	stop := serve(t, listen(t, "tcp", address), func(_ any, s grpc.ServerStream) error {
		calls <- struct{}{}
		<-s.Context().Done()
		return s.Context().Err()
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ended := make(chan error, 1)
	go func() { ended <- call() }()
	for waiting := true; waiting; {
		select {
		case <-calls:
			waiting = false
		case err := <-ended: // the relay does not dial again at once
			if status.Code(err) != codes.Unavailable {
				t.Fatalf("with a daemon again: %v", err)
			}
			<-tick.C
			go func() { ended <- call() }()
		}
	}
	stop()
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("the daemon died: %v, want Unavailable", err)
	}
	serve(t, listen(t, "tcp", address), echo)
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		err := call()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon is back: %v", err)
		}
	}
}

// BenchmarkRelay is what an upload makes of a relay, beside what it makes
// without one.
func BenchmarkRelay(b *testing.B) {
	sink := func(_ any, s grpc.ServerStream) error {
		for {
			var m wrapperspb.BytesValue
			if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
				return s.SendMsg(wrapperspb.Bytes(nil))
			} else if err != nil {
				return err
			}
		}
	}
	for _, size := range []int{16 << 10, 32 << 10, 256 << 10, 1 << 20} {
		for _, through := range []string{"nothing", "relay"} {
			b.Run(fmt.Sprintf("%dKiB/through=%s", size>>10, through), func(b *testing.B) {
				l := listen(b, "tcp", "127.0.0.1:0")
				serve(b, l, sink)
				cc := dial(b, l.Addr().String())
				if through == "relay" {
					cc = relay(b, l.Addr().String())
				}
				s, err := cc.NewStream(b.Context(), bidi, "/"+relayed+"/Session")
				if err != nil {
					b.Fatal(err)
				}
				m := wrapperspb.Bytes(make([]byte, size))
				b.SetBytes(int64(size))
				for b.Loop() {
					if err := s.SendMsg(m); err != nil {
						b.Fatal(err)
					}
				}
				var end wrapperspb.BytesValue
				if err := errors.Join(s.CloseSend(), s.RecvMsg(&end)); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
