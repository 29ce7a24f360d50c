package fleettest

import (
	"context"
	"errors"
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

var signalTests = map[string]func(*testing.T, fleet.Engine){
	"a task hears its signals": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"))
		if err := e.Signal(waiting(t), "a", nil); !errors.Is(err, fleet.ErrNoListener) {
			t.Errorf("Signal to a queued job: %v, want %v", err, fleet.ErrNoListener)
		}
		task := next(t, e)
		for _, want := range []string{"cancel", ""} {
			if err := e.Signal(waiting(t), "a", []byte(want)); err != nil {
				t.Fatalf("Signal: %v", err)
			}
			if got := receive(t, task.Signals()); string(got) != want {
				t.Errorf("signal %q, want %q", got, want)
			}
		}
		end(t, task)
		for range task.Signals() {
			t.Error("signal after Done")
		}
		if err := e.Signal(waiting(t), "a", nil); !errors.Is(err, fleet.ErrNoListener) {
			t.Errorf("Signal to a done job: %v, want %v", err, fleet.ErrNoListener)
		}
	},

	"every listener hears a signal": func(t *testing.T, e fleet.Engine) {
		ctx, cancel := context.WithCancel(waiting(t))
		defer cancel()
		var ears []<-chan []byte
		for range 3 {
			c, err := e.Signals(ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			ears = append(ears, c)
		}
		if err := e.Signal(waiting(t), "b", nil); !errors.Is(err, fleet.ErrNoListener) {
			t.Errorf("Signal to another job: %v, want %v", err, fleet.ErrNoListener)
		}
		if err := e.Signal(waiting(t), "a", []byte("now")); err != nil {
			t.Fatalf("Signal: %v", err)
		}
		for _, c := range ears {
			if got := receive(t, c); string(got) != "now" {
				t.Errorf("signal %q", got)
			}
		}
		cancel()
		for _, c := range ears {
			for range c {
				t.Error("one signal too many")
			}
		}
	},

	"a signal is not too large": func(t *testing.T, e fleet.Engine) {
		if err := e.Signal(waiting(t), "a", make([]byte, fleet.MaxPayload+1)); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("Signal: %v, want %v", err, fleet.ErrInvalid)
		}
	},
}

var closeTests = map[string]func(*testing.T, fleet.Engine){
	"close ends all that wait": func(t *testing.T, e fleet.Engine) {
		submit(t, e, job("a", "org", "app"))
		task := next(t, e)
		submit(t, e, job("b", "org", "app"))
		next(t, e)
		submit(t, e, job("c", "other", "app"))
		next(t, e)
		l := openLog(t, e, "a")
		write(t, l, 1, 1)
		errs, ready := make(chan error), make(chan struct{}, 2)
		go func() { _, err := e.Next(waiting(t)); errs <- err }()
		go func() {
			for _, err := range e.Watch(waiting(t), "a", 1) {
				if err == nil {
					ready <- struct{}{}
					continue
				}
				errs <- err
			}
		}()
		receive(t, ready)
		if err := e.Close(waiting(t)); err != nil {
			t.Fatalf("Close: %v", err)
		}
		for range 2 {
			if err := receive(t, errs); !errors.Is(err, fleet.ErrClosed) {
				t.Errorf("ended with %v, want %v", err, fleet.ErrClosed)
			}
		}
		for range task.Signals() {
		}
		if err := e.Close(waiting(t)); err != nil {
			t.Errorf("Close again: %v", err)
		}
		_, appendErr := l.Append(nil)
		_, logErr := e.Log(waiting(t), "b")
		_, removeErr := e.Remove(waiting(t), "b")
		_, nextErr := e.Next(waiting(t))
		for name, err := range map[string]error{
			"Append": appendErr, "Log": logErr, "Remove": removeErr, "Next": nextErr, "Done": task.Done(waiting(t)),
			"Submit": e.Submit(waiting(t), job("d", "org", "app")), "Signal": e.Signal(waiting(t), "a", nil),
		} {
			if !errors.Is(err, fleet.ErrClosed) {
				t.Errorf("%s after Close: %v, want %v", name, err, fleet.ErrClosed)
			}
		}
	},
}
