package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/tokens"
)

// tokenService serves TokenService. The authority decides; this translates.
type tokenService struct {
	slipwayv1.UnimplementedTokenServiceServer
	authority *tokens.Authority
	opts      Options
}

// CreateToken implements TokenService.
func (s *tokenService) CreateToken(ctx context.Context, req *slipwayv1.CreateTokenRequest) (*slipwayv1.CreateTokenResponse, error) {
	in, err := s.lifetime(ctx, req.ExpiresIn, req.Environment)
	if err != nil {
		return nil, err
	}
	t, value, err := s.authority.Create(ctx, caller(ctx), tokens.Request{
		Type: req.Type, Name: req.Name, App: req.App, Env: req.Environment, Permission: req.Permission, Command: req.Command,
		ExpiresIn: in, Never: req.Never, User: req.User,
	})
	if err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.CreateTokenResponse{Token: tokenProto(ctx, &t), Value: value}, nil
}

// DeriveToken implements TokenService.
func (s *tokenService) DeriveToken(ctx context.Context, req *slipwayv1.DeriveTokenRequest) (*slipwayv1.DeriveTokenResponse, error) {
	in, err := s.lifetime(ctx, req.ExpiresIn, req.Environment)
	if err != nil {
		return nil, err
	}
	t, value, err := s.authority.Derive(ctx, caller(ctx), tokens.Request{
		Type: req.Type, Name: req.Name, App: req.App, Env: req.Environment, Permission: req.Permission, Command: req.Command,
		ExpiresIn: in, Session: req.Session,
	})
	if err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.DeriveTokenResponse{Token: tokenProto(ctx, &t), Value: value}, nil
}

// ListTokens implements TokenService.
func (s *tokenService) ListTokens(ctx context.Context, req *slipwayv1.ListTokensRequest) (*slipwayv1.ListTokensResponse, error) {
	limit := int(min(req.Limit, 1000))
	if limit == 0 {
		limit = 100
	}
	list, err := s.authority.List(ctx, caller(ctx), tokens.TokenQuery{
		App: req.App, Env: req.Environment, Type: req.Type, Sessions: req.Sessions, Before: req.BeforeId, Limit: limit,
	})
	if err != nil {
		return nil, tokenError(err)
	}
	out := &slipwayv1.ListTokensResponse{}
	for i := range list {
		out.Tokens = append(out.Tokens, tokenProto(ctx, &list[i]))
	}
	return out, nil
}

// GetToken implements TokenService.
func (s *tokenService) GetToken(ctx context.Context, req *slipwayv1.GetTokenRequest) (*slipwayv1.GetTokenResponse, error) {
	t, err := s.authority.Get(ctx, caller(ctx), req.Id)
	if err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.GetTokenResponse{Token: tokenProto(ctx, &t)}, nil
}

// RevokeTokens implements TokenService.
func (s *tokenService) RevokeTokens(ctx context.Context, req *slipwayv1.RevokeTokensRequest) (*slipwayv1.RevokeTokensResponse, error) {
	// Who revokes its own token must still hear that it worked.
	revoked, err := s.authority.Revoke(context.WithoutCancel(ctx), caller(ctx), req.Ids...)
	if err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.RevokeTokensResponse{Revoked: revoked}, nil
}

// DeleteTokens implements TokenService.
func (s *tokenService) DeleteTokens(ctx context.Context, req *slipwayv1.DeleteTokensRequest) (*slipwayv1.DeleteTokensResponse, error) {
	if err := s.authority.Delete(ctx, caller(ctx), req.Ids...); err != nil {
		return nil, tokenError(err)
	}
	return &slipwayv1.DeleteTokensResponse{}, nil
}

// lifetime reads how long a token is to live, and checks that the environment
// that it is to be bound to exists.
func (s *tokenService) lifetime(ctx context.Context, d *durationpb.Duration, env string) (time.Duration, error) {
	if env != "" && env != caller(ctx).Env {
		if err := checkEnvApp(env, ""); err != nil {
			return 0, err
		}
		if _, err := environment(ctx, s.opts.Records, env); err != nil {
			return 0, err
		}
	}
	return lifetime(d)
}

