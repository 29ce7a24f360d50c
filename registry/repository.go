package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest is the size of the largest manifest that a registry takes.
const MaxManifest = 4 << 20

// A Repository is one repository, for the daemon itself: no credentials, no
// HTTP. It is safe for concurrent use.
type Repository struct {
	registry *Registry
	name     reference.Named
}

// Name returns the name of the repository.
func (r *Repository) Name() string { return r.name.Name() }

// Exists reports whether the repository has the blob, of that size.
func (r *Repository) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	_, size, err := r.Blob(ctx, desc.Digest)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && size == desc.Size, err
}

// Blob returns the file of a blob of the repository, to read or to link from,
// never to write to. The error wraps [ErrNotFound] if the repository has no
// such blob.
func (r *Repository) Blob(ctx context.Context, d digest.Digest) (path string, size int64, err error) {
	if err := supported(d); err != nil {
		return "", 0, err
	}
	if ctx.Err() != nil {
		return "", 0, context.Cause(ctx)
	}
	path = r.registry.layout.blob(d)
	if r.registry.recorded(r.name.Name(), d) {
		size, err = fileSize(path)
	} else {
		err = fs.ErrNotExist
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", 0, fmt.Errorf("blob %s of %s: %w", d, r.name.Name(), ErrNotFound)
	case err != nil:
		return "", 0, fmt.Errorf("blob %s of %s: %w", d, r.name.Name(), err)
	}
	return path, size, nil
}

// Manifest returns the manifest that ref stands for, a tag or a digest, with
// its descriptor. The bytes are checked against the digest. The error wraps
// [ErrNotFound] if there is none.
func (r *Repository) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	desc, raw, err := r.manifest(withLog(ctx, r.registry.entry), ref)
	switch {
	case isNotFound(err):
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s of %s: %w", ref, r.name.Name(), ErrNotFound)
	case err != nil:
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s of %s: %w", ref, r.name.Name(), err)
	}
	return desc, raw, nil
}

func (r *Repository) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	var none ocispec.Descriptor
	repo, err := r.registry.images.Repository(ctx, r.name)
	if err != nil {
		return none, nil, err
	}
	d, err := r.resolve(ctx, repo, ref)
	if err != nil {
		return none, nil, err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return none, nil, err
	}
	m, err := manifests.Get(ctx, d)
	if err != nil {
		return none, nil, err
	}
	mediaType, raw, err := m.Payload()
	if err != nil {
		return none, nil, err
	}
	if got := digest.FromBytes(raw); got != d {
		return none, nil, fmt.Errorf("%w: it has the digest %s", ErrMismatch, got)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}, raw, nil
}

// resolve returns the digest that a tag or a digest stands for.
func (r *Repository) resolve(ctx context.Context, repo distribution.Repository, ref string) (digest.Digest, error) {
	if strings.Contains(ref, ":") {
		return digest.Digest(ref), supported(digest.Digest(ref))
	}
	tag, err := r.tag(ref)
	if err != nil {
		return "", err
	}
	desc, err := repo.Tags(ctx).Get(ctx, tag)
	return desc.Digest, err
}

// tag returns a tag after checking that it is one: distribution makes a path
// of it.
func (r *Repository) tag(tag string) (string, error) {
	if _, err := reference.WithTag(r.name, tag); err != nil {
		return "", fmt.Errorf("tag %q: %w", tag, ErrInvalid)
	}
	return tag, nil
}

// PutManifest stores a manifest: by the digest that desc names, then under
// each tag. It checks that raw is what desc says, that it is a manifest of that
// media type, and that the repository has all that it refers to. When it
// returns nil, the manifest and what was linked for it survive a power loss.
//
// The error wraps [ErrMismatch], [ErrTooLarge] or [ErrInvalid]; it is a
// [*MissingError] if something is missing that could be linked again.
func (r *Repository) PutManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags ...string) error {
	if err := r.put(withLog(ctx, r.registry.entry), desc, raw, tags); err != nil {
		return fmt.Errorf("put manifest %s into %s: %w", desc.Digest, r.name.Name(), err)
	}
	return nil
}

func (r *Repository) put(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags []string) error {
	m, err := r.check(desc, raw, tags)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := r.registry.pending.sync(); err != nil {
		return err
	}
	repo, err := r.registry.images.Repository(ctx, r.name)
	if err != nil {
		return err
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return err
	}
	if _, err := manifests.Put(ctx, m); err != nil {
		return refused(err)
	}
	for _, tag := range tags {
		if err := repo.Tags(ctx).Tag(ctx, tag, desc); err != nil {
			return fmt.Errorf("tag %s: %w", tag, err)
		}
	}
	return nil
}

// check holds a manifest to its descriptor, before anything is stored.
func (r *Repository) check(desc ocispec.Descriptor, raw []byte, tags []string) (distribution.Manifest, error) {
	if len(raw) > MaxManifest {
		return nil, fmt.Errorf("%w: %d bytes of at most %d", ErrTooLarge, len(raw), MaxManifest)
	}
	if desc.Size != int64(len(raw)) || desc.Digest != digest.FromBytes(raw) {
		return nil, ErrMismatch
	}
	for _, tag := range tags {
		if _, err := r.tag(tag); err != nil {
			return nil, err
		}
	}
	if desc.MediaType == "" {
		return nil, fmt.Errorf("%w: no media type", ErrInvalid)
	}
	m, _, err := distribution.UnmarshalManifest(desc.MediaType, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return m, nil
}

// Tags returns the tags of the repository in order; none if it never had one.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	ctx = withLog(ctx, r.registry.entry)
	repo, err := r.registry.images.Repository(ctx, r.name)
	if err != nil {
		return nil, fmt.Errorf("tags of %s: %w", r.name.Name(), err)
	}
	tags, err := repo.Tags(ctx).All(ctx)
	switch {
	case isNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("tags of %s: %w", r.name.Name(), err)
	}
	return tags, nil
}
