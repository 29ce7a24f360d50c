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

// A pushedImage is a manifest and config, ready to be pushed.
type pushedImage struct {
	manifest   ocispec.Descriptor
	raw        []byte
	config     ocispec.Descriptor
	configBlob pushd.Source
}

// assemble writes the image's config and manifest. Equal images give equal
// bytes.
func assemble(ctx context.Context, c *layercache.Cache, img *Image) (*pushedImage, error) {
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
	d, err := c.PutBytes(ctx, raw)
	if err != nil {
		return nil, err
	}
	blob, err := c.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d, Size: int64(len(raw))}
	out := &pushedImage{config: m.Config, configBlob: blob}
	if out.raw, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	out.manifest = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(out.raw), Size: int64(len(out.raw))}
	return out, nil
}