// lifetime reads how long a token is to live; 0 means that nobody said.
func lifetime(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	in := d.AsDuration()
	if d.CheckValid() != nil || in <= 0 {
		return 0, failure.Userf(failure.InvalidArgument, "give a positive duration such as 720h", "a token cannot expire before it is made")
	}
	return in, nil
}

// tokenError turns an error of the authority into one for the client.
func tokenError(err error) error {
	var bad *tokens.InvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		return failure.Userf(failure.InvalidArgument, bad.Hint, "%s", bad.Text)
	case errors.Is(err, tokens.ErrDenied):
		return refused(err)
	case errors.Is(err, tokens.ErrInUse):
		return failure.Userf(failure.InvalidArgument, "revoke it first; only expired and revoked tokens can be deleted", "%v", err)
	case errors.Is(err, tokens.ErrNotFound):
		return failure.Userf(failure.NotFound, "the list command shows what there is", "%v", err)
	case errors.Is(err, tokens.ErrExists):
		return failure.Userf(failure.InvalidArgument, "choose another name", "%v", err)
	case errors.Is(err, tokens.ErrUnauthorized), errors.Is(err, tokens.ErrExpired):
		return unauthorized(err.Error(), err)
	}
	return err
}

var tokenStatuses = map[string]slipwayv1.TokenStatus{
	tokens.StatusActive: slipwayv1.TokenStatus_TOKEN_STATUS_ACTIVE, tokens.StatusExpired: slipwayv1.TokenStatus_TOKEN_STATUS_EXPIRED,
	tokens.StatusRevoked: slipwayv1.TokenStatus_TOKEN_STATUS_REVOKED,
}

func tokenProto(ctx context.Context, t *tokens.Token) *slipwayv1.Token {
	revoke, remove := tokens.Rights(caller(ctx), t)
	return &slipwayv1.Token{
		Id: t.ID, Type: t.Type, Name: t.Name, Org: t.Org, App: t.App, Environment: t.Env, Permission: t.Permission, Command: t.Command,
		Scopes: t.Principal("").Scopes, Status: tokenStatuses[t.Status(time.Now())], Parent: t.Parent, User: t.User, CreatedBy: t.CreatedBy,
		Created: moment(t.Created), Expires: moment(t.Expires), Revoked: moment(t.Revoked), RevokedBy: t.RevokedBy,
		LastUsed: moment(t.LastUsed), LastAddress: t.LastAddr, Session: t.Session, Revocable: revoke, Deletable: remove,
	}
}

// moment returns a time as the protocol has it; nil for none.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// orgService serves OrgService.
type orgService struct {
	slipwayv1.UnimplementedOrgServiceServer
	authority *tokens.Authority
}

// CreateOrg implements OrgService.
func (s *orgService) CreateOrg(ctx context.Context, req *slipwayv1.CreateOrgRequest) (*slipwayv1.CreateOrgResponse, error) {
	o, t, value, err := s.authority.CreateOrg(ctx, caller(ctx), req.Name, req.Admin)
	if err != nil {
		return nil, named("organization", req.Name, err)
	}
	return &slipwayv1.CreateOrgResponse{Org: orgProto(&o), Token: value, TokenId: t.ID, Expires: moment(t.Expires)}, nil
}

// named adds to the error of a store what it was about.
func named(kind, name string, err error) error {
	if errors.Is(err, tokens.ErrExists) || errors.Is(err, tokens.ErrNotFound) {
		err = fmt.Errorf("%s %q: %w", kind, name, err)
	}
	return tokenError(err)
}

func orgProto(o *tokens.Org) *slipwayv1.Org {
	return &slipwayv1.Org{Name: o.Name, Created: moment(o.Created)}
}

