package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// An Issuer makes and ends the tokens of environments. A [tokens.Authority] is
// one.
type Issuer interface {
	// Create makes a token on behalf of by and returns it and its value.
	Create(ctx context.Context, by tokens.Principal, r tokens.Request) (tokens.Token, string, error)

	// RevokeEnv ends the tokens of an environment and returns the IDs of those
	// that were good until then.
	RevokeEnv(ctx context.Context, by tokens.Principal, env string) ([]string, error)
}

// environmentService serves EnvironmentService. What is done to releases is in
// releases.go, how drift is told in drift.go.
type environmentService struct {
	slipwayv1.UnimplementedEnvironmentServiceServer
	opts Options
}

// checkEnvApp refuses what no environment, or app, can be called. Empty names
// pass.
func checkEnvApp(env, app string) error {
	for _, c := range []struct{ what, name string }{{"an environment", env}, {"an app", app}} {
		if c.name == "" {
			continue
		}
		if err := tokens.CheckName(c.what, c.name); err != nil {
			return tokenError(err)
		}
	}
	return nil
}

// CreateEnvironment implements EnvironmentService.
func (s *environmentService) CreateEnvironment(ctx context.Context, req *slipwayv1.CreateEnvironmentRequest) (*slipwayv1.CreateEnvironmentResponse, error) {
	if err := tokens.CheckName("an environment", req.Name); err != nil {
		return nil, tokenError(err)
	}
	if err := checkEnvApp("", req.App); err != nil {
		return nil, err
	}
	if err := allowIn(ctx, tokens.ScopeEnvWrite, "", req.Name); err != nil {
		return nil, err
	}
	if s.opts.Issuer == nil && !req.WithoutToken {
		return nil, failure.Userf(failure.NotSupported, "give --no-token", "this daemon cannot make tokens")
	}
	p := caller(ctx)
	e := records.Environment{Org: p.Org, Name: req.Name, CreatedBy: p.Actor(), Created: time.Now().UTC()}
	if err := s.opts.Records.CreateEnvironment(ctx, e); errors.Is(err, records.ErrEnvironmentExists) {
		return nil, failure.Userf(failure.InvalidArgument, "slipway envs show "+req.Name+" shows it; slipway tokens create registry --env "+req.Name+" makes another token for it",
			"the environment %s exists already", req.Name)
	} else if err != nil {
		return nil, err
	}
	resp := &slipwayv1.CreateEnvironmentResponse{Environment: environmentProto(e)}
	if req.WithoutToken {
		return resp, nil
	}
	return resp, s.issue(ctx, req, resp)
}

// issue makes the token of an environment that is new, and takes the
// environment back if there can be none.
func (s *environmentService) issue(ctx context.Context, req *slipwayv1.CreateEnvironmentRequest, resp *slipwayv1.CreateEnvironmentResponse) error {
	p := caller(ctx)
	t, value, err := s.opts.Issuer.Create(ctx, p, tokens.Request{
		Type: tokens.TypeRegistry, Name: req.Name, App: req.App, Env: req.Name, Permission: req.Permission,
		ExpiresIn: req.ExpiresIn.AsDuration(), Never: req.Never,
	})
	if err != nil {
		return errors.Join(tokenError(err), s.opts.Records.DeleteEnvironment(context.WithoutCancel(ctx), p.Org, req.Name, time.Now()))
	}
	resp.Token, resp.TokenId = value, t.ID
	if !t.Expires.IsZero() {
		resp.Expires = timestamppb.New(t.Expires)
	}
	return nil
}

// ListEnvironments implements EnvironmentService. Tokens for one environment,
// or one app, see no other.
func (s *environmentService) ListEnvironments(ctx context.Context, _ *slipwayv1.ListEnvironmentsRequest) (*slipwayv1.ListEnvironmentsResponse, error) {
	p := caller(ctx)
	if err := allowIn(ctx, tokens.ScopeEnvRead, p.App, p.Env); err != nil {
		return nil, err
	}
	list, err := s.opts.Records.Environments(ctx, p.Org)
	if err != nil {
		return nil, err
	}
	resp := &slipwayv1.ListEnvironmentsResponse{}
	for _, e := range list {
		if p.Env != "" && p.Env != e.Name {
			continue
		}
		out := environmentProto(e)
		if out.Apps, err = s.apps(ctx, e.Name, p.App); err != nil {
			return nil, err
		}
		resp.Environments = append(resp.Environments, out)
	}
	return resp, nil
}

// GetEnvironment implements EnvironmentService.
func (s *environmentService) GetEnvironment(ctx context.Context, req *slipwayv1.GetEnvironmentRequest) (*slipwayv1.GetEnvironmentResponse, error) {
	app, err := s.readable(ctx, req.Name, req.App)
	if err != nil {
		return nil, err
	}
	e, err := environment(ctx, s.opts.Records, req.Name)
	if err != nil {
		return nil, err
	}
	out := environmentProto(e)
	out.Apps, err = s.apps(ctx, e.Name, app)
	return &slipwayv1.GetEnvironmentResponse{Environment: out}, err
}

// readable checks that the caller may read of an app in an environment, and
// returns which app: the only one of the caller's token if none is named.
func (s *environmentService) readable(ctx context.Context, env, app string) (string, error) {
	if err := checkEnvApp(env, app); err != nil {
		return "", err
	}
	if app == "" {
		app = caller(ctx).App
	}
	return app, allowIn(ctx, tokens.ScopeEnvRead, app, env)
}

