package layercache

import (
	"context"
	"fmt"
	"sync/atomic"

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

// Reserve sets bytes of the disk aside for a build that is about to begin,
// evicting for them if need be, until release is called. It fails with a
// [*RoomError] where they cannot be had. What is reserved is an estimate: a
// build may write more, and meets a full disk then.
func (s *Store) Reserve(ctx context.Context, bytes int64) (release func(), err error) {
	s.reserved.Add(bytes)
	s.relieve(ctx)
	_, free, err := diskSpace(s.opts.Root)
	if err == nil && free < s.reserved.Load() {
		err = &RoomError{Need: bytes, Free: max(0, free-(s.reserved.Load()-bytes))}
	}
	if err != nil {
		s.reserved.Add(-bytes)
		return nil, fmt.Errorf("reserve: %w", err)
	}
	var done atomic.Bool
	return func() {
		if done.CompareAndSwap(false, true) {
			s.reserved.Add(-bytes)
		}
	}, nil
}
