package registry

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// bearerLife is how long a bearer token lives. It is put to the Access on each
// request all the same: that it ends soon matters only to who finds one.
const bearerLife = 5 * time.Minute

// A mint makes bearer tokens and knows its own: JSON web tokens, signed with
// ES256, as distribution's token specification describes them. Who has the key
// can speak for any token.
type mint struct {
	signer jose.Signer
	key    jose.JSONWebKey // public
	name   string          // issuer and audience
}

func newMint(key *ecdsa.PrivateKey, name string) (*mint, error) {
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.ES256), Use: "sig"}
	print, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(print)
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	return &mint{signer: signer, key: public, name: name}, err
}

// access is what a bearer token says besides the registered claims.
type access struct {
	Access []scope `json:"access"`
}

// issue returns a bearer token for the token of that ID, good for the scopes.
func (m *mint) issue(id string, scopes []scope, now time.Time) (string, error) {
	return jwt.Signed(m.signer).Claims(jwt.Claims{
		Issuer: m.name, Subject: id, Audience: jwt.Audience{m.name}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(bearerLife)),
	}).Claims(access{scopes}).Serialize()
}

// isBearer tells bearer tokens from tokens that somebody sends as they are: a
// JSON web token begins with an object in base64, and has two dots.
func isBearer(value string) bool {
	return strings.HasPrefix(value, "eyJ") && strings.Count(value, ".") == 2
}

// verify returns the ID of the token that a bearer token was made for, and what
// it is good for. The error wraps [ErrUnauthorized].
func (m *mint) verify(value string, now time.Time) (id string, scopes []scope, err error) {
	claims, a, err := m.open(value)
	if err == nil && (claims.Expiry == nil || claims.Subject == "") {
		err = errors.New("it lacks claims")
	}
	if err == nil {
		err = claims.ValidateWithLeeway(jwt.Expected{Issuer: m.name, AnyAudience: jwt.Audience{m.name}, Time: now}, 0)
	}
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return "", nil, fmt.Errorf("%w: the bearer token expired", ErrUnauthorized)
	case err != nil:
		return "", nil, fmt.Errorf("%w: the bearer token is none of this registry's", ErrUnauthorized)
	}
	return claims.Subject, a.Access, nil
}

// open returns what a bearer token says if its signature is ours.
func (m *mint) open(value string) (claims jwt.Claims, a access, err error) {
	t, err := jwt.ParseSigned(value, []jose.SignatureAlgorithm{jose.ES256})
	if err == nil {
		err = t.Claims(m.key.Key, &claims, &a)
	}
	return claims, a, err
}
