package executor_test

import (
	"context"
	"testing"

	bkexecutor "github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/buildkit/executor"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

// BenchmarkRun is the price of a step that does nothing, beside the same in the
// sandbox alone.
func BenchmarkRun(b *testing.B) {
	r := sharedRunner(b)
	e := newExecutor(b, executor.Options{})
	base := image(b, b.TempDir())
	s := over(b, base)
	nothing := bkexecutor.ProcessInfo{Meta: bkexecutor.Meta{Args: []string{"/bin/busybox", "true"}, Env: []string{"PATH=/bin"}}}
	b.Run("sandbox", func(b *testing.B) {
		for b.Loop() {
			code, err := r.Run(context.Background(), sandbox.Process{Lowers: []string{base}, Upper: s.upper(), Work: s.dir + "/work", Volatile: true, Args: nothing.Meta.Args})
			if code != 0 || err != nil {
				b.Fatal(code, err)
			}
		}
	})
	b.Run("executor", func(b *testing.B) {
		for b.Loop() {
			if _, err := e.Run(context.Background(), "", root(s), nil, nothing, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("exec", func(b *testing.B) {
		started, done := make(chan struct{}), make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer close(done)
			_, _ = e.Run(ctx, "bench", root(s), nil, script(hold), started)
		}()
		<-started
		for b.Loop() {
			if err := e.Exec(ctx, "bench", nothing); err != nil {
				b.Fatal(err)
			}
		}
		cancel()
		<-done
	})
}
