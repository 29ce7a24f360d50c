package main

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// answers answers what the daemon asks during a build.
type answers struct {
	secrets  secrets
	keychain authn.Keychain
	// warn tells the user why there is no answer.
	warn func(message string)
}

func (a *answers) answer(ctx context.Context, ask *slipwayv1.Ask) *slipwayv1.Answer {
	none := &slipwayv1.Answer{Answer: &slipwayv1.Answer_None{None: &slipwayv1.None{}}}
	switch q := ask.GetQuestion().(type) {
	case *slipwayv1.Ask_Registry:
		c, err := a.credentials(ctx, q.Registry)
		if err != nil {
			a.warn(fmt.Sprintf("credentials for %s: %v", q.Registry, err))
			return none
		}
		return &slipwayv1.Answer{Answer: &slipwayv1.Answer_Credentials{Credentials: c}}
	case *slipwayv1.Ask_Secret:
		read, ok := a.secrets[q.Secret]
		if !ok {
			return none
		}
		value, err := read()
		if err != nil {
			a.warn(fmt.Sprintf("build secret %s: %v", q.Secret, err))
			return none
		}
		return &slipwayv1.Answer{Answer: &slipwayv1.Answer_Secret{Secret: value}}
	}
	return none
}

// credentials looks a registry up in Docker's configuration and its helpers.
func (a *answers) credentials(ctx context.Context, host string) (*slipwayv1.Credentials, error) {
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry // as it is called in the configuration
	}
	registry, err := name.NewRegistry(host, name.WeakValidation)
	if err != nil {
		return nil, err
	}
	auth, err := authn.Resolve(ctx, a.keychain, registry)
	if err != nil {
		return nil, err
	}
	c, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, err
	}
	return &slipwayv1.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}, nil
}
