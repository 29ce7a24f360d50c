package buildctx

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A Source opens the contents of a manifest's files, for many goroutines at
// once. A file that is gone is a [ChangedError] or wraps [fs.ErrNotExist].
type Source interface {
	Open(e *Entry) (io.ReadCloser, error)
}

// Compress says when a [Sender] compresses.
type Compress int

const (
	// CompressAuto compresses while the link is what everybody waits for.
	CompressAuto Compress = iota
	// CompressNever is for links that cost nothing, such as loopback.
	CompressNever
	// CompressAlways compresses all that becomes smaller by it.
	CompressAlways
)

// SenderOptions tunes a [Sender]. A nil *SenderOptions means the defaults.
type SenderOptions struct {
	Compress Compress
	Parallel int // files read and frames compressed at a time; 0 means one a core
}

func (o *SenderOptions) compress() Compress {
	if o == nil {
		return CompressAuto
	}
	return o.Compress
}

func (o *SenderOptions) parallel() int {
	if o == nil || o.Parallel <= 0 {
		return min(runtime.GOMAXPROCS(0), 16)
	}
	return o.Parallel
}

// A Sender serves wants: it streams the contents of a manifest's files. Its
// counters go up from want to want.
type Sender struct {
	manifest *Manifest
	source   Source
	compress Compress
	parallel int

	files, bytes, wire atomic.Int64
}

// NewSender returns a sender of the contents that source opens.
func NewSender(m *Manifest, source Source, o *SenderOptions) *Sender {
	return &Sender{manifest: m, source: source, compress: o.compress(), parallel: o.parallel()}
}

// SendProgress counts what a [Sender] has sent.
type SendProgress struct {
	Files int64
	Bytes int64 // of contents
	Wire  int64 // of frames, after compression
}

// Progress may be called at any time.
func (s *Sender) Progress() SendProgress {
	return SendProgress{s.files.Load(), s.bytes.Load(), s.wire.Load()}
}

const (
	frameSize  = 1 << 20 // of a frame before compression
	frameFiles = 4096    // small files in one frame
)

