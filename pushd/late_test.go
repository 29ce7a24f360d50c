package pushd_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

type late struct {
	pushd.Source
	begun chan struct{}
}

func (l late) Begun(ctx context.Context) error {
	select {
	case <-l.begun:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A blob that is long in coming does not keep others from their turn, and has
// been asked for meanwhile.
func TestLateSourceTakesNoTurn(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		push := pushd.NewEngine(&pushd.Options{Parallel: 1}).Push(t.Context(), g.target(t, nil), nil)
		defer push.Abort(nil)
		slow, quick := targettest.Noise(5000, 1), targettest.Noise(5000, 2)
		begun := make(chan struct{})
		b := known(slow)
		b.Source = late{b.Source, begun}
		first := push.Add(b)
		synctest.Wait()
		if _, _, err := push.Add(known(quick)).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		close(begun)
		if _, _, err := first.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		g.mustHave(t, slow)
	})
}
