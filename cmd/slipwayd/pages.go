package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

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
	client, err := c.oidcHTTP()
	if err != nil {
		return nil, err
	}
	o := &web.OIDC{HTTP: client, Issuer: c.oidcIssuer, ClientID: c.oidcClient, Scopes: c.oidcScopes}
	if c.oidcSecret != "" {
		secret, err := os.ReadFile(c.oidcSecret)
		if err != nil {
			return nil, fmt.Errorf("--oidc-client-secret-file: %w", err)
		}
		o.Secret = strings.TrimSpace(string(secret))
	}
	return o, nil
}

// oidcHTTP is how the pages speak to the provider; nil for what the system
// trusts.
func (c *config) oidcHTTP() (*http.Client, error) {
	if c.oidcCA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.oidcCA)
	if err != nil {
		return nil, fmt.Errorf("--oidc-ca: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--oidc-ca: %s holds no PEM certificate", c.oidcCA)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: t, Timeout: 15 * time.Second}, nil
}
