package buildctx

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/rescue"
)

// ReceiverOptions tunes a [Receiver]. A nil *ReceiverOptions means the
// defaults.
type ReceiverOptions struct {
	MaxInFlight int64 // bytes received and not stored yet; 0 means 32 MiB, at least 8 MiB
	Parallel    int   // frames decoded and stored at a time; 0 means one a core
}

func (o *ReceiverOptions) maxInFlight() int64 {
	if o == nil || o.MaxInFlight <= 0 {
		return 32 << 20
	}
	return max(o.MaxInFlight, 2*maxFrame)
}

func (o *ReceiverOptions) parallel() int {
	if o == nil || o.Parallel <= 0 {
		return min(runtime.GOMAXPROCS(0), 16)
	}
	return o.Parallel
}

const (
	maxFrame     = 4 << 20 // before and after decompression
	minWeight    = 4 << 10 // what a frame costs even if it is small
	largeAtOnce  = 4       // contents that span frames, stored at a time
	largePending = 64      // frames that wait for one of these
)

// A Receiver takes the frames of one want and puts the contents into a store.
type Receiver struct {
	manifest *Manifest
	want     *slipwayv1.Want
	store    Store
	parallel int
	inFlight *semaphore.Weighted
	large    *semaphore.Weighted

	files, bytes, wire atomic.Int64

	at   int   // index in want.Entries of the content that comes next
	left int64 // bytes of it to come
	open *stream
}

// NewReceiver returns a receiver of what want asks for of m. Errors wrap
// [ErrWant].
func NewReceiver(m *Manifest, want *slipwayv1.Want, s Store, o *ReceiverOptions) (*Receiver, error) {
	if err := checkWant(m, want.GetEntries()); err != nil {
		return nil, err
	}
	return &Receiver{
		manifest: m,
		want:     want,
		store:    s,
		parallel: o.parallel(),
		inFlight: semaphore.NewWeighted(o.maxInFlight()),
		large:    semaphore.NewWeighted(largeAtOnce),
	}, nil
}

// ReceiveProgress counts what a [Receiver] has stored.
type ReceiveProgress struct {
	Files int64
	Bytes int64 // of contents
	Wire  int64 // of frames received, before decompression
}

// Progress may be called at any time.
func (r *Receiver) Progress() ReceiveProgress {
	return ReceiveProgress{r.files.Load(), r.bytes.Load(), r.wire.Load()}
}

// Receive takes frames from next until the want is served, and returns when
// all contents are stored. next hands over the frame; it is called from this
// goroutine and only when there is room for another frame, and returns early
// when its context ends. Receive is called once.
//
// Errors wrap [ErrProtocol] for frames that are not what was asked for,
// [ErrSource] for the client's own report, else what next or the store said.
// Contents that were complete before an error are stored nevertheless.
func (r *Receiver) Receive(ctx context.Context, next func(context.Context) (*slipwayv1.ContentFrame, error)) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(r.parallel), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxFrame), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return fmt.Errorf("decompress contents: %w", err)
	}
	defer dec.Close()
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s := &storing{Receiver: r, ctx: ctx, stop: stop, zstd: dec, jobs: make(chan *inbound)}
	for range r.parallel {
		s.wg.Go(s.work)
	}
	r.enter()
	err = s.read(reading, next)
	if err != nil {
		stop(err)
	}
	if r.open != nil {
		r.open.end(context.Cause(reading))
	}
	close(s.jobs)
	s.wg.Wait()
	if cause := context.Cause(reading); cause != nil {
		return cause // the first error, whoever met it
	}
	return nil
}

// A storing is one call of Receive.
type storing struct {
	*Receiver
	ctx  context.Context // of the stores
	stop context.CancelCauseFunc
	zstd *zstd.Decoder
	jobs chan *inbound
	wg   sync.WaitGroup
	bufs sync.Pool
}

// read takes frames until the last one.
func (s *storing) read(ctx context.Context, next func(context.Context) (*slipwayv1.ContentFrame, error)) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		msg, err := next(ctx)
		if err != nil {
			return err
		}
		if err := s.accept(ctx, msg); err != nil {
			return err
		}
		if msg.GetLast() {
			return nil
		}
	}
}

// violation makes an error about the frames.
func (r *Receiver) violation(format string, args ...any) error {
	return &ProtocolError{Want: r.want.GetId(), Reason: fmt.Sprintf(format, args...)}
}

