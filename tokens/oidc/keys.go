package oidc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/slipwayhq/slipway/tokens"
)

// keys are what an issuer signs with.
type keys struct {
	set   oidc.StaticKeySet
	asked time.Time // when the issuer was asked last
	got   time.Time // when it answered last
	err   error     // of the last time, if it did not answer
}

// keysOf returns the keys of an issuer: those that are kept if they are fresh
// and not worn, which is what did not fit the token at hand; nil for none. An
// issuer is asked once for all who wait, and not again within a while. The
// error wraps [tokens.ErrIssuer].
func (v *Verifier) keysOf(ctx context.Context, issuer string, worn *keys) (*keys, error) {
	v.mu.Lock()
	k := v.known[issuer]
	v.mu.Unlock()
	if k != nil {
		age := time.Since(k.asked)
		if age < v.opts.again() || k.err == nil && age < fresh && k != worn {
			return k.usable()
		}
	}
	// Who asks first may leave; the others still want the answer.
	asked := v.asking.DoChan(issuer, func() (any, error) {
		return v.ask(context.WithoutCancel(ctx), issuer), nil
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %s: %w", tokens.ErrIssuer, issuer, context.Cause(ctx))
	case r := <-asked:
		return r.Val.(*keys).usable()
	}
}

// usable returns the keys unless they are none or too old to be believed.
func (k *keys) usable() (*keys, error) {
	if k.err != nil && (k.got.IsZero() || time.Since(k.got) > stale) {
		return nil, k.err
	}
	return k, nil
}

// ask gets an issuer's keys and keeps them, or why there are none, with those
// that it had before.
func (v *Verifier) ask(ctx context.Context, issuer string) *keys {
	ctx, cancel := context.WithTimeout(ctx, v.opts.timeout())
	defer cancel()
	set, err := v.fetch(ctx, issuer)
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	next := &keys{set: oidc.StaticKeySet{PublicKeys: set}, asked: now, got: now}
	if err != nil {
		next = &keys{}
		if old := v.known[issuer]; old != nil {
			*next = *old
		}
		next.asked, next.err = now, fmt.Errorf("%w: %s: %w", tokens.ErrIssuer, issuer, err)
	}
	if len(v.known) >= maxKnown {
		clear(v.known)
	}
	v.known[issuer] = next
	return next
}

// fetch finds out where an issuer has its keys, and gets them.
func (v *Verifier) fetch(ctx context.Context, issuer string) ([]crypto.PublicKey, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, v.client.Client), issuer)
	if err != nil {
		return nil, err
	}
	var at struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&at); err != nil {
		return nil, err
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := v.client.get(ctx, at.Keys, &doc); err != nil {
		return nil, fmt.Errorf("keys at %s: %w", at.Keys, err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("keys at %s: %d keys, more than %d", at.Keys, len(doc.Keys), maxKeys)
	}
	set := signing(doc.Keys)
	if len(set) == 0 {
		return nil, fmt.Errorf("keys at %s: %w", at.Keys, errNoKeys)
	}
	return set, nil
}

var errNoKeys = errors.New("none that signs")

// signing returns the keys that are for signatures and strong enough. Those of
// a kind that we do not know are left out.
func signing(all []json.RawMessage) []crypto.PublicKey {
	var set []crypto.PublicKey
	for _, raw := range all {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) != nil || !k.Valid() || k.Use != "" && k.Use != "sig" {
			continue
		}
		switch public := k.Public().Key.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() >= 2048 {
				set = append(set, public)
			}
		case *ecdsa.PublicKey:
			set = append(set, public)
		case ed25519.PublicKey:
			set = append(set, public)
		}
	}
	return set
}