// ListOrgs implements OrgService.
func (s *orgService) ListOrgs(ctx context.Context, _ *slipwayv1.ListOrgsRequest) (*slipwayv1.ListOrgsResponse, error) {
	all, err := s.authority.Orgs(ctx, caller(ctx))
	out := &slipwayv1.ListOrgsResponse{}
	for i := range all {
		out.Orgs = append(out.Orgs, orgProto(&all[i]))
	}
	return out, tokenError(err)
}

// ListApps implements OrgService.
func (s *orgService) ListApps(ctx context.Context, _ *slipwayv1.ListAppsRequest) (*slipwayv1.ListAppsResponse, error) {
	all, err := s.authority.Apps(ctx, caller(ctx))
	out := &slipwayv1.ListAppsResponse{}
	for _, a := range all {
		out.Apps = append(out.Apps, &slipwayv1.App{Name: a.Name, CreatedBy: a.CreatedBy, Created: moment(a.Created)})
	}
	return out, tokenError(err)
}

// CreateUser implements OrgService.
func (s *orgService) CreateUser(ctx context.Context, req *slipwayv1.CreateUserRequest) (*slipwayv1.CreateUserResponse, error) {
	in, err := lifetime(req.ExpiresIn)
	if err != nil {
		return nil, err
	}
	u, t, value, err := s.authority.CreateUser(ctx, caller(ctx), req.Name, req.Role, !req.WithoutToken, tokens.Request{ExpiresIn: in, Never: req.Never})
	if err != nil {
		return nil, named("user", req.Name, err)
	}
	return &slipwayv1.CreateUserResponse{User: userProto(&u), Token: value, TokenId: t.ID, Expires: moment(t.Expires)}, nil
}

func userProto(u *tokens.User) *slipwayv1.User {
	return &slipwayv1.User{Name: u.Name, Role: u.Role, Created: moment(u.Created)}
}

// ListUsers implements OrgService.
func (s *orgService) ListUsers(ctx context.Context, _ *slipwayv1.ListUsersRequest) (*slipwayv1.ListUsersResponse, error) {
	all, err := s.authority.Users(ctx, caller(ctx))
	out := &slipwayv1.ListUsersResponse{}
	for i := range all {
		out.Users = append(out.Users, userProto(&all[i]))
	}
	return out, tokenError(err)
}

// SetUserRole implements OrgService.
func (s *orgService) SetUserRole(ctx context.Context, req *slipwayv1.SetUserRoleRequest) (*slipwayv1.SetUserRoleResponse, error) {
	u, err := s.authority.SetRole(ctx, caller(ctx), req.Name, req.Role)
	if err != nil {
		return nil, named("user", req.Name, err)
	}
	return &slipwayv1.SetUserRoleResponse{User: userProto(&u)}, nil
}

// RemoveUser implements OrgService.
func (s *orgService) RemoveUser(ctx context.Context, req *slipwayv1.RemoveUserRequest) (*slipwayv1.RemoveUserResponse, error) {
	revoked, err := s.authority.RemoveUser(context.WithoutCancel(ctx), caller(ctx), req.Name)
	if err != nil {
		return nil, named("user", req.Name, err)
	}
	return &slipwayv1.RemoveUserResponse{Revoked: revoked}, nil
}

// ExportAudit implements OrgService.
func (s *orgService) ExportAudit(req *slipwayv1.ExportAuditRequest, stream slipwayv1.OrgService_ExportAuditServer) error {
	ctx := stream.Context()
	q := tokens.AuditQuery{Since: timeOf(req.Since), Until: timeOf(req.Until), Token: req.Token, Denied: req.Denied}
	for d, err := range s.authority.Decisions(ctx, caller(ctx), q) {
		if err != nil {
			return tokenError(err)
		}
		err := stream.Send(&slipwayv1.ExportAuditResponse{Decision: &slipwayv1.Decision{
			Id: d.ID, Time: moment(d.Time), Token: d.Token, Actor: d.Actor, Action: d.Action, Resource: d.Resource,
			Address: d.Addr, Allowed: d.Allowed, Reason: d.Reason, Count: d.Count,
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