// accept checks a frame, splits it and hands its pieces on.
func (s *storing) accept(ctx context.Context, msg *slipwayv1.ContentFrame) error {
	if err := s.check(msg); err != nil {
		return err
	}
	s.wire.Add(int64(len(msg.GetData())))
	f := &inbound{size: int(msg.GetSize()), weight: max(int64(msg.GetSize()), minWeight), decoded: make(chan struct{})}
	if msg.GetCodec() == slipwayv1.Codec_CODEC_ZSTD {
		f.packed = msg.GetData()
		f.weight = max(f.weight, int64(len(f.packed)))
	} else {
		f.data = msg.GetData()
	}
	spans, err := s.split(f)
	if err != nil {
		return err
	}
	if msg.GetLast() && s.at < len(s.want.GetEntries()) {
		return s.violation("the stream ends %d contents early", len(s.want.GetEntries())-s.at)
	}
	if err := s.inFlight.Acquire(ctx, f.weight); err != nil {
		return context.Cause(ctx)
	}
	f.release = s.release
	f.holders.Store(int32(len(spans)) + 1)
	select {
	case s.jobs <- f:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.feed(ctx, spans)
}

func (s *storing) check(msg *slipwayv1.ContentFrame) error {
	if msg.GetWantId() != s.want.GetId() {
		return s.violation("a frame is of want %d", msg.GetWantId())
	}
	if e := msg.GetError(); e != nil {
		if int64(e.GetEntry()) >= int64(len(s.manifest.Entries)) {
			return s.violation("an error is about entry %d of %d", e.GetEntry(), len(s.manifest.Entries))
		}
		return &SourceError{Path: s.manifest.Entries[e.GetEntry()].Path, Message: e.GetMessage()}
	}
	size, data := msg.GetSize(), len(msg.GetData())
	switch {
	case size > maxFrame || data > maxFrame:
		return s.violation("a frame of %d bytes, %d of them sent", size, data)
	case size == 0 && !msg.GetLast():
		return s.violation("an empty frame")
	case size == 0 && data > 0:
		return s.violation("%d bytes in an empty frame", data)
	}
	switch codec := msg.GetCodec(); codec {
	case slipwayv1.Codec_CODEC_NONE:
		if int(size) != data {
			return s.violation("a frame of %d bytes has %d", size, data)
		}
	case slipwayv1.Codec_CODEC_ZSTD:
	default:
		return s.violation("unknown codec %d", codec)
	}
	return nil
}

// A span is the part of a frame that belongs to a content which does not
// begin and end in it.
type span struct {
	part
	first, last bool
}

// split assigns the bytes of a frame to contents. Whole ones stay with the
// frame; the others are returned, at most two.
func (s *storing) split(f *inbound) ([]span, error) {
	var spans []span
	for off := 0; s.at < len(s.want.GetEntries()); {
		e := &s.manifest.Entries[s.want.GetEntries()[s.at]]
		n := int(min(s.left, int64(f.size-off)))
		if n == 0 && s.left > 0 {
			return spans, nil
		}
		p := part{frame: f, entry: e, from: off, to: off + n}
		first, last := s.left == e.Size, int64(n) == s.left
		if first && last {
			f.whole = append(f.whole, p)
		} else {
			spans = append(spans, span{p, first, last})
		}
		off += n
		s.left -= int64(n)
		if last {
			s.at++
			s.enter()
		}
		if s.at == len(s.want.GetEntries()) && off < f.size {
			return nil, s.violation("%d bytes too many", f.size-off)
		}
	}
	if f.size > 0 && len(f.whole) == 0 && len(spans) == 0 {
		return nil, s.violation("%d bytes too many", f.size)
	}
	return spans, nil
}

// enter begins the content at s.at.
func (r *Receiver) enter() {
	if r.at < len(r.want.GetEntries()) {
		r.left = r.manifest.Entries[r.want.GetEntries()[r.at]].Size
	}
}

// feed passes pieces of large contents to their streams.
func (s *storing) feed(ctx context.Context, spans []span) error {
	for _, p := range spans {
		if p.first {
			if err := s.large.Acquire(ctx, 1); err != nil {
				return context.Cause(ctx)
			}
			st := newStream(s.ctx)
			s.open = st
			s.wg.Go(func() {
				defer s.large.Release(1)
				s.add(p.entry, st)
				st.drain()
			})
		}
		select {
		case s.open.parts <- p.part:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if p.last {
			s.open.end(nil)
			s.open = nil
		}
	}
	return nil
}

// work decodes frames and stores the contents that are whole in them.
func (s *storing) work() {
	for f := range s.jobs {
		f.err = rescue.Run(func() error { return s.decode(f) })
		close(f.decoded)
		if f.err != nil {
			s.stop(f.err)
		} else {
			for _, p := range f.whole {
				s.add(p.entry, bytes.NewReader(f.data[p.from:p.to]))
			}
		}
		f.drop()
	}
}

// add stores one content.
func (s *storing) add(e *Entry, r io.Reader) {
	err := rescue.Run(func() error { return s.store.Add(s.ctx, e.Content(), e.Size, r) })
	if err != nil {
		s.stop(fmt.Errorf("store %s: %w", Quote(e.Path), err))
		return
	}
	s.files.Add(1)
	s.bytes.Add(e.Size)
}

// decode fills f.data.
func (s *storing) decode(f *inbound) error {
	if f.packed == nil {
		return nil
	}
	buf, _ := s.bufs.Get().(*[]byte)
	if buf == nil || cap(*buf) < f.size {
		buf = new([]byte)
		*buf = make([]byte, 0, max(f.size, frameSize))
	}
	out, err := s.zstd.DecodeAll(f.packed, (*buf)[:0:f.size])
	if err != nil {
		return s.violation("a frame does not decompress: %v", err)
	}
	if len(out) != f.size {
		return s.violation("a frame of %d bytes has %d", f.size, len(out))
	}
	f.data, f.buf, f.packed = out, buf, nil
	return nil
}

// release ends a frame that nobody needs any more.
func (s *storing) release(f *inbound) {
	if f.buf != nil {
		s.bufs.Put(f.buf)
	}
	f.data, f.buf = nil, nil
	s.inFlight.Release(f.weight)
}
