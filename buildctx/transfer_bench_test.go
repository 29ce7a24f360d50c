package buildctx_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// contextServer receives one context on each Build call.
type contextServer struct {
	slipwayv1.UnimplementedBuildServiceServer
}

func (contextServer) Build(stream slipwayv1.BuildService_BuildServer) error {
	m, err := buildctx.FromProto(func() (*slipwayv1.ManifestPart, error) {
		msg, err := stream.Recv()
		return msg.GetManifest(), err
	}, nil)
	if err != nil {
		return err
	}
	store := &memStore{discard: true}
	entries, err := buildctx.Needs(stream.Context(), m, nil, store)
	if err != nil {
		return err
	}
	want := &slipwayv1.Want{Id: 1, Entries: entries}
	if err := stream.Send(&slipwayv1.BuildResponse{Message: &slipwayv1.BuildResponse_Want{Want: want}}); err != nil {
		return err
	}
	r, err := buildctx.NewReceiver(m, want, store, nil)
	if err != nil {
		return err
	}
	return r.Receive(stream.Context(), func(context.Context) (*slipwayv1.ContentFrame, error) {
		msg, err := stream.Recv()
		return msg.GetContent(), err
	})
}

// BenchmarkTransfer moves a whole context over gRPC on loopback into a store
// that verifies and forgets it.
func BenchmarkTransfer(b *testing.B) {
	d := scan(b, benchTree(b), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	slipwayv1.RegisterBuildServiceServer(srv, contextServer{})
	go srv.Serve(l)
	b.Cleanup(srv.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	client := slipwayv1.NewBuildServiceClient(conn)
	for name, mode := range map[string]buildctx.Compress{
		"auto": buildctx.CompressAuto, "never": buildctx.CompressNever, "always": buildctx.CompressAlways,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var wire int64
			for b.Loop() {
				wire = sendContext(b, client, d, mode)
			}
			b.SetBytes(d.Bytes())
			b.ReportMetric(float64(wire)/float64(d.Bytes()), "wire/byte")
		})
	}
}

func sendContext(b *testing.B, client slipwayv1.BuildServiceClient, d *buildctx.Dir, mode buildctx.Compress) int64 {
	stream, err := client.Build(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	err = d.ToProto(func(p *slipwayv1.ManifestPart) error {
		return stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Manifest{Manifest: p}})
	})
	if err != nil {
		b.Fatal(err)
	}
	msg, err := stream.Recv()
	if err != nil {
		b.Fatal(err)
	}
	s := buildctx.NewSender(d.Manifest, d, &buildctx.SenderOptions{Compress: mode})
	err = s.Send(b.Context(), msg.GetWant(), func(f *slipwayv1.ContentFrame) error {
		return stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Content{Content: f}})
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		b.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		b.Fatal(err)
	}
	return s.Progress().Wire
}
