package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/tokens"
)

// ExchangeToken implements TokenService.
func (s *tokenService) ExchangeToken(ctx context.Context, req *slipwayv1.ExchangeTokenRequest) (*slipwayv1.ExchangeTokenResponse, error) {
	in, err := lifetime(req.ExpiresIn)
	if err != nil {
		return nil, err
	}
	t, value, rule, err := s.authority.Exchange(ctx, tokens.ExchangeRequest{
		IDToken: req.IdToken, Org: req.Org, Rule: req.Rule, ExpiresIn: in, Session: req.Session, Nonce: req.Nonce,
	})
	if err != nil {
		return nil, exchangeError(err)
	}
	return &slipwayv1.ExchangeTokenResponse{Token: tokenProto(ctx, &t), Value: value, Rule: rule.Name}, nil
}

// exchangeError turns an error of an exchange into one for the client, who is
// nobody yet.
func exchangeError(err error) error {
	var many *tokens.TooManyError
	var not *tokens.ExchangeError
	switch {
	case errors.As(err, &many):
		return tooMany(many)
	case errors.As(err, &not):
		return &failure.Error{Code: failure.Unauthorized, Phase: failure.Auth, Blame: failure.User, Message: not.Text, Hint: not.Hint, Err: err}
	case errors.Is(err, tokens.ErrIssuer):
		return &failure.Error{Code: failure.Unavailable, Phase: failure.Auth, Blame: failure.Builder, Retryable: true,
			Message: tokens.ErrIssuer.Error(), Hint: "try again in a moment; the daemon's log says why", Err: err}
	}
	return tokenError(err)
}

// tooMany is for addresses from which too many attempts failed.
func tooMany(err *tokens.TooManyError) error {
	return &failure.Error{Code: failure.Busy, Phase: failure.Auth, Blame: failure.User, Retryable: true, Err: err,
		Message: err.Error(), Hint: "check the token meanwhile"}
}

// CreateTrust implements OrgService.
func (s *orgService) CreateTrust(ctx context.Context, req *slipwayv1.CreateTrustRequest) (*slipwayv1.CreateTrustResponse, error) {
	in := req.GetTrust()
	ttl, err := trustTTL(in.GetTtl())
	if err != nil {
		return nil, err
	}
	t, err := s.authority.CreateTrust(ctx, caller(ctx), tokens.Trust{
		Name: in.GetName(), Issuer: in.GetIssuer(), Audience: in.GetAudience(), Claims: in.GetClaims(), Type: in.GetType(), App: in.GetApp(),
		Env: in.GetEnvironment(), Permission: in.GetPermission(), Role: in.GetRole(), TTL: ttl,
	})
	if err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.CreateTrustResponse{Trust: trustProto(&t)}, nil
}

func trustTTL(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if ttl := d.AsDuration(); d.CheckValid() == nil && ttl > 0 {
		return ttl, nil
	}
	return 0, failure.Userf(failure.InvalidArgument, "give a positive duration such as 30m", "tokens cannot expire before they are made")
}

// ListTrusts implements OrgService.
func (s *orgService) ListTrusts(ctx context.Context, _ *slipwayv1.ListTrustsRequest) (*slipwayv1.ListTrustsResponse, error) {
	all, err := s.authority.Trusts(ctx, caller(ctx))
	out := &slipwayv1.ListTrustsResponse{}
	for i := range all {
		out.Trusts = append(out.Trusts, trustProto(&all[i]))
	}
	return out, tokenError(err)
}

// DeleteTrust implements OrgService.
func (s *orgService) DeleteTrust(ctx context.Context, req *slipwayv1.DeleteTrustRequest) (*slipwayv1.DeleteTrustResponse, error) {
	if err := s.authority.DeleteTrust(ctx, caller(ctx), req.Id); err != nil {
		if errors.Is(err, tokens.ErrNotFound) {
			return nil, failure.Userf(failure.NotFound, "slipway trust list shows them", "there is no trust rule %q", req.Id)
		}
		return nil, tokenError(err)
	}
	return &slipwayv1.DeleteTrustResponse{}, nil
}

func trustProto(t *tokens.Trust) *slipwayv1.Trust {
	return &slipwayv1.Trust{
		Id: t.ID, Name: t.Name, Issuer: t.Issuer, Audience: t.Audience, Claims: t.Claims, Type: t.Type, App: t.App, Environment: t.Env,
		Permission: t.Permission, Role: t.Role, Ttl: durationpb.New(t.TTL), CreatedBy: t.CreatedBy, Created: moment(t.Created),
	}
}
