package tokens

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrRevoked means that the token was good once and somebody ended it.
var ErrRevoked = errors.New("token revoked")

// flights are the calls under way by the ID of their token.
type flights struct {
	mu    sync.Mutex
	calls map[string]map[*flight]struct{}
	ended map[string]time.Time // tokens revoked lately, and when that was heard
}

type flight struct{ cancel context.CancelCauseFunc }

// remember is for how long a revocation is remembered. A call looks its token
// up and enters within that time, or meets the revocation in the store.
const remember = time.Minute

// Enter returns a context for a call that a token made: it ends when the token
// is revoked or expires, with a cause that wraps [ErrRevoked] or [ErrExpired].
// The caller leaves when the call is over.
func (a *Authority) Enter(ctx context.Context, p Principal) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() {}
	if !p.Expires.IsZero() {
		ctx, stop = context.WithDeadlineCause(ctx, p.Expires, fmt.Errorf("%w while it was in use", ErrExpired))
	}
	f := &flight{cancel}
	if a.flights.add(p.ID, f) {
		cancel(errRevokedNow)
	}
	return ctx, func() {
		a.flights.remove(p.ID, f)
		stop()
		cancel(nil)
	}
}

// Watch is Enter by the ID of the token, for calls that end with their context:
// the one it returns is done as soon as the token is no longer good, at once if
// it is not now.
func (a *Authority) Watch(ctx context.Context, id string) context.Context {
	p, err := a.Principal(ctx, id)
	if err != nil {
		ended, cancel := context.WithCancelCause(ctx)
		cancel(err)
		return ended
	}
	watched, leave := a.Enter(ctx, p)
	context.AfterFunc(ctx, leave)
	return watched
}

var errRevokedNow = fmt.Errorf("%w while it was in use", ErrRevoked)

// add notes a call, and reports whether its token was revoked just now.
func (fs *flights) add(id string, f *flight) (revoked bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if _, revoked := fs.ended[id]; revoked {
		return true
	}
	if fs.calls == nil {
		fs.calls = map[string]map[*flight]struct{}{}
	}
	if fs.calls[id] == nil {
		fs.calls[id] = map[*flight]struct{}{}
	}
	fs.calls[id][f] = struct{}{}
	return false
}

func (fs *flights) remove(id string, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if delete(fs.calls[id], f); len(fs.calls[id]) == 0 {
		delete(fs.calls, id)
	}
}

// end cancels the calls of tokens that were revoked.
func (fs *flights) end(ids []string, now time.Time) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.ended == nil {
		fs.ended = map[string]time.Time{}
	}
	for id, at := range fs.ended {
		if now.Sub(at) > remember {
			delete(fs.ended, id)
		}
	}
	for _, id := range ids {
		fs.ended[id] = now
		for f := range fs.calls[id] {
			f.cancel(errRevokedNow)
		}
	}
}

// idle reports whether no call is under way.
func (fs *flights) idle() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.calls) == 0
}

// follow ends the calls whose tokens another daemon revoked.
func (a *Authority) follow(ctx context.Context) error {
	if a.flights.idle() {
		return nil // what was revoked meanwhile will still be after the cursor
	}
	ids, next, err := a.store.RevokedAfter(ctx, a.cursor)
	if err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	a.cursor = next
	a.ended(ids)
	return nil
}

// ended ends the calls of tokens, and tells who asked to hear of it.
func (a *Authority) ended(ids []string) { a.flights.end(ids, time.Now()) }
