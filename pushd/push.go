package pushd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Blob is what a push brings to the repository.
type Blob struct {
	// Descriptor holds what is known. Without a digest the blob is still
	// being made, and its bytes are sent as they come.
	ocispec.Descriptor

	Name      string   // for progress, such as the step it comes from
	Source    Source   // gives the bytes
	MountFrom []string // repositories of the same registry that may have it
}

// A Push is one image on its way. Its methods may be called concurrently.
type Push struct {
	engine   *Engine
	target   Target
	progress func(Progress)
	slots    chan struct{} // for uploads

	// The blobs that Add starts live as long as the push, not as the call.
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	report sync.Mutex // held while progress is called

	mu      sync.Mutex
	ended   bool
	uploads []*Upload
	account Account
}

var errEnded = errors.New("push has ended")

// Add begins to bring a blob to the repository and returns at once.
func (p *Push) Add(b Blob) *Upload {
	u := &Upload{push: p, blob: b, desc: b.Descriptor, done: make(chan struct{}), state: Checking}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		u.err = errEnded
		close(u.done)
		return u
	}
	p.uploads = append(p.uploads, u)
	p.wg.Go(func() { p.run(u) })
	return u
}

func (p *Push) run(u *Upload) {
	u.enter(Checking)
	outcome, err := p.bring(p.ctx, u)
	switch cause := context.Cause(p.ctx); {
	case err == nil:
		p.count(outcome)
	case cause != nil:
		err = cause // stopped by another blob, or from outside
	default:
		err = fmt.Errorf("push %s: %w", u.name(), err)
		p.cancel(err)
	}
	u.end(outcome, err)
}

func (p *Push) count(o Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch o {
	case Uploaded:
		p.account.Uploaded++
	case Mounted:
		p.account.Mounted++
	case Present:
		p.account.Present++
	case Linked:
		p.account.Linked++
	}
}

// Manifest waits for every blob added so far, then stores raw under its digest
// and its tags. It may be called again, as for an index and what it lists.
//
// If the registry has lost a blob that it had confirmed before, the blobs are
// brought again, once.
func (p *Push) Manifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags ...string) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	ctx, cancel := mergeCancel(ctx, p.ctx)
	defer cancel()
	w := manifestWatcher{p}
	err := p.target.PutManifest(ctx, desc, raw, tags, w)
	if errors.Is(err, ErrBlobUnknown) && p.again() {
		if err := p.wait(ctx); err != nil {
			return err
		}
		err = p.target.PutManifest(ctx, desc, raw, tags, w)
	}
	if err != nil {
		return fmt.Errorf("push manifest %s: %w", desc.Digest, err)
	}
	return nil
}

// mergeCancel returns ctx that ends with other too.
func mergeCancel(ctx, other context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(nil) }
}

// wait waits for the blobs added so far and returns the first failure.
func (p *Push) wait(ctx context.Context) error {
	p.mu.Lock()
	uploads := slices.Clone(p.uploads)
	p.mu.Unlock()
	var failed error
	for _, u := range uploads {
		if _, _, err := u.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if failed == nil {
				failed = err
			}
		}
	}
	if failed != nil {
		return context.Cause(p.ctx) // the first in time
	}
	return nil
}

// again brings blobs anew that were taken as present.
func (p *Push) again() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	found := false
	for i, u := range p.uploads {
		desc, outcome, err := u.result()
		if err != nil || outcome != Present {
			continue
		}
		found = true
		p.engine.forget(place{p.target.Name(), desc.Digest})
		b := u.blob
		b.Descriptor = desc
		next := &Upload{push: p, blob: b, desc: desc, done: make(chan struct{}), state: Checking}
		p.uploads[i] = next
		p.account.Present--
		p.wg.Go(func() { p.run(next) })
	}
	return found
}

// Abort stops what still runs, with the cause that Wait then reports, and
// waits until it has stopped. After a finished push it only frees the push.
// No manifest is put after it.
func (p *Push) Abort(cause error) {
	if cause == nil {
		cause = errEnded
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.cancel(cause)
	p.wg.Wait()
}

// Account returns what the push has cost so far.
func (p *Push) Account() Account {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.account
}

func (p *Push) addBytes(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.account.WireBytes += n
}

func (p *Push) addRetry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.account.Retries++
}

// manifestWatcher counts for the push alone.
type manifestWatcher struct{ p *Push }

func (manifestWatcher) At(int64) {}

func (m manifestWatcher) Sent(n int64) { m.p.addBytes(n) }

func (m manifestWatcher) Retry(cause error, wait time.Duration) {
	m.p.addRetry()
	m.p.engine.opts.Log.Warn("push retries", "target", m.p.target.Name(), "what", "manifest", "cause", cause, "wait", wait)
}
