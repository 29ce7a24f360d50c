package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/server"
)

// registryImages are the images of the embedded registry, as releases and pulls
// know them.
type registryImages struct{ registry *registry.Registry }

// Resolve implements server.Images.
func (i registryImages) Resolve(ctx context.Context, app, reference string) (string, error) {
	desc, _, err := i.manifest(ctx, app, reference)
	return desc.Digest.String(), err
}

// Parts implements server.Images.
func (i registryImages) Parts(ctx context.Context, app, digest string) ([]string, error) {
	desc, raw, err := i.manifest(ctx, app, digest)
	if err != nil || !images.IsIndexType(desc.MediaType) {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index %s of %s: %w", digest, app, err)
	}
	var parts []string
	for _, m := range index.Manifests {
		parts = append(parts, m.Digest.String())
	}
	return parts, nil
}

func (i registryImages) manifest(ctx context.Context, app, reference string) (ocispec.Descriptor, []byte, error) {
	repo, err := i.registry.Repository(app)
	if err != nil {
		return ocispec.Descriptor{}, nil, absent(err)
	}
	desc, raw, err := repo.Manifest(ctx, reference)
	return desc, raw, absent(err)
}

// absent makes a [server.ErrNoImage] of what means that.
func absent(err error) error {
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrInvalid) {
		return fmt.Errorf("%w: %v", server.ErrNoImage, err)
	}
	return err
}
