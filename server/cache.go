package server

import (
	"context"
	"math"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/tokens"
)

// cacheService serves CacheService.
type cacheService struct {
	slipwayv1.UnimplementedCacheServiceServer
	opts Options
}

// Usage implements CacheService.
func (c *cacheService) Usage(ctx context.Context, req *slipwayv1.UsageRequest) (*slipwayv1.UsageResponse, error) {
	if err := allow(ctx, tokens.ScopeCacheRead, req.App); err != nil {
		return nil, err
	}
	u, err := c.opts.Cache.Usage(ctx, caller(ctx).Org, req.App)
	if err != nil {
		return nil, err
	}
	out := &slipwayv1.UsageResponse{Bytes: uint64(u.Bytes), Limit: uint64(max(0, u.Limit)), DiskFree: uint64(u.DiskFree)}
	for _, a := range u.Apps {
		out.Apps = append(out.Apps, &slipwayv1.AppUsage{App: a.App, Bytes: uint64(a.Bytes), Records: uint64(a.Records), LastUsed: timestamppb.New(a.LastUsed)})
	}
	for _, k := range u.Kinds {
		out.Kinds = append(out.Kinds, &slipwayv1.KindUsage{Kind: k.Kind, Bytes: uint64(k.Bytes), Count: uint64(k.Count)})
	}
	for _, e := range u.Evictions {
		out.Evictions = append(out.Evictions, &slipwayv1.Eviction{Time: timestamppb.New(e.Time), What: e.What, App: e.App, Bytes: uint64(e.Bytes), Reason: e.Reason})
	}
	return out, nil
}

// Prune implements CacheService.
func (c *cacheService) Prune(ctx context.Context, req *slipwayv1.PruneRequest) (*slipwayv1.PruneResponse, error) {
	if err := allow(ctx, tokens.ScopeCacheWrite, req.App); err != nil {
		return nil, err
	}
	if req.OlderThan.AsDuration() < 0 {
		return nil, failure.Userf(failure.InvalidArgument, "", "older_than is %s", req.OlderThan.AsDuration())
	}
	p, err := c.opts.Cache.Prune(ctx, layercache.PruneOptions{
		Org: caller(ctx).Org, App: req.App, All: req.All, OlderThan: req.OlderThan.AsDuration(), KeepBytes: int64(min(req.KeepBytes, math.MaxInt64)),
	})
	if err != nil {
		return nil, err
	}
	return &slipwayv1.PruneResponse{FreedBytes: uint64(p.Bytes), Records: uint64(p.Records)}, nil
}