// Send serves one want. It calls send for each frame, in order and from its
// own goroutine; send must not keep the frame or its data. Every file is held
// to the size and digest in the manifest: for one that differs the receiver
// gets a frame that says so, and Send returns an error that wraps
// [ErrChanged]. Send calls for one Sender come one at a time.
func (s *Sender) Send(ctx context.Context, want *slipwayv1.Want, send func(*slipwayv1.ContentFrame) error) error {
	if err := checkWant(s.manifest, want.GetEntries()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := newPipeline(s, want.GetEntries())
	var wg sync.WaitGroup
	wg.Go(func() { p.plan(ctx) })
	for range s.parallel {
		wg.Go(func() { p.work(ctx) })
	}
	err := p.deliver(ctx, want.GetId(), send)
	cancel()
	wg.Wait()
	return err
}

// checkWant holds a want to the manifest: files only.
func checkWant(m *Manifest, entries []uint32) error {
	for _, i := range entries {
		if int64(i) >= int64(len(m.Entries)) {
			return fmt.Errorf("%w: entry %d of %d", ErrWant, i, len(m.Entries))
		}
		if m.Entries[i].Type != TypeFile {
			return fmt.Errorf("%w: %s is not a file", ErrWant, Quote(m.Entries[i].Path))
		}
	}
	return nil
}

// A frame is a piece of a want on its way from file to wire.
type frame struct {
	entries []uint32 // small files that are still to be read into data
	files   int64    // that end in this frame
	data    []byte   // a buffer of the pipeline
	packed  []byte   // data compressed, if that helped
	failed  uint32   // the entry err is about
	err     error
	done    chan struct{} // closed when packed, data and err are final
}

// A pipeline serves one want. The planner cuts it into frames; workers read
// and compress them side by side; the deliverer sends them in order. Its free
// buffers bound what is in flight.
type pipeline struct {
	*Sender
	want    []uint32
	jobs    chan *frame
	ordered chan *frame
	free    chan []byte
	packer  *packer
}

func newPipeline(s *Sender, want []uint32) *pipeline {
	depth := 2*s.parallel + 2
	p := &pipeline{
		Sender:  s,
		want:    want,
		jobs:    make(chan *frame),
		ordered: make(chan *frame, depth),
		free:    make(chan []byte, depth),
		packer:  newPacker(s.compress, s.parallel),
	}
	for range depth {
		p.free <- nil // allocated when first used
	}
	return p
}

// buffer waits for a free buffer; nil means that the want was given up.
func (p *pipeline) buffer(ctx context.Context) []byte {
	select {
	case b := <-p.free:
		if b == nil {
			b = make([]byte, frameSize)
		}
		return b[:0]
	case <-ctx.Done():
		return nil
	}
}

// emit takes a frame its way. It reports false when the want was given up.
func (p *pipeline) emit(ctx context.Context, f *frame) bool {
	f.done = make(chan struct{})
	p.ordered <- f // has room for as many as there are buffers
	if f.err != nil {
		close(f.done)
		return false
	}
	select {
	case p.jobs <- f:
		return true
	case <-ctx.Done():
		return false
	}
}

// plan cuts the want into frames: runs of small files, and pieces of large
// ones, which it reads itself since a digest is made from start to end.
func (p *pipeline) plan(ctx context.Context) {
	defer close(p.jobs)
	defer close(p.ordered)
	for rest := p.want; len(rest) > 0; {
		if p.manifest.Entries[rest[0]].Size > frameSize {
			if !p.planLarge(ctx, rest[0]) {
				return
			}
			rest = rest[1:]
			continue
		}
		run := p.smallRun(rest)
		buf := p.buffer(ctx)
		if buf == nil || !p.emit(ctx, &frame{entries: rest[:run], data: buf}) {
			return
		}
		rest = rest[run:]
	}
}

// smallRun counts the files that fit into one frame.
func (p *pipeline) smallRun(rest []uint32) int {
	var bytes int64
	for n, i := range rest {
		bytes += p.manifest.Entries[i].Size
		if bytes > frameSize || n == frameFiles {
			return n
		}
	}
	return len(rest)
}

// planLarge cuts one file into frames. The last one leaves only when the
// content was the promised one.
func (p *pipeline) planLarge(ctx context.Context, index uint32) bool {
	e := &p.manifest.Entries[index]
	fail := func(buf []byte, err error) bool {
		return p.emit(ctx, &frame{data: buf, failed: index, err: err})
	}
	r, err := p.source.Open(e)
	if err != nil {
		buf := p.buffer(ctx)
		return buf != nil && fail(buf, openError(e, err))
	}
	defer r.Close()
	c := newCheck(r, e)
	for left := e.Size; left > 0; {
		buf := p.buffer(ctx)
		if buf == nil {
			return false
		}
		f := &frame{data: buf[:min(left, frameSize)]}
		if err := readContent(r, e, f.data); err != nil {
			return fail(buf, err)
		}
		c.add(f.data)
		if left -= int64(len(f.data)); left == 0 {
			f.files = 1
			if err := c.end(); err != nil {
				return fail(buf, err)
			}
		}
		if !p.emit(ctx, f) {
			return false
		}
	}
	return true
}

// work reads and compresses frames until there are no more.
func (p *pipeline) work(ctx context.Context) {
	for f := range p.jobs {
		if ctx.Err() == nil {
			p.readSmall(f)
			if f.err == nil {
				f.packed = p.packer.pack(f.data)
			}
		}
		p.packer.ready.Add(1)
		close(f.done)
	}
}

// readSmall reads the files of a frame one behind the other.
func (p *pipeline) readSmall(f *frame) {
	for _, i := range f.entries {
		if f.err = p.readWhole(&p.manifest.Entries[i], f); f.err != nil {
			f.failed = i
			return
		}
	}
}

func (p *pipeline) readWhole(e *Entry, f *frame) error {
	r, err := p.source.Open(e)
	if err != nil {
		return openError(e, err)
	}
	defer r.Close()
	c, start := newCheck(r, e), len(f.data)
	f.data = f.data[:start+int(e.Size)]
	if err := readContent(r, e, f.data[start:]); err != nil {
		return err
	}
	f.files++
	c.add(f.data[start:])
	return c.end()
}

func openError(e *Entry, err error) error {
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrChanged) {
		return &ChangedError{Path: e.Path, Reason: "it is gone"}
	}
	return err
}

