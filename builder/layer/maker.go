package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd/compress"
	"github.com/slipwayhq/slipway/rescue"
)

// A Maker makes layers for one build. It is safe for concurrent use.
type Maker struct {
	Cache       *layercache.Cache
	Compression compress.Options
	App         string
	Made        func(*Layer) // told of each new layer; may be nil

	// Uplink is how fast bytes leave for the registry, as [compress.Choose]
	// takes it. It is asked for each layer with compression "auto".
	Uplink func() float64
}

// MediaType is that of the layers that m makes; "" if it decides for each.
func (m *Maker) MediaType() string {
	if m.Compression.Type == "" {
		return compress.Gzip.MediaType()
	}
	return m.Compression.Type.MediaType()
}

// A Spec says what a layer is made of.
type Spec struct {
	Origin    limits.Source
	CreatedBy string

	// Ledger is that of the image below; the layer is charged to it while
	// it is written.
	Ledger *limits.Ledger

	// Write produces the entries. It is called once.
	Write func(ctx context.Context, w *Writer) error

	// Started, if not nil, is called when the first entry is written.
	Started func(*Pending)
}

// Make makes one layer. It returns nil, nil when Write wrote no entry: such a
// step has no layer. When it fails, readers of the pending blob get the same
// error.
func (m *Maker) Make(ctx context.Context, spec Spec) (*Layer, error) {
	w := &Writer{ctx: ctx, maker: m, spec: spec, how: m.Compression, ledger: spec.Ledger.Begin(spec.Origin)}
	w.out = bufio.NewWriterSize(starter{w}, 256<<10)
	w.tar = tar.NewWriter(w.out)
	err := rescue.Run(func() error { return spec.Write(ctx, w) })
	l, err := w.finish(ctx, err)
	if w.pending != nil {
		w.pending.finish(l, err)
	}
	return l, err
}

// A Writer takes a layer's entries in tar order. It is not safe for
// concurrent use.
type Writer struct {
	ctx     context.Context // of the Make call that the writer lives in
	maker   *Maker
	spec    Spec
	ledger  *limits.Layer
	tar     *tar.Writer
	out     *bufio.Writer
	entries int
	buf     []byte // for contents
	how     compress.Options
	sample  []byte // held back until it is known how
	sum     hash.Hash
	size    int64
	blob    *layercache.BlobWriter
	valve   *valve // between the compressor and blob
	zip     *compress.Writer
	pending *Pending
}

// A valve passes writes on until it is shut. The compressor writes from a
// goroutine of its own; a blob takes neither two callers nor writes after its
// end.
type valve struct {
	w    io.Writer
	shut atomic.Pointer[error]
}

func (v *valve) Write(p []byte) (int, error) {
	if cause := v.shut.Load(); cause != nil {
		return 0, *cause
	}
	return v.w.Write(p)
}

// Charge counts the entry against the limit. Call it before each header that
// is written to Tar directly.
func (w *Writer) Charge(h *tar.Header) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	w.entries++
	if err := w.ledger.Entry(h); err != nil {
		return err
	}
	if w.zip == nil || !w.zip.Due(h.Name, h.Size, w.out.Buffered()) {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.zip.End()
	return nil
}

// flush hands all that was written, the padding of the last entry included, to
// the compressor.
func (w *Writer) flush() error {
	if err := w.tar.Flush(); err != nil {
		return err
	}
	return w.out.Flush()
}

// Tar is the layer's tar stream, for writers that charge each header first.
func (w *Writer) Tar() *tar.Writer { return w.tar }

