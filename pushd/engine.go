package pushd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/rescue"
)

// Options tunes an [Engine]. Nil means the defaults.
type Options struct {
	Parallel int           // blobs of one push that send bytes at once; 0 means 6
	Remember time.Duration // how long a confirmed blob is not asked for again; 0 means 10 minutes
	Interval time.Duration // least time between two reports of a blob's bytes; 0 means 200 ms
	Log      *slog.Logger  // gets a record for each retry; nil means none
}

func (o *Options) orDefault() Options {
	var v Options
	if o != nil {
		v = *o
	}
	if v.Parallel <= 0 {
		v.Parallel = 6
	}
	if v.Remember <= 0 {
		v.Remember = 10 * time.Minute
	}
	if v.Interval <= 0 {
		v.Interval = 200 * time.Millisecond
	}
	if v.Log == nil {
		v.Log = slog.New(slog.DiscardHandler)
	}
	return v
}

// maxRemembered bounds what an engine remembers: about 20 MB.
const maxRemembered = 100_000

// An Engine runs pushes. Pushes of one engine send the same blob to the same
// repository once. It is safe for concurrent use.
type Engine struct {
	opts Options

	mu        sync.Mutex
	flights   map[place]*flight
	confirmed map[place]time.Time // until when
}

// A place is a blob in a repository.
type place struct {
	target string
	digest digest.Digest
}

// A flight is a blob on its way to its place.
type flight struct {
	landed chan struct{} // closed at the end
	err    error         // set before
}

// NewEngine returns an engine without pushes.
func NewEngine(o *Options) *Engine {
	return &Engine{opts: o.orDefault(), flights: make(map[place]*flight), confirmed: make(map[place]time.Time)}
}

// claim makes the caller the one who brings a blob to its place. Otherwise it
// returns the flight to wait for, or that the blob was confirmed lately.
func (e *Engine) claim(at place) (mine, other *flight, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if until, ok := e.confirmed[at]; ok {
		if time.Now().Before(until) {
			return nil, nil, true
		}
		delete(e.confirmed, at)
	}
	if f := e.flights[at]; f != nil {
		return nil, f, false
	}
	f := &flight{landed: make(chan struct{})}
	e.flights[at] = f
	return f, nil, false
}

// land ends a flight.
func (e *Engine) land(at place, f *flight, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.flights, at)
	if err == nil {
		e.remember(at)
	}
	f.err = err
	close(f.landed)
}

// confirm remembers a blob that landed without a flight.
func (e *Engine) confirm(at place) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remember(at)
}

func (e *Engine) remember(at place) {
	now := time.Now()
	if len(e.confirmed) >= maxRemembered {
		for k, until := range e.confirmed {
			if now.After(until) || len(e.confirmed) >= maxRemembered {
				delete(e.confirmed, k)
			}
		}
	}
	e.confirmed[at] = now.Add(e.opts.Remember)
}

// forget makes the engine ask for a blob again.
func (e *Engine) forget(at place) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.confirmed, at)
}

// Push begins to push one image to t. Progress, if not nil, is called for
// each change of a blob's state and now and then while bytes flow, one call at
// a time; it must return soon.
//
// The push ends with ctx, with the first failure of a blob, or with
// [Push.Abort], which must be called in any case.
func (e *Engine) Push(ctx context.Context, t Target, progress func(Progress)) *Push {
	ctx, cancel := context.WithCancelCause(ctx)
	return &Push{
		engine: e, target: t, progress: progress, ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, e.opts.Parallel),
	}
}

// errPresent stops the upload of a blob that turned out to be there.
var errPresent = errors.New("the registry has the blob")

// errElsewhere stops the upload of a blob that another push is bringing.
var errElsewhere = errors.New("another push brings the blob")

