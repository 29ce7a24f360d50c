package pushd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	firstWait   = 200 * time.Millisecond
	longestWait = 15 * time.Second
	longestAsk  = 2 * time.Minute // of Retry-After that is worth waiting
)

// A budget bounds the retries of one blob: so many failures in a row without
// progress, and sixteen times as many in all.
type budget struct{ left, max, total int }

func (t *HTTP) budget() *budget {
	n := max(0, t.opts.Retries)
	return &budget{left: n, max: n, total: 16 * n}
}

// progress refills what failures in a row have used.
func (b *budget) progress() { b.left = b.max }

// wait waits before the next attempt, or returns why there is none.
func (b *budget) wait(ctx context.Context, w Watcher, cause error) error {
	if b.left <= 0 || b.total <= 0 {
		return cause
	}
	d := min(longestWait, firstWait<<min(b.max-b.left, 10))
	d = d/2 + rand.N(d/2+1)
	var e *Error
	if errors.As(cause, &e) && e.RetryAfter > 0 {
		if e.RetryAfter > longestAsk {
			return cause
		}
		d = e.RetryAfter + rand.N(e.RetryAfter/10+1)
	}
	b.left--
	b.total--
	w.Retry(cause, d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retry calls f until it succeeds, fails for good or b is used up.
func (t *HTTP) retry(ctx context.Context, w Watcher, b *budget, f func() error) error {
	for {
		err := f()
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.temporary() {
			return err
		}
		if err := b.wait(ctx, w, err); err != nil {
			return err
		}
	}
}
