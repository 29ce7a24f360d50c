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
	release := must(s.Reserve(t.Context(), most))(t)
	var room *layercache.RoomError
	if _, err := s.Reserve(t.Context(), most); !errors.As(err, &room) || !errors.Is(err, unix.ENOSPC) || room.Need != most || room.Free >= most {
		t.Errorf("twice the same: %v", err)
	}
	must(s.Reserve(t.Context(), 1000))(t)()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(release) // counts once
	}
	wg.Wait()
	again := must(s.Reserve(t.Context(), most))(t)
	if _, err := s.Reserve(t.Context(), most); err == nil {
		t.Error("a release was counted more than once")
	}
	again()
}
