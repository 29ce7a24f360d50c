package client

import (
	"context"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// CreateEnvironment makes an environment, and a token for it if that is asked
// for.
func (c *Client) CreateEnvironment(ctx context.Context, req *slipwayv1.CreateEnvironmentRequest) (*slipwayv1.CreateEnvironmentResponse, error) {
	return call(ctx, c, c.envs.CreateEnvironment, req)
}

// Environments returns the environments that there are.
func (c *Client) Environments(ctx context.Context) ([]*slipwayv1.Environment, error) {
	r, err := call(ctx, c, c.envs.ListEnvironments, &slipwayv1.ListEnvironmentsRequest{})
	if err != nil {
		return nil, err
	}
	return r.GetEnvironments(), nil
}

// Environment returns one environment with the state of an app, or of all if
// that is empty.
func (c *Client) Environment(ctx context.Context, name, app string) (*slipwayv1.Environment, error) {
	r, err := call(ctx, c, c.envs.GetEnvironment, &slipwayv1.GetEnvironmentRequest{Name: name, App: app})
	if err != nil {
		return nil, err
	}
	return r.GetEnvironment(), nil
}

// DeleteEnvironment removes an environment and returns the tokens that this
// revoked.
func (c *Client) DeleteEnvironment(ctx context.Context, name string) ([]string, error) {
	r, err := call(ctx, c, c.envs.DeleteEnvironment, &slipwayv1.DeleteEnvironmentRequest{Name: name})
	if err != nil {
		return nil, err
	}
	return r.GetRevoked(), nil
}

// History returns what was released to and pulled from an environment.
func (c *Client) History(ctx context.Context, req *slipwayv1.ListHistoryRequest) ([]*slipwayv1.HistoryEntry, error) {
	r, err := call(ctx, c, c.envs.ListHistory, req)
	if err != nil {
		return nil, err
	}
	return r.GetEntries(), nil
}

// CreateRelease records that an image is released.
func (c *Client) CreateRelease(ctx context.Context, req *slipwayv1.CreateReleaseRequest) (*slipwayv1.Release, error) {
	r, err := call(ctx, c, c.envs.CreateRelease, req)
	if err != nil {
		return nil, err
	}
	return r.GetRelease(), nil
}

// Releases returns releases, newest first.
func (c *Client) Releases(ctx context.Context, req *slipwayv1.ListReleasesRequest) ([]*slipwayv1.Release, error) {
	r, err := call(ctx, c, c.envs.ListReleases, req)
	if err != nil {
		return nil, err
	}
	return r.GetReleases(), nil
}

// Promote releases to one environment what another one has.
func (c *Client) Promote(ctx context.Context, req *slipwayv1.PromoteRequest) (*slipwayv1.PromoteResponse, error) {
	return call(ctx, c, c.envs.Promote, req)
}
