package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/fleet/fleettest"
)

func TestDial(t *testing.T) {
	fleettest.Run(t, func(t *testing.T, opts *fleet.Options) fleet.Engine {
		return dial(t, startServer(t), opts)
	})
}

// A worker whose job was handed to another one can no longer end it.
func TestLostJob(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url := startServer(t)
	takeBack := spy(t, url)
	slow, other := dial(t, url, nil), dial(t, url, nil)

	first := start(t, slow, "a")
	takeBack("a")
	second, err := other.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if second.ID != "a" || second.Attempt != 2 {
		t.Errorf("started %s, attempt %d; want a, attempt 2", second.ID, second.Attempt)
	}
	if err := first.Done(ctx); !errors.Is(err, fleet.ErrLost) {
		t.Errorf("Done of the first: %v, want %v", err, fleet.ErrLost)
	}
	if err := second.Done(ctx); err != nil {
		t.Errorf("Done of the second: %v", err)
	}
}

// A job that the server hands out again although its worker lives, as after a
// suspend, stays one task.
func TestJobTwiceInOneEngine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url := startServer(t)
	takeBack := spy(t, url)
	e := dial(t, url, nil)

	a := start(t, e, "a")
	takeBack("a")
	if b := start(t, e, "b"); b.ID != "b" || b.Attempt != 1 { // the lane has both
		t.Errorf("started %s, attempt %d; want b, attempt 1", b.ID, b.Attempt)
	}
	if err := a.Done(ctx); err != nil {
		t.Errorf("Done: %v", err)
	}
	if err := e.Submit(ctx, fleet.Job{ID: "c", Org: "org", App: "app"}); err != nil {
		t.Fatal(err)
	}
	if c, err := e.Next(ctx); err != nil || c.ID != "c" {
		t.Errorf("Next: %+v, %v; want c", c, err)
	}
}

// start submits a job and returns the next one, which should be it.
func start(t *testing.T, e fleet.Engine, id string) *fleet.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := e.Submit(ctx, fleet.Job{ID: id, Org: "org", App: "app"}); err != nil {
		t.Fatal(err)
	}
	task, err := e.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// spy listens to what the server hands out, and returns a function that takes a job
// from its worker, as the server does when it has not heard of it for long.
func spy(t *testing.T, url string) func(id string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	sub, err := nc.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func(id string) {
		t.Helper()
		for {
			m, err := sub.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(m.Reply, "$JS.ACK.SLIPWAY_QUEUE.") && strings.Contains(m.Header.Get("Slipway-Job"), fmt.Sprintf("%q", id)) {
				if _, err := nc.Request(m.Reply, []byte("-NAK"), patience); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
}

func TestTwoEngines(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url := startServer(t)
	front, worker := dial(t, url, nil), dial(t, url, nil)

	if err := front.Submit(ctx, fleet.Job{ID: "a", Org: "org", App: "app"}); err != nil {
		t.Fatal(err)
	}
	if err := worker.Submit(ctx, fleet.Job{ID: "a", Org: "org", App: "app"}); !errors.Is(err, fleet.ErrExists) {
		t.Errorf("Submit: %v, want %v", err, fleet.ErrExists)
	}
	started := make(chan *fleet.Task, 1)
	for pos, err := range front.Positions(ctx, "a") {
		if err != nil {
			t.Fatal(err)
		}
		if pos == 1 {
			go func() {
				task, err := worker.Next(ctx)
				if err != nil {
					t.Error(err)
				}
				started <- task
			}()
		}
	}
	task := <-started
	if err := front.Signal(ctx, "a", []byte("cancel")); err != nil {
		t.Errorf("Signal: %v", err)
	}
	if got := <-task.Signals(); string(got) != "cancel" {
		t.Errorf("signal %q", got)
	}

	// The last to append wins.
	early, err := front.Log(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := early.Append([]byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := early.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	late, err := worker.Log(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if seq, err := late.Append([]byte("2")); seq != 2 || err != nil {
		t.Fatalf("Append: %d, %v; want 2", seq, err)
	}
	if err := late.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := early.Append([]byte("also 2")); err != nil {
		t.Fatal(err)
	}
	if err := early.Flush(ctx); !errors.Is(err, fleet.ErrFenced) {
		t.Errorf("Flush of the other writer: %v, want %v", err, fleet.ErrFenced)
	}
	if err := late.End(ctx); err != nil {
		t.Fatal(err)
	}
	var got string
	for en, err := range front.Watch(ctx, "a", 1) {
		if err != nil {
			t.Fatal(err)
		}
		got += string(en.Payload)
	}
	if got != "12" {
		t.Errorf("log %q, want 12", got)
	}
}

func dial(t *testing.T, url string, opts *fleet.Options) *fleet.JetStream {
	t.Helper()
	e, err := fleet.Dial(t.Context(), url, opts)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { _ = e.Close(context.Background()) }) // a fenced log fails here
	return e
}

// startServer runs a NATS server on a port of its own and returns its URL.
func startServer(t *testing.T) string {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(patience) {
		t.Fatal("server does not start")
	}
	return srv.ClientURL()
}
