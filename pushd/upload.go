package pushd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// spell is how long one request should take on a registry that may lose all
// of it when it breaks.
const spell = 4 * time.Second

// Upload implements [Target]. While src grows, its bytes are sent in chunks as
// soon as there is one; a finished blob goes in as few requests as the
// registry allows. After a break the registry is asked how far it came, and
// only the rest is sent.
func (t *HTTP) Upload(ctx context.Context, known ocispec.Descriptor, src Source, w Watcher) (Outcome, error) {
	u := &upload{
		t: t, src: src, chunk: t.opts.Chunk, most: math.MaxInt64, budget: t.budget(),
		entry: newEntry(t.opts.Journal, t.Name()), whole: t.facts().noChunks,
	}
	u.w.Watcher = w
	outcome, err := u.run(ctx, known)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	u.close(ctx, err)
	return outcome, err
}

// An upload is one blob on its way.
type upload struct {
	t      *HTTP
	src    Source
	w      counter
	budget *budget
	chunk  int64 // least bytes of the next chunk
	most   int64 // that a proxy in between takes
	size   int64 // of the last request

	s        *session
	entry    *entry // of the session, in the journal
	whole    bool   // the registry takes no chunks: one PUT has it all
	bareEnd  bool   // the last chunk must not come with the PUT
	lost     int    // sessions that ended with the first chunk
	mismatch bool   // the registry once got other bytes than we have
	best     int64  // offset that was ever confirmed

	done  bool               // desc is known
	desc  ocispec.Descriptor // of the complete blob
	scout *scout             // while it is not
}

// A counter is a Watcher that counts the bytes of the current request.
type counter struct {
	Watcher
	n atomic.Int64
}

func (c *counter) At(off int64) {
	c.n.Store(0)
	c.Watcher.At(off)
}

func (c *counter) Sent(n int64) {
	c.n.Add(n)
	c.Watcher.Sent(n)
}

func (u *upload) run(ctx context.Context, known ocispec.Descriptor) (Outcome, error) {
	if known.Digest != "" {
		if err := u.know(ctx); err != nil {
			return "", err
		}
		if u.desc.Digest != known.Digest {
			return "", u.t.error(ErrDigest, "upload", fmt.Sprintf("%s was promised, %s came", known.Digest, u.desc.Digest))
		}
	} else {
		u.scout = newScout(ctx, u.src, func(d ocispec.Descriptor) { u.entry.learn(ctx, d.Digest) })
	}
	if err := u.resume(ctx); err != nil {
		return "", err
	}
	for {
		finished, err := u.step(ctx)
		if finished {
			return Uploaded, nil
		}
		if err != nil {
			present, err := u.recover(ctx, err)
			if err != nil {
				return "", err
			}
			if present {
				return Uploaded, nil // the answer to the last PUT was lost
			}
		}
	}
}

// step makes one request towards the end.
func (u *upload) step(ctx context.Context) (finished bool, err error) {
	switch {
	case u.s == nil:
		return false, u.begin(ctx)
	case u.s.unsure:
		return false, u.ask(ctx)
	}
	if err := u.peek(ctx); err != nil {
		return false, err
	}
	size := max(min(u.chunk, u.most), u.s.minChunk)
	if !u.done && u.whole {
		return false, u.know(ctx)
	}
	if !u.done {
		switch err := u.scout.reach(ctx, u.s.offset+size); {
		case errors.Is(err, errEnds):
			return false, u.know(ctx)
		case err != nil:
			return false, err
		}
		return false, u.patch(ctx, size)
	}
	rest := u.desc.Size - u.s.offset
	size = u.stride(size)
	switch {
	case rest < 0:
		return false, u.t.error(ErrDigest, "upload", fmt.Sprintf("registry has %d bytes of a blob of %d", u.s.offset, u.desc.Size))
	case u.whole || rest == 0 || rest <= size && !(u.s.patched && u.bareEnd):
		return u.put(ctx, rest)
	default:
		return false, u.patch(ctx, min(size, rest))
	}
}

// stride is how much of a finished blob the next request may carry. Registries
// sync each chunk to disk, so the fewer the better; but a break may cost all
// of a request where the registry does not keep the parts.
func (u *upload) stride(least int64) int64 {
	facts, n := u.t.facts(), least
	switch {
	case facts.keeps:
		n = math.MaxInt64
	case facts.rate > 0:
		n = max(least, int64(facts.rate*spell.Seconds()))
	}
	return max(least, min(n, u.most, u.t.opts.MaxChunk))
}

func (u *upload) begin(ctx context.Context) error {
	s, err := u.t.open(ctx)
	if err != nil {
		return err
	}
	u.s = &s
	u.w.At(0)
	u.note(ctx)
	return nil
}

