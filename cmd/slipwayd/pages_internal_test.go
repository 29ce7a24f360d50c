package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestWebSettings(t *testing.T) {
	issuer := []string{"--oidc-issuer", "https://login.example.com"}
	client := append(issuer, "--oidc-client-id", "slipway")
	for _, tc := range []struct {
		name string
		args []string
		want string // part of the error; "" for none
	}{
		{"defaults", nil, ""},
		{"off", []string{"--web=false"}, ""},
		{"all", append(client, "--web-url", "https://slipway.example.com/"), ""},
		{"no scheme", []string{"--web-url", "slipway.example.com"}, "--web-url"},
		{"path", []string{"--web-url", "https://example.com/slipway"}, "without a path"},
		{"script", []string{"--web-url", "javascript://example.com"}, "--web-url"},
		{"client of nobody", []string{"--oidc-client-id", "slipway"}, "--oidc-issuer"},
		{"issuer without client", issuer, "--oidc-client-id"},
		{"nowhere to come back to", client, "--web-url"},
		{"no page to sign in on", append(client, "--web-url", "https://slipway.example.com", "--web=false"), "--web=false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c config
			f := pflag.NewFlagSet("", pflag.ContinueOnError)
			c.register(f)
			if err := f.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			err := c.checkWeb()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNoPages(t *testing.T) {
	d := &daemon{config: &config{}}
	pages, closePages, err := d.openPages(nil)
	if pages != nil || err != nil {
		t.Fatalf("pages %v, error %v", pages, err)
	}
	closePages()
}
