package server_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// invoke calls a method without a request that means anything.
func invoke(ctx context.Context, cc *grpc.ClientConn, method string, m grpc.MethodInfo) error {
	if !m.IsClientStream && !m.IsServerStream {
		return cc.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: m.IsClientStream, ServerStreams: m.IsServerStream}, method)
	if err != nil {
		return err
	}
	_ = s.SendMsg(&emptypb.Empty{})
	_ = s.CloseSend()
	return s.RecvMsg(&emptypb.Empty{})
}

func TestEveryMethodWantsAToken(t *testing.T) {
	d := start(t, &script{}, 0)
	methods := 0
	for name, info := range d.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			method := "/" + name + "/" + m.Name
			if strings.HasPrefix(name, "grpc.health.") {
				continue
			}
			methods++
			for what, md := range map[string]metadata.MD{
				"none": {}, "wrong": metadata.Pairs("authorization", "Bearer nobody"), "expired": metadata.Pairs("authorization", "Bearer expired"),
				"empty": metadata.Pairs("authorization", "Bearer "), "basic": metadata.Pairs("authorization", "Basic acme"), "bare": metadata.Pairs("authorization", "acme"),
			} {
				ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(t.Context(), md))
				err := invoke(ctx, d.cc, method, m)
				cancel()
				if status.Code(err) != codes.Unauthenticated {
					t.Errorf("%s with token %q: %v", method, what, err)
				}
				if text := status.Convert(err).Message(); what == "expired" && text != "token expired 2 days ago" {
					t.Errorf("%s tells its callers: %s", method, text)
				}
			}
		}
	}
	if methods < 10 {
		t.Errorf("only %d methods found", methods)
	}
}

func TestHealthNeedsNoToken(t *testing.T) {
	d := start(t, &script{}, 0)
	h := healthpb.NewHealthClient(d.cc)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		r, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || r.Status != want {
			t.Errorf("health is %v, %v; want %v", r, err, want)
		}
		d.srv.Drain()
	}
}

func TestBrokenTokenStoreLetsNobodyInAndTellsNobody(t *testing.T) {
	d := start(t, &script{}, 0)
	_, err := slipwayv1.NewSystemServiceClient(d.cc).WhoAmI(as(t, "broken"), &slipwayv1.WhoAmIRequest{})
	if status.Code(err) != codes.Unavailable || strings.Contains(status.Convert(err).String(), "/var/lib") {
		t.Errorf("WhoAmI: %v", err)
	}
	if !strings.Contains(d.log.String(), errBroken.Error()) {
		t.Error("the log does not tell what is broken")
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	d := start(t, &script{}, 1)
	c := d.call("acme", shop())
	c.result()
	other := d.call("acme", &slipwayv1.Start{App: "blog"})
	other.result()
	builds, cache := d.client, slipwayv1.NewCacheServiceClient(d.cc)
	get := func(id string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := builds.GetBuild(ctx, &slipwayv1.GetBuildRequest{Id: id})
			return err
		}
	}
	watch := func(ctx context.Context) error {
		s, err := builds.WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: c.id})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	cancel := func(id string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := builds.CancelBuild(ctx, &slipwayv1.CancelBuildRequest{Id: id})
			return err
		}
	}
	build := func(app string) func(context.Context) error {
		return func(ctx context.Context) error {
			s, err := builds.Build(ctx)
			if err != nil {
				return err
			}
			_ = s.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Start{Start: &slipwayv1.Start{App: app}}})
			_, err = s.Recv()
			return err
		}
	}
	list := func(app string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := builds.ListBuilds(ctx, &slipwayv1.ListBuildsRequest{App: app})
			return err
		}
	}
	usage := func(ctx context.Context) error {
		_, err := cache.Usage(ctx, &slipwayv1.UsageRequest{})
		return err
	}
	prune := func(ctx context.Context) error {
		_, err := cache.Prune(ctx, &slipwayv1.PruneRequest{All: true})
		return err
	}
	for _, tc := range []struct {
		token, what string
		do          func(context.Context) error
		want        codes.Code
	}{
		{"acme", "get", get(c.id), codes.OK},
		{"reader", "get", get(c.id), codes.OK},
		{"shop", "get its own", get(c.id), codes.OK},
		{"shop", "get another app's", get(other.id), codes.PermissionDenied},
		{"globex", "get another org's", get(c.id), codes.NotFound},
		{"acme", "get none", get("01ARZ3NDEKTSV4RRFFQ69G5FAV"), codes.NotFound},
		{"acme", "get nonsense", get("../../etc"), codes.NotFound},
		{"globex", "watch another org's", watch, codes.NotFound},
		{"reader", "watch", watch, codes.OK},
		{"globex", "cancel another org's", cancel(c.id), codes.NotFound},
		{"reader", "cancel", cancel(c.id), codes.PermissionDenied},
		{"shop", "cancel another app's", cancel(other.id), codes.PermissionDenied},
		{"shop", "cancel an ended one", cancel(c.id), codes.OK},
		{"reader", "build", build("shop"), codes.PermissionDenied},
		{"shop", "build another app", build("blog"), codes.PermissionDenied},
		{"shop", "list all", list(""), codes.OK},
		{"shop", "list another app's", list("blog"), codes.PermissionDenied},
		{"shop", "usage of all", usage, codes.PermissionDenied},
		{"reader", "prune", prune, codes.PermissionDenied},
		{"acme", "prune", prune, codes.OK},
	} {
		if err := tc.do(as(t, tc.token)); status.Code(err) != tc.want {
			t.Errorf("%s: %s: %v, want %v", tc.token, tc.what, err, tc.want)
		}
	}
	mine, err := builds.ListBuilds(as(t, "shop"), &slipwayv1.ListBuildsRequest{})
	check(t, err)
	theirs, err := builds.ListBuilds(as(t, "globex"), &slipwayv1.ListBuildsRequest{})
	check(t, err)
	if len(mine.Builds) != 1 || len(theirs.Builds) != 0 {
		t.Errorf("a deploy token lists %d builds, another org %d", len(mine.Builds), len(theirs.Builds))
	}
}