// bring sees to it that the blob is in the repository and returns how it came
// there.
func (p *Push) bring(ctx context.Context, u *Upload) (_ Outcome, err error) {
	defer rescue.Into(&err)
	if u.blob.Digest == "" {
		outcome, err := p.bringGrowing(ctx, u)
		if !errors.Is(err, errElsewhere) {
			return outcome, err
		}
	}
	for {
		at := place{p.target.Name(), u.Descriptor().Digest}
		mine, other, known := p.engine.claim(at)
		switch {
		case known:
			return Present, nil
		case mine != nil:
			outcome, err := p.bringKnown(ctx, u)
			p.engine.land(at, mine, err)
			return outcome, err
		}
		select {
		case <-other.landed:
			if other.err == nil {
				return Present, nil
			}
			// Perhaps that push was cancelled: try ourselves.
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// bringKnown handles a blob whose digest is known from the start.
func (p *Push) bringKnown(ctx context.Context, u *Upload) (_ Outcome, err error) {
	defer rescue.Into(&err) // so that the flight lands
	desc := u.Descriptor()
	if found, err := p.target.Exists(ctx, desc, u); found || err != nil {
		return Present, err
	}
	if from := p.origins(u.blob); len(from) > 0 {
		if mounted, err := p.target.Mount(ctx, desc, from, u); mounted || err != nil {
			return Mounted, err
		}
	}
	return p.upload(ctx, u)
}

// origins returns the repositories of the target's registry that may have the
// blob.
func (p *Push) origins(b Blob) []string {
	from := slices.Clone(b.MountFrom)
	host, own, _ := strings.Cut(p.target.Name(), "/")
	for _, o := range b.Origins {
		if h, repo, ok := strings.Cut(o, "/"); ok && sameRegistry(h, host) && repo != own && !slices.Contains(from, repo) {
			from = append(from, repo)
		}
	}
	return from
}

// sameRegistry knows that Docker Hub has two names.
func sameRegistry(a, b string) bool {
	const hub = "index.docker.io"
	return a == b || a == "docker.io" && b == hub || a == hub && b == "docker.io"
}

// bringGrowing uploads a blob while it is being made. When its digest becomes
// known with much left to send, it may turn out that the registry has it, or
// that another push is bringing it.
func (p *Push) bringGrowing(ctx context.Context, u *Upload) (Outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var (
		watch sync.WaitGroup
		at    place
		mine  *flight
	)
	look := func() error {
		desc, err := u.blob.Source.Descriptor(ctx)
		if err != nil {
			return nil // the upload will meet it too
		}
		u.learn(desc)
		at = place{p.target.Name(), desc.Digest}
		f, other, known := p.engine.claim(at)
		switch {
		case known:
			cancel(errPresent)
		case other != nil:
			cancel(errElsewhere)
		default:
			mine = f
			if desc.Size-u.position() > worthAsking {
				if found, _ := p.target.Exists(ctx, desc, Ignore()); found {
					cancel(errPresent)
				}
			}
		}
		return nil
	}
	watch.Go(func() {
		if err := rescue.Run(look); err != nil {
			cancel(err)
		}
	})
	outcome, err := p.upload(ctx, u)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	watch.Wait()
	if errors.Is(err, errPresent) {
		outcome, err = Present, nil
	}
	switch {
	case mine != nil:
		p.engine.land(at, mine, err)
	case err == nil:
		p.engine.confirm(place{p.target.Name(), u.Descriptor().Digest})
	}
	return outcome, err
}

// worthAsking is how many bytes must be left for a question to the registry
// to be cheaper.
const worthAsking = 16 << 20

// upload sends the blob when it is its turn, and checks what was sent against
// what was promised.
func (p *Push) upload(ctx context.Context, u *Upload) (_ Outcome, err error) {
	defer rescue.Into(&err)
	if u.blob.Source == nil {
		return "", fmt.Errorf("%w, and there is nothing to upload it from", ErrBlobUnknown)
	}
	if late, ok := u.blob.Source.(LateSource); ok {
		if err := late.Begun(ctx); err != nil {
			return "", err
		}
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	u.enter(Uploading)
	outcome, err := p.target.Upload(ctx, u.blob.Descriptor, u.blob.Source, u)
	if err != nil {
		return "", err
	}
	got, err := u.blob.Source.Descriptor(ctx)
	if err != nil {
		return "", err
	}
	if want := u.blob.Descriptor; want.Digest != "" && want.Digest != got.Digest || want.Size != 0 && want.Size != got.Size {
		return "", fmt.Errorf("%w: %s of %d bytes was promised, %s of %d came", ErrDigest, want.Digest, want.Size, got.Digest, got.Size)
	}
	u.learn(got)
	return outcome, nil
}
