package buildkit

import (
	"context"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder"
)

// attachables answer what BuildKit asks a deploy's client, through the deploy's
// own session.
func attachables(ctx context.Context, s builder.Session) []session.Attachable {
	return []session.Attachable{
		secretsprovider.NewSecretProvider(secretStore{s}),
		&credentials{session: s},
		&agents{ctx: ctx, session: s},
	}
}

// A secretStore asks the client for build secrets.
type secretStore struct{ session builder.Session }

// GetSecret implements BuildKit's store of secrets.
func (s secretStore) GetSecret(ctx context.Context, id string) ([]byte, error) {
	value, ok, err := s.session.Secret(ctx, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, secrets.ErrNotFound
	}
	return value, nil
}

// credentials asks the client how to log in to registries.
type credentials struct {
	auth.UnimplementedAuthServer
	session builder.Session
}

// Register implements session.Attachable.
func (c *credentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

// Credentials implements BuildKit's auth service.
func (c *credentials) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	got, err := c.session.Credentials(ctx, registryHost(req.Host))
	if err != nil {
		return nil, err
	}
	if got.IdentityToken != "" {
		return &auth.CredentialsResponse{Secret: got.IdentityToken}, nil
	}
	return &auth.CredentialsResponse{Username: got.Username, Secret: got.Password}, nil
}

// registryHost is how credentials name a host.
func registryHost(host string) string {
	if host == "registry-1.docker.io" {
		return "index.docker.io"
	}
	return host
}

// agents forwards the client's SSH agents.
type agents struct {
	sshforward.UnimplementedSSHServer
	ctx     context.Context // of the build
	session builder.Session
}

// Register implements session.Attachable.
func (a *agents) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, a) }

// CheckAgent implements BuildKit's SSH service.
func (a *agents) CheckAgent(ctx context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	conn, err := a.session.Agent(ctx, agentID(req.ID))
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &sshforward.CheckAgentResponse{}, conn.Close()
}

// ForwardAgent implements BuildKit's SSH service.
func (a *agents) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	id := ""
	if md, ok := metadata.FromIncomingContext(stream.Context()); ok && len(md[sshforward.KeySSHID]) > 0 {
		id = md[sshforward.KeySSHID][0]
	}
	conn, err := a.session.Agent(stream.Context(), agentID(id))
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	defer conn.Close()
	return sshforward.Copy(a.ctx, conn, stream, nil)
}

func agentID(id string) string {
	if id == "" {
		return sshforward.DefaultID
	}
	return id
}
