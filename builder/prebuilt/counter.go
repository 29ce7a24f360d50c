package prebuilt

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/rescue"
)

// A counted layer is one whose every byte has been seen and found to be what
// its descriptor and its diff ID say.
type counted struct {
	DiffID       digest.Digest
	Uncompressed int64
	Delta        limits.Delta
}

// A counter unpacks a layer's blob as its bytes pass, charges the tar in it
// and checks both digests. It is safe for concurrent use.
type counter struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	most   int64 // of the root file system, as limits.NewLedger takes it
	charge func() *limits.Layer

	queue *queue
	done  chan struct{} // closed when out and err are set

	offering sync.Mutex // held while bytes are passed on, in order
	sum      hash.Hash  // of what was passed on

	mu      sync.Mutex
	next    int64 // offset of the first byte that was not passed on
	started bool
	ended   bool
	out     *counted
	err     error
}

// newCounter returns a counter that opens its account with charge when the
// first byte comes.
func newCounter(d ocispec.Descriptor, diffID digest.Digest, most int64, charge func() *limits.Layer) *counter {
	return &counter{desc: d, diffID: diffID, most: most, charge: charge,
		queue: newQueue(), done: make(chan struct{}), sum: digest.SHA256.Hash()}
}

// position is the offset up to which bytes have come.
func (c *counter) position() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// offer takes the bytes at an offset. What came before is left out; nothing
// may be left out before off. It waits while the count lags behind, and fails
// with what the count failed with.
func (c *counter) offer(off int64, p []byte) error {
	c.offering.Lock()
	defer c.offering.Unlock()
	seen := c.position() - off
	if seen >= int64(len(p)) {
		return c.failed()
	}
	if seen < 0 {
		return fmt.Errorf("blob %s: bytes up to %d were left out", c.desc.Digest, off)
	}
	if !c.start() {
		return c.failed()
	}
	p = p[seen:]
	c.sum.Write(p)
	if _, err := c.queue.Write(p); err != nil {
		return err
	}
	c.mu.Lock()
	c.next += int64(len(p))
	whole := c.next == c.desc.Size
	c.mu.Unlock()
	if whole {
		c.queue.close(nil)
	}
	return nil
}

// start begins the count with the first byte. It reports false after the end.
func (c *counter) start() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	if !c.started {
		c.started = true
		go c.run() // stop waits for it
	}
	return true
}

func (c *counter) run() {
	var out *counted
	err := rescue.Run(func() (err error) {
		out, err = c.count()
		return err
	})
	if err != nil {
		c.queue.leave(err)
	}
	c.finish(out, err)
}

func (c *counter) finish(out *counted, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended, c.out, c.err = true, out, err
	close(c.done)
}

// take ends a counter with what is known from elsewhere.
func (c *counter) take(out *counted) {
	if out != nil {
		c.finish(out, nil)
	}
}

// complete reports whether every byte has come, or no more are wanted.
func (c *counter) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended || c.next == c.desc.Size && c.started
}

// failed returns what the count failed with so far.
func (c *counter) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// result waits for the end of the count.
func (c *counter) result(ctx context.Context) (*counted, error) {
	select {
	case <-c.done:
		return c.out, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errGivenUp = errors.New("the layer was given up")

// stop ends a count that nobody waits for, and waits until it has ended.
func (c *counter) stop() {
	c.queue.close(errGivenUp)
	c.mu.Lock()
	started := c.started
	c.mu.Unlock()
	if !started {
		c.finish(nil, errGivenUp)
	}
	<-c.done
}

// count reads the queue to its end.
func (c *counter) count() (*counted, error) {
	size, sum, delta, err := c.unpack()
	if err != nil {
		return nil, c.blame(err)
	}
	// The queue has ended, so nobody writes to c.sum.
	if got := digest.NewDigest(digest.SHA256, c.sum); got != c.desc.Digest {
		return nil, fmt.Errorf("%w: blob %s has the content of %s", base.ErrInvalid, c.desc.Digest, got)
	}
	if sum != c.diffID {
		return nil, fmt.Errorf("%w: layer %s has the diff ID %s, the config says %s", base.ErrInvalid, c.desc.Digest, sum, c.diffID)
	}
	return &counted{DiffID: sum, Uncompressed: size, Delta: delta}, nil
}

// blame tells content that is wrong from what ended the count for other
// reasons.
func (c *counter) blame(err error) error {
	var size *limits.SizeError
	if errors.As(err, &size) || errors.Is(err, errGivenUp) || errors.Is(err, base.ErrInvalid) {
		return err
	}
	return fmt.Errorf("%w: layer %s: %v", base.ErrInvalid, c.desc.Digest, err)
}

func (c *counter) unpack() (size int64, sum digest.Digest, delta limits.Delta, err error) {
	plain, err := layer.Decompress(c.queue)
	if err != nil {
		return 0, "", nil, err
	}
	charge := c.charge()
	hash := digest.SHA256.Digester()
	size, err = io.CopyBuffer(hash.Hash(), &bounded{r: charge.Reader(plain), packed: c.position, most: c.most}, make([]byte, readBuffer))
	delta, closeErr := charge.Close()
	if err == nil {
		err = closeErr
	}
	if err == nil {
		// What follows the compressed stream belongs to the blob too.
		_, err = io.Copy(io.Discard, c.queue)
	}
	if err != nil {
		c.queue.leave(err) // the decompressor may read ahead
	}
	return size, hash.Digest(), delta, errors.Join(err, plain.Close())
}
