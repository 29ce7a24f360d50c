package layercache_test

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/layercache"
)

// What is reserved is not there for others, until it is released.
func TestReserve(t *testing.T) {
	root := t.TempDir()
	s := open(t, layercache.Options{Root: root, MinFree: -1})
	var st unix.Statfs_t
	fatal(t, unix.Statfs(root, &st))
	most := int64(st.Bavail) * st.Bsize / 3 * 2
	held := must(s.Reserve(t.Context(), most))(t)
	full := func(err error) {
		t.Helper()
		var room *layercache.RoomError
		if !errors.As(err, &room) || !errors.Is(err, unix.ENOSPC) || room.Need != most || room.Free >= most {
			t.Errorf("twice the same: %v", err)
		}
	}
	_, err := s.Reserve(t.Context(), most)
	full(err)
	full(held.Grow(t.Context(), most))
	must(s.Reserve(t.Context(), 1000))(t).Release()
	// What has been written is no longer reserved, what never was stays so.
	held.Shrink(most)
	held.Shrink(most)
	again := must(s.Reserve(t.Context(), most))(t)
	full(held.Grow(t.Context(), most))
	again.Release()
	fatal(t, held.Grow(t.Context(), most))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(held.Release) // counts once
	}
	wg.Wait()
	fatal(t, held.Grow(t.Context(), most)) // too late: it holds nothing
	again = must(s.Reserve(t.Context(), most))(t)
	if _, err := s.Reserve(t.Context(), most); err == nil {
		t.Error("a release was counted more than once")
	}
	again.Release()
}
