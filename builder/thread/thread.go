// Package thread runs functions that change the thread they run on, such as its
// namespaces, so that no other goroutine ever gets that thread.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Go runs f in a goroutine, on a thread that ends with it. The program's first
// thread never ends, and is what others take for the program (/proc/self): f
// never runs on that one.
func Go(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
	}()
}