// Entry charges and writes one entry; r, which may be nil, is its content.
func (w *Writer) Entry(h *tar.Header, r io.Reader) error {
	if err := w.Charge(h); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if r == nil {
		return nil
	}
	if c, ok := r.(interface{ Digest() digest.Digest }); ok && h.Size >= tellFrom {
		if err := w.tell(c.Digest(), h.Size); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if w.buf == nil {
		w.buf = make([]byte, copySize)
	}
	// Neither end may bring a buffer of its own for each of many files.
	if _, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, struct{ io.Reader }{r}, w.buf); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// tellFrom is the size of a content from which on its digest is of use to the
// compressor.
const tellFrom = 16 << 10

// tell lets the compressor know which content comes next.
func (w *Writer) tell(d digest.Digest, size int64) error {
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil || len(raw) != sha256.Size || d.Algorithm() != digest.SHA256 {
		return nil
	}
	if err := w.out.Flush(); err != nil || w.zip == nil {
		return err
	}
	w.zip.Known([sha256.Size]byte(raw), size)
	return nil
}

// copySize is how much of a content is read at a time.
const copySize = 256 << 10

// starter opens the spool and the compressor at the first byte, so that a
// step that changes nothing leaves nothing.
type starter struct{ w *Writer }

func (s starter) Write(p []byte) (int, error) {
	w := s.w
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	if w.how.Type == compress.Auto {
		return len(p), w.sampled(p)
	}
	if w.blob == nil {
		if err := w.start(); err != nil {
			return 0, err
		}
	}
	w.sum.Write(p)
	w.size += int64(len(p))
	return w.zip.Write(p)
}

// sampled gathers a layer's begin, which decides how it is compressed, and
// starts with all of it when there is enough.
func (w *Writer) sampled(p []byte) error {
	w.sample = append(w.sample, p...)
	if len(w.sample) < compress.SampleSize {
		return nil
	}
	return w.decide()
}

// decide chooses the compression and writes what was held back for it.
func (w *Writer) decide() error {
	uplink := 0.0
	if w.maker.Uplink != nil {
		uplink = w.maker.Uplink()
	}
	w.how = compress.Choose(w.sample, uplink, w.how)
	held := w.sample
	w.sample = nil
	_, err := starter{w}.Write(held)
	return err
}

func (w *Writer) start() error {
	blob, err := w.maker.Cache.Create(w.ctx)
	if err != nil {
		return err
	}
	out := &valve{w: blob}
	w.how.Members = found{w.ctx, w.maker.Cache}
	zip, err := compress.New(out, w.how)
	if err != nil {
		blob.Abort(err)
		return err
	}
	w.blob, w.valve, w.zip, w.sum = blob, out, zip, digest.SHA256.Hash()
	w.pending = &Pending{
		Descriptor: ocispec.Descriptor{MediaType: w.how.Type.MediaType()},
		Origin:     w.spec.Origin, Blob: blob, result: make(chan struct{}),
	}
	if w.spec.Started != nil {
		w.spec.Started(w.pending)
	}
	return nil
}

// finish closes the stream and stores the layer, or drops it for cause.
func (w *Writer) finish(ctx context.Context, cause error) (*Layer, error) {
	delta, err := w.ledger.Close()
	if cause == nil {
		cause = err
	}
	if cause == nil && w.entries == 0 {
		return nil, nil
	}
	if cause == nil {
		cause = w.tar.Close()
	}
	if cause == nil {
		cause = w.out.Flush()
	}
	if cause == nil && w.how.Type == compress.Auto {
		cause = w.decide()
	}
	if cause != nil {
		w.drop(cause)
		return nil, cause
	}
	if err := w.zip.Close(); err != nil {
		w.blob.Abort(err)
		return nil, err
	}
	return w.store(ctx, delta)
}

func (w *Writer) drop(cause error) {
	if w.blob == nil {
		return
	}
	// The compressor's goroutines end at Close; its error is the cause.
	w.valve.shut.Store(&cause)
	_ = w.zip.Close()
	w.blob.Abort(cause)
}

func (w *Writer) store(ctx context.Context, delta limits.Delta) (*Layer, error) {
	c := w.maker.Cache
	desc, err := w.blob.Commit(ctx)
	if err != nil {
		return nil, err
	}
	desc.MediaType = w.pending.Descriptor.MediaType
	ledger, err := c.PutBytes(ctx, delta)
	if err != nil {
		return nil, err
	}
	l := &Layer{
		DiffID: digest.NewDigest(digest.SHA256, w.sum), Descriptor: desc, Uncompressed: w.size,
		Ledger: ledger, Origin: w.spec.Origin, CreatedBy: w.spec.CreatedBy,
	}
	if err := Store(ctx, c, l, w.maker.App); err != nil {
		return nil, err
	}
	if err := c.PutMembers(ctx, desc.Digest, w.members()); err != nil {
		return nil, err
	}
	if w.maker.Made != nil {
		w.maker.Made(l)
	}
	return l, nil
}

// members lists what of the layer later ones may use again.
func (w *Writer) members() []layercache.Member {
	made := w.zip.Made()
	out := make([]layercache.Member, len(made))
	for i, m := range made {
		out[i] = layercache.Member{Key: m.Key, Offset: m.Offset, Size: m.Size, Sum: m.Sum}
	}
	return out
}

// found finds members in the cache.
type found struct {
	ctx context.Context // of the layer that is being made
	c   *layercache.Cache
}

func (f found) Member(k compress.Key, dst []byte) ([]byte, bool) { return f.c.Member(f.ctx, k, dst) }

// Store records the layer under its diff ID, beside blobs of it in other
// compressions.
func Store(ctx context.Context, c *layercache.Cache, l *Layer, app string) error {
	rec, err := c.Layer(ctx, l.DiffID)
	if err != nil && !errors.Is(err, layercache.ErrNotFound) {
		return err
	}
	blobs := []ocispec.Descriptor{l.Descriptor}
	for _, b := range rec.Blobs {
		if b.MediaType != l.Descriptor.MediaType {
			blobs = append(blobs, b)
		}
	}
	return c.PutLayer(ctx, layercache.Layer{DiffID: l.DiffID, Blobs: blobs, Uncompressed: l.Uncompressed, Ledger: l.Ledger}, app)
}
