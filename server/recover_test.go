package server_test

import (
	"context"
	"iter"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/fleet"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
)

// panics is an engine in which some calls panic.
type panics struct {
	fleet.Engine
	watch, remove atomic.Bool
}

const sensitive = "index out of range in /var/lib/slipway/x"

func (p *panics) Watch(ctx context.Context, id string, from uint64) iter.Seq2[fleet.Entry, error] {
	if p.watch.Load() {
		panic(sensitive)
	}
	return p.Engine.Watch(ctx, id, from)
}

func (p *panics) Remove(ctx context.Context, id string) (bool, error) {
	if p.remove.Load() {
		panic(sensitive)
	}
	return p.Engine.Remove(ctx, id)
}

func startPanicking(t *testing.T, workers int) (*daemon, *panics) {
	t.Helper()
	p := &panics{}
	d := start(t, &script{}, workers, func(o *server.Options, f *fleet.Options) {
		p.Engine = fleet.NewMemory(f)
		o.Engine = p
		o.Checks = func(context.Context) []*slipwayv1.Check { panic(sensitive) }
	})
	return d, p
}

// wantPanic checks that a call failed as one that panicked, and that another
// one is answered.
func (d *daemon) wantPanic(what string, err error) {
	d.t.Helper()
	st := status.Convert(err)
	if st.Code() != codes.Internal || strings.Contains(st.String(), sensitive) {
		d.t.Errorf("%s: %v, want an internal error that does not tell", what, err)
	}
	if len(st.Details()) != 1 || st.Details()[0].(*slipwayv1.Error).GetCode() != failure.Internal {
		d.t.Errorf("%s: details %v", what, st.Details())
	}
	if log := d.log.String(); !strings.Contains(log, sensitive) || !strings.Contains(log, "recover_test.go") {
		d.t.Errorf("%s: the log has no stack: %s", what, log)
	}
	if _, err := slipwayv1.NewSystemServiceClient(d.cc).WhoAmI(as(d.t, "acme"), &slipwayv1.WhoAmIRequest{}); err != nil {
		d.t.Errorf("%s: the next call: %v", what, err)
	}
}

func TestPanicInACall(t *testing.T) {
	d, p := startPanicking(t, 1)
	_, err := slipwayv1.NewSystemServiceClient(d.cc).Info(as(t, "acme"), &slipwayv1.InfoRequest{})
	d.wantPanic("a unary call", err)

	c := d.call("acme", shop())
	c.result()
	p.watch.Store(true)
	s, err := d.client.WatchBuild(as(t, "acme"), &slipwayv1.WatchBuildRequest{Id: c.id})
	check(t, err)
	_, err = s.Recv()
	d.wantPanic("a stream", err)
	p.watch.Store(false)
	if res := d.watch(c.id); res.Error != nil {
		t.Errorf("the build that was watched: %v", res.Error)
	}
}

// What a client says is heard beside the call; a panic there ends its build.
func TestPanicWhileListening(t *testing.T) {
	d, p := startPanicking(t, 0)
	c := d.call("acme", shop())
	p.remove.Store(true)
	check(t, c.stream.Send(&slipwayv1.BuildRequest{Message: &slipwayv1.BuildRequest_Cancel{Cancel: &slipwayv1.Cancel{}}}))
	for !strings.Contains(d.log.String(), sensitive) {
		if _, err := slipwayv1.NewSystemServiceClient(d.cc).WhoAmI(as(t, "acme"), &slipwayv1.WhoAmIRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	p.remove.Store(false)
	d.work(1)
	wantCode(t, c.result(), failure.Internal)
}
