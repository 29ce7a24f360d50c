package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/slipwayhq/slipway/web"
)

// openPages returns the handler of the pages for people, nil if they are turned
// off. They call g's services through a connection that stays inside this
// process. The caller closes it after g has stopped.
func (d *daemon) openPages(g *grpc.Server) (_ http.Handler, closePages func(), err error) {
	if !d.config.web {
		return nil, func() {}, nil
	}
	oidc, err := d.oidc()
	if err != nil {
		return nil, nil, err
	}
	inside := bufconn.Listen(1 << 20)
	conn, err := grpc.NewClient("passthrough:///slipwayd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inside.DialContext(ctx) }))
	if err != nil {
		return nil, nil, err
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := g.Serve(inside); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			d.log.Error("pages cannot reach the daemon", "err", err)
		}
	})
	pages := web.New(web.Options{Conn: conn, URL: d.config.webAddress, Proxied: d.config.behindProxy, OIDC: oidc, Log: d.log.With("part", "web")})
	return pages, func() {
		_ = conn.Close()
		_ = inside.Close()
		serving.Wait()
	}, nil
}

// oidc is how people sign in besides with tokens, nil if nobody said.
func (d *daemon) oidc() (*web.OIDC, error) {
	c := d.config
	if c.oidcIssuer == "" {
		return nil, nil
	}
	o := &web.OIDC{Issuer: c.oidcIssuer, ClientID: c.oidcClient, Scopes: c.oidcScopes}
	if c.oidcSecret != "" {
		secret, err := os.ReadFile(c.oidcSecret)
		if err != nil {
			return nil, fmt.Errorf("--oidc-client-secret-file: %w", err)
		}
		o.Secret = strings.TrimSpace(string(secret))
	}
	return o, nil
}
