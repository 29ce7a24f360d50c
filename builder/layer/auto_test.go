package layer_test

import (
	"context"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd/compress"
)

// Recompress changes how a layer is packed, not what it is, and does so once.
func TestRecompress(t *testing.T) {
	s := open(t)
	m := &layer.Maker{Cache: s.Cache}
	l, err := m.Make(s.ctx, layer.Spec{
		CreatedBy: "COPY", Origin: limits.Source{Line: 2}, Ledger: limits.NewLedger(0),
		Write: func(_ context.Context, w *layer.Writer) error { return file(w, "f", noise(3<<20)) },
	})
	check(t, err)
	for _, typ := range []compress.Type{compress.Zstd, compress.None, compress.Gzip} {
		m := &layer.Maker{Cache: s.Cache, Compression: compress.Options{Type: typ}}
		got, err := m.Recompress(s.ctx, l)
		check(t, err)
		if got.DiffID != l.DiffID || got.Descriptor.MediaType != typ.MediaType() || got.Uncompressed != l.Uncompressed ||
			got.CreatedBy != "COPY" || got.Origin.Line != 2 {
			t.Errorf("%s: %+v", typ, got)
		}
		if (got == l) != (typ == compress.Gzip) {
			t.Errorf("%s: made anew: %t", typ, got != l)
		}
		if again, err := m.Recompress(s.ctx, got); err != nil || again != got {
			t.Errorf("%s: twice: %v", typ, err)
		}
		if err := layer.Charge(s.ctx, s.Cache, got, limits.NewLedger(1<<20)); !errors.Is(err, limits.ErrTooLarge) {
			t.Errorf("%s: charged to a small ledger: %v", typ, err)
		}
	}
}

// With compression "auto" each layer, small or large, gets what suits the link;
// its content is the same.
func TestMakeAuto(t *testing.T) {
	for name, size := range map[string]int{"small": 100, "large": 5 << 20} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i / 7 % 40)
		}
		var ids []digest.Digest
		for _, tc := range []struct {
			uplink float64
			want   string
		}{{math.Inf(1), ocispec.MediaTypeImageLayer}, {0, ocispec.MediaTypeImageLayerZstd}, {1e5, ocispec.MediaTypeImageLayerZstd}} {
			s := open(t)
			m := &layer.Maker{Cache: s.Cache, Compression: compress.Options{Type: compress.Auto}, Uplink: func() float64 { return tc.uplink }}
			started := 0
			l, err := m.Make(s.ctx, layer.Spec{
				Ledger:  limits.NewLedger(0),
				Write:   func(_ context.Context, w *layer.Writer) error { return file(w, "f", content) },
				Started: func(*layer.Pending) { started++ },
			})
			check(t, err)
			if l.Descriptor.MediaType != tc.want || started != 1 {
				t.Errorf("%s, uplink %v: %s, started %d times", name, tc.uplink, l.Descriptor.MediaType, started)
			}
			ids = append(ids, l.DiffID)
			if found, err := layer.Lookup(s.ctx, s.Cache, l.DiffID, m.MediaType()); err != nil || found.Descriptor.Digest != l.Descriptor.Digest {
				t.Errorf("lookup: %v", err)
			}
			blob, err := s.Cache.Blob(s.ctx, l.Descriptor.Digest)
			check(t, err)
			r, err := blob.Open(s.ctx, 0)
			check(t, err)
			plain, err := layer.Decompress(r)
			check(t, err)
			sum := digest.SHA256.Digester()
			_, err = io.Copy(sum.Hash(), plain)
			check(t, err)
			check(t, plain.Close())
			check(t, r.Close())
			if sum.Digest() != l.DiffID {
				t.Errorf("%s, uplink %v: the blob unpacks to %s", name, tc.uplink, sum.Digest())
			}
		}
		if ids[0] != ids[1] || ids[1] != ids[2] {
			t.Errorf("diff IDs differ: %v", ids)
		}
	}
}
