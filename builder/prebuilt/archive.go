package prebuilt

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// An archive is an image without a manifest of its own: plain tars and a
// config. Its layers are compressed as those of a build are, and stay in the
// cache as those do; the config stays byte for byte, and with it all diff IDs.
type archive struct {
	*plan
	files *files
}

// planArchive plans for an image whose manifest the client made up to say what
// is there.
func (p *Pipeline) planArchive(ctx context.Context, job *builder.Job, img *base.Image, s *files) (*archive, error) {
	b := p.newPlan(job)
	if err := b.add(ctx, img, s); err != nil {
		return nil, err
	}
	b.images[0].record = nil // of a manifest that nobody else has
	b.name = img.Ref
	return &archive{b, s}, nil
}

// Build makes and pushes one layer after the other; what the client still has
// to send comes meanwhile.
func (a *archive) Build(ctx context.Context) (*builder.Image, error) {
	img := a.images[0]
	out := &builder.Image{Config: img.Config}
	for n, l := range img.layers {
		made, err := a.layer(ctx, n, l)
		if err != nil {
			return nil, imageFailure(img.Ref, err)
		}
		made.CreatedBy = l.createdBy
		out.Layers = append(out.Layers, made)
	}
	out.RootFS = img.tally.total()
	config := other{desc: img.Manifest.Config, raw: img.RawConfig}
	config.desc.MediaType = ocispec.MediaTypeImageConfig
	out.Blobs = []pushd.Blob{a.blob(ctx, config)}
	m, err := manifest(config.desc, out.Layers)
	if err != nil {
		return nil, err
	}
	out.Manifests = []builder.Manifest{m}
	a.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Rootfs{Rootfs: &slipwayv1.RootFS{
		Bytes: uint64(out.RootFS), Limit: uint64(max(0, a.job.MaxSize)),
	}}})
	return out, nil
}

// manifest writes the manifest of an image.
func manifest(config ocispec.Descriptor, layers []*layer.Layer) (builder.Manifest, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{},
		Config: ocispec.Descriptor{MediaType: config.MediaType, Digest: config.Digest, Size: config.Size},
	}
	for _, l := range layers {
		d := l.Descriptor
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return builder.Manifest{}, fmt.Errorf("image manifest: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return builder.Manifest{Descriptor: desc, Raw: raw}, nil
}

// layer makes the nth layer: from the cache if it is there.
func (a *archive) layer(ctx context.Context, n int, l *part) (*layer.Layer, error) {
	made, err := layer.Lookup(ctx, a.job.Cache, l.diffID, a.job.Maker.MediaType())
	if err == nil && made.Ledger != "" && (a.job.Maker.MediaType() == "" || made.Descriptor.MediaType == a.job.Maker.MediaType()) {
		return a.reuse(ctx, n, l, made)
	}
	if err != nil && !errors.Is(err, layercache.ErrNotFound) {
		return nil, err
	}
	return a.make(ctx, n, l)
}

// reuse hands a layer that was made before to the push.
func (a *archive) reuse(ctx context.Context, n int, l *part, made *layer.Layer) (*layer.Layer, error) {
	blob, err := a.job.Cache.Blob(ctx, made.Descriptor.Digest)
	if errors.Is(err, layercache.ErrNotFound) {
		return a.make(ctx, n, l)
	}
	if err != nil {
		return nil, err
	}
	made.Origin = l.source(n)
	if err := layer.Charge(ctx, a.job.Cache, made, a.images[0].tally.ledger); err != nil {
		return nil, err
	}
	a.job.Layer(layer.Finished(made, blob))
	return made, nil
}

// make reads a tar of the client's, in whatever compression it is, and
// compresses it as the build asks.
func (a *archive) make(ctx context.Context, n int, l *part) (*layer.Layer, error) {
	src, err := a.files.Open(ctx, l.desc, 0)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	plain, err := layer.Decompress(src)
	if err != nil {
		return nil, fmt.Errorf("%w: layer %s: %v", base.ErrInvalid, l.desc.Digest, err)
	}
	defer plain.Close()
	unpacked := &metered{r: plain}
	made, err := a.job.Maker.Copy(ctx, layer.CopySpec{
		Origin: l.source(n), CreatedBy: l.createdBy, Ledger: a.images[0].tally.ledger, DiffID: l.diffID, Started: a.job.Layer,
		Tar: &bounded{r: unpacked, packed: func() int64 { return l.desc.Size }, most: a.job.MaxSize},
	})
	if err != nil {
		return nil, damaged(l, err, unpacked.err)
	}
	a.job.Session.Emit(&slipwayv1.Event{Event: &slipwayv1.Event_Layer{Layer: &slipwayv1.LayerDone{Layer: &slipwayv1.Layer{
		Digest: made.Descriptor.Digest.String(), DiffId: made.DiffID.String(), Size: uint64(made.Descriptor.Size),
		Uncompressed: uint64(made.Uncompressed), MediaType: made.Descriptor.MediaType,
	}}}})
	return made, nil
}

// damaged tells content that is wrong from what stopped a layer for other
// reasons.
func damaged(l *part, err, unpacking error) error {
	wrong := unpacking != nil
	for _, e := range []error{layer.ErrContent, limits.ErrEntry, limits.ErrTooManyPaths, tar.ErrHeader, io.ErrUnexpectedEOF} {
		wrong = wrong || errors.Is(err, e)
	}
	if !wrong {
		return err
	}
	return fmt.Errorf("%w: layer %s: %v", base.ErrInvalid, l.desc.Digest, err)
}

// Writes implements builder.Plan: what the cache gets, it has room for when the
// contents come.
func (a *archive) Writes() int64 { return 0 }

// Detail says what is made of what.
func (a *archive) Detail() string {
	return strings.Join([]string{a.name, "config " + a.images[0].Manifest.Config.Digest.String()}, ", ")
}
