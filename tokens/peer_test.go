package tokens_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

func certificate(t *testing.T, expires time.Time, uris ...string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{Raw: []byte(strings.Join(uris, " ")), Subject: pkix.Name{CommonName: "ci"}, NotAfter: expires}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

func TestCertificate(t *testing.T) {
	for _, tc := range []struct {
		uris     []string
		org, app string
		says     string // of the error
	}{
		{[]string{"slipway://acme"}, "acme", "", ""},
		{[]string{"slipway://acme/shop"}, "acme", "shop", ""},
		{[]string{"spiffe://corp/ci", "slipway://acme/shop-2.web", "https://example.com"}, "acme", "shop-2.web", ""},
		{[]string{"SLIPWAY://acme"}, "acme", "", ""},
		{nil, "", "", "slipway://ORG or slipway://ORG/APP"},
		{[]string{"spiffe://corp/ci"}, "", "", "names no organization"},
		{[]string{"slipway://acme", "slipway://globex"}, "", "", "exactly one"},
		{[]string{"slipway://acme/shop", "slipway://acme/shop"}, "", "", "exactly one"},
		{[]string{"slipway://"}, "", "", "neither"},
		{[]string{"slipway:///shop"}, "", "", "neither"},
		{[]string{"slipway:acme"}, "", "", "neither"},
		{[]string{"slipway://acme/"}, "", "", "neither"},
		{[]string{"slipway://acme//shop"}, "", "", "neither"},
		{[]string{"slipway://acme/shop/"}, "", "", "neither"},
		{[]string{"slipway://acme/shop/web"}, "", "", "neither"},
		{[]string{"slipway://acme/.."}, "", "", "neither"},
		{[]string{"slipway://acme/%73hop"}, "", "", "neither"},
		{[]string{"slipway://acme/shop?x=y"}, "", "", "neither"},
		{[]string{"slipway://acme/shop?"}, "", "", "neither"},
		{[]string{"slipway://acme#shop"}, "", "", "neither"},
		{[]string{"slipway://root@acme"}, "", "", "neither"},
		{[]string{"slipway://acme:80"}, "", "", "neither"},
		{[]string{"slipway://ACME"}, "", "", "neither"},
		{[]string{"slipway://acme/Shop"}, "", "", "neither"},
		{[]string{"slipway://*"}, "", "", "neither"},
		{[]string{"slipway://acme/" + strings.Repeat("x", 101)}, "", "", "neither"},
	} {
		t.Run(strings.Join(tc.uris, " "), func(t *testing.T) {
			expires := time.Now().Add(time.Hour)
			p, err := tokens.Certificate([][]*x509.Certificate{{certificate(t, expires, tc.uris...)}})
			if tc.says != "" {
				if !errors.Is(err, tokens.ErrUnauthorized) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), `"ci"`) || p.Type != "" {
					t.Errorf("Certificate = %+v, %v; want an ErrUnauthorized that says %q", p, err, tc.says)
				}
				return
			}
			if err != nil || p.Org != tc.org || p.App != tc.app || p.Type != tokens.TypeDeploy || !p.Expires.Equal(expires) || !slices.Equal(p.Scopes, tokens.Scopes(tokens.TypeDeploy)) {
				t.Errorf("Certificate = %+v, %v", p, err)
			}
		})
	}
}

// A certificate is good as long as one of the ways to an authority is.
func TestCertificateExpires(t *testing.T) {
	now := time.Now()
	in := func(h time.Duration) *x509.Certificate {
		return certificate(t, now.Add(h*time.Hour), "slipway://acme")
	}
	for _, tc := range []struct {
		name   string
		chains [][]*x509.Certificate
		want   time.Duration // 0: refused
	}{
		{"its own", [][]*x509.Certificate{{in(1), in(2)}}, 1},
		{"an authority on the way", [][]*x509.Certificate{{in(3), in(2), in(9)}}, 2},
		{"the longest way", [][]*x509.Certificate{{in(5), in(1)}, {in(5), in(3), in(4)}, {in(5), in(2)}}, 3},
		{"no way", nil, 0},
		{"an empty way", [][]*x509.Certificate{{}}, 0},
	} {
		p, err := tokens.Certificate(tc.chains)
		if (err == nil) != (tc.want != 0) || err == nil && !p.Expires.Equal(now.Add(tc.want*time.Hour)) {
			t.Errorf("%s: expires in %v, %v; want %v hours", tc.name, p.Expires.Sub(now), err, int64(tc.want))
		}
	}
}

func TestLocal(t *testing.T) {
	for _, tc := range []struct {
		uid, daemon int
		admin       bool
	}{
		{0, 0, true}, {0, 1000, true}, {1000, 1000, true},
		{1000, 0, false}, {1001, 1000, false}, {-1, 0, false}, {-1, -1, false}, {65534, 0, false},
	} {
		p, err := tokens.Local(tc.uid, tc.daemon)
		if tc.admin != (err == nil) || tc.admin != (p.Type == tokens.TypeAdmin) || tc.admin != (p.Org == tokens.DefaultOrg) {
			t.Errorf("user %d of a daemon of %d: %+v, %v", tc.uid, tc.daemon, p, err)
		}
		if err != nil && !errors.Is(err, tokens.ErrUnauthorized) {
			t.Errorf("user %d: %v, want ErrUnauthorized", tc.uid, err)
		}
	}
}
