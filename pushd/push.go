package pushd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
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
	Origins   []string // the same as HOST/REPOSITORY; those of other registries do not count
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
	failed  error // of a manifest
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
		if outcome == Present && u.before != "" {
			outcome = u.before // it came so, and was there when asked for again
		}
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
	p.account.add(o, 1)
}

func (a *Account) add(o Outcome, n int) {
	switch o {
	case Uploaded:
		a.Uploaded += n
	case Mounted:
		a.Mounted += n
	case Present:
		a.Present += n
	case Linked:
		a.Linked += n
	}
}

// Manifest waits for every blob added so far, then stores raw under its digest
// and its tags. It may be called again.
//
// If the registry has lost a blob that it had confirmed before, the blobs are
// brought again, once.
func (p *Push) Manifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags ...string) error {
	return p.Manifests(ctx, Manifest{Descriptor: desc, Raw: raw, Tags: tags})
}

// Manifests does the same for several, such as an index and what it lists:
// what others name comes first, and tags come after everything.
func (p *Push) Manifests(ctx context.Context, all ...Manifest) error {
	err := p.manifests(ctx, all)
	if err != nil && context.Cause(p.ctx) == nil && context.Cause(ctx) == nil {
		p.fail(err)
	}
	return err
}

func (p *Push) manifests(ctx context.Context, all []Manifest) error {
	sorted, top, err := inOrder(all)
	if err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return err
	}
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	ctx, cancel := mergeCancel(ctx, p.ctx)
	defer cancel()
	err = p.put(ctx, sorted, top)
	if errors.Is(err, ErrBlobUnknown) && p.again() {
		if err := p.wait(ctx); err != nil {
			return err
		}
		if err = p.put(ctx, sorted, top); errors.Is(err, ErrBlobUnknown) {
			p.forget()
		}
	}
	return err
}

// put stores what others name, then the rest with the tags of all.
func (p *Push) put(ctx context.Context, sorted []Manifest, top map[digest.Digest]bool) error {
	w := manifestWatcher{p}
	for _, last := range []bool{false, true} {
		for _, m := range sorted {
			tags := m.Tags
			switch {
			case !last && !top[m.Digest]:
				tags = nil
			case !last || !top[m.Digest] && len(tags) == 0:
				continue
			}
			if err := p.target.PutManifest(ctx, m.Descriptor, m.Raw, tags, w); err != nil {
				return fmt.Errorf("push manifest %s: %w", m.Digest, err)
			}
		}
	}
	return nil
}

// Err returns why the push has failed or ended, nil while it goes on or when
// it has succeeded.
func (p *Push) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	if err := context.Cause(p.ctx); err != nil && !errors.Is(err, errEnded) {
		return err
	}
	return nil
}

func (p *Push) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = err
	}
}

// forget makes the engine ask for the blobs of this push anew, for whoever
// wants them next.
func (p *Push) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.uploads {
		p.engine.forget(place{p.target.Name(), u.Descriptor().Digest})
	}
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

// again asks for all blobs anew and brings those that are not there.
func (p *Push) again() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	for i, u := range p.uploads {
		desc, outcome, err := u.result()
		if err != nil {
			continue
		}
		p.engine.forget(place{p.target.Name(), desc.Digest})
		b := u.blob
		b.Descriptor = desc
		next := &Upload{push: p, blob: b, desc: desc, done: make(chan struct{}), state: Checking, before: outcome}
		p.uploads[i] = next
		p.account.add(outcome, -1)
		p.wg.Go(func() { p.run(next) })
	}
	return true
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
