package builder

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/pushd"
)

// A pushedImage is what there is to push beside layers.
type pushedImage struct {
	manifests []Manifest // the last one gets the tag
	blobs     []pushd.Blob
}

// digest is that of the image.
func (p *pushedImage) digest() digest.Digest { return p.manifests[len(p.manifests)-1].Digest }

// assemble writes the image's config and manifest, unless it brought its own.
// Equal images give equal bytes. Steps, if any, go into its config.
func assemble(ctx context.Context, c *layercache.Cache, img *Image, steps []byte) (*pushedImage, error) {
	if len(img.Manifests) > 0 {
		return &pushedImage{manifests: img.Manifests, blobs: img.Blobs}, nil
	}
	cfg := img.Config
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range img.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.Descriptor.MediaType, Digest: l.Descriptor.Digest, Size: l.Descriptor.Size})
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	if steps != nil {
		raw = withSteps(raw, steps)
	}
	d, err := c.PutBytes(ctx, raw)
	if err != nil {
		return nil, err
	}
	blob, err := c.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d, Size: int64(len(raw))}
	manifest, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	return &pushedImage{
		manifests: []Manifest{{desc, manifest}},
		blobs:     []pushd.Blob{{Name: "config", Descriptor: m.Config, Source: blob}},
	}, nil
}
