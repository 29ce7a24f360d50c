package server

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

// find returns a build of the caller's org that the caller may see.
func (f *Front) find(ctx context.Context, id, action string) (*records.Build, error) {
	b, err := f.opts.Records.Get(ctx, caller(ctx).Org, id)
	if errors.Is(err, records.ErrNotFound) {
		return nil, failure.Userf(failure.NotFound, "list builds with slipway builds list", "there is no build %s", id)
	}
	if err != nil {
		return nil, err
	}
	return b, allow(ctx, action, b.App)
}

// GetBuild implements BuildService.
func (f *Front) GetBuild(ctx context.Context, req *slipwayv1.GetBuildRequest) (*slipwayv1.GetBuildResponse, error) {
	b, err := f.find(ctx, req.Id, tokens.ScopeBuildRead)
	if err != nil {
		return nil, err
	}
	return &slipwayv1.GetBuildResponse{Build: buildProto(b)}, nil
}

// ListBuilds implements BuildService.
func (f *Front) ListBuilds(ctx context.Context, req *slipwayv1.ListBuildsRequest) (*slipwayv1.ListBuildsResponse, error) {
	p := caller(ctx)
	app := req.App
	if app == "" {
		app = p.App
	}
	if err := allow(ctx, tokens.ScopeBuildRead, app); err != nil {
		return nil, err
	}
	limit := int(min(req.Limit, 1000))
	if limit == 0 {
		limit = 50
	}
	list, err := f.opts.Records.List(ctx, records.Query{Org: p.Org, App: app, Before: req.BeforeId, Limit: limit})
	if err != nil {
		return nil, err
	}
	resp := &slipwayv1.ListBuildsResponse{}
	for _, b := range list {
		p := buildProto(b)
		if p.Result != nil {
			p.Result.Layers = nil // a thousand builds would not fit into a message
		}
		resp.Builds = append(resp.Builds, p)
	}
	return resp, nil
}

// WatchBuild implements BuildService.
func (f *Front) WatchBuild(req *slipwayv1.WatchBuildRequest, stream grpc.ServerStreamingServer[slipwayv1.WatchBuildResponse]) error {
	ctx := stream.Context()
	b, err := f.find(ctx, req.Id, tokens.ScopeBuildRead)
	if err != nil {
		return err
	}
	defer f.hub.watch(b.ID)()
	send := func(e *slipwayv1.Event) error { return stream.Send(&slipwayv1.WatchBuildResponse{Event: e}) }
	from := max(1, req.FromSeq)
	if req.ReplayOnly {
		return f.follow(ctx, b.ID, from, true, send)
	}
	return f.toResult(ctx, b, from, send)
}

// CancelBuild implements BuildService.
func (f *Front) CancelBuild(ctx context.Context, req *slipwayv1.CancelBuildRequest) (*slipwayv1.CancelBuildResponse, error) {
	b, err := f.find(ctx, req.Id, tokens.ScopeBuildWrite)
	if err != nil {
		return nil, err
	}
	if !b.Done() {
		if err := f.cancel(ctx, b, errCancelled); err != nil {
			return nil, err
		}
		if b, err = f.opts.Records.Get(ctx, b.Org, b.ID); err != nil {
			return nil, err
		}
	}
	return &slipwayv1.CancelBuildResponse{Build: buildProto(b)}, nil
}

// cancel takes a build out of the queue, or stops it, for cause.
func (f *Front) cancel(ctx context.Context, b *records.Build, cause *failure.Error) error {
	s := f.hub.get(b.ID)
	waiting, err := f.opts.Engine.Remove(ctx, b.ID)
	switch {
	case waiting:
		return f.endQueued(ctx, b, s, cause)
	case s != nil:
		s.cancel(cause) // runs here, or will
		return nil
	case errors.Is(err, fleet.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	err = f.opts.Engine.Signal(ctx, b.ID, []byte("cancel"))
	if errors.Is(err, fleet.ErrNoListener) {
		return nil // it has just ended
	}
	return err
}

// stop is cancel for a build of this process whose caller cannot be told of
// an error.
func (f *Front) stop(ctx context.Context, id string, cause *failure.Error) {
	s := f.hub.get(id)
	if s == nil {
		return // it has ended
	}
	if err := f.cancel(ctx, &records.Build{ID: id, App: s.start.App}, cause); err != nil {
		f.opts.Log.ErrorContext(ctx, "stop build", "build", id, "err", err)
	}
}

// abandon ends a build that nobody watches any more.
func (f *Front) abandon(id string, cause *failure.Error) { f.stop(context.Background(), id, cause) }

// endQueued writes the result of a build that never started.
func (f *Front) endQueued(ctx context.Context, b *records.Build, s *session, cause *failure.Error) error {
	ctx = context.WithoutCancel(ctx) // it is out of the queue: nobody else will
	var log fleet.Log
	if s != nil {
		defer f.hub.remove(b.ID)
		log = s.log
	} else {
		var err error
		if log, err = f.opts.Engine.Log(ctx, b.ID); err != nil && !errors.Is(err, fleet.ErrEnded) {
			f.opts.Log.ErrorContext(ctx, "build log", "build", b.ID, "err", err)
		}
	}
	return finish(ctx, f.opts, log, b, failed(b.ID, b.App, cause))
}
