package layer

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/pushd"
)

// An Incoming layer is one whose blob is known by its digest and still on its
// way into the cache: a layer of a base image. A push may ask for it at once,
// and sends its bytes as they come, but the last one only when the whole has
// been found to be what it should be.
//
// A nil *Incoming is one that nobody pushes. Its methods are for any
// goroutine.
type Incoming struct {
	pending *Pending
	begun   chan struct{} // closed when there is something to read, or never will be

	mu   sync.Mutex
	blob pushd.FileSource // that grows or is whole; nil before the first one
	wake chan struct{}    // closed when what follows, or blob, changes
	over bool
	err  error // why it will never be whole, once it is over
}

// Expect returns the layer that l says is to come: what is known of it so far.
func Expect(l Layer) *Incoming {
	in := &Incoming{begun: make(chan struct{}), wake: make(chan struct{})}
	in.pending = &Pending{
		Descriptor: l.Descriptor, MountFrom: l.MountFrom, Origin: l.Origin, Blob: in, result: make(chan struct{}),
	}
	return in
}

// Pending is the layer as a push takes it.
func (in *Incoming) Pending() *Pending { return in.pending }

// From says where the bytes are found. A later blob, of another try, has the
// same bytes and takes the place of one that was aborted.
func (in *Incoming) From(blob pushd.FileSource) {
	if in == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.blob == nil {
		close(in.begun)
	}
	in.blob = blob
	in.changed()
}

// End says that the layer is in the cache, all of it verified, or why it will
// not be. It is called once.
func (in *Incoming) End(l *Layer, err error) {
	if in == nil {
		return
	}
	in.mu.Lock()
	in.over, in.err = true, err
	if in.blob == nil {
		close(in.begun)
	}
	in.changed()
	in.mu.Unlock()
	in.pending.finish(l, err)
}

func (in *Incoming) changed() {
	close(in.wake)
	in.wake = make(chan struct{})
}

// Begun implements [pushd.LateSource].
func (in *Incoming) Begun(ctx context.Context) error {
	select {
	case <-in.begun:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Descriptor returns what was promised, at once.
func (in *Incoming) Descriptor(context.Context) (ocispec.Descriptor, error) {
	return in.pending.Descriptor, nil
}

// File implements [pushd.FileSource].
func (in *Incoming) File(ctx context.Context) (string, error) {
	if err := in.whole(ctx); err != nil {
		return "", err
	}
	blob, err := in.other(ctx, nil)
	if err != nil {
		return "", err
	}
	return blob.File(ctx)
}

// whole waits until the blob is in the cache and verified.
func (in *Incoming) whole(ctx context.Context) error {
	_, err := in.until(ctx, func() bool { return in.over })
	return err
}

// other waits for a blob that is not the one that broke.
func (in *Incoming) other(ctx context.Context, broken pushd.FileSource) (pushd.FileSource, error) {
	blob, err := in.until(ctx, func() bool { return in.over || in.blob != nil && in.blob != broken })
	if err == nil && (blob == nil || blob == broken) {
		err = fmt.Errorf("blob %s cannot be read from the cache", in.pending.Descriptor.Digest)
	}
	return blob, err
}

// until waits for a state and returns the blob of that moment, or why there
// will never be a whole one.
func (in *Incoming) until(ctx context.Context, there func() bool) (pushd.FileSource, error) {
	for {
		in.mu.Lock()
		ok, blob, err, wake := there(), in.blob, in.err, in.wake
		in.mu.Unlock()
		switch {
		case err != nil:
			return nil, err
		case ok:
			return blob, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Open implements [pushd.Source].
func (in *Incoming) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	if size := in.pending.Descriptor.Size; off < 0 || off > size {
		return nil, fmt.Errorf("blob %s of %d bytes has none at %d", in.pending.Descriptor.Digest, size, off)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return &follower{in: in, ctx: ctx, cancel: cancel, off: off}, nil
}

// A follower reads an incoming blob. When the pull begins anew, it goes on in
// what that brings.
type follower struct {
	in     *Incoming
	ctx    context.Context // of the caller of Open, until Close
	cancel context.CancelCauseFunc

	mu   sync.Mutex // held by Read
	off  int64
	blob pushd.FileSource // that r reads, or that broke
	r    io.ReadCloser    // nil if none is open
}

// Read waits for bytes, until Close.
func (f *follower) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	most, err := f.readable()
	if err != nil || len(p) == 0 {
		return 0, err
	}
	p = p[:min(int64(len(p)), most)]
	for {
		if err := f.open(); err != nil {
			return 0, err
		}
		n, err := f.r.Read(p)
		f.off += int64(n)
		if n > 0 || err == nil {
			return n, nil // an error comes again
		}
		f.drop()
		if cause := context.Cause(f.ctx); cause != nil {
			return 0, cause
		}
	}
}

// readable returns how many bytes may be read by now: all but the last one
// until that is safe to give away.
func (f *follower) readable() (int64, error) {
	rest := f.in.pending.Descriptor.Size - f.off
	if rest > 1 {
		return rest - 1, context.Cause(f.ctx)
	}
	if err := f.in.whole(f.ctx); err != nil {
		return 0, err
	}
	if rest == 0 {
		return 0, io.EOF
	}
	return rest, nil
}

func (f *follower) open() error {
	if f.r != nil {
		return nil
	}
	blob, err := f.in.other(f.ctx, f.blob)
	if err != nil {
		return err
	}
	f.blob = blob
	if f.r, err = blob.Open(f.ctx, f.off); err != nil {
		f.r = nil
		if cause := context.Cause(f.ctx); cause != nil {
			return cause
		}
		return f.open() // it was aborted meanwhile
	}
	return nil
}

func (f *follower) drop() {
	if f.r != nil {
		_ = f.r.Close() // it is only read
		f.r = nil
	}
}

// Close ends a Read under way, too.
func (f *follower) Close() error {
	f.cancel(os.ErrClosed)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop()
	return nil
}
