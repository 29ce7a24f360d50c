package tokens

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// certificateScheme is that of the URI by which a certificate names whom it
// is for.
const certificateScheme = "slipway"

// nameForm is what orgs and apps are called in certificates.
var nameForm = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// Certificate returns whom a client certificate stands for. chains are the
// ways, verified when the connection began, from it to an authority that signs
// certificates for this purpose; without one it is for nobody. The URI of its
// subject alternative names that begins with slipway:// says what it is for:
//
//	slipway://ORG      build every app of ORG
//	slipway://ORG/APP  build this app
//
// It counts as a deploy token, and expires when the chain does that lasts
// longest: the caller asks [Principal.Expired] at each call. An error wraps
// [ErrUnauthorized] and says what is wrong with the certificate.
func Certificate(chains [][]*x509.Certificate) (Principal, error) {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return Principal{}, refuse("no client certificate was given, or none that was verified")
	}
	cert := chains[0][0]
	name := strconv.Quote(cert.Subject.CommonName)
	org, app, err := certificateFor(cert.URIs)
	if err != nil {
		return Principal{}, refuse("client certificate %s %v", name, err)
	}
	return Principal{
		ID:      fmt.Sprintf("certificate-%x", sha256.Sum256(cert.Raw)),
		Name:    "certificate " + name,
		Org:     org,
		Type:    TypeDeploy,
		App:     app,
		Scopes:  Scopes(TypeDeploy),
		Expires: expiry(chains),
	}, nil
}

func certificateFor(uris []*url.URL) (org, app string, err error) {
	var ours []*url.URL
	for _, u := range uris {
		if strings.EqualFold(u.Scheme, certificateScheme) {
			ours = append(ours, u)
		}
	}
	switch len(ours) {
	case 0:
		return "", "", errors.New("names no organization: it needs a URI slipway://ORG or slipway://ORG/APP among its subject alternative names")
	case 1:
	default:
		return "", "", fmt.Errorf("has %d slipway:// URIs among its subject alternative names: it needs exactly one", len(ours))
	}
	u := ours[0]
	org, app = u.Host, strings.TrimPrefix(u.Path, "/")
	plain := url.URL{Scheme: certificateScheme, Host: org, Path: u.Path}
	if *u != plain || !isName(org) || u.Path != "" && !isName(app) {
		return "", "", fmt.Errorf("is for %q: that is neither slipway://ORG nor slipway://ORG/APP", u)
	}
	return org, app, nil
}

func isName(s string) bool { return len(s) <= 100 && nameForm.MatchString(s) }

// expiry is when the last chain breaks: each with the first of its
// certificates that expires.
func expiry(chains [][]*x509.Certificate) time.Time {
	var last time.Time
	for _, chain := range chains {
		ends := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(ends) {
				ends = c.NotAfter
			}
		}
		if ends.After(last) {
			last = ends
		}
	}
	return last
}

// Local returns whom a user of the daemon's machine stands for: root, and the
// user as whom the daemon runs, may do everything. Both could read the admin
// token. The error for others wraps [ErrUnauthorized].
func Local(uid, daemon int) (Principal, error) {
	if uid < 0 || uid != 0 && uid != daemon {
		return Principal{}, refuse("no token was given, and user %d of this machine is neither root nor the daemon's own", uid)
	}
	p := admin()
	p.ID, p.Name = fmt.Sprintf("local-%d", uid), fmt.Sprintf("local user %d", uid)
	return p, nil
}

// A refusal is an ErrUnauthorized about what is no token.
type refusal struct{ text string }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error { return ErrUnauthorized }
