package buildkit

import (
	"context"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
)

type ocispecDescriptor = ocispec.Descriptor

func infoRequest(d string) *contentapi.InfoRequest { return &contentapi.InfoRequest{Digest: d} }

func deleteRequest(d string) *contentapi.DeleteContentRequest {
	return &contentapi.DeleteContentRequest{Digest: d}
}

func sessionStream(ctx context.Context, t *testing.T, c *client.Client, id string) controlapi.Control_SessionClient {
	t.Helper()
	s, err := c.ControlClient().Session(metadata.AppendToOutgoingContext(ctx, headerSessionID, id))
	fatal(t, err)
	return s
}

// openSession opens a session that answers nothing.
func openSession(t *testing.T, c *client.Client, id string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := sessionStream(ctx, t, c, id)
	if _, err := s.Recv(); err != nil { // the server's side of HTTP/2 begins
		t.Fatal(err)
	}
	return cancel
}

// endOf is how a session ends that is refused.
func endOf(t *testing.T, c *client.Client, id string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := sessionStream(ctx, t, c, id).Recv()
	return err
}

// dialer joins sessions as clients do.
func dialer(c *client.Client) session.Dialer { return grpchijack.Dialer(c.ControlClient()) }
