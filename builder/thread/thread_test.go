package thread_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/thread"
)

// Many at once come to any thread that is free, but never to the first one, and
// each has its own.
func TestGo(t *testing.T) {
	const many = 64
	ids, leave := make(chan int, many), make(chan struct{})
	for range many {
		thread.Go(func() {
			ids <- unix.Gettid()
			<-leave
		})
	}
	seen := map[int]bool{unix.Getpid(): true}
	for range many {
		id := <-ids
		if seen[id] {
			t.Errorf("thread %d is the program's first, or another's", id)
		}
		seen[id] = true
	}
	close(leave)
	runtime.Gosched()
}
