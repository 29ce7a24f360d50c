package client

import (
	"context"
	"errors"
	"io"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// CreateToken makes a token. Its value is in the answer and nowhere else.
func (c *Client) CreateToken(ctx context.Context, req *slipwayv1.CreateTokenRequest) (*slipwayv1.CreateTokenResponse, error) {
	return call(ctx, c, c.tokens.CreateToken, req)
}

// DeriveToken makes a narrower child of the client's own token.
func (c *Client) DeriveToken(ctx context.Context, req *slipwayv1.DeriveTokenRequest) (*slipwayv1.DeriveTokenResponse, error) {
	return call(ctx, c, c.tokens.DeriveToken, req)
}

// ExchangeToken gives a token for one of an OIDC issuer. The client needs none
// of its own.
func (c *Client) ExchangeToken(ctx context.Context, req *slipwayv1.ExchangeTokenRequest) (*slipwayv1.ExchangeTokenResponse, error) {
	return call(ctx, c, c.tokens.ExchangeToken, req)
}

// CreateTrust lets tokens of an OIDC issuer be exchanged.
func (c *Client) CreateTrust(ctx context.Context, t *slipwayv1.Trust) (*slipwayv1.Trust, error) {
	r, err := call(ctx, c, c.orgs.CreateTrust, &slipwayv1.CreateTrustRequest{Trust: t})
	return r.GetTrust(), err
}

// ListTrusts returns the org's trust rules, newest first.
func (c *Client) ListTrusts(ctx context.Context) ([]*slipwayv1.Trust, error) {
	r, err := call(ctx, c, c.orgs.ListTrusts, &slipwayv1.ListTrustsRequest{})
	return r.GetTrusts(), err
}

// DeleteTrust removes a trust rule by its ID.
func (c *Client) DeleteTrust(ctx context.Context, id string) error {
	_, err := call(ctx, c, c.orgs.DeleteTrust, &slipwayv1.DeleteTrustRequest{Id: id})
	return err
}

// ListTokens returns tokens, newest first.
func (c *Client) ListTokens(ctx context.Context, req *slipwayv1.ListTokensRequest) ([]*slipwayv1.Token, error) {
	r, err := call(ctx, c, c.tokens.ListTokens, req)
	return r.GetTokens(), err
}

// GetToken returns one token's record.
func (c *Client) GetToken(ctx context.Context, id string) (*slipwayv1.Token, error) {
	r, err := call(ctx, c, c.tokens.GetToken, &slipwayv1.GetTokenRequest{Id: id})
	return r.GetToken(), err
}

// RevokeTokens ends tokens, and returns which were good until now.
func (c *Client) RevokeTokens(ctx context.Context, ids []string) ([]string, error) {
	r, err := call(ctx, c, c.tokens.RevokeTokens, &slipwayv1.RevokeTokensRequest{Ids: ids})
	return r.GetRevoked(), err
}

// DeleteTokens removes the records of tokens that have ended.
func (c *Client) DeleteTokens(ctx context.Context, ids []string) error {
	_, err := call(ctx, c, c.tokens.DeleteTokens, &slipwayv1.DeleteTokensRequest{Ids: ids})
	return err
}

// CreateOrg makes an org and its first admin.
func (c *Client) CreateOrg(ctx context.Context, name, admin string) (*slipwayv1.CreateOrgResponse, error) {
	return call(ctx, c, c.orgs.CreateOrg, &slipwayv1.CreateOrgRequest{Name: name, Admin: admin})
}

// ListOrgs returns the daemon's orgs.
func (c *Client) ListOrgs(ctx context.Context) ([]*slipwayv1.Org, error) {
	r, err := call(ctx, c, c.orgs.ListOrgs, &slipwayv1.ListOrgsRequest{})
	return r.GetOrgs(), err
}

// ListApps returns the apps that the client's token may see.
func (c *Client) ListApps(ctx context.Context) ([]*slipwayv1.App, error) {
	r, err := call(ctx, c, c.orgs.ListApps, &slipwayv1.ListAppsRequest{})
	return r.GetApps(), err
}

// CreateUser adds a user.
func (c *Client) CreateUser(ctx context.Context, req *slipwayv1.CreateUserRequest) (*slipwayv1.CreateUserResponse, error) {
	return call(ctx, c, c.orgs.CreateUser, req)
}

// ListUsers returns the users of the client's org.
func (c *Client) ListUsers(ctx context.Context) ([]*slipwayv1.User, error) {
	r, err := call(ctx, c, c.orgs.ListUsers, &slipwayv1.ListUsersRequest{})
	return r.GetUsers(), err
}

// SetUserRole changes what a user may do.
func (c *Client) SetUserRole(ctx context.Context, name, role string) (*slipwayv1.User, error) {
	r, err := call(ctx, c, c.orgs.SetUserRole, &slipwayv1.SetUserRoleRequest{Name: name, Role: role})
	return r.GetUser(), err
}

// RemoveUser removes a user, and returns which tokens it revoked.
func (c *Client) RemoveUser(ctx context.Context, name string) ([]string, error) {
	r, err := call(ctx, c, c.orgs.RemoveUser, &slipwayv1.RemoveUserRequest{Name: name})
	return r.GetRevoked(), err
}

// ExportAudit calls f with each entry of the audit log that req selects. It
// takes as long as it takes.
func (c *Client) ExportAudit(ctx context.Context, req *slipwayv1.ExportAuditRequest, f func(*slipwayv1.Decision) error) error {
	s, err := c.orgs.ExportAudit(ctx, req)
	if err != nil {
		return c.fail(err)
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.fail(err)
		}
		if err := f(r.GetDecision()); err != nil {
			return err
		}
	}
}
