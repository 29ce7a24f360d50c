package prebuilt

import (
	"sync"

	"github.com/slipwayhq/slipway/limits"
)

// A tally is the size of one image. Its layers are charged in order, however
// they become known. It is safe for concurrent use.
type tally struct {
	mu      sync.Mutex
	ledger  *limits.Ledger
	next    int             // layer whose turn it is
	live    bool            // that layer is being charged while it is read
	over    bool            // it did not fit
	waiting map[int]waiting // known, but not those below
}

type waiting struct {
	source limits.Source
	delta  limits.Delta
}

func newTally(most int64) *tally {
	return &tally{ledger: limits.NewLedger(most), waiting: map[int]waiting{}}
}

// begin opens the nth layer on the image's own ledger. It is nil if it is not
// that layer's turn. A layer that was begun must be settled.
func (t *tally) begin(n int, src limits.Source) *limits.Layer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != n || t.live {
		return nil
	}
	t.live = true
	return t.ledger.Begin(src)
}

// settle charges the nth layer, and those above it that waited for it, unless
// begin did. It fails with a *[limits.SizeError].
func (t *tally) settle(n int, src limits.Source, d limits.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < t.next {
		return nil
	}
	t.waiting[n] = waiting{src, d}
	for {
		w, ok := t.waiting[t.next]
		if !ok {
			return nil
		}
		delete(t.waiting, t.next)
		t.next++
		if t.live {
			t.live = false // the ledger has it
			continue
		}
		if err := t.ledger.Replay(w.source, w.delta); err != nil {
			t.over = true
			return err
		}
	}
}

// whole reports whether n layers have been charged, all within the limit.
func (t *tally) whole(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next == n && !t.over
}

func (t *tally) total() int64 { return t.ledger.Total() }
func (t *tally) peak() int64  { return t.ledger.Peak() }
