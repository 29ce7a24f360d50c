package fleettest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

var queueTests = map[string]func(*testing.T, fleet.Engine){
	"next returns what was submitted": func(t *testing.T, e fleet.Engine) {
		for _, j := range []fleet.Job{
			{ID: "01JD9K6V3E", Org: "acme", App: "shop", Payload: []byte{0, 1, 0xff, '\r', '\n'}},
			{ID: "no-names_"},
			{ID: "a", Org: " odd * > . org/\n", App: strings.Repeat("ü", 64)},
			{ID: strings.Repeat("x", 64), Org: "acme.*", App: ">", Payload: make([]byte, fleet.MaxPayload)},
		} {
			submit(t, e, j)
			got := next(t, e)
			if got.ID != j.ID || got.Org != j.Org || got.App != j.App || string(got.Payload) != string(j.Payload) || got.Attempt != 1 {
				t.Errorf("job %q of %q, %q, %d bytes, attempt %d; submitted %.100v", got.ID, got.Org, got.App, len(got.Payload), got.Attempt, j)
			}
			end(t, got)
		}
	},

	"submit refuses what is invalid": func(t *testing.T, e fleet.Engine) {
		for _, j := range []fleet.Job{
			{},
			{ID: "a.b"},
			{ID: "*"},
			{ID: "ü"},
			{ID: strings.Repeat("x", 65)},
			{ID: "a", Org: "\xff"},
			{ID: "a", App: strings.Repeat("x", 129)},
			{ID: "a", Payload: make([]byte, fleet.MaxPayload+1)},
		} {
			if err := e.Submit(waiting(t), j); !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("Submit %.50q: %v, want %v", j.ID, err, fleet.ErrInvalid)
			}
		}
	},

	"an ID is known for ever": func(t *testing.T, e fleet.Engine) {
		again := func(when string) {
			t.Helper()
			if err := e.Submit(waiting(t), job("a", "org2", "app2")); !errors.Is(err, fleet.ErrExists) {
				t.Errorf("Submit of a %s job: %v, want %v", when, err, fleet.ErrExists)
			}
		}
		submit(t, e, job("a", "org", "app"))
		again("queued")
		task := next(t, e)
		again("running")
		end(t, task)
		again("done")
		submit(t, e, job("b", "org", "app"))
		if ok, err := e.Remove(waiting(t), "b"); !ok || err != nil {
			t.Fatalf("Remove: %v, %v", ok, err)
		}
		if err := e.Submit(waiting(t), job("b", "org", "app")); !errors.Is(err, fleet.ErrExists) {
			t.Errorf("Submit of a removed job: %v, want %v", err, fleet.ErrExists)
		}
	},

	"one of many equal submits wins": func(t *testing.T, e fleet.Engine) {
		errs := make(chan error)
		for range 8 {
			go func() { errs <- e.Submit(waiting(t), job("a", "org", "app")) }()
		}
		won := 0
		for range 8 {
			if err := <-errs; err == nil {
				won++
			} else if !errors.Is(err, fleet.ErrExists) {
				t.Errorf("Submit: %v", err)
			}
		}
		if won != 1 {
			t.Errorf("%d of 8 submits succeeded", won)
		}
	},

	"backlog": func(t *testing.T, e fleet.Engine) { testBacklog(t, e, 10) },

	"an org's jobs start in order": func(t *testing.T, e fleet.Engine) {
		var want []string
		for i := range 30 {
			j := job(fmt.Sprintf("j%02d", i), "org", fmt.Sprintf("app%d", i%5))
			submit(t, e, j)
			want = append(want, j.ID)
		}
		var got []string
		for range want {
			task := next(t, e)
			got = append(got, task.ID)
			if len(got)%3 == 0 {
				end(t, task)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("started %v", got)
		}
	},

	"a long queue of one org does not hold up another": func(t *testing.T, e fleet.Engine) {
		for i := range 150 {
			submit(t, e, job(fmt.Sprintf("big%d", i), "big", fmt.Sprintf("app%d", i/10)))
		}
		first, second := next(t, e), next(t, e)
		submit(t, e, job("small", "small", "app"))
		end(t, first)
		if got := next(t, e); got.ID != "small" {
			t.Errorf("started %s, want small", got.ID)
		}
		end(t, second)
	},

	"orgs take turns on one slot": func(t *testing.T, e fleet.Engine) {
		for i := range 6 {
			submit(t, e, job(fmt.Sprintf("a%d", i), "a", "app"))
		}
		for i := range 2 {
			submit(t, e, job(fmt.Sprintf("b%d", i), "b", "app"), job(fmt.Sprintf("c%d", i), "c", "app"))
		}
		var got []string
		for range 10 {
			task := next(t, e)
			got = append(got, task.ID)
			end(t, task)
		}
		want := []string{"a0", "b0", "c0", "a1", "b1", "c1", "a2", "a3", "a4", "a5"}
		if !slices.Equal(got, want) {
			t.Errorf("started %v, want %v", got, want)
		}
	},

	"the org with fewer jobs running goes first": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a0", "a", "app"), job("a1", "a", "app"), job("a2", "a", "app"))
		next(t, e)
		next(t, e)
		submit(t, e, job("b0", "b", "app"), job("b1", "b", "app"), job("b2", "b", "app"))
		for _, want := range []string{"b0", "b1", "a2", "b2"} {
			if got := next(t, e); got.ID != want {
				t.Errorf("started %s, want %s", got.ID, want)
			}
		}
	},

	"orgs share slots evenly": func(t *testing.T, e fleet.Engine) {
		for _, org := range []string{"a", "b", "c"} {
			for i := range 10 {
				submit(t, e, job(fmt.Sprint(org, i), org, "app"))
			}
		}
		running := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				task, err := e.Next(waiting(t))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				running[task.Org]++
			})
		}
		wg.Wait()
		for org, n := range running {
			if n != 2 {
				t.Errorf("%s has %d of 6 slots", org, n)
			}
		}
	},

	"each job starts once": func(t *testing.T, e fleet.Engine) {
		const jobs, workers = 200, 8
		started := make(chan string, 2*jobs)
		ctx, stop := context.WithCancel(waiting(t))
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for {
					task, err := e.Next(ctx)
					if err != nil {
						if !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
						return
					}
					if task.Attempt != 1 {
						t.Errorf("%s: attempt %d", task.ID, task.Attempt)
					}
					started <- task.ID
					end(t, task)
				}
			})
		}
		for i := range jobs {
			wg.Go(func() { submit(t, e, job(fmt.Sprint("j", i), fmt.Sprint("org", i%7), fmt.Sprint("app", i/7%10))) })
		}
		seen := map[string]bool{}
		for range jobs {
			id := receive(t, started)
			if seen[id] {
				t.Errorf("%s started twice", id)
			}
			seen[id] = true
		}
		stop()
		wg.Wait()
		if n := len(started); n > 0 {
			t.Errorf("%d starts too many", n)
		}
	},

	"next waits for a job": func(t *testing.T, e fleet.Engine) {
		got := make(chan string)
		for range 3 {
			go func() {
				task, err := e.Next(waiting(t))
				if err != nil {
					t.Error(err)
					got <- ""
					return
				}
				got <- task.ID
			}()
		}
		for _, id := range []string{"a", "b", "c"} {
			submit(t, e, job(id, "org", "app"))
			if s := receive(t, got); s != id {
				t.Errorf("started %q, want %s", s, id)
			}
		}
	},

	"next ends with its context": func(t *testing.T, e fleet.Engine) {
		why := errors.New("draining")
		ctx, cancel := context.WithCancelCause(waiting(t))
		errs := make(chan error)
		for range 2 {
			go func() { _, err := e.Next(ctx); errs <- err }()
		}
		cancel(why)
		for range 2 {
			if err := receive(t, errs); !errors.Is(err, why) {
				t.Errorf("Next: %v, want %v", err, why)
			}
		}
		submit(t, e, job("a", "org", "app"))
		if task := next(t, e); task.ID != "a" || task.Attempt != 1 {
			t.Errorf("then started %s, attempt %d", task.ID, task.Attempt)
		}
	},

	"a job is done once": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"))
		task := next(t, e)
		end(t, task)
		if err := task.Done(waiting(t)); !errors.Is(err, fleet.ErrLost) {
			t.Errorf("Done again: %v, want %v", err, fleet.ErrLost)
		}
	},

	"remove": func(t *testing.T, e fleet.Engine) {
		if _, err := e.Remove(waiting(t), "nobody"); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("Remove of an unknown job: %v, want %v", err, fleet.ErrNotFound)
		}
		submit(t, e, job("a", "org", "app"), job("b", "org", "app"), job("c", "org", "app"))
		a := next(t, e)
		for _, tc := range []struct {
			id   string
			want bool
		}{{"b", true}, {"b", false}, {"a", false}} {
			if ok, err := e.Remove(waiting(t), tc.id); ok != tc.want || err != nil {
				t.Errorf("Remove %s: %v, %v; want %v", tc.id, ok, err, tc.want)
			}
		}
		end(t, a)
		if ok, err := e.Remove(waiting(t), "a"); ok || err != nil {
			t.Errorf("Remove of a done job: %v, %v", ok, err)
		}
		if got := next(t, e); got.ID != "c" {
			t.Errorf("after the removed job started %s, want c", got.ID)
		}
	},

	"remove and next never both win": func(t *testing.T, e fleet.Engine) {
		const jobs = 40
		for i := range jobs {
			submit(t, e, job(fmt.Sprint("j", i), "org", fmt.Sprint("app", i/10)))
		}
		submit(t, e, job("last", "org", "last"))
		removed := make(chan string, jobs)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range jobs {
				id := fmt.Sprint("j", i)
				if ok, err := e.Remove(waiting(t), id); err != nil {
					t.Error(err)
				} else if ok {
					removed <- id
				}
			}
		})
		times := map[string]int{}
		for {
			task := next(t, e)
			end(t, task)
			if task.ID == "last" {
				break
			}
			times[task.ID]++
		}
		wg.Wait()
		close(removed)
		for id := range removed {
			times[id]++
		}
		for i := range jobs {
			if n := times[fmt.Sprint("j", i)]; n != 1 {
				t.Errorf("j%d was removed or started %d times", i, n)
			}
		}
	},
}

