package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/fleet/fleettest"
)

// patience is when a test that waits has failed.
const patience = time.Minute

func TestEmbedded(t *testing.T) {
	fleettest.Run(t, func(t *testing.T, opts *fleet.Options) fleet.Engine {
		e := open(t, t.TempDir(), opts)
		t.Cleanup(func() { closeEngine(t, e) })
		return e
	})
}

func TestEmbeddedRestart(t *testing.T) {
	fleettest.RunDurable(t, func(t *testing.T, dir string) fleet.Engine { return open(t, dir, nil) })
}

func TestOpenWhatIsNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := fleet.Open(t.Context(), file, nil); err == nil {
		closeEngine(t, e)
		t.Error("no error")
	}
}

// Options may change between two engines of a store.
func TestOptionsChange(t *testing.T) {
	dir := t.TempDir()
	submit := func(backlog int, id string) error {
		e := open(t, dir, &fleet.Options{Backlog: backlog, LogBytes: int64(backlog) << 20, Keep: time.Duration(backlog) * time.Hour})
		defer closeEngine(t, e)
		return e.Submit(t.Context(), fleet.Job{ID: id, Org: "org", App: "app"})
	}
	for i, tc := range []struct {
		backlog int
		want    error
	}{{1, nil}, {1, fleet.ErrBacklog}, {2, nil}, {1, fleet.ErrBacklog}, {3, nil}} {
		if err := submit(tc.backlog, fmt.Sprint("j", i)); !errors.Is(err, tc.want) {
			t.Errorf("Submit with a backlog of %d: %v, want %v", tc.backlog, err, tc.want)
		}
	}
}

// When logs grow too large the oldest entries go, and a log that has lost all its
// entries goes on.
func TestLogBytes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e := open(t, t.TempDir(), &fleet.Options{LogBytes: 1 << 20})
	defer closeEngine(t, e)
	quiet, err := e.Log(ctx, "quiet")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := quiet.Append([]byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := quiet.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	loud, err := e.Log(ctx, "loud")
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 10<<10)
	for range 300 {
		if _, err := loud.Append(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := loud.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Tail(ctx, "quiet"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("Tail: %v, want %v", err, fleet.ErrNotFound)
	}
	if seq, err := quiet.Append([]byte("second")); seq != 2 || err != nil {
		t.Errorf("Append: %d, %v; want 2", seq, err)
	}
	if err := quiet.End(ctx); err != nil {
		t.Fatalf("End: %v", err)
	}
	n := 0
	for en, err := range e.Watch(ctx, "quiet", 1) {
		if n++; err != nil || en.Seq != 2 || string(en.Payload) != "second" {
			t.Errorf("entry %d %q, %v; want 2", en.Seq, en.Payload, err)
		}
	}
	if n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
}

func open(tb testing.TB, dir string, opts *fleet.Options) *fleet.JetStream {
	tb.Helper()
	o := fleet.Options{}
	if opts != nil {
		o = *opts
	}
	o.Log = slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := fleet.Open(tb.Context(), dir, &o)
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	return e
}

func closeEngine(tb testing.TB, e fleet.Engine) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		tb.Errorf("Close: %v", err)
	}
}
