package prebuilt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/pushd"
)

// A relay is a blob as a push reads it, straight from where it lies. What is
// read goes by the counter, once, however often a part is sent again: a push
// that goes on at an offset finds the source there too. Between two requests
// of a push the source stays open; a source that breaks is opened again where
// it broke, and the push does not notice.
//
// It keeps no bytes but what its counter lags behind. Its readers may be used
// concurrently, each by one goroutine.
type relay struct {
	life    context.Context // of the build
	desc    ocispec.Descriptor
	from    opener
	counter *counter // nil if nothing is to be counted
	opts    relayOptions

	mu     sync.Mutex
	parked *stream // at an offset where a reader left it
	ended  bool
}

type relayOptions struct {
	pause, stall time.Duration
	log          *slog.Logger
}

var _ pushd.Source = (*relay)(nil)

// newRelay returns a relay that lives as long as ctx.
func newRelay(ctx context.Context, d ocispec.Descriptor, from opener, c *counter, o relayOptions) *relay {
	r := &relay{life: ctx, desc: d, from: from, counter: c, opts: o}
	context.AfterFunc(ctx, r.end)
	return r
}

// source returns the relay as a source, a file where it is one.
func (r *relay) source() pushd.Source {
	if file := r.from.File(r.desc); file != nil {
		return &fileRelay{r, file}
	}
	return r
}

// A fileRelay is a relay of a file: where the target can link it, nothing is
// read.
type fileRelay struct {
	*relay
	file func(context.Context) (string, error)
}

var _ pushd.FileSource = (*fileRelay)(nil)

// File implements [pushd.FileSource].
func (f *fileRelay) File(ctx context.Context) (string, error) { return f.file(ctx) }

// Descriptor implements [pushd.Source].
func (r *relay) Descriptor(context.Context) (ocispec.Descriptor, error) { return r.desc, nil }

// Open implements [pushd.Source].
func (r *relay) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	if off < 0 || off > r.desc.Size {
		return nil, fmt.Errorf("blob %s of %d bytes has none at %d", r.desc.Digest, r.desc.Size, off)
	}
	return &reader{relay: r, ctx: ctx, pos: off}, nil
}

