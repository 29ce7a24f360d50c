package layercache

import (
	"sync"

	bolt "go.etcd.io/bbolt"
)

// A batcher puts concurrent changes into one transaction. A commit costs the
// same fsync for one change as for fifty; while one commit runs, the changes
// that arrive wait together for the next.
type batcher struct {
	update func(func(*bolt.Tx) error) error

	mu    sync.Mutex
	queue []*change

	commit sync.Mutex // held by who runs a transaction for all in the queue
}

type change struct {
	apply func(*bolt.Tx) error
	done  bool // guarded by commit, as is err
	err   error
}

// do applies a change and returns when it is on disk. The change runs again if
// another in the same transaction fails, so it must not care how often it
// runs.
func (b *batcher) do(apply func(*bolt.Tx) error) error {
	c := &change{apply: apply}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	b.mu.Unlock()

	b.commit.Lock()
	defer b.commit.Unlock()
	if !c.done {
		b.mu.Lock()
		queue := b.queue
		b.queue = nil
		b.mu.Unlock()
		b.run(queue)
	}
	return c.err
}

// run commits the changes; one that fails is left out and the rest go again.
func (b *batcher) run(queue []*change) {
	for len(queue) > 0 {
		failed := -1
		err := b.update(func(tx *bolt.Tx) error {
			for i, c := range queue {
				if err := c.apply(tx); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed < 0 {
			for _, c := range queue {
				c.done, c.err = true, err
			}
			return
		}
		queue[failed].done, queue[failed].err = true, err
		queue = append(queue[:failed:failed], queue[failed+1:]...)
	}
}
