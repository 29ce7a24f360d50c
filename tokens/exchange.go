package tokens

import "context"

// A Verifier checks tokens of OIDC issuers.
type Verifier interface {
	// Verify returns the claims of an ID token that is good: signed by the
	// issuer that it names, which must be one for which trusted returns true,
	// not expired, not from the future. Who calls checks audience and nonce.
	// The error wraps ErrUnauthorized, and never shows the token.
	Verify(ctx context.Context, idToken string, trusted func(issuer string) bool) (Claims, error)
}

// Claims are what an ID token says.
type Claims map[string]any
