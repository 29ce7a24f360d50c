package server_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// TestInsideIsPlain: where others need TLS, a connection that does not leave
// the process has none, and lets nobody in by itself.
func TestInsideIsPlain(t *testing.T) {
	d := start(t, &script{}, 0)
	l := bufconn.Listen(1 << 16)
	d.listen(l, &tls.Config{})
	conn, err := grpc.NewClient("passthrough:///inside", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	system := slipwayv1.NewSystemServiceClient(conn)
	who, err := system.WhoAmI(as(t, "acme"), &slipwayv1.WhoAmIRequest{})
	if err != nil || who.Org != "acme" {
		t.Errorf("WhoAmI: %v, %v", who, err)
	}
	if _, err := system.WhoAmI(t.Context(), &slipwayv1.WhoAmIRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("WhoAmI without a token: %v", err)
	}
}
