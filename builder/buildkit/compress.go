package buildkit

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/compression"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/rescue"
)

// A maker is a way to compress, as BuildKit calls it, that makes layers by
// package builder/layer: on all cores, counted, with members of layers before,
// and read by a push while they grow. What it writes where BuildKit wants the
// compressed bytes is a receipt, for which an [adopter] hands out the blob.
type maker struct {
	compression.Type
	build *build
}

// Compress implements BuildKit's compression.
func (m maker) Compress(ctx context.Context, _ compression.Config) (compression.Compressor, compression.Finalizer) {
	return func(dest io.Writer, _ string) (io.WriteCloser, error) {
		r, w := io.Pipe()
		out := &making{build: m.build, dest: dest, tar: w, done: make(chan struct{})}
		go out.make(ctx, r)
		return out, nil
	}, nil
}

// NeedsComputeDiffBySelf implements BuildKit's compression: nobody else makes
// our layers.
func (m maker) NeedsComputeDiffBySelf(compression.Config) bool { return true }

// A making is a layer under way: its tar goes in, its receipt comes out.
type making struct {
	build *build
	dest  io.Writer
	tar   *io.PipeWriter
	done  chan struct{} // closed when layer and err are set
	layer *layer.Layer
	err   error
	ended bool
}

func (m *making) make(ctx context.Context, tar *io.PipeReader) {
	defer close(m.done)
	m.err = rescue.Run(func() (err error) {
		m.layer, err = m.build.makeLayer(ctx, tar)
		return err
	})
	tar.CloseWithError(m.err)
}

// Write takes the layer's tar.
func (m *making) Write(p []byte) (int, error) { return m.tar.Write(p) }

// Close ends the tar, waits for the layer and writes its receipt. The second
// call, which BuildKit makes, does nothing; the first one without a whole tar
// cannot be told from one with it, but the tar's reader can.
func (m *making) Close() error {
	if m.ended {
		return nil
	}
	m.ended = true
	m.tar.Close()
	<-m.done
	if m.err != nil {
		return m.err
	}
	_, err := io.WriteString(m.dest, m.build.tenant.builds.receipts.receipt(m.layer.Descriptor.Digest))
	return err
}