// readContent fills p from a file that is known to be long enough.
func readContent(r io.Reader, e *Entry, p []byte) error {
	_, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &ChangedError{Path: e.Path, Reason: "it became shorter"}
	}
	if err != nil {
		return &walkError{e.Path, err}
	}
	return nil
}

// A check makes sure that a content is the one that the manifest promised. A
// file that has size and time of the scan is not digested again: the receiver
// does that.
type check struct {
	r   io.Reader
	e   *Entry
	sum hash.Hash // nil for a file as it was
}

func newCheck(r io.Reader, e *Entry) *check {
	c := &check{r: r, e: e}
	if !c.asScanned() {
		c.sum = sha256.New()
	}
	return c
}

// asScanned reports whether r is a file with the size and time that e has.
func (c *check) asScanned() bool {
	f, ok := c.r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Size() == c.e.Size && info.ModTime().UnixNano() == c.e.ModTime
}

// add takes the next bytes of the content.
func (c *check) add(p []byte) {
	if c.sum != nil {
		c.sum.Write(p)
	}
}

// end is called where the content should end.
func (c *check) end() error {
	var more [1]byte
	switch n, err := io.ReadFull(c.r, more[:]); {
	case n > 0:
		return &ChangedError{Path: c.e.Path, Reason: "it became longer"}
	case !errors.Is(err, io.EOF):
		return &walkError{c.e.Path, err}
	case c.sum == nil && !c.asScanned():
		return &ChangedError{Path: c.e.Path, Reason: "somebody writes to it"}
	case c.sum != nil && [sha256.Size]byte(c.sum.Sum(nil)) != c.e.Digest:
		return &ChangedError{Path: c.e.Path, Reason: "its content is another than before"}
	}
	return nil
}

// deliver sends the frames in order, and one without data at the end.
func (p *pipeline) deliver(ctx context.Context, want uint64, send func(*slipwayv1.ContentFrame) error) error {
	for f := range p.ordered {
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if f.err != nil {
			return errors.Join(f.err, send(&slipwayv1.ContentFrame{
				WantId: want,
				Error:  &slipwayv1.ContentError{Entry: f.failed, Message: f.err.Error()},
			}))
		}
		if err := p.deliverFrame(want, f, send); err != nil {
			return err
		}
		p.free <- f.data[:0]
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return send(&slipwayv1.ContentFrame{WantId: want, Codec: slipwayv1.Codec_CODEC_NONE, Last: true})
}

func (p *pipeline) deliverFrame(want uint64, f *frame, send func(*slipwayv1.ContentFrame) error) error {
	msg := &slipwayv1.ContentFrame{WantId: want, Codec: slipwayv1.Codec_CODEC_NONE, Data: f.data, Size: uint32(len(f.data))}
	if f.packed != nil {
		msg.Codec, msg.Data = slipwayv1.Codec_CODEC_ZSTD, f.packed
	}
	wire := len(msg.Data)
	if wire > 0 {
		if err := p.packer.meter(wire, func() error { return send(msg) }); err != nil {
			return err
		}
	} else {
		p.packer.ready.Add(-1) // empty files only: the next frame brings them
	}
	p.packer.recycle(f.packed)
	p.files.Add(f.files)
	p.bytes.Add(int64(len(f.data)))
	p.wire.Add(int64(wire))
	return nil
}
