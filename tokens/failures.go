package tokens

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// A TooManyError says that too many attempts from one address failed. It wraps
// [ErrUnauthorized].
type TooManyError struct{ Wait time.Duration }

func (e *TooManyError) Error() string {
	return fmt.Sprintf("too many failed attempts from this address; wait %d seconds", int(math.Ceil(e.Wait.Seconds())))
}

func (e *TooManyError) Unwrap() error { return ErrUnauthorized }

const (
	failuresAllowed = 10              // at once, by one address
	failureEvery    = 6 * time.Second // one more
	addressesKept   = 10_000
)

// failures counts failed attempts by address, as if each filled a bucket that
// drains by one every failureEvery.
type failures struct {
	mu   sync.Mutex
	full map[string]time.Time // when an address's bucket will have drained
}

// add notes a failure; if there were too many before it, it returns for how
// long there are.
func (f *failures) add(address string, now time.Time) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full == nil {
		f.full = map[string]time.Time{}
	}
	if len(f.full) >= addressesKept {
		f.forget(now)
	}
	drained := f.full[address]
	if drained.Before(now) {
		drained = now
	}
	if over := drained.Add(failureEvery).Sub(now) - failuresAllowed*failureEvery; over > 0 {
		return over
	}
	f.full[address] = drained.Add(failureEvery)
	return 0
}

// forget drops addresses whose buckets are empty; if none is, all.
func (f *failures) forget(now time.Time) {
	for a, drained := range f.full {
		if !drained.After(now) {
			delete(f.full, a)
		}
	}
	if len(f.full) >= addressesKept {
		clear(f.full)
	}
}
