package client_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]client.Address{
		"127.0.0.1:7070":           {Host: "127.0.0.1", Port: "7070"},
		"build.example":            {Host: "build.example", Port: "7070"},
		"https://build.example":    {Host: "build.example", Port: "443", TLS: true},
		"https://build.example:9/": {Host: "build.example", Port: "9", TLS: true},
		"http://localhost:1":       {Host: "localhost", Port: "1"},
		"[::1]:7":                  {Host: "::1", Port: "7"},
		"[::1]":                    {Host: "::1", Port: "7070"},
		"::1":                      {Host: "::1", Port: "7070"},
	} {
		got, err := client.ParseAddress(in)
		if err != nil || got != want {
			t.Errorf("ParseAddress(%q) = %+v, %v; want %+v", in, got, err, want)
			continue
		}
		if again, err := client.ParseAddress(got.String()); err != nil || again != got {
			t.Errorf("%q reads %+v, %v as %q", in, again, err, got)
		}
	}
	for _, bad := range []string{"", ":7070", "host:", "ftp://x:1", "user@host:1", "a b", "host/path", "[::1", "https://"} {
		if a, err := client.ParseAddress(bad); err == nil {
			t.Errorf("ParseAddress(%q) = %+v", bad, a)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1:7070", "https://x", "[::1]:7", "::", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := client.ParseAddress(s)
		if err != nil {
			return
		}
		if again, err := client.ParseAddress(a.String()); err != nil || again != a {
			t.Fatalf("%q: %+v is written %q and read %+v, %v", s, a, a, again, err)
		}
	})
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"10.0.0.1": false, "example.com": false, "localhost.example.com": false, "0.0.0.0": false} {
		if got := (client.Address{Host: host}).Loopback(); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

func TestPlaintextStaysHere(t *testing.T) {
	far := client.Address{Host: "192.0.2.1", Port: "1"}
	if _, err := client.New(client.Options{Address: far, Token: "x"}); client.AsError(err).ExitCode() != client.ExitUser {
		t.Errorf("plaintext to another machine: %v", err)
	}
	c, err := client.New(client.Options{Address: far, Token: "x", Insecure: true})
	if err != nil {
		t.Fatalf("with consent: %v", err)
	}
	c.Close()
}

// The daemon's HTTP port is taken for its gRPC port.
func TestWrongPort(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	for _, url := range []string{plain.URL, secure.URL} {
		a, err := client.ParseAddress(url)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New(client.Options{Address: a, Token: "x", SkipVerify: a.TLS})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.WhoAmI(t.Context())
		c.Close()
		e := client.AsError(err)
		if e.GetCode() != client.CodeUnavailable || !strings.Contains(e.GetMessage(), a.HostPort()+" is a web server") || !strings.Contains(e.GetHint(), "7070") || strings.Contains(e.GetHint(), "https") {
			t.Errorf("%s: %v; hint %q", url, e, e.GetHint())
		}
	}
}

func TestAsError(t *testing.T) {
	if client.AsError(nil) != nil {
		t.Error("nil became an error")
	}
	own := client.UserError("message", "hint")
	if got := client.AsError(fmt.Errorf("wrapped: %w", own)); got != own {
		t.Errorf("wrapped: %v", got)
	}
	st, err := status.New(codes.Internal, "x").WithDetails(&slipwayv1.Error{Code: "too_large", Message: "8 GB"})
	if err != nil {
		t.Fatal(err)
	}
	if got := client.AsError(st.Err()); got.ExitCode() != client.ExitTooLarge || got.GetMessage() != "8 GB" {
		t.Errorf("detail: %v", got)
	}
	if got := client.AsError(errors.New("odd")); got.ExitCode() != client.ExitInternal || !strings.Contains(got.Error(), "odd") {
		t.Errorf("unknown: %v", got)
	}
}
