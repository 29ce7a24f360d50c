package layer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd/compress"
)

// ErrContent says that a tar is not the one that its diff ID names.
var ErrContent = errors.New("layer has other content")

// A CopySpec says which tar becomes a layer as it is.
type CopySpec struct {
	Origin    limits.Source
	CreatedBy string
	Ledger    *limits.Ledger // of the image below; the layer is charged to it
	DiffID    digest.Digest  // that the tar must have; empty if any will do
	Tar       io.Reader

	// Started, if not nil, is called when the first byte is there.
	Started func(*Pending)
}

// Copy makes a layer of a tar, byte for byte. It fails when the tar has
// another digest than spec says, an [ErrContent], and as [Maker.Make] does.
func (m *Maker) Copy(ctx context.Context, spec CopySpec) (*Layer, error) {
	w := &Writer{ctx: ctx, maker: m, how: m.Compression, spec: Spec{Origin: spec.Origin, CreatedBy: spec.CreatedBy, Started: spec.Started}}
	w.ledger = spec.Ledger.Begin(spec.Origin)
	_, err := io.CopyBuffer(starter{w}, onlyReader{w.ledger.Reader(spec.Tar)}, make([]byte, copyBuffer))
	l, err := w.finishCopy(ctx, spec, err)
	if w.pending != nil {
		w.pending.finish(l, err)
	}
	return l, err
}

const copyBuffer = 256 << 10

// Recompress returns the layer with the compression that m makes: l itself if
// it has it, or if m decides for each layer.
func (m *Maker) Recompress(ctx context.Context, l *Layer) (*Layer, error) {
	want := m.MediaType()
	if want == "" || l.Descriptor.MediaType == want {
		return l, nil
	}
	blob, err := m.Cache.Blob(ctx, l.Descriptor.Digest)
	if err != nil {
		return nil, err
	}
	r, err := blob.Open(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, err := Decompress(r)
	if err != nil {
		return nil, fmt.Errorf("recompress layer %s: %w", l.DiffID, err)
	}
	defer plain.Close()
	made, err := m.Copy(ctx, CopySpec{
		Origin: l.Origin, CreatedBy: l.CreatedBy, Ledger: limits.NewLedger(-1), DiffID: l.DiffID, Tar: plain,
	})
	if err != nil {
		return nil, fmt.Errorf("recompress layer %s: %w", l.DiffID, err)
	}
	return made, nil
}

// onlyReader hides what would keep io.CopyBuffer from its buffer.
type onlyReader struct{ io.Reader }

func (w *Writer) finishCopy(ctx context.Context, spec CopySpec, cause error) (*Layer, error) {
	delta, err := w.ledger.Close()
	if cause == nil {
		cause = err
	}
	if cause == nil && w.how.Type == compress.Auto && len(w.sample) > 0 {
		cause = w.decide()
	}
	if cause == nil && w.blob == nil {
		cause = fmt.Errorf("layer %s: %w", spec.DiffID, io.ErrUnexpectedEOF)
	}
	if cause == nil {
		if got := digest.NewDigest(digest.SHA256, w.sum); spec.DiffID != "" && got != spec.DiffID {
			cause = fmt.Errorf("%w: diff ID %s instead of %s", ErrContent, got, spec.DiffID)
		}
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
