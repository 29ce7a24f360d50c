package fleettest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

var restartTests = map[string]func(t *testing.T, open func() fleet.Engine){
	"the queue": func(t *testing.T, open func() fleet.Engine) {
		e := open()
		submit(t, e, job("done", "a", "app"), job("removed", "a", "app"))
		end(t, next(t, e))
		if ok, err := e.Remove(waiting(t), "removed"); !ok || err != nil {
			t.Fatalf("Remove: %v, %v", ok, err)
		}
		submit(t, e, job("b0", "b", "app"), job("b1", "b", "app"), job("running", "a", "app"))
		b0 := next(t, e)
		next(t, e) // b1 waits longer, but a has nothing running
		end(t, b0)
		submit(t, e, job("a1", "a", "app"), job("a2", "a", "app"))
		closeEngine(t, e)

		e = open()
		defer closeEngine(t, e)
		for _, id := range []string{"done", "removed", "running", "b0", "b1", "a1"} {
			if err := e.Submit(waiting(t), job(id, "a", "app")); !errors.Is(err, fleet.ErrExists) {
				t.Errorf("Submit of %s: %v, want %v", id, err, fleet.ErrExists)
			}
		}
		if got := receive(t, positions(t, e, "a2")); got.at < 3 || got.err != nil {
			t.Errorf("a2 is at %v", got)
		}
		for _, want := range []struct {
			id      string
			attempt int
		}{{"running", 2}, {"b1", 1}, {"a1", 1}, {"a2", 1}} {
			task := next(t, e)
			if task.ID != want.id || task.Attempt != want.attempt || string(task.Payload) != "build "+want.id {
				t.Errorf("started %s, attempt %d, %q; want %v", task.ID, task.Attempt, task.Payload, want)
			}
			if want.id == "running" {
				if err := e.Signal(waiting(t), "running", nil); err != nil {
					t.Errorf("Signal: %v", err)
				}
			}
		}
	},

	"a job given out again and again": func(t *testing.T, open func() fleet.Engine) {
		e := open()
		submit(t, e, job("a", "org", "app"))
		for n := 1; n <= 3; n++ {
			if task := next(t, e); task.ID != "a" || task.Attempt != n {
				t.Errorf("started %s, attempt %d; want a, attempt %d", task.ID, task.Attempt, n)
			}
			closeEngine(t, e)
			e = open()
		}
		end(t, next(t, e))
		closeEngine(t, e)
		e = open()
		defer closeEngine(t, e)
		submit(t, e, job("b", "org", "app"))
		if task := next(t, e); task.ID != "b" {
			t.Errorf("started %s after it was done", task.ID)
		}
	},

	"logs": func(t *testing.T, open func() fleet.Engine) {
		e := open()
		l := openLog(t, e, "ended")
		write(t, l, 1, 120)
		endLog(t, l)
		write(t, openLog(t, e, "open"), 1, 60) // Close of the engine flushes
		closeEngine(t, e)

		e = open()
		checkLog(t, e, "ended", 1, 120)
		checkLog(t, e, "ended", 77, 120)
		if _, err := e.Log(waiting(t), "ended"); !errors.Is(err, fleet.ErrEnded) {
			t.Errorf("Log: %v, want %v", err, fleet.ErrEnded)
		}
		c := follow(t, e, "open", 31)
		for n := uint64(31); n <= 60; n++ {
			if got := receive(t, c); got.Seq != n || string(got.Payload) != line(n) {
				t.Fatalf("entry %d %q, want %d", got.Seq, got.Payload, n)
			}
		}
		l = openLog(t, e, "open")
		write(t, l, 61, 61)
		if got := receive(t, c); got.Seq != 61 {
			t.Errorf("entry %d, want 61", got.Seq)
		}
		endLog(t, l)
		if got, more := <-c; more {
			t.Errorf("entry %d after the end", got.Seq)
		}
		closeEngine(t, e)

		e = open()
		defer closeEngine(t, e)
		checkLog(t, e, "open", 1, 61)
	},

	"the backlog": func(t *testing.T, open func() fleet.Engine) {
		e := open()
		for i := range 10 {
			submit(t, e, job(fmt.Sprint("j", i), "org", "app"))
		}
		closeEngine(t, e)
		e = open()
		defer closeEngine(t, e)
		if err := e.Submit(waiting(t), job("more", "org", "app")); !errors.Is(err, fleet.ErrBacklog) {
			t.Errorf("Submit: %v, want %v", err, fleet.ErrBacklog)
		}
	},
}

func closeEngine(t *testing.T, e fleet.Engine) {
	t.Helper()
	if err := e.Close(waiting(t)); err != nil {
		t.Fatalf("Close: %v", err)
	}
}
