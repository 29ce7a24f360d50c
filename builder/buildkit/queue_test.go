package buildkit

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A build gives its place away only while its client asks for nothing, and never
// after it has said all.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var resting atomic.Int64
		var r rest
		check := func(after time.Duration, want int64, what string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := resting.Load(); got != want {
				t.Errorf("%s: resting is %d, want %d", what, got, want)
			}
		}
		r.enter()() // before the build has its turn
		check(2*idle, 0, "not begun")
		r.start(func() func() { resting.Add(1); return func() { resting.Add(-1) } })
		check(idle/2, 0, "just begun")
		first, second := r.enter(), r.enter()
		check(2*idle, 0, "two calls")
		first()
		check(2*idle, 0, "one call")
		second()
		check(idle/2, 0, "a moment later")
		r.enter()()
		check(idle*3/4, 0, "a moment after a short call")
		check(idle, 1, "nothing for a while")
		r.enter()()
		check(0, 0, "a call")
		check(2*idle, 1, "nothing again")
		r.end()
		check(2*idle, 0, "all said")
		r.enter()()
		check(2*idle, 0, "a call after that")
	})
}

// A ledger is a queue that keeps what it has seen.
type ledger struct {
	mu     sync.Mutex
	events []*slipwayv1.Event
	result *slipwayv1.Result
}

func (l *ledger) Do(ctx context.Context, g builder.Guest) (*slipwayv1.Result, error) {
	turn := builder.Turn{Request: builder.Request{ID: "1", Org: "acme", Start: g.Start}, Rest: func() func() { return func() {} }, Emit: func(e *slipwayv1.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.events = append(l.events, e)
	}}
	l.result = g.Run(ctx, turn)
	return l.result, nil
}

// Steps of a definition that no Dockerfile stands behind are in the log by
// BuildKit's names for them, and the result counts them.
func TestLogOfPlainDefinition(t *testing.T) {
	h := openHouse(t, 0)
	l := &ledger{}
	h.api.opts.Queue = l
	c := h.client("acme//alice")
	st := llb.Scratch().File(llb.Mkfile("/one", 0o644, []byte("1"))).File(llb.Mkfile("/two", 0o644, []byte("2"))).
		File(llb.Mkdir("/u", 0o755), llb.WithCustomName("[3/3] ADD https://user:hunter2@h/x"))
	def, err := st.Marshal(t.Context())
	fatal(t, err)
	_, err = c.Solve(t.Context(), def, client.SolveOpt{}, nil)
	fatal(t, err)
	started, names := 0, ""
	if strings.Contains(fmt.Sprint(l.events), "hunter2") {
		t.Errorf("a password is in the log: %v", l.events)
	}
	for _, e := range l.events {
		switch e := e.Event.(type) {
		case *slipwayv1.Event_StepStarted:
			started++
		case *slipwayv1.Event_Plan:
			names = ""
			for _, s := range e.Plan.Steps {
				names += s.Source + "\n"
			}
		}
	}
	if started != 3 || !strings.Contains(names, "mkfile /one") || !strings.Contains(names, "mkfile /two") || l.result.Steps != 3 || l.result.Status != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED {
		t.Errorf("%d steps began of %q; result %v", started, names, l.result)
	}
}

// All calls of a client for a build that was refused say why: it shows the
// first that it hears of. Nobody else learns of it.
func TestRefusedBuildSaysWhyEverywhere(t *testing.T) {
	h := openHouse(t, 0)
	ref := identity.NewID()
	_, err := h.client("acme//alice").ControlClient().Solve(t.Context(), &controlapi.SolveRequest{Ref: ref, Exporters: []*controlapi.Exporter{{Type: "moby"}}})
	is(t, "solve", err, codes.Unimplemented, "use one of image")
	conn, err := grpc.NewClient("passthrough:///house", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return h.pipe.DialContext(ctx) }))
	fatal(t, err)
	defer conn.Close()
	ping := func(who string) error {
		ctx := metadata.AppendToOutgoingContext(buildid.AppendToOutgoingContext(t.Context(), ref), "who", who)
		_, err := gateway.NewLLBBridgeClient(conn).Ping(ctx, &gateway.PingRequest{})
		return err
	}
	is(t, "ping", ping("acme//alice"), codes.Unimplemented, "use one of image")
	is(t, "ping of another client", ping("acme//eve"), codes.NotFound, "no such job")
}

// What the image of an app's last build consists of is kept longest.
func TestImageOfLastBuildIsPinned(t *testing.T) {
	h := openHouse(t, 0)
	c := h.client("acme//alice")
	build := func(name, file string) {
		def, err := llb.Scratch().File(llb.Mkfile("/"+file, 0o644, []byte(file))).Marshal(t.Context())
		fatal(t, err)
		_, err = c.Solve(t.Context(), def, client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": ownHost + "/" + name, "push": "true"}}}}, nil)
		fatal(t, err)
	}
	build("shop:1", "one")
	build("shop:2", "two")
	build("blog:1", "three")
	tenant, err := h.engine.tenant(t.Context(), "acme")
	fatal(t, err)
	recs, err := (&Lodger{Manager: tenant.worker.Worker.CacheManager(), Metadata: tenant.worker.MetadataStore}).Records(t.Context())
	fatal(t, err)
	var pinned []string
	for _, r := range recs {
		if r.Pinned {
			pinned = append(pinned, r.What)
		}
	}
	if text := fmt.Sprint(pinned); len(pinned) != 2 || !strings.Contains(text, "two") || !strings.Contains(text, "three") {
		t.Errorf("pinned are %q of %d records", pinned, len(recs))
	}
}
