package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
)

// leastRoom is what any build needs on the disk.
const leastRoom = 64 << 20

// A roomySession sets room on the disk aside for what a build asks of its
// context, before any of that travels: the contents that the store lacks, and
// the layers that are made of what is asked for. What has been written is
// given back. Only the manifest tells how much it is, and only the steps that
// run tell which of it is needed.
type roomySession struct {
	Session
	cache *layercache.Cache
	held  *layercache.Reservation // nil before the plan is made
	turn  chan struct{}           // held by who asks for room

	// Under turn.
	asked []bool // entries of the manifest
	full  error  // there was no room: the answer from then on

	mu     sync.Mutex
	layers int64 // bytes that are held for layers
}

var _ Session = (*roomySession)(nil)

func newRoomySession(s Session, c *layercache.Cache) *roomySession {
	return &roomySession{Session: s, cache: c, turn: make(chan struct{}, 1)}
}

// Need implements [Session].
func (s *roomySession) Need(ctx context.Context, groups ...[]int) error {
	lacking, err := s.reserve(ctx, groups)
	if err != nil {
		return err
	}
	if lacking > 0 {
		defer func() { s.held.Shrink(lacking) }()
	}
	return s.Session.Need(ctx, groups...)
}

// reserve sets room aside for what was never asked for. It returns how much of
// it is for contents.
func (s *roomySession) reserve(ctx context.Context, groups [][]int) (lacking int64, err error) {
	m, err := s.Manifest(ctx)
	if err != nil || s.held == nil {
		return 0, err
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if s.full != nil {
		return 0, s.full
	}
	fresh, bytes := s.fresh(m, groups)
	if len(fresh) == 0 {
		return 0, nil
	}
	absent, err := buildctx.Needs(ctx, m, fresh, lookup{s.cache.Contents()})
	if err != nil {
		return 0, err
	}
	for _, i := range absent {
		lacking += m.Entries[i].Size
	}
	if err := s.held.Grow(ctx, lacking+bytes); err != nil {
		s.full = failure.At(roomFailure("what the build needs of its context, and the layers made of it,", err), failure.Context, 0)
		return 0, s.full
	}
	s.mu.Lock()
	s.layers += bytes
	s.mu.Unlock()
	return lacking, nil
}

// fresh returns the entries that are asked for the first time, and the sum of
// their sizes.
func (s *roomySession) fresh(m *buildctx.Manifest, groups [][]int) (entries []int, bytes int64) {
	if s.asked == nil {
		s.asked = make([]bool, len(m.Entries))
	}
	for _, group := range groups {
		for _, i := range group {
			if !s.asked[i] {
				s.asked[i] = true
				entries = append(entries, i)
				bytes += m.Entries[i].Size
			}
		}
	}
	return entries, bytes
}

// made gives back what was held for a layer that is on the disk now.
func (s *roomySession) made(l *layer.Layer) {
	s.mu.Lock()
	n := min(s.layers, l.Uncompressed)
	s.layers -= n
	s.mu.Unlock()
	if n > 0 {
		s.held.Shrink(n)
	}
}

// A lookup is a store that is asked only what it lacks.
type lookup struct{ *layercache.Contents }

// Add implements buildctx.Store.
func (lookup) Add(context.Context, digest.Digest, int64, io.Reader) error {
	return errors.ErrUnsupported
}

// roomFailure says what there is no room for, if that is what err is.
func roomFailure(what string, err error) error {
	var room *layercache.RoomError
	if !errors.As(err, &room) {
		return err
	}
	return &failure.Error{Code: failure.DiskFull, Blame: failure.Builder, Retryable: true, Err: err,
		Message: fmt.Sprintf("the daemon's disk has no room for %s: it needs about %d MB, %d MB are free", what, room.Need/1e6, room.Free/1e6),
		Hint:    "free disk space or run slipway cache prune, then deploy again; nothing of it has travelled yet"}
}