func testBacklog(t *testing.T, e fleet.Engine, limit int) {
	full := func(when string) {
		t.Helper()
		if err := e.Submit(waiting(t), job("more", "org", "app")); !errors.Is(err, fleet.ErrBacklog) {
			t.Errorf("Submit %s: %v, want %v", when, err, fleet.ErrBacklog)
		}
	}
	for i := range limit {
		submit(t, e, job(fmt.Sprint("j", i), "org", "app"))
	}
	full("with a full queue")
	submit(t, e, job("other", "org", "other"), job("another", "other", "app"))
	var task *fleet.Task
	for task = next(t, e); task.App != "app" || task.Org != "org"; task = next(t, e) {
	}
	full("while one runs")
	end(t, task)
	submit(t, e, job("x", "org", "app"))
	full("after one took the place of the one done")
	if ok, err := e.Remove(waiting(t), "x"); !ok || err != nil {
		t.Fatalf("Remove: %v, %v", ok, err)
	}
	submit(t, e, job("more", "org", "app"))
}

var positionTests = map[string]func(*testing.T, fleet.Engine){
	"positions until the start": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"), job("b", "org", "app"), job("c", "org", "app"))
		c := positions(t, e, "c")
		for want := 3; want > 0; want-- {
			if got := receive(t, c); got.at != want || got.err != nil {
				t.Errorf("position %v, want %d", got, want)
			}
			next(t, e)
		}
		if got := receive(t, c); got.at != 0 || got.err != nil {
			t.Errorf("position %v, want 0", got)
		}
		if got, more := <-c; more {
			t.Errorf("after the start: %v", got)
		}
	},

	"positions are those of a fair queue": func(t *testing.T, e fleet.Engine) {
		for i := range 5 {
			submit(t, e, job(fmt.Sprint("a", i), "a", "app"))
		}
		next(t, e)
		submit(t, e, job("b0", "b", "app"), job("b1", "b", "app"), job("c0", "c", "app"))
		// a0 runs, so b0 and c0 go first, then a1, as a was served before b.
		want := []string{"b0", "c0", "a1", "b1", "a2", "a3", "a4"}
		for i, id := range want {
			if got := receive(t, positions(t, e, id)); got.at != i+1 || got.err != nil {
				t.Errorf("%s at position %v, want %d", id, got, i+1)
			}
		}
		for _, id := range want {
			if got := next(t, e).ID; got != id {
				t.Errorf("started %s, want %s", got, id)
			}
		}
	},

	"positions of what is not queued": func(t *testing.T, e fleet.Engine) {
		if got := receive(t, positions(t, e, "nobody")); !errors.Is(got.err, fleet.ErrNotFound) {
			t.Errorf("unknown job: %v, want %v", got, fleet.ErrNotFound)
		}
		submit(t, e, job("a", "org", "app"))
		task := next(t, e)
		if got := receive(t, positions(t, e, "a")); got.at != 0 || got.err != nil {
			t.Errorf("running job: %v, want 0", got)
		}
		end(t, task)
		if got := receive(t, positions(t, e, "a")); got.at != 0 || got.err != nil {
			t.Errorf("done job: %v, want 0", got)
		}
	},

	"positions of a removed job": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"), job("b", "org", "app"))
		a, b := positions(t, e, "a"), positions(t, e, "b")
		receive(t, a)
		receive(t, b)
		if ok, err := e.Remove(waiting(t), "a"); !ok || err != nil {
			t.Fatalf("Remove: %v, %v", ok, err)
		}
		if got := receive(t, a); !errors.Is(got.err, fleet.ErrRemoved) {
			t.Errorf("removed job: %v, want %v", got, fleet.ErrRemoved)
		}
		if got := receive(t, b); got.at != 1 || got.err != nil {
			t.Errorf("the one behind it: %v, want 1", got)
		}
		if got := receive(t, positions(t, e, "a")); !errors.Is(got.err, fleet.ErrRemoved) {
			t.Errorf("removed job, asked later: %v, want %v", got, fleet.ErrRemoved)
		}
	},

	"positions end with their context": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"))
		ctx, cancel := context.WithCancel(waiting(t))
		var got error
		for _, err := range e.Positions(ctx, "a") {
			cancel()
			got = err
		}
		cancel()
		if !errors.Is(got, context.Canceled) {
			t.Errorf("ended with %v, want %v", got, context.Canceled)
		}
	},
}

type position struct {
	at  int
	err error
}

// positions passes on a job's positions while the test runs.
func positions(t *testing.T, e fleet.Engine, id string) <-chan position {
	c := make(chan position)
	ctx := waiting(t)
	go func() {
		defer close(c)
		for at, err := range e.Positions(ctx, id) {
			select {
			case c <- position{at, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c
}