// makeLayer makes a layer of a tar, and has it pushed meanwhile. It ends with
// ctx, not with the build: another one may wait for the same layer.
func (b *build) makeLayer(ctx context.Context, tar io.Reader) (*layer.Layer, error) {
	held, cancel := context.WithCancelCause(context.WithoutCancel(b.ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	var pending *layer.Pending
	origin, _ := ctx.Value(originKey{}).(limits.Source)
	l, err := b.job.Maker.Copy(held, layer.CopySpec{
		Origin: origin, Ledger: limits.NewLedger(b.job.MaxSize), Tar: tar, Started: func(p *layer.Pending) { pending = p; b.offer(p) },
	})
	if err != nil {
		return nil, b.fail(failure.At(err, failure.Build, origin.Line))
	}
	b.offered(l.Descriptor.Digest, pending)
	return l, nil
}

// receipts stand for blobs of a tenant. The prefix is a secret of this
// process: no content that a build makes can pass for one.
type receipts struct{ prefix string }

func newReceipts() receipts { return receipts{"slipway-layer " + rand.Text() + " "} }

func (r receipts) receipt(d digest.Digest) string { return r.prefix + d.String() }

// read returns the digest that a receipt is for.
func (r receipts) read(data []byte) (digest.Digest, bool) {
	text, ok := strings.CutPrefix(string(data), r.prefix)
	if !ok {
		return "", false
	}
	d := digest.Digest(text)
	return d, d.Validate() == nil
}

// An adopter is the content store that BuildKit's worker writes to. A receipt
// that is written to it stands for a blob that is there.
type adopter struct {
	content.Store
	tenant *tenant
}

// Writer implements containerd's content store. Where it is not known what is
// going to be written, nothing is begun in the store before that is no receipt.
func (a adopter) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w := &adoptingWriter{
		adopter: a, status: content.Status{Ref: o.Ref, StartedAt: time.Now()},
		open: func() (content.Writer, error) { return a.Store.Writer(ctx, opts...) },
	}
	if o.Desc.Digest != "" {
		return w, w.begin()
	}
	return w, nil
}

// An adoptingWriter holds back what may be a receipt until it is known.
type adoptingWriter struct {
	adopter adopter
	open    func() (content.Writer, error)
	status  content.Status // until w is open

	w      content.Writer // nil until then
	held   []byte
	passed bool // what came is no receipt
}

// receiptSize is that of every receipt.
func (a adopter) receiptSize() int {
	return len(a.tenant.builds.receipts.prefix) + len(digest.SHA256.FromString("").String())
}

// Write implements io.Writer.
func (w *adoptingWriter) Write(p []byte) (int, error) {
	if w.passed {
		return w.w.Write(p)
	}
	prefix := w.adopter.tenant.builds.receipts.prefix
	w.held = append(w.held, p...)
	head := string(w.held[:min(len(w.held), len(prefix))])
	if len(w.held) <= w.adopter.receiptSize() && strings.HasPrefix(prefix, head) {
		return len(p), nil
	}
	return len(p), w.pass()
}

// begin opens the store's own writer.
func (w *adoptingWriter) begin() (err error) {
	if w.w == nil {
		w.w, err = w.open()
	}
	return err
}

// pass writes what was held back.
func (w *adoptingWriter) pass() error {
	if w.passed {
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	w.passed = true
	held := w.held
	w.held = nil
	if len(held) == 0 {
		return nil
	}
	_, err := w.w.Write(held)
	return err
}

// Truncate implements content.Writer.
func (w *adoptingWriter) Truncate(size int64) error {
	w.held, w.passed = nil, size > 0
	if size == 0 && w.w == nil {
		return nil
	}
	if err := w.begin(); err != nil {
		return err
	}
	return w.w.Truncate(size)
}

// Status implements content.Writer.
func (w *adoptingWriter) Status() (content.Status, error) {
	if w.w == nil {
		return w.status, nil
	}
	return w.w.Status()
}

// Close implements content.Writer.
func (w *adoptingWriter) Close() error {
	if w.w == nil {
		return nil
	}
	return w.w.Close()
}

// Digest implements content.Writer.
func (w *adoptingWriter) Digest() digest.Digest {
	if d, ok := w.adopter.tenant.builds.receipts.read(w.held); ok {
		return d
	}
	if err := w.pass(); err != nil {
		return ""
	}
	return w.w.Digest()
}

// Commit implements content.Writer. For a receipt, the blob that is there
// gets the labels and the lease that a new one would.
func (w *adoptingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	d, ok := w.adopter.tenant.builds.receipts.read(w.held)
	if !ok {
		if err := w.pass(); err != nil {
			return err
		}
		return w.w.Commit(ctx, size, expected, opts...)
	}
	if expected != "" && expected != d {
		return fmt.Errorf("blob %s is not %s: %w", d, expected, errdefs.ErrFailedPrecondition)
	}
	return w.adopter.adopt(ctx, d, opts...)
}

func (a adopter) adopt(ctx context.Context, d digest.Digest, opts ...content.Opt) error {
	var info content.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return err
		}
	}
	store := a.tenant.cache.Containerd()
	if id, ok := leases.FromContext(ctx); ok {
		err := store.Leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: d.String(), Type: "content"})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	paths := make([]string, 0, len(info.Labels))
	for k := range info.Labels {
		paths = append(paths, "labels."+k)
	}
	if len(paths) == 0 {
		_, err := a.Store.Info(ctx, d)
		return err
	}
	_, err := a.Store.Update(ctx, content.Info{Digest: d, Labels: info.Labels}, paths...)
	return err
}
