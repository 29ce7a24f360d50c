package fleettest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

var logTests = map[string]func(*testing.T, fleet.Engine){
	"replay from any entry": func(t *testing.T, e fleet.Engine) {
		const last = 500
		l := openLog(t, e, "a")
		write(t, l, 1, last)
		endLog(t, l)
		for _, from := range []uint64{1, 2, 49, 50, 51, 99, 250, last - 1, last, last + 1, 2 * last} {
			checkLog(t, e, "a", from, max(last, from-1))
		}
		if err := check(e.Watch(waiting(t), "a", 0), 1, last); err != nil {
			t.Errorf("from 0: %v", err)
		}
	},

	"watchers follow live": func(t *testing.T, e fleet.Engine) {
		before := follow(t, e, "a", 1) // before there is anything
		l := openLog(t, e, "a")
		for n := uint64(1); n <= 20; n++ {
			write(t, l, n, n)
			if got := receive(t, before); got.Seq != n || string(got.Payload) != line(n) {
				t.Fatalf("entry %d %q, want %d", got.Seq, got.Payload, n)
			}
		}
		amid := follow(t, e, "a", 11)
		write(t, l, 21, 25)
		for n := uint64(11); n <= 25; n++ {
			if got := receive(t, amid); got.Seq != n {
				t.Fatalf("second watcher: entry %d, want %d", got.Seq, n)
			}
		}
		endLog(t, l)
		for n := uint64(21); n <= 25; n++ {
			receive(t, before)
		}
		for i, c := range []<-chan fleet.Entry{before, amid} {
			if got, more := <-c; more {
				t.Errorf("watcher %d: entry %d after the last", i, got.Seq)
			}
		}
		checkLog(t, e, "a", 1, 25) // after the end
	},

	"many logs at once": func(t *testing.T, e fleet.Engine) {
		const logs, last = 20, 1000
		var wg sync.WaitGroup
		for i := range logs {
			id := fmt.Sprint("log", i)
			wg.Go(func() { checkLog(t, e, id, 1, last) })
			wg.Go(func() {
				l, err := e.Log(waiting(t), id)
				if err != nil {
					t.Error(err)
					return
				}
				for n := uint64(1); n <= last; n++ {
					if seq, err := l.Append([]byte(line(n))); seq != n || err != nil {
						t.Errorf("%s: Append %d: %d, %v", id, n, seq, err)
						return
					}
				}
				if err := errors.Join(l.End(waiting(t)), l.Close(waiting(t))); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		wg.Wait()
	},

	"many write one log": func(t *testing.T, e fleet.Engine) {
		const writers, each = 4, 250
		var wg sync.WaitGroup
		for range writers {
			l := openLog(t, e, "a") // the same log each time
			wg.Go(func() {
				for range each {
					if _, err := l.Append([]byte("x")); err != nil {
						t.Errorf("Append: %v", err)
						return
					}
				}
				if err := l.Close(waiting(t)); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		wg.Wait()
		endLog(t, openLog(t, e, "a"))
		want := uint64(1)
		for en, err := range e.Watch(waiting(t), "a", 1) {
			if err != nil || en.Seq != want {
				t.Fatalf("entry %d, error %v; want %d", en.Seq, err, want)
			}
			want++
		}
		if want != writers*each+1 {
			t.Errorf("%d entries, want %d", want-1, writers*each)
		}
	},

	"payloads are kept as they are": func(t *testing.T, e fleet.Engine) {
		payloads := []string{"", "\x00\xff\r\n", string(make([]byte, fleet.MaxPayload)), "last"}
		l := openLog(t, e, "a")
		var buf []byte
		for _, p := range payloads {
			buf = append(buf[:0], p...)
			if _, err := l.Append(buf); err != nil {
				t.Fatalf("Append of %d bytes: %v", len(p), err)
			}
			clear(buf) // the log has its own copy
		}
		if _, err := l.Append(make([]byte, fleet.MaxPayload+1)); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("Append of too much: %v, want %v", err, fleet.ErrInvalid)
		}
		endLog(t, l)
		var got []fleet.Entry
		for en, err := range e.Watch(waiting(t), "a", 1) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, en)
		}
		if len(got) != len(payloads) {
			t.Fatalf("%d entries, want %d", len(got), len(payloads))
		}
		for i, en := range got {
			if string(en.Payload) != payloads[i] {
				t.Errorf("entry %d has %d bytes %.20q, want %d bytes %.20q", en.Seq, len(en.Payload), en.Payload, len(payloads[i]), payloads[i])
			}
		}
	},

	"large entries come through": func(t *testing.T, e fleet.Engine) {
		const entries = 40
		payload := make([]byte, 200<<10)
		l := openLog(t, e, "a")
		for range entries { // far more than may wait
			if _, err := l.Append(payload); err != nil {
				t.Fatal(err)
			}
		}
		endLog(t, l)
		n := 0
		for en, err := range e.Watch(waiting(t), "a", 1) {
			if err != nil || len(en.Payload) != len(payload) {
				t.Fatalf("entry %d of %d bytes, error %v", en.Seq, len(en.Payload), err)
			}
			n++
		}
		if n != entries {
			t.Errorf("%d entries, want %d", n, entries)
		}
	},

	"a closed log goes on when it is opened again": func(t *testing.T, e fleet.Engine) {
		for _, n := range []uint64{1, 11, 21} {
			l := openLog(t, e, "a")
			write(t, l, n, n+9)
			closeLog(t, l)
			if _, err := l.Append(nil); !errors.Is(err, fleet.ErrClosed) {
				t.Errorf("Append to a closed log: %v, want %v", err, fleet.ErrClosed)
			}
			if got, err := e.Tail(waiting(t), "a"); err != nil || got != (fleet.Tail{Seq: n + 9}) {
				t.Errorf("Tail %+v, %v; want entry %d, not ended", got, err, n+9)
			}
		}
		endLog(t, openLog(t, e, "a"))
		checkLog(t, e, "a", 1, 30)
	},

	"nothing follows the end": func(t *testing.T, e fleet.Engine) {
		l, other := openLog(t, e, "a"), openLog(t, e, "a")
		write(t, l, 1, 3)
		if err := l.End(waiting(t)); err != nil {
			t.Fatalf("End: %v", err)
		}
		if _, err := other.Append(nil); !errors.Is(err, fleet.ErrEnded) {
			t.Errorf("Append: %v, want %v", err, fleet.ErrEnded)
		}
		if err := other.End(waiting(t)); !errors.Is(err, fleet.ErrEnded) {
			t.Errorf("End: %v, want %v", err, fleet.ErrEnded)
		}
		closeLog(t, l)
		closeLog(t, other)
		if _, err := e.Log(waiting(t), "a"); !errors.Is(err, fleet.ErrEnded) {
			t.Errorf("Log: %v, want %v", err, fleet.ErrEnded)
		}
		if got, err := e.Tail(waiting(t), "a"); err != nil || got != (fleet.Tail{Seq: 3, Ended: true}) {
			t.Errorf("Tail %+v, %v; want the end after entry 3", got, err)
		}
		checkLog(t, e, "a", 1, 3)
	},

	"a log may end without an entry": func(t *testing.T, e fleet.Engine) {
		if _, err := e.Tail(waiting(t), "a"); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("Tail: %v, want %v", err, fleet.ErrNotFound)
		}
		endLog(t, openLog(t, e, "a"))
		checkLog(t, e, "a", 1, 0)
		if got, err := e.Tail(waiting(t), "a"); err != nil || got != (fleet.Tail{Ended: true}) {
			t.Errorf("Tail %+v, %v; want an end", got, err)
		}
	},

	"flushed entries are there": func(t *testing.T, e fleet.Engine) {
		l := openLog(t, e, "a")
		for n := uint64(1); n <= 5; n++ {
			write(t, l, n, n)
			if err := l.Flush(waiting(t)); err != nil {
				t.Fatalf("Flush: %v", err)
			}
			if got, err := e.Tail(waiting(t), "a"); err != nil || got.Seq != n {
				t.Errorf("Tail %+v, %v; want entry %d", got, err, n)
			}
		}
		closeLog(t, l)
	},

	"a watcher may leave": func(t *testing.T, e fleet.Engine) {
		l := openLog(t, e, "a")
		write(t, l, 1, 100)
		for en, err := range e.Watch(waiting(t), "a", 1) {
			if err != nil {
				t.Fatal(err)
			}
			if en.Seq == 7 {
				break
			}
		}
		ctx, cancel := context.WithCancel(waiting(t))
		var got error
		for en, err := range e.Watch(ctx, "a", 1) {
			if en.Seq == 100 {
				cancel()
			}
			got = err
		}
		cancel()
		if !errors.Is(got, context.Canceled) {
			t.Errorf("ended with %v, want %v", got, context.Canceled)
		}
		leaving, leave := context.WithCancel(waiting(t))
		for range e.Watch(leaving, "a", 1) {
			leave() // and yet it must not be called again
			break
		}
		leave()
		closeLog(t, l)
	},

	"ids are checked": func(t *testing.T, e fleet.Engine) {
		const bad = "a.*"
		_, logErr := e.Log(waiting(t), bad)
		_, tailErr := e.Tail(waiting(t), bad)
		_, removeErr := e.Remove(waiting(t), bad)
		_, signalsErr := e.Signals(waiting(t), bad)
		var watchErr, positionsErr error
		for _, watchErr = range e.Watch(waiting(t), bad, 1) {
		}
		for _, positionsErr = range e.Positions(waiting(t), bad) {
		}
		for name, err := range map[string]error{
			"Log": logErr, "Tail": tailErr, "Remove": removeErr, "Signals": signalsErr, "Watch": watchErr,
			"Positions": positionsErr, "Signal": e.Signal(waiting(t), bad, nil),
		} {
			if !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("%s: %v, want %v", name, err, fleet.ErrInvalid)
			}
		}
	},
}

// follow passes on a log's entries while the test runs.
func follow(t *testing.T, e fleet.Engine, id string, from uint64) <-chan fleet.Entry {
	c := make(chan fleet.Entry)
	ctx := waiting(t)
	go func() {
		defer close(c)
		for en, err := range e.Watch(ctx, id, from) {
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("Watch: %v", err)
				}
				return
			}
			select {
			case c <- en:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c
}
