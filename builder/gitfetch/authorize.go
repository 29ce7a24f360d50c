package gitfetch

import (
	"context"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
)

// Secrets are the names of build secrets with credentials. Those that end in a
// dot and the remote's host are asked for first. "" is none.
type Secrets struct{ Token, Header string }

// BuildSecrets are the names that Dockerfiles have for them.
func BuildSecrets() Secrets { return Secrets{Token: "GIT_AUTH_TOKEN", Header: "GIT_AUTH_HEADER"} }

// A SecretStore returns a build secret; ok is false if there is none of that
// name.
type SecretStore func(ctx context.Context, name string) (value []byte, ok bool, err error)

// ErrAddress says that a remote is no URL. Its text does not repeat it.
var ErrAddress = errors.New("not a URL")

// Authorize sets the source's remote, and its authorization: what the remote
// has before its host, or the first secret that there is.
func (s *Source) Authorize(ctx context.Context, remote string, names Secrets, secret SecretStore) error {
	u, err := url.Parse(remote)
	if err != nil {
		return ErrAddress
	}
	user := u.User
	u.User = nil
	s.Remote = u.String()
	if user != nil {
		password, _ := user.Password()
		s.Authorization = basic(user.Username(), password)
		return nil
	}
	for _, c := range []struct {
		name  string
		token bool
	}{{perHost(names.Header, u), false}, {perHost(names.Token, u), true}, {names.Header, false}, {names.Token, true}} {
		if c.name == "" {
			continue
		}
		value, ok, err := secret(ctx, c.name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		s.Authorization = strings.TrimSpace(string(value))
		if c.token {
			s.Authorization = basic("x-access-token", s.Authorization)
		}
		return nil
	}
	return nil
}

func perHost(name string, u *url.URL) string {
	if name == "" {
		return ""
	}
	return name + "." + u.Host
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}