// end closes what no reader has.
func (r *relay) end() {
	r.mu.Lock()
	s := r.parked
	r.parked, r.ended = nil, true
	r.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// stream returns the source at an offset: the parked one if it stands there.
func (r *relay) stream(ctx context.Context, off int64) (*stream, error) {
	r.mu.Lock()
	s := r.parked
	r.parked = nil
	r.mu.Unlock()
	if s != nil && s.pos == off {
		return s, nil
	}
	if s != nil {
		s.close()
	}
	return r.connect(ctx, off)
}

// connect opens the source. The stream lives as long as the relay, not as the
// call.
func (r *relay) connect(ctx context.Context, off int64) (*stream, error) {
	own, cancel := context.WithCancelCause(r.life)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	stall := r.opts.stall
	silence := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w: no byte for %v", base.ErrUnavailable, stall)) })
	src, err := r.from.Open(own, r.desc, off)
	if err != nil {
		if own.Err() != nil {
			err = context.Cause(own)
		}
		silence.Stop()
		cancel(nil)
		return nil, err
	}
	return &stream{src: src, pos: off, ctx: own, cancel: cancel, silence: silence, stall: stall}, nil
}

// park keeps a stream for the next reader.
func (r *relay) park(s *stream) {
	s.silence.Stop()
	r.mu.Lock()
	old := r.parked
	if r.ended || s.pos == r.desc.Size {
		old = s
	} else {
		r.parked = s
	}
	r.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// A stream is the source from some offset on.
type stream struct {
	src     io.ReadCloser
	pos     int64
	ctx     context.Context // of the stream itself
	cancel  context.CancelCauseFunc
	silence *time.Timer
	stall   time.Duration
}

func (s *stream) read(p []byte) (int, error) {
	s.silence.Reset(s.stall)
	n, err := s.src.Read(p)
	s.silence.Stop()
	s.pos += int64(n)
	if err != nil && err != io.EOF && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

func (s *stream) close() {
	s.silence.Stop()
	s.cancel(nil)
	_ = s.src.Close() // it is only read
}

// A reader reads a relay from some offset on.
type reader struct {
	relay *relay
	ctx   context.Context // of the caller of Open, whose reading it is
	pos   int64
	fails int // in a row

	mu     sync.Mutex
	at     *stream // nil before the first byte and after a break
	busy   bool
	closed bool
}

// sourceTries is how often in a row a source may break without a byte.
const sourceTries = 5

// Read gives bytes that have been counted, and the last of them only if the
// whole blob is what it should be and within the limit.
func (r *reader) Read(p []byte) (int, error) {
	if !r.enter() {
		return 0, os.ErrClosed
	}
	defer r.leave()
	if r.pos == r.relay.desc.Size {
		return 0, r.last()
	}
	p = p[:min(int64(len(p)), r.relay.desc.Size-r.pos)]
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.catchUp(); err != nil {
		return 0, err
	}
	n, err := r.fill(p)
	if err != nil {
		return 0, err
	}
	if c := r.relay.counter; c != nil {
		if err := c.offer(r.pos, p[:n]); err != nil {
			return 0, err
		}
	}
	r.pos += int64(n)
	if r.pos < r.relay.desc.Size {
		return n, nil
	}
	if err := r.last(); err != io.EOF {
		return 0, err
	}
	return n, nil
}

// last returns io.EOF, or what the count found at the end of the blob.
func (r *reader) last() error {
	if c := r.relay.counter; c != nil {
		if _, err := c.result(r.ctx); err != nil {
			return err
		}
	}
	return io.EOF
}

// catchUp shows the counter what comes before the reader, as when a push
// resumes what an earlier daemon began.
func (r *reader) catchUp() error {
	c := r.relay.counter
	if c == nil {
		return nil
	}
	at := c.position()
	if at >= r.pos {
		return nil
	}
	before := &reader{relay: r.relay, ctx: r.ctx, pos: at}
	_, err := io.CopyN(io.Discard, onlyReader{before}, r.pos-at)
	return errors.Join(err, before.Close())
}

// onlyReader hides what would keep io.Copy from its buffer.
type onlyReader struct{ io.Reader }

// fill reads at least one byte. It opens the source again when that breaks.
func (r *reader) fill(p []byte) (int, error) {
	for {
		n, err := r.try(p)
		if n > 0 {
			r.fails = 0
			return n, nil
		}
		if cause := context.Cause(r.ctx); cause != nil {
			return 0, cause
		}
		if r.drop(); final(err) || r.fails == sourceTries-1 {
			return 0, err
		}
		r.fails++
		r.relay.opts.log.WarnContext(r.ctx, "read again", "blob", r.relay.desc.Digest, "at", r.pos, "err", err)
		if err := pause(r.ctx, time.Duration(r.fails*r.fails)*r.relay.opts.pause); err != nil {
			return 0, err
		}
	}
}

func (r *reader) try(p []byte) (int, error) {
	s := r.stream()
	if s == nil {
		var err error
		if s, err = r.relay.stream(r.ctx, r.pos); err != nil {
			return 0, err
		}
		if !r.hold(s) {
			return 0, os.ErrClosed
		}
	}
	defer context.AfterFunc(r.ctx, func() { s.cancel(context.Cause(r.ctx)) })()
	n, err := s.read(p)
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ended after %d of %d bytes", r.pos, r.relay.desc.Size)
	}
	if !errors.Is(err, base.ErrUnavailable) && !final(err) {
		err = fmt.Errorf("%w: blob %s: %v", base.ErrUnavailable, r.relay.desc.Digest, err)
	}
	return 0, err
}

// final reports whether a source has said its last word.
func final(err error) bool {
	for _, e := range []error{base.ErrNotFound, base.ErrDenied, base.ErrInvalid, layercache.ErrNotFound, os.ErrClosed, os.ErrNotExist, errMissing} {
		if errors.Is(err, e) {
			return true
		}
	}
	return isFailure(err)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *reader) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.busy = true
	return true
}

// leave lets go of the stream if the reader was closed meanwhile.
func (r *reader) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	if r.closed && r.at != nil {
		r.at.close()
		r.at = nil
	}
}

func (r *reader) stream() *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// hold makes s the reader's stream, unless the reader has been closed.
func (r *reader) hold(s *stream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = s
	return !r.closed
}

// drop gives a stream up that broke.
func (r *reader) drop() {
	r.mu.Lock()
	s := r.at
	r.at = nil
	r.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// Close leaves the stream to the next reader. A Read under way, which HTTP
// clients do not wait for, ends.
func (r *reader) Close() error {
	r.mu.Lock()
	s, first := r.at, !r.closed
	r.closed = true
	if r.busy {
		if s != nil {
			s.cancel(os.ErrClosed)
		}
		s = nil
	}
	if s != nil {
		r.at = nil
	}
	r.mu.Unlock()
	if s != nil && first {
		r.relay.park(s)
	}
	return nil
}
