package buildkit

import (
	"context"
	"errors"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A clientSession is the line to a client of BuildKit's API. BuildKit asks the
// client itself for all that it needs to build; the push needs credentials.
type clientSession struct {
	solve *solve
	emit  func(*slipwayv1.Event)
}

var _ builder.Session = (*clientSession)(nil)

// Credentials implements [builder.Session].
func (c *clientSession) Credentials(ctx context.Context, host string) (authn.AuthConfig, error) {
	s := c.solve
	_, user, secret, err := auth.CredentialsFunc(ctx, s.tenant.sessions, session.NewGroup(s.req.Session))(hubHost(host))
	switch {
	case err != nil:
		return authn.AuthConfig{}, err
	case user == "" && secret != "":
		return authn.AuthConfig{IdentityToken: secret}, nil
	}
	return authn.AuthConfig{Username: user, Password: secret}, nil
}

// hubHost is how BuildKit's clients name a host.
func hubHost(host string) string {
	if host == "index.docker.io" || host == "docker.io" {
		return "registry-1.docker.io"
	}
	return host
}

// Context implements [builder.Session]: what travelled is not known.
func (*clientSession) Context() *slipwayv1.ContextProgress { return nil }

// Emit implements [builder.Session]. What BuildKit's clients see is BuildKit's
// progress; the log is the daemon's.
func (c *clientSession) Emit(e *slipwayv1.Event) { c.emit(e) }

// Manifest and the rest are for pipelines that build of a deploy's context.
func (*clientSession) Manifest(context.Context) (*buildctx.Manifest, error) {
	return nil, errors.ErrUnsupported
}

// Need implements [builder.Session].
func (*clientSession) Need(context.Context, ...[]int) error { return errors.ErrUnsupported }

// Secret implements [builder.Session].
func (*clientSession) Secret(context.Context, string) ([]byte, bool, error) {
	return nil, false, errors.ErrUnsupported
}

// Agent implements [builder.Session].
func (*clientSession) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	return nil, errors.ErrUnsupported
}
