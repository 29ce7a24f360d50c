package client

import (
	"context"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"google.golang.org/grpc"
)

// call makes one short call within the client's time-out.
func call[Req, Resp any](ctx context.Context, c *Client, f func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.timeout())
	defer cancel()
	resp, err := f(ctx, req)
	if err != nil {
		return resp, c.fail(err)
	}
	return resp, nil
}

// WhoAmI describes the client's token.
func (c *Client) WhoAmI(ctx context.Context) (*slipwayv1.WhoAmIResponse, error) {
	return call(ctx, c, c.system.WhoAmI, &slipwayv1.WhoAmIRequest{})
}

// Info describes the daemon.
func (c *Client) Info(ctx context.Context) (*slipwayv1.InfoResponse, error) {
	return call(ctx, c, c.system.Info, &slipwayv1.InfoRequest{})
}

// GetBuild returns one build's record.
func (c *Client) GetBuild(ctx context.Context, id string) (*slipwayv1.Build, error) {
	r, err := call(ctx, c, c.builds.GetBuild, &slipwayv1.GetBuildRequest{Id: id})
	if err != nil {
		return nil, err
	}
	return r.GetBuild(), nil
}

// ListBuilds returns builds, newest first.
func (c *Client) ListBuilds(ctx context.Context, req *slipwayv1.ListBuildsRequest) ([]*slipwayv1.Build, error) {
	r, err := call(ctx, c, c.builds.ListBuilds, req)
	if err != nil {
		return nil, err
	}
	return r.GetBuilds(), nil
}

// CancelBuild stops a build and returns its record.
func (c *Client) CancelBuild(ctx context.Context, id string) (*slipwayv1.Build, error) {
	r, err := call(ctx, c, c.builds.CancelBuild, &slipwayv1.CancelBuildRequest{Id: id})
	if err != nil {
		return nil, err
	}
	return r.GetBuild(), nil
}

// CacheUsage sums the cache up, of one app or, if that is empty, of all.
func (c *Client) CacheUsage(ctx context.Context, app string) (*slipwayv1.UsageResponse, error) {
	return call(ctx, c, c.cache.Usage, &slipwayv1.UsageRequest{App: app})
}

// Prune trims the cache. It takes as long as it takes.
func (c *Client) Prune(ctx context.Context, req *slipwayv1.PruneRequest) (*slipwayv1.PruneResponse, error) {
	r, err := c.cache.Prune(ctx, req)
	if err != nil {
		return nil, c.fail(err)
	}
	return r, nil
}
