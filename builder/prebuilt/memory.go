package prebuilt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/rescue"
)

// A memory keeps what was learnt of images and layers in the org's cache, under
// their digests: never their bytes. What the cache has lost is learnt again.
type memory struct {
	cache *layercache.Cache
	app   string
	last  struct { // image that was found last
		digest digest.Digest
		record *imageRecord
	}
}

// An imageRecord is what is kept of an image, under its manifest's digest. Its
// layers were all counted, in order.
type imageRecord struct {
	Manifest []byte          `json:"manifest"`
	Config   []byte          `json:"config"`
	DiffIDs  []digest.Digest `json:"diff_ids"`
	Sizes    []int64         `json:"sizes"` // of the layers' tars

	rootFS, peak int64
}

// A layerRecord is what is kept of a layer, under its blob's digest.
type layerRecord struct {
	DiffID       digest.Digest `json:"diff_id"`
	Uncompressed int64         `json:"uncompressed"`
	Ledger       digest.Digest `json:"ledger"` // a content of the cache
}

func imageKey(d digest.Digest) layercache.Key {
	return layercache.NewKey(layercache.Part{Name: "prebuilt image/v1", Value: d.String()})
}

func layerKey(d digest.Digest) layercache.Key {
	return layercache.NewKey(layercache.Part{Name: "prebuilt layer/v1", Value: d.String()})
}

// maxInline bounds what a record holds of manifests and configs.
const maxInline = 1 << 20

// recall reads the record under a key into v. It reports false if there is
// none.
func (m *memory) recall(ctx context.Context, k layercache.Key, v any) (layercache.Step, bool, error) {
	st, err := m.cache.Step(ctx, k)
	if errors.Is(err, layercache.ErrNotFound) {
		return st, false, nil
	}
	if err != nil {
		return st, false, err
	}
	return st, json.Unmarshal(st.Extra, v) == nil, nil
}

func (m *memory) imageRecord(ctx context.Context, d digest.Digest) (*imageRecord, error) {
	if m.last.record != nil && m.last.digest == d {
		return m.last.record, nil
	}
	rec := &imageRecord{}
	st, ok, err := m.recall(ctx, imageKey(d), rec)
	if !ok || err != nil {
		return nil, err
	}
	rec.rootFS, rec.peak = st.RootFS, st.Peak
	m.last.digest, m.last.record = d, rec
	return rec, nil
}

// known is a [base.Known].
func (m *memory) known(ctx context.Context, d digest.Digest) (raw, config []byte) {
	rec, err := m.imageRecord(ctx, d)
	if rec == nil || err != nil { // the registry has it as well
		return nil, nil
	}
	return rec.Manifest, rec.Config
}

// image returns what is known of an image, nil if nothing is.
func (m *memory) image(ctx context.Context, img *base.Image) (*imageRecord, error) {
	rec, err := m.imageRecord(ctx, img.Digest)
	if rec == nil || err != nil || len(rec.Sizes) != len(img.Manifest.Layers) || !slices.Equal(rec.DiffIDs, img.Config.RootFS.DiffIDs) {
		return nil, err
	}
	return rec, nil
}

// layer returns what is known of a layer, nil if it must be counted. That the
// config gives it a diff ID does not make it known: the blob must have been
// seen to have it.
func (m *memory) layer(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest) (*counted, error) {
	rec := &layerRecord{}
	_, ok, err := m.recall(ctx, layerKey(d.Digest), rec)
	if err != nil {
		return nil, err
	}
	if !ok {
		return m.built(ctx, d, diffID)
	}
	if rec.DiffID != diffID {
		return nil, fmt.Errorf("%w: layer %s has the diff ID %s, the config says %s", base.ErrInvalid, d.Digest, rec.DiffID, diffID)
	}
	delta, err := m.ledger(ctx, rec.Ledger)
	if delta == nil || err != nil {
		return nil, err
	}
	return &counted{DiffID: diffID, Uncompressed: rec.Uncompressed, Delta: delta}, nil
}

// maxDelta bounds a ledger that is read into memory.
const maxDelta = 1 << 30

// ledger reads a ledger back, nil if it is gone or damaged.
func (m *memory) ledger(ctx context.Context, d digest.Digest) (limits.Delta, error) {
	r, err := m.cache.Contents().Open(ctx, d)
	if errors.Is(err, layercache.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > maxDelta {
		return nil, nil
	}
	raw := make([]byte, r.Size())
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("ledger %s: %w", d, err)
	}
	if digest.FromBytes(raw) != d {
		return nil, nil
	}
	return limits.Delta(raw), nil
}

// built returns what the cache knows of a layer because a build made or pulled
// that very blob.
func (m *memory) built(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest) (*counted, error) {
	rec, err := m.cache.Layer(ctx, diffID)
	if errors.Is(err, layercache.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	same := func(b ocispec.Descriptor) bool { return b.Digest == d.Digest && b.Size == d.Size }
	if rec.Ledger == "" || !slices.ContainsFunc(rec.Blobs, same) {
		return nil, nil
	}
	raw, err := m.cache.GetBytes(ctx, rec.Ledger, maxDelta)
	if errors.Is(err, layercache.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &counted{DiffID: diffID, Uncompressed: rec.Uncompressed, Delta: raw}, nil
}

// keep records what a plan has learnt.
func (m *memory) keep(ctx context.Context, b *plan) error {
	w := m.cache.Contents().For(m.app).Writer(ctx)
	var g errgroup.Group
	var fresh []*part
	for _, l := range b.parts {
		if l.known || l.counted == nil {
			continue
		}
		fresh = append(fresh, l)
		if err := w.Add(digest.FromBytes(l.counted.Delta), int64(len(l.counted.Delta)), bytes.NewReader(l.counted.Delta)); err != nil {
			return err
		}
	}
	if len(fresh) > 0 {
		if err := w.Flush(ctx); err != nil {
			return err
		}
	}
	for _, l := range fresh {
		g.Go(func() (err error) {
			defer rescue.Into(&err)
			return m.put(ctx, layerKey(l.desc.Digest), layercache.Step{}, layerRecord{l.diffID, l.size, digest.FromBytes(l.counted.Delta)})
		})
	}
	for _, i := range b.images {
		if i.record == nil && i.tally.whole(len(i.layers)) && len(i.Raw)+len(i.RawConfig) <= maxInline {
			g.Go(func() (err error) {
				defer rescue.Into(&err)
				return m.putImage(ctx, i)
			})
		}
	}
	return g.Wait()
}

func (m *memory) putImage(ctx context.Context, i *image) error {
	rec := imageRecord{Manifest: i.Raw, Config: i.RawConfig, DiffIDs: i.Config.RootFS.DiffIDs, Sizes: []int64{}}
	for _, l := range i.layers {
		rec.Sizes = append(rec.Sizes, l.size)
	}
	return m.put(ctx, imageKey(i.Digest), layercache.Step{RootFS: i.tally.total(), Peak: i.tally.peak()}, rec)
}

func (m *memory) put(ctx context.Context, k layercache.Key, st layercache.Step, extra any) (err error) {
	st.Created, st.Empty, st.App = time.Now().UTC(), true, m.app
	if st.Extra, err = json.Marshal(extra); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return m.cache.PutStep(ctx, k, st)
}

// keys are the records that the next deploy of the images will ask for.
func (m *memory) keys(b *plan) []layercache.Key {
	var keys []layercache.Key
	for _, i := range b.images {
		keys = append(keys, imageKey(i.Digest))
	}
	for _, l := range b.parts {
		keys = append(keys, layerKey(l.desc.Digest))
	}
	return keys
}
