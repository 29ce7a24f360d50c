package layercache

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A RoomError says that the disk cannot take what a build is about to write. It
// is ENOSPC to [errors.Is].
type RoomError struct {
	Need, Free int64 // bytes; what others have reserved is not free
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("%d bytes are needed on the daemon's disk, %d are free", e.Need, e.Free)
}

func (e *RoomError) Unwrap() error { return unix.ENOSPC }

// A Reservation is room on the disk that others do not get. It is safe for
// concurrent use and ends with Release.
type Reservation struct {
	s *Store

	mu    sync.Mutex
	bytes int64
	ended bool
}

// Reserve sets bytes of the disk aside for a build that is about to begin,
// evicting for them if need be. It fails with a [*RoomError] where they cannot
// be had. What is reserved is an estimate: a build may write more, and meets a
// full disk then.
func (s *Store) Reserve(ctx context.Context, bytes int64) (*Reservation, error) {
	r := &Reservation{s: s}
	if err := r.Grow(ctx, bytes); err != nil {
		return nil, err
	}
	return r, nil
}

// Grow sets more bytes aside, or fails as Reserve does and leaves things as
// they are.
func (r *Reservation) Grow(ctx context.Context, bytes int64) error {
	s := r.s
	s.reserved.Add(bytes)
	s.relieve(ctx)
	_, free, err := diskSpace(s.opts.Root)
	if err == nil && free < s.reserved.Load() {
		err = &RoomError{Need: bytes, Free: max(0, free-(s.reserved.Load()-bytes))}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || r.ended {
		s.reserved.Add(-bytes)
	} else {
		r.bytes += bytes
	}
	if err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	return nil
}

// Shrink gives bytes back, as they have been written or will not be. It gives
// no more back than there is.
func (r *Reservation) Shrink(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes = min(bytes, r.bytes)
	r.bytes -= bytes
	r.s.reserved.Add(-bytes)
}

// Release gives all back. A reservation that was released holds nothing more.
func (r *Reservation) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s.reserved.Add(-r.bytes)
	r.bytes, r.ended = 0, true
}
