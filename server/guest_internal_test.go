package server

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(1)
		ctx, cancel := context.WithCancel(t.Context())
		taken := 0
		more := func() {
			go func() {
				if p.take(ctx) {
					taken++
				}
			}()
			synctest.Wait()
		}
		check := func(want int, what string) {
			t.Helper()
			if synctest.Wait(); taken != want {
				t.Errorf("%s: %d places are taken, want %d", what, taken, want)
			}
		}
		more()
		more()
		check(1, "two want the one place")
		resume := p.rest()
		check(2, "the first rests")
		resume()
		resume()
		more()
		check(2, "the first goes on")
		p.give()
		check(2, "one of two ends that run")
		p.give()
		check(3, "the other ends, too")
		more()
		cancel()
		check(3, "nobody waits any more")
	})
}
