package base

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxJSON bounds manifests and configs that a registry sends.
const maxJSON = 8 << 20

func resolve(ctx context.Context, s source, ref name.Reference, want ocispec.Platform) (*Image, error) {
	desc, raw, err := s.manifest(ctx, ref.Identifier())
	if err != nil {
		return nil, err
	}
	matcher := platforms.OnlyStrict(want)
	if types.MediaType(desc.MediaType).IsIndex() {
		if desc, raw, err = choose(ctx, s, raw, want, matcher); err != nil {
			return nil, err
		}
	}
	img := &Image{Digest: desc.Digest, source: s}
	img.Host, img.Repository = ref.Context().RegistryStr(), ref.Context().RepositoryStr()
	if img.Host == "index.docker.io" {
		img.Host = "docker.io"
	}
	if err := decode(raw, &img.Manifest); err != nil {
		return nil, err
	}
	if err := img.config(ctx); err != nil {
		return nil, err
	}
	have := ocispec.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	if !matcher.Match(platforms.Normalize(have)) {
		return nil, &PlatformError{Want: platforms.Format(want), Have: []string{platforms.Format(have)}}
	}
	return img, nil
}

// choose returns the manifest of an index that fits the platform best.
func choose(ctx context.Context, s source, raw []byte, want ocispec.Platform, m platforms.MatchComparer) (ocispec.Descriptor, []byte, error) {
	var index ocispec.Index
	if err := decode(raw, &index); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	var best *ocispec.Descriptor
	var have []string
	for i, d := range index.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" {
			continue
		}
		p := platforms.Normalize(*d.Platform)
		have = append(have, platforms.Format(p))
		if m.Match(p) && (best == nil || m.Less(p, *best.Platform)) {
			best = &index.Manifests[i]
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, nil, &PlatformError{Want: platforms.Format(want), Have: have}
	}
	return s.manifest(ctx, best.Digest.String())
}

// config reads the image's config and checks it against the manifest.
func (i *Image) config(ctx context.Context) error {
	d := i.Manifest.Config
	r, err := i.source.blob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, maxJSON))
	if err != nil {
		return fmt.Errorf("config of %s: %w", i.Digest, err)
	}
	if digest.FromBytes(raw) != d.Digest {
		return fmt.Errorf("%w: config %s has other content", ErrInvalid, d.Digest)
	}
	if err := decode(raw, &i.Config); err != nil {
		return err
	}
	if len(i.Config.RootFS.DiffIDs) != len(i.Manifest.Layers) {
		return fmt.Errorf("%w: %d layers but %d diff IDs", ErrInvalid, len(i.Manifest.Layers), len(i.Config.RootFS.DiffIDs))
	}
	return nil
}

func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return nil
}
