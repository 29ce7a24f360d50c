package buildkit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/util/leaseutil"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/pushd"
)

// attrBuild is the attribute of an image export that names the build whose
// push it goes through, by its session.
const attrBuild = "slipway.build"

// An imageExporter makes images of what BuildKit has built. The push is that of
// the build.
type imageExporter struct{ tenant *tenant }

// Resolve implements BuildKit's exporter.
func (e *imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (_ exporter.ExporterInstance, err error) {
	x := &imageExport{imageExporter: e, id: id, attrs: maps.Clone(attrs)}
	delete(x.attrs, attrBuild)
	if x.build = e.tenant.builds.get(attrs[attrBuild]); x.build == nil {
		return nil, errors.New("an output of type image belongs to a build's request")
	}
	if x.spec, x.opts, err = loadImage(ctx, x.attrs); err != nil {
		return nil, err
	}
	x.opts.RefCfg.Compression = x.build.config().Compression
	return x, nil
}

// loadImage reads all attributes of an export of an image.
func loadImage(ctx context.Context, attrs map[string]string) (*imageSpec, containerimage.ImageCommitOpts, error) {
	opts := containerimage.ImageCommitOpts{ForceInlineAttestations: true}
	spec, err := newImageSpec(attrs)
	if err != nil {
		return nil, opts, err
	}
	if _, err := spec.compressed(); err != nil {
		return nil, opts, err
	}
	rest, err := opts.Load(ctx, attrs)
	if err != nil {
		return nil, opts, invalidAttr(err)
	}
	for k := range rest {
		if !spec.own(k) {
			return nil, opts, failure.Userf(failure.InvalidArgument, "leave it out", "an output of type image has no option %q", k)
		}
	}
	return spec, opts, nil
}

func invalidAttr(err error) error {
	return failure.Userf(failure.InvalidArgument, "see BuildKit's documentation of the output", "%v", err)
}

// An imageExport is one image on its way out.
type imageExport struct {
	*imageExporter
	id    int
	attrs map[string]string
	spec  *imageSpec
	opts  containerimage.ImageCommitOpts
	build *build
}

// ID and the rest implement BuildKit's exporter instance.
func (x *imageExport) ID() int { return x.id }

// Name is what people see.
func (x *imageExport) Name() string { return "exporting to image" }

// Type is BuildKit's name for what it makes.
func (x *imageExport) Type() string { return client.ExporterImage }

// Attrs are what it was asked for.
func (x *imageExport) Attrs() map[string]string { return x.attrs }

// Config says how layers are compressed.
func (x *imageExport) Config() *exporter.Config {
	return exporter.NewConfigWithCompression(x.opts.RefCfg.Compression)
}

// Export implements BuildKit's exporter instance: layers are made and counted,
// and the image is put together in the store.
func (x *imageExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (_ map[string]string, _ exporter.FinalizeFunc, held exporter.DescriptorReference, err error) {
	if info.SessionID != x.build.session {
		return nil, nil, nil, errNotYours
	}
	w := x.tenant.worker
	ctx, release, err := leaseutil.WithLease(ctx, w.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if held == nil {
			_ = release(context.WithoutCancel(ctx))
		}
	}()
	img, err := x.image(ctx, src)
	if err != nil {
		return nil, nil, nil, x.build.fail(err)
	}
	desc, err := x.commit(ctx, src, info)
	if err != nil {
		return nil, nil, nil, x.build.fail(err)
	}
	if err := x.build.collect(desc, img); err != nil {
		return nil, nil, nil, x.build.fail(err)
	}
	answer, err := x.answer(src, desc)
	if err != nil {
		return nil, nil, nil, err
	}
	return answer, x.finish(img), containerimage.NewDescriptorReference(*desc, release), nil
}

// answer is what clients get to know of the image.
func (x *imageExport) answer(src *exporter.Source, desc *ocispec.Descriptor) (map[string]string, error) {
	out := map[string]string{exptypes.ExporterImageDigestKey: desc.Digest.String()}
	if d, ok := desc.Annotations[exptypes.ExporterConfigDigestKey]; ok {
		out[exptypes.ExporterImageConfigDigestKey] = d
		delete(desc.Annotations, exptypes.ExporterConfigDigestKey)
	}
	raw, err := json.Marshal(desc)
	if err != nil {
		return nil, err
	}
	out[exptypes.ExporterImageDescriptorKey] = base64.StdEncoding.EncodeToString(raw)
	if name := x.name(src, desc.Digest); name != "" {
		out[exptypes.ExporterImageNameKey] = name
	}
	return out, nil
}

// name is what the image is called, as the stock exporter puts it together.
func (x *imageExport) name(src *exporter.Source, d digest.Digest) string {
	name := x.spec.name
	if given, ok := src.Metadata["image.name"]; ok && name == "*" {
		name = string(given)
	}
	if p := x.spec.danglingPrefix; p != "" && (!x.spec.danglingOnly || name == "") {
		name = strings.TrimPrefix(name+","+p+"@"+d.String(), ",")
	}
	return name
}

// finish keeps the image for whoever pushes it. For a client of BuildKit's API
// that is what the export waits for.
func (x *imageExport) finish(img *builder.Image) exporter.FinalizeFunc {
	c := x.build.client
	if c == nil || !x.spec.push {
		x.build.finished(img)
		return nil
	}
	return func(ctx context.Context) error { return c.finalize(ctx, img) }
}

// commit writes config, manifest and, where there is more than one of these,
// index.
func (x *imageExport) commit(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (*ocispec.Descriptor, error) {
	opts := x.opts
	annotations, _, err := containerimage.ParseAnnotations(src.Metadata)
	if err != nil {
		return nil, invalidAttr(err)
	}
	opts.Annotations = opts.Annotations.Merge(annotations)
	opts.SetOCITypesDefault(containerimage.DefaultOCITypes(info.CompatibilityVersion, src))
	opts.SetOCIArtifactDefault(containerimage.DefaultOCIArtifact(info.CompatibilityVersion, &opts))
	if err := opts.Validate(); err != nil {
		return nil, invalidAttr(err)
	}
	w := x.tenant.worker
	images, err := containerimage.NewImageWriter(containerimage.WriterOpt{
		Snapshotter: w.Snapshotter, ContentStore: w.ContentStore(), Applier: w.Applier, Differ: w.Differ,
	})
	if err != nil {
		return nil, err
	}
	return images.Commit(ctx, src, info.SessionID, info.InlineCache, &opts, info.CompatibilityVersion, x.Type())
}

// image makes and counts the layers of what was built, for each platform.
func (x *imageExport) image(ctx context.Context, src *exporter.Source) (*builder.Image, error) {
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, err
	}
	if err := x.build.made(); err != nil {
		return nil, err
	}
	out := &builder.Image{}
	for i, p := range ps.Platforms {
		if raw := exptypes.ParseKey(src.Metadata, exptypes.ExporterImageConfigKey, &p); i == 0 && len(raw) > 0 {
			if err := json.Unmarshal(raw, &out.Config); err != nil {
				return nil, fmt.Errorf("image config: %w", err)
			}
		}
		ref, ok := src.FindRef(p.ID)
		if !ok && len(src.Refs) == 0 {
			ref = src.Ref
		}
		top := x.build.lines.last()
		if len(ps.Platforms) > 1 {
			top = "" // of which platform it is, is not known
		}
		if err := x.add(ctx, out, ref, top); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// add takes one platform's layers into the image.
func (x *imageExport) add(ctx context.Context, img *builder.Image, ref cache.ImmutableRef, top digest.Digest) error {
	if ref == nil {
		return nil // it has none
	}
	layers, err := x.build.layers(ctx, ref, top)
	if err != nil {
		return err
	}
	if err := setImage(ref, x.build.app, x.build.job.ID); err != nil {
		x.tenant.engine.log.WarnContext(ctx, "note the image of a build", "build", x.build.job.ID, "err", err)
	}
	describe(layers, img.Config)
	size, err := x.build.charge(layers)
	if err != nil {
		return err
	}
	img.RootFS = max(img.RootFS, size)
	img.Layers = append(img.Layers, layers...)
	return nil
}

// describe gives layers the commands that made them, where the config tells.
func describe(layers []*layer.Layer, cfg dockerspec.DockerOCIImage) {
	n := 0
	for _, h := range cfg.History {
		if h.EmptyLayer {
			continue
		}
		if n < len(layers) {
			layers[n].CreatedBy = strings.TrimSuffix(h.CreatedBy, " # buildkit")
		}
		n++
	}
}

// collect reads back what there is to push beside layers: manifests, the root
// last, and the blobs that they name.
func (b *build) collect(root *ocispec.Descriptor, img *builder.Image) error {
	raw, err := content.ReadBlob(b.ctx, b.tenant.worker.ContentStore(), *root)
	if err != nil {
		return err
	}
	d := ocispec.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: root.Size}
	if images.IsIndexType(root.MediaType) {
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return err
		}
		for _, m := range index.Manifests {
			if err := b.collect(&m, img); err != nil {
				return err
			}
		}
	} else if err := b.collectBlobs(raw, img); err != nil {
		return err
	}
	img.Manifests = append(img.Manifests, builder.Manifest{Descriptor: d, Raw: raw})
	return nil
}

// collectBlobs adds the blobs of a manifest that the push does not have.
func (b *build) collectBlobs(manifest []byte, img *builder.Image) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return err
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if b.has(d.Digest) {
			continue
		}
		blob, err := b.tenant.cache.Blob(b.ctx, d.Digest)
		if err != nil {
			return err
		}
		name := "config"
		if images.IsLayerType(d.MediaType) {
			name = "layer"
		} else if d.Digest != m.Config.Digest {
			name = "attestation"
		}
		img.Blobs = append(img.Blobs, pushd.Blob{Name: name, Source: blob,
			Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}})
	}
	return nil
}

// finished keeps the image for whoever pushes it.
func (b *build) finished(img *builder.Image) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.image = img
}
