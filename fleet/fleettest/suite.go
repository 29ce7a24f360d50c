// Package fleettest holds engines to the contract of [fleet.Engine].
package fleettest

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/fleet"
)

// patience is when a test that waits has failed.
const patience = time.Minute

// Run tests engines that open returns. Each test opens one, empty, with a backlog
// of at least 10 unless opts says otherwise; open has it closed after the test.
func Run(t *testing.T, open func(t *testing.T, opts *fleet.Options) fleet.Engine) {
	for _, tests := range []map[string]func(*testing.T, fleet.Engine){queueTests, positionTests, signalTests, logTests, closeTests} {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { test(t, open(t, nil)) })
		}
	}
	t.Run("backlog of two", func(t *testing.T) { testBacklog(t, open(t, &fleet.Options{Backlog: 2}), 2) })
}

// RunDurable tests what engines that keep their data in dir know after a restart.
// It closes them itself.
func RunDurable(t *testing.T, open func(t *testing.T, dir string) fleet.Engine) {
	for name, test := range restartTests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			test(t, func() fleet.Engine { return open(t, dir) })
		})
	}
}

// waiting returns a context that ends when the test has waited too long.
func waiting(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("waited for %v", patience))
	t.Cleanup(cancel)
	return ctx
}

func job(id, org, app string) fleet.Job {
	return fleet.Job{ID: id, Org: org, App: app, Payload: []byte("build " + id)}
}

func submit(t *testing.T, e fleet.Engine, jobs ...fleet.Job) {
	t.Helper()
	for _, j := range jobs {
		if err := e.Submit(waiting(t), j); err != nil {
			t.Fatalf("Submit %s: %v", j.ID, err)
		}
	}
}

func next(t *testing.T, e fleet.Engine) *fleet.Task {
	t.Helper()
	task, err := e.Next(waiting(t))
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	return task
}

func end(t *testing.T, tasks ...*fleet.Task) {
	t.Helper()
	for _, task := range tasks {
		if err := task.Done(waiting(t)); err != nil {
			t.Fatalf("Done %s: %v", task.ID, err)
		}
	}
}

func openLog(t *testing.T, e fleet.Engine, id string) fleet.Log {
	t.Helper()
	l, err := e.Log(waiting(t), id)
	if err != nil {
		t.Fatalf("Log %s: %v", id, err)
	}
	return l
}

// line is the payload that tests give entry n.
func line(n uint64) string { return fmt.Sprintf("line %d", n) }

// write appends entries from to last.
func write(t *testing.T, l fleet.Log, from, last uint64) {
	t.Helper()
	for n := from; n <= last; n++ {
		seq, err := l.Append([]byte(line(n)))
		if err != nil || seq != n {
			t.Fatalf("Append %d: number %d, error %v", n, seq, err)
		}
	}
}

func endLog(t *testing.T, l fleet.Log) {
	t.Helper()
	if err := l.End(waiting(t)); err != nil {
		t.Fatalf("End: %v", err)
	}
	closeLog(t, l)
}

func closeLog(t *testing.T, l fleet.Log) {
	t.Helper()
	if err := l.Close(waiting(t)); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// check reads a log to its end, which must have the entries from to last.
func check(entries iter.Seq2[fleet.Entry, error], from, last uint64) error {
	want := from
	for en, err := range entries {
		if err != nil {
			return fmt.Errorf("instead of entry %d: %w", want, err)
		}
		if en.Seq != want || string(en.Payload) != line(want) {
			return fmt.Errorf("entry %d %q, want %d", en.Seq, en.Payload, want)
		}
		want++
	}
	if want != last+1 {
		return fmt.Errorf("ends before entry %d, want after %d", want, last)
	}
	return nil
}

func checkLog(t *testing.T, e fleet.Engine, id string, from, last uint64) {
	t.Helper()
	if err := check(e.Watch(waiting(t), id, from), from, last); err != nil {
		t.Errorf("log %s from %d: %v", id, from, err)
	}
}

// receive returns the next value of a channel.
func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatal("channel is closed")
		}
		return v
	case <-waiting(t).Done():
		t.Fatalf("nothing received in %v", patience)
		panic("unreachable")
	}
}
