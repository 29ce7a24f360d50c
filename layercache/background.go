package layercache

import "sync"

// background is work that goes on behind the calls that began it. Who needs its
// results waits for all of it with settle.
type background struct {
	mu      sync.Mutex
	running int
	idle    *sync.Cond // made by the first who waits
}

func (b *background) run(work func()) {
	b.mu.Lock()
	b.running++
	b.mu.Unlock()
	go func() {
		defer b.done()
		work()
	}()
}

func (b *background) done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running--; b.running == 0 && b.idle != nil {
		b.idle.Broadcast()
	}
}

// settle waits until nothing runs.
func (b *background) settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle == nil {
		b.idle = sync.NewCond(&b.mu)
	}
	for b.running > 0 {
		b.idle.Wait()
	}
}