// environment returns an environment of the caller's org that was not deleted.
func environment(ctx context.Context, r *records.Store, name string) (records.Environment, error) {
	e, err := r.Environment(ctx, caller(ctx).Org, name)
	switch {
	case errors.Is(err, records.ErrNoEnvironment):
		return e, failure.Userf(failure.NotFound, "slipway envs list shows those there are, slipway envs create "+name+" makes it", "there is no environment %s", name)
	case err == nil && !e.Deleted.IsZero():
		return e, failure.Userf(failure.NotFound, "slipway envs create "+name+" makes it again, slipway envs history "+name+" tells what happened there", "the environment %s was deleted", name)
	}
	return e, err
}

// DeleteEnvironment implements EnvironmentService. A second call ends tokens
// that the first one left because it failed.
func (s *environmentService) DeleteEnvironment(ctx context.Context, req *slipwayv1.DeleteEnvironmentRequest) (*slipwayv1.DeleteEnvironmentResponse, error) {
	if err := tokens.CheckName("an environment", req.Name); err != nil {
		return nil, tokenError(err)
	}
	if err := allowIn(ctx, tokens.ScopeEnvWrite, "", req.Name); err != nil {
		return nil, err
	}
	_, gone := environment(ctx, s.opts.Records, req.Name)
	if gone != nil && failure.As(gone).Code != failure.NotFound {
		return nil, gone
	}
	p := caller(ctx)
	if gone == nil {
		if err := s.opts.Records.DeleteEnvironment(ctx, p.Org, req.Name, time.Now()); err != nil && !errors.Is(err, records.ErrNoEnvironment) {
			return nil, err
		}
	}
	resp := &slipwayv1.DeleteEnvironmentResponse{}
	if s.opts.Issuer != nil {
		var err error
		if resp.Revoked, err = s.opts.Issuer.RevokeEnv(context.WithoutCancel(ctx), p, req.Name); err != nil {
			return nil, tokenError(err)
		}
	}
	if gone != nil && len(resp.Revoked) == 0 {
		return nil, gone
	}
	return resp, nil
}

// ListHistory implements EnvironmentService.
func (s *environmentService) ListHistory(ctx context.Context, req *slipwayv1.ListHistoryRequest) (*slipwayv1.ListHistoryResponse, error) {
	if err := tokens.CheckName("an environment", req.Environment); err != nil {
		return nil, tokenError(err)
	}
	app, err := s.readable(ctx, req.Environment, req.App)
	if err != nil {
		return nil, err
	}
	org, limit := caller(ctx).Org, pageSize(req.Limit)
	if _, err := s.opts.Records.Environment(ctx, org, req.Environment); errors.Is(err, records.ErrNoEnvironment) {
		_, err := environment(ctx, s.opts.Records, req.Environment)
		return nil, err
	}
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	var before time.Time
	if req.Before != nil {
		before = req.Before.AsTime()
	}
	releases, err := s.opts.Records.Releases(ctx, records.ReleaseQuery{Org: org, App: app, Env: &req.Environment, Earlier: before, Limit: limit})
	if err != nil {
		return nil, err
	}
	pulls, err := s.opts.Records.Pulls(ctx, records.PullQuery{Org: org, Env: req.Environment, App: app, Before: before, Limit: limit})
	if err != nil {
		return nil, err
	}
	return &slipwayv1.ListHistoryResponse{Entries: s.history(releases, pulls, limit)}, nil
}

// history merges releases and pulls, each newest first.
func (s *environmentService) history(releases []records.Release, pulls []records.Pull, limit int) []*slipwayv1.HistoryEntry {
	var out []*slipwayv1.HistoryEntry
	for len(out) < limit && len(releases)+len(pulls) > 0 {
		if len(pulls) == 0 || len(releases) > 0 && releases[0].Created.After(pulls[0].Last) {
			r := releases[0]
			releases = releases[1:]
			out = append(out, &slipwayv1.HistoryEntry{Time: timestamppb.New(r.Created), Entry: &slipwayv1.HistoryEntry_Release{Release: releaseProto(s.opts.Registry, r)}})
			continue
		}
		p := pulls[0]
		pulls = pulls[1:]
		out = append(out, &slipwayv1.HistoryEntry{Time: timestamppb.New(p.Last), Entry: &slipwayv1.HistoryEntry_Pull{Pull: pullProto(p)}})
	}
	return out
}

// pageSize is the number of entries that a list may have.
func pageSize(limit uint32) int {
	if limit == 0 {
		return 50
	}
	return int(min(limit, 1000))
}

// flush has what was just pulled recorded.
func (s *environmentService) flush(ctx context.Context) error {
	if s.opts.Pulls == nil {
		return nil
	}
	return s.opts.Pulls.Flush(ctx)
}

func environmentProto(e records.Environment) *slipwayv1.Environment {
	return &slipwayv1.Environment{Name: e.Name, CreatedBy: e.CreatedBy, Created: timestamppb.New(e.Created)}
}

func pullProto(p records.Pull) *slipwayv1.Pull {
	return &slipwayv1.Pull{
		App: p.App, Environment: p.Env, Digest: p.Digest, Tag: p.Tag, First: timestamppb.New(p.First), Last: timestamppb.New(p.Last),
		Count: uint64(p.Count), TokenId: p.TokenID, TokenName: p.TokenName, Address: p.Address, UserAgent: p.UserAgent,
	}
}

func releaseProto(host string, r records.Release) *slipwayv1.Release {
	image := host + "/" + r.App
	if r.Tag != "" {
		image += ":" + r.Tag
	} else {
		image += "@" + r.Digest
	}
	return &slipwayv1.Release{
		Id: r.ID, App: r.App, Environment: r.Env, Version: uint64(r.Version), Image: image, Digest: r.Digest, BuildId: r.BuildID,
		PromotedFrom: r.PromotedFrom, CreatedBy: r.CreatedBy, Created: timestamppb.New(r.Created),
	}
}
