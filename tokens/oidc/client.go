package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// A client speaks to issuers: securely, and not for long.
type client struct {
	*http.Client
	plain bool
}

func newClient(roots *x509.CertPool, timeout time.Duration, plain bool) *client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	t.MaxResponseHeaderBytes = 64 << 10
	return &client{
		Client: &http.Client{
			Transport: &careful{t, plain},
			Timeout:   timeout,
			CheckRedirect: func(_ *http.Request, via []*http.Request) error {
				if len(via) > 3 {
					return errors.New("more than 3 redirects")
				}
				return nil
			},
		},
		plain: plain,
	}
}

// mayAsk reports whether an issuer can be asked securely.
func (c *client) mayAsk(issuer string) bool {
	u, err := url.Parse(issuer)
	return err == nil && secure(u, c.plain)
}

// get reads a JSON document.
func (c *client) get(ctx context.Context, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the issuer answers %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// careful makes secure requests only, redirected ones too, and bounds answers.
type careful struct {
	next  http.RoundTripper
	plain bool
}

func (c *careful) RoundTrip(req *http.Request) (*http.Response, error) {
	if !secure(req.URL, c.plain) {
		return nil, errInsecure
	}
	resp, err := c.next.RoundTrip(req)
	if err == nil {
		resp.Body = &bounded{resp.Body, maxAnswer}
	}
	return resp, err
}

// bounded is an answer that fails when it is too large.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the issuer's answer has more than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