// patch sends the next n bytes.
func (u *upload) patch(ctx context.Context, n int64) error {
	off, began := u.s.offset, time.Now()
	u.w.At(off)
	u.s.patched, u.s.top, u.size = true, off+n, n
	a, err := u.t.send(ctx, request{
		op: "send chunk", method: http.MethodPatch, url: u.s.location,
		header: contentRange(off, n), body: u.src, off: off, size: n, w: &u.w,
		want: []int{201, 202, 204},
	})
	if err != nil {
		return err
	}
	u.timed(n, time.Since(began)-a.waited)
	u.follow(a)
	switch got, ok := confirmed(a.header); {
	case !ok:
		u.advance(ctx, off+n)
	case got == off+n:
		u.advance(ctx, got)
	default:
		u.s.unsure = true
		return u.t.broken("send chunk", fmt.Errorf("registry confirmed %d bytes of %d", got, off+n))
	}
	return nil
}

// put ends the upload with its last n bytes.
func (u *upload) put(ctx context.Context, n int64) (bool, error) {
	loc, began := *u.s.location, time.Now()
	q := loc.Query()
	q.Set("digest", u.desc.Digest.String())
	loc.RawQuery = q.Encode()
	u.w.At(u.s.offset)
	u.s.top, u.size = u.desc.Size, n
	h := http.Header{"Content-Type": {"application/octet-stream"}}
	if n > 0 && u.s.offset > 0 {
		h = contentRange(u.s.offset, n)
	}
	a, err := u.t.send(ctx, request{
		op: "finish upload", method: http.MethodPut, url: &loc,
		header: h, body: u.src, off: u.s.offset, size: n, w: &u.w, stored: u.desc.Size,
		want: []int{200, 201, 204},
	})
	if err != nil {
		return false, err
	}
	u.timed(n, time.Since(began)-a.waited)
	return u.accepted(ctx, a)
}

// accepted checks that the registry has what it said it took.
func (u *upload) accepted(ctx context.Context, a *answer) (bool, error) {
	if a.header.Get("Docker-Content-Digest") != "" {
		err := u.t.verify("finish upload", a, u.desc.Digest)
		return err == nil, err
	}
	u.s = nil // it has ended either way
	u.entry.drop(ctx)
	err := u.t.retry(ctx, &u.w, u.t.budget(), func() error {
		found, err := u.t.Exists(ctx, u.desc, &u.w)
		if err == nil && !found { // perhaps not yet
			err = u.t.broken("finish upload", errors.New("registry took the blob but does not have it"))
		}
		return err
	})
	var e *Error
	if errors.As(err, &e) {
		e.permanent = true // it would not keep it the next time either
	}
	return err == nil, err
}

// ask learns from the registry how far the upload has come. Its word counts,
// not ours.
func (u *upload) ask(ctx context.Context) error {
	a, err := u.t.send(ctx, request{op: "resume upload", method: http.MethodGet, url: u.s.location, want: []int{200, 202, 204}})
	if err != nil {
		return err
	}
	got, ok := confirmed(a.header)
	if ok {
		u.judge(got)
	}
	if !ok || got <= 1 || u.s.top > 0 && got > u.s.top {
		// "0-0" stands for one byte and for none, and what was never sent
		// cannot be there. Little is lost by a new start.
		u.forget(ctx)
		return nil
	}
	u.follow(a)
	u.s.unsure, u.s.patched = false, true
	u.confirm(got)
	u.note(ctx)
	u.w.At(got)
	return nil
}

// telling is from how many bytes on a request tells something: less may be in
// buffers on the way.
const telling = 1 << 20

// timed learns the rate from a request that carried n bytes: the registry's,
// whatever the source takes.
func (u *upload) timed(n int64, took time.Duration) {
	if n >= min(telling, u.t.opts.Chunk) {
		u.t.opts.Hosts.timed(u.t.host(), n, took)
	}
}

// judge learns whether the registry keeps what came of a request that broke.
func (u *upload) judge(got int64) {
	sent := u.w.n.Load()
	switch kept := got - u.s.offset; {
	case u.s.top == 0 || got > u.s.top || sent < telling:
	case kept > sent/2 && kept < u.size:
		u.t.opts.Hosts.learn(u.t.host(), func(f *hostFacts) { f.keeps = !f.loses })
	case kept <= 1:
		u.t.opts.Hosts.learn(u.t.host(), func(f *hostFacts) { f.keeps, f.loses = false, true })
	}
}

// confirm sets the offset. Only bytes that were never confirmed before count
// as progress.
func (u *upload) confirm(off int64) {
	u.s.offset = off
	if off > u.best {
		u.best = off
		u.budget.progress()
	}
}

// follow takes over where the registry wants the next request.
func (u *upload) follow(a *answer) {
	if next, err := a.session(); err == nil {
		u.s.location = next.location
	}
}

func (u *upload) advance(ctx context.Context, off int64) {
	u.confirm(off)
	u.lost = 0
	u.note(ctx)
}

// know waits for the descriptor.
func (u *upload) know(ctx context.Context) error {
	desc, err := u.src.Descriptor(ctx)
	if err != nil {
		return &sourceError{err}
	}
	if desc.Digest.Validate() != nil || desc.Size < 0 {
		return &sourceError{fmt.Errorf("bad descriptor %q", desc.Digest)}
	}
	u.desc, u.done = desc, true
	return nil
}

// peek learns the descriptor if it is there by now.
func (u *upload) peek(ctx context.Context) error {
	if u.done {
		return nil
	}
	select {
	case <-u.scout.complete:
		return u.know(ctx)
	default:
		return nil
	}
}
