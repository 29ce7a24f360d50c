package fleet_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/fleet"
)

// One job after the other from Submit to Next.
func BenchmarkSubmitNext(b *testing.B) {
	e := open(b, b.TempDir(), nil)
	defer closeEngine(b, e)
	tasks := make(chan *fleet.Task)
	go func() {
		defer close(tasks)
		for {
			task, err := e.Next(b.Context())
			if err != nil {
				return
			}
			tasks <- task
		}
	}()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		if err := e.Submit(b.Context(), fleet.Job{ID: fmt.Sprint(i), Org: "org", App: "app"}); err != nil {
			b.Fatal(err)
		}
		task := <-tasks
		took = append(took, time.Since(begin))
		if err := task.Done(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	report(b, took)
}

// One log written as fast as it goes, with a watcher.
func BenchmarkAppend(b *testing.B) {
	e := open(b, b.TempDir(), nil)
	defer closeEngine(b, e)
	l, err := e.Log(b.Context(), "log")
	if err != nil {
		b.Fatal(err)
	}
	seen := make(chan uint64)
	go func() {
		var last uint64
		for en, err := range e.Watch(b.Context(), "log", 1) {
			if err != nil {
				b.Error(err)
			}
			last = en.Seq
		}
		seen <- last
	}()
	line := bytes.Repeat([]byte("x"), 200)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	var last uint64
	for b.Loop() {
		if last, err = l.Append(line); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.End(b.Context()); err != nil {
		b.Fatal(err)
	}
	if got := <-seen; got != last {
		b.Errorf("watcher saw %d of %d entries", got, last)
	}
}

// Every 20 ms an entry, from Append to a watcher.
func BenchmarkLive(b *testing.B) {
	e := open(b, b.TempDir(), nil)
	defer closeEngine(b, e)
	l, err := e.Log(b.Context(), "log")
	if err != nil {
		b.Fatal(err)
	}
	seen := make(chan struct{})
	go func() {
		for range e.Watch(b.Context(), "log", 1) {
			seen <- struct{}{}
		}
	}()
	var took []time.Duration
	line := bytes.Repeat([]byte("x"), 200)
	idle := time.NewTicker(20 * time.Millisecond)
	defer idle.Stop()
	for b.Loop() {
		<-idle.C
		begin := time.Now()
		if _, err := l.Append(line); err != nil {
			b.Fatal(err)
		}
		<-seen
		took = append(took, time.Since(begin))
	}
	report(b, took)
	go func() { <-seen }()
	if err := l.End(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// Start of an engine on a store with jobs and logs, until its first answer.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	e := open(b, dir, nil)
	for i := range 50 {
		id := fmt.Sprint(i)
		if err := e.Submit(b.Context(), fleet.Job{ID: id, Org: fmt.Sprint(i % 7), App: id}); err != nil {
			b.Fatal(err)
		}
		l, err := e.Log(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		for range 2000 {
			if _, err := l.Append(bytes.Repeat([]byte("x"), 200)); err != nil {
				b.Fatal(err)
			}
		}
		if err := l.End(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	closeEngine(b, e)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		e := open(b, dir, nil)
		took = append(took, time.Since(begin))
		b.StopTimer()
		closeEngine(b, e)
		b.StartTimer()
	}
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}
