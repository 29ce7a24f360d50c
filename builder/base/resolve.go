package base

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxJSON bounds manifests and configs that a registry sends.
const maxJSON = 8 << 20

func resolve(ctx context.Context, s source, ref name.Reference, want ocispec.Platform) (*Image, error) {
	img, err := resolveAt(ctx, s, ref.Identifier(), want)
	if err == nil {
		img.named(ref)
	}
	return img, err
}

// named notes where the reference said the image is.
func (i *Image) named(ref name.Reference) {
	i.Host, i.Repository = ref.Context().RegistryStr(), ref.Context().RepositoryStr()
	if i.Host == "index.docker.io" {
		i.Host = "docker.io"
	}
}

// resolveAt resolves a tag or a digest within a repository.
func resolveAt(ctx context.Context, s source, at string, want ocispec.Platform) (*Image, error) {
	desc, raw, err := fetchManifest(ctx, s, at)
	if err != nil {
		return nil, err
	}
	matcher := platforms.OnlyStrict(want)
	for depth := 0; types.MediaType(desc.MediaType).IsIndex(); depth++ {
		if depth == maxNesting {
			return nil, fmt.Errorf("%w: indexes nest too deep", ErrInvalid)
		}
		if desc, raw, err = choose(ctx, s, raw, want, matcher); err != nil {
			return nil, err
		}
	}
	img, err := read(ctx, s, desc, raw)
	if err != nil {
		return nil, err
	}
	have := ocispec.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	if !matcher.Match(platforms.Normalize(have)) {
		return nil, &PlatformError{Want: platforms.Format(want), Have: []string{platforms.Format(have)}}
	}
	return img, nil
}

// read makes an image of its manifest.
func read(ctx context.Context, s source, desc ocispec.Descriptor, raw []byte) (*Image, error) {
	img := &Image{Digest: desc.Digest, Raw: raw, source: s}
	if err := decode(raw, &img.Manifest); err != nil {
		return nil, err
	}
	img.MediaType = cmp.Or(desc.MediaType, ocispec.MediaTypeImageManifest)
	if err := img.check(); err != nil {
		return nil, err
	}
	return img, img.config(ctx)
}

// maxNesting is how many indexes may stand above a manifest.
const maxNesting = 3

// fetchManifest returns a manifest whose media type is known, from its bytes
// if the registry does not tell.
func fetchManifest(ctx context.Context, s source, ref string) (ocispec.Descriptor, []byte, error) {
	desc, raw, err := s.manifest(ctx, ref)
	if err != nil {
		return desc, nil, err
	}
	if len(raw) > maxJSON {
		return desc, nil, fmt.Errorf("%w: manifest of %d bytes", ErrInvalid, len(raw))
	}
	if types.MediaType(desc.MediaType).IsSchema1() {
		// Its digest is one of a part of it.
		return desc, nil, fmt.Errorf("%w: manifest %s is of version 1 of Docker's format, which is not supported", ErrInvalid, desc.Digest)
	}
	if got := digest.FromBytes(raw); got != desc.Digest {
		return desc, nil, fmt.Errorf("%w: manifest %s has other content", ErrInvalid, desc.Digest)
	}
	if mt := types.MediaType(desc.MediaType); mt.IsIndex() || mt.IsImage() {
		return desc, raw, nil
	}
	var head struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := decode(raw, &head); err != nil {
		return desc, nil, err
	}
	desc.MediaType = head.MediaType
	if head.MediaType == "" && head.Manifests != nil {
		desc.MediaType = ocispec.MediaTypeImageIndex
	}
	return desc, raw, nil
}

// choose returns the manifest of an index that fits the platform best. One
// that names no platform comes last: its config will tell.
func choose(ctx context.Context, s source, raw []byte, want ocispec.Platform, m platforms.MatchComparer) (ocispec.Descriptor, []byte, error) {
	var index ocispec.Index
	if err := decode(raw, &index); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	var best, unnamed *ocispec.Descriptor
	var fits ocispec.Platform // of best
	var have []string
	for i, d := range index.Manifests {
		mt := types.MediaType(d.MediaType)
		switch {
		case !mt.IsImage() && !mt.IsIndex(), d.Annotations["vnd.docker.reference.type"] != "":
			continue // an attestation, or something else that is no image
		case d.Platform == nil:
			if unnamed == nil {
				unnamed = &index.Manifests[i]
			}
			continue
		case d.Platform.OS == "unknown":
			continue
		}
		p := platforms.Normalize(*d.Platform)
		if name := platforms.Format(p); !slices.Contains(have, name) {
			have = append(have, name)
		}
		if m.Match(p) && (best == nil || m.Less(p, fits)) {
			best, fits = &index.Manifests[i], p
		}
	}
	if best == nil {
		best = unnamed
	}
	if best == nil {
		return ocispec.Descriptor{}, nil, &PlatformError{Want: platforms.Format(want), Have: have}
	}
	if err := checkDigest(best.Digest); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return fetchManifest(ctx, s, best.Digest.String())
}

// check holds a manifest to what the rest relies on: a stranger wrote it.
func (i *Image) check() error {
	if i.Manifest.Config.Digest == "" {
		return fmt.Errorf("%w: manifest %s is no image's (version 1 of Docker's format is not supported)", ErrInvalid, i.Digest)
	}
	for _, d := range append([]ocispec.Descriptor{i.Manifest.Config}, i.Manifest.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return err
		}
		if d.Size < 0 {
			return fmt.Errorf("%w: blob %s of %d bytes", ErrInvalid, d.Digest, d.Size)
		}
	}
	return nil
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%w: %q is no SHA-256 digest", ErrInvalid, d)
	}
	return nil
}

// config reads the image's config and checks it against the manifest.
func (i *Image) config(ctx context.Context) error {
	raw, err := i.readConfig(ctx)
	if err != nil {
		return err
	}
	i.RawConfig = raw
	if err := decode(raw, &i.Config); err != nil {
		return err
	}
	if len(i.Config.RootFS.DiffIDs) != len(i.Manifest.Layers) {
		return fmt.Errorf("%w: %d layers but %d diff IDs", ErrInvalid, len(i.Manifest.Layers), len(i.Config.RootFS.DiffIDs))
	}
	for _, d := range i.Config.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) readConfig(ctx context.Context) ([]byte, error) {
	d := i.Manifest.Config
	r, err := i.source.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, maxJSON))
	if err != nil {
		return nil, fmt.Errorf("config of %s: %w", i.Digest, classify(ctx, err))
	}
	if digest.FromBytes(raw) != d.Digest {
		return nil, fmt.Errorf("%w: config %s has other content", ErrInvalid, d.Digest)
	}
	return raw, nil
}

func decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return nil
}
