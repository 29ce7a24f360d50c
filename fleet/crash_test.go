package fleet_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/fleet"
)

// childEnv makes the test binary act as a daemon that will be killed: its value is
// the name of a function of children and what that needs.
const childEnv = "FLEET_TEST_CHILD"

var children = map[string]func(arg string) error{"store": storeChild, "worker": workerChild}

func TestMain(m *testing.M) {
	name, arg, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	if err := children[name](arg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// storeChild works on the store in dir without end, and says on its output what has
// been acknowledged: every second job is started, every fourth done, every eighth
// removed; a log has grown.
func storeChild(dir string) error {
	ctx := context.Background()
	e, err := fleet.Open(ctx, dir, nil)
	if err != nil {
		return err
	}
	l, err := e.Log(ctx, "log")
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("j%d", i)
		if err := e.Submit(ctx, fleet.Job{ID: id, Org: "org" + id, App: "app"}); err != nil { // an org each, so that Next returns it
			return err
		}
		fmt.Println("queued", id)
		if i%8 == 1 {
			if _, err := e.Remove(ctx, id); err != nil {
				return err
			}
			fmt.Println("removed", id)
		}
		if i%2 == 0 {
			task, err := e.Next(ctx)
			if err != nil {
				return err
			}
			fmt.Println("started", task.ID)
			if i%4 == 0 {
				if err := task.Done(ctx); err != nil {
					return err
				}
				fmt.Println("done", task.ID)
			}
		}
		var seq uint64
		for range 7 {
			if seq, err = l.Append([]byte(id)); err != nil {
				return err
			}
		}
		if err := l.Flush(ctx); err != nil {
			return err
		}
		fmt.Println("logged", seq)
	}
}

// A daemon that is killed has kept all that it acknowledged.
func TestKill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	state := map[string]string{} // by job: the last that was acknowledged
	var logged uint64
	runChild(t, "store "+dir, 400, func(line string) {
		what, arg, _ := strings.Cut(line, " ")
		if what == "logged" {
			if _, err := fmt.Sscan(arg, &logged); err != nil {
				t.Error(err)
			}
			return
		}
		state[arg] = what
	})
	if len(state) < 50 || logged < 50 {
		t.Fatalf("child did too little: %d jobs, %d entries", len(state), logged)
	}

	e := open(t, dir, nil)
	defer closeEngine(t, e)
	if err := e.Submit(ctx, fleet.Job{ID: "end", Org: "end", App: "app"}); err != nil {
		t.Fatal(err)
	}
	attempts := map[string]int{}
	for attempts["end"] == 0 {
		task, err := e.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if attempts[task.ID] != 0 {
			t.Errorf("%s started twice", task.ID)
		}
		attempts[task.ID] = task.Attempt
	}
	// The child was one step further than we heard, in one job at most.
	unheard := 0
	for id, st := range state {
		if err := e.Submit(ctx, fleet.Job{ID: id, Org: "org", App: "app"}); !errors.Is(err, fleet.ErrExists) {
			t.Errorf("Submit of %s job %s: %v, want %v", st, id, err, fleet.ErrExists)
		}
		want := map[string]int{"queued": 1, "started": 2}[st]
		switch got := attempts[id]; {
		case got == want:
		case st == "queued" && (got == 2 || got == 0), st == "started" && got == 0:
			unheard++
		default:
			t.Errorf("%s job %s came back as attempt %d, want %d", st, id, got, want)
		}
	}
	if unheard > 1 {
		t.Errorf("%d jobs were further than the child said", unheard)
	}

	tail, err := e.Tail(ctx, "log")
	if err != nil || tail.Seq < logged || tail.Ended {
		t.Fatalf("Tail %+v, %v; %d entries were flushed", tail, err, logged)
	}
	ready, watched := make(chan struct{}), make(chan error)
	go func() {
		last := uint64(0)
		for en, err := range e.Watch(ctx, "log", 1) {
			if err != nil || en.Seq != last+1 {
				watched <- fmt.Errorf("entry %d, %v; want %d", en.Seq, err, last+1)
				return
			}
			if last = en.Seq; last == tail.Seq {
				close(ready) // nothing more from the dead daemon
			}
		}
		if last != tail.Seq+1 {
			watched <- fmt.Errorf("log ends after %d, want %d", last, tail.Seq+1)
			return
		}
		watched <- nil
	}()
	select {
	case <-ready:
	case err := <-watched:
		t.Fatal(err)
	}
	l, err := e.Log(ctx, "log")
	if err != nil {
		t.Fatal(err)
	}
	if seq, err := l.Append([]byte("the daemon was killed")); err != nil || seq != tail.Seq+1 {
		t.Errorf("Append: %d, %v; want %d", seq, err, tail.Seq+1)
	}
	if err := errors.Join(l.End(ctx), l.Close(ctx)); err != nil {
		t.Error(err)
	}
	if err := <-watched; err != nil {
		t.Error(err)
	}
}

// workerChild takes a job from a server and does nothing.
func workerChild(url string) error {
	ctx := context.Background()
	e, err := fleet.Dial(ctx, url, shortLease)
	if err != nil {
		return err
	}
	task, err := e.Next(ctx)
	if err != nil {
		return err
	}
	fmt.Println("started", task.ID)
	select {}
}

var shortLease = &fleet.Options{Lease: time.Second}

// A job whose worker was killed is handed to another one.
func TestKillWorker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url := startServer(t)
	e := dial(t, url, shortLease)
	if err := e.Submit(ctx, fleet.Job{ID: "a", Org: "org", App: "app"}); err != nil {
		t.Fatal(err)
	}
	runChild(t, "worker "+url, 1, func(string) {})
	task, err := e.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if task.ID != "a" || task.Attempt != 2 {
		t.Errorf("started %s, attempt %d; want a, attempt 2", task.ID, task.Attempt)
	}
	if err := task.Done(ctx); err != nil {
		t.Error(err)
	}
}

// runChild runs a child until it has printed so many lines, kills it, and calls each
// for all that it printed.
func runChild(t *testing.T, child string, lines int, each func(line string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+child)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		each(s.Text())
		if n++; n == lines {
			cancel() // SIGKILL
		}
	}
	err = cmd.Wait()
	if n < lines {
		t.Fatalf("child ended after %d of %d lines: %v", n, lines, err)
	}
}
