package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// systemService serves SystemService.
type systemService struct {
	slipwayv1.UnimplementedSystemServiceServer
	front *Front
}

// WhoAmI implements SystemService.
func (s *systemService) WhoAmI(ctx context.Context, _ *slipwayv1.WhoAmIRequest) (*slipwayv1.WhoAmIResponse, error) {
	p := caller(ctx)
	out := &slipwayv1.WhoAmIResponse{Name: p.Name, Org: p.Org, Type: p.Type, App: p.App, Scopes: p.Scopes,
		TokenId: p.ID, Environment: p.Env, Permission: p.Permission, Command: p.Command, User: p.User, Role: p.Role}
	if !p.Expires.IsZero() {
		out.Expires = timestamppb.New(p.Expires)
	}
	return out, nil
}

// Info implements SystemService.
func (s *systemService) Info(ctx context.Context, _ *slipwayv1.InfoRequest) (*slipwayv1.InfoResponse, error) {
	o := s.front.opts
	out := &slipwayv1.InfoResponse{
		Version: o.Version, Started: timestamppb.New(s.front.started), Now: timestamppb.Now(),
		Registry: o.Registry, MaxRootfs: uint64(max(0, o.MaxSize)), Protocol: Protocol,
	}
	if o.Checks != nil {
		out.Checks = o.Checks(ctx)
	}
	return out, nil
}
