package base

import (
	"context"
	"fmt"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ResolveArtifact is [Resolver.Resolve] for a manifest that need not be an
// image's: its config, whatever it is, is in RawConfig, and Config is empty.
// The platform only chooses within an index.
func (r *Resolver) ResolveArtifact(ctx context.Context, ref string, platform ocispec.Platform, auth Auth) (*Image, error) {
	var img *Image
	err := r.each(ctx, ref, auth, func(s source, parsed name.Reference) (err error) {
		if img, err = resolveArtifact(ctx, s, parsed.Identifier(), platform); err == nil {
			img.named(parsed)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	img.Ref = ref
	return img, nil
}

func resolveArtifact(ctx context.Context, s source, at string, want ocispec.Platform) (*Image, error) {
	desc, raw, err := fetchManifest(ctx, s, at)
	for depth := 0; err == nil && types.MediaType(desc.MediaType).IsIndex(); depth++ {
		if depth == maxNesting {
			return nil, fmt.Errorf("%w: indexes nest too deep", ErrInvalid)
		}
		desc, raw, err = choose(ctx, s, raw, want, platforms.OnlyStrict(want))
	}
	if err != nil {
		return nil, err
	}
	img := &Image{Digest: desc.Digest, MediaType: desc.MediaType, Raw: raw, source: s}
	if err := decode(raw, &img.Manifest); err != nil {
		return nil, err
	}
	if err := img.check(); err != nil {
		return nil, err
	}
	img.RawConfig, err = img.readConfig(ctx)
	return img, err
}

// Layer returns one of the artifact's blobs as an image of that layer alone,
// for [Resolver.Pull]. The error is [ErrInvalid] if the manifest does not name
// the blob.
func (i *Image) Layer(desc ocispec.Descriptor, diffID digest.Digest) (*Image, error) {
	for _, l := range i.Manifest.Layers {
		if l.Digest == desc.Digest && l.Size == desc.Size {
			one := &Image{Ref: i.Ref, Host: i.Host, Repository: i.Repository, Digest: i.Digest, source: i.source}
			one.Manifest.Layers = []ocispec.Descriptor{desc}
			one.Config.RootFS.DiffIDs = []digest.Digest{diffID}
			return one, nil
		}
	}
	return nil, fmt.Errorf("%w: manifest %s has no blob %s of %d bytes", ErrInvalid, i.Digest, desc.Digest, desc.Size)
}
