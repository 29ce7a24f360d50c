package base

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Manifest is a manifest as its registry has it.
type Manifest struct {
	ocispec.Descriptor
	Raw []byte
}

// A Whole is everything that a reference names: of an index, the images of all
// platforms and what describes them.
type Whole struct {
	Manifests []Manifest           // what others name comes before them; the last is what the reference names
	Images    []*Image             // in the order of the index
	Blobs     []ocispec.Descriptor // of manifests that are no images: attestations
	source    source
}

// Open is [Image.Open] for the blobs that no image has.
func (w *Whole) Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	return w.source.blobAt(ctx, d, off)
}

// File is [Image.File] for the blobs that no image has.
func (w *Whole) File(ctx context.Context, d ocispec.Descriptor) (path string, ok bool) {
	return w.source.file(ctx, d)
}

// maxManifests bounds what one index may bring.
const maxManifests = 200

// ResolveWhole returns all that ref names. It reads what Resolve would, for
// every platform.
func (r *Resolver) ResolveWhole(ctx context.Context, ref string, auth Auth) (*Whole, error) {
	var out *Whole
	err := r.each(ctx, ref, auth, func(s source, parsed name.Reference) (err error) {
		out, err = resolveWhole(ctx, s, parsed.Identifier())
		if err != nil {
			return err
		}
		for _, img := range out.Images {
			img.Ref = ref
			img.named(parsed)
		}
		return nil
	})
	return out, err
}

func resolveWhole(ctx context.Context, s source, at string) (*Whole, error) {
	w := &Whole{source: s}
	desc, raw, err := fetchManifest(ctx, s, at)
	if err != nil {
		return nil, err
	}
	if err := w.add(ctx, desc, raw, 0); err != nil {
		return nil, err
	}
	if len(w.Images) == 0 {
		return nil, fmt.Errorf("%w: index %s has no image", ErrInvalid, desc.Digest)
	}
	return w, nil
}

// add takes a manifest in, after all that it names.
func (w *Whole) add(ctx context.Context, desc ocispec.Descriptor, raw []byte, depth int) error {
	if len(w.Manifests) >= maxManifests {
		return fmt.Errorf("%w: an index of more than %d manifests", ErrInvalid, maxManifests)
	}
	if types.MediaType(desc.MediaType).IsIndex() {
		if err := w.addIndex(ctx, raw, depth); err != nil {
			return err
		}
	} else if err := w.addImage(ctx, desc, raw); err != nil {
		return err
	}
	w.keep(desc, raw)
	return nil
}

func (w *Whole) addIndex(ctx context.Context, raw []byte, depth int) error {
	if depth == maxNesting {
		return fmt.Errorf("%w: indexes nest too deep", ErrInvalid)
	}
	var index ocispec.Index
	if err := decode(raw, &index); err != nil {
		return err
	}
	for _, d := range index.Manifests {
		if err := checkDigest(d.Digest); err != nil {
			return err
		}
		desc, raw, err := fetchManifest(ctx, w.source, d.Digest.String())
		if err != nil {
			return err
		}
		if describes(d) {
			err = w.addOther(desc, raw)
		} else {
			err = w.add(ctx, desc, raw, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// describes reports whether an entry of an index is about another one, as an
// attestation is, rather than an image.
func describes(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown"
}

func (w *Whole) addImage(ctx context.Context, desc ocispec.Descriptor, raw []byte) error {
	img, err := read(ctx, w.source, desc, raw)
	if err == nil {
		w.Images = append(w.Images, img)
	}
	return err
}

func (w *Whole) addOther(desc ocispec.Descriptor, raw []byte) error {
	img := &Image{Digest: desc.Digest}
	if err := decode(raw, &img.Manifest); err != nil {
		return err
	}
	if err := img.check(); err != nil {
		return err
	}
	w.Blobs = append(append(w.Blobs, img.Manifest.Config), img.Manifest.Layers...)
	w.keep(desc, raw)
	return nil
}

func (w *Whole) keep(desc ocispec.Descriptor, raw []byte) {
	mt := cmp.Or(desc.MediaType, ocispec.MediaTypeImageManifest)
	w.Manifests = append(w.Manifests, Manifest{ocispec.Descriptor{MediaType: mt, Digest: desc.Digest, Size: int64(len(raw))}, raw})
}

// each tries the sources of a reference in turn until one has it.
func (r *Resolver) each(ctx context.Context, ref string, auth Auth, try func(source, name.Reference) error) error {
	parsed, err := Parse(ref)
	if err != nil {
		return err
	}
	sources, err := r.sources(parsed, auth)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range sources {
		err := try(s, parsed)
		if err == nil {
			return nil
		}
		var wrong *PlatformError
		if errors.As(err, &wrong) {
			wrong.Ref = ref
			return err
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	return pick(errs)
}

// A Known returns the manifest of that digest and the config that it names, as
// they were read before; nil if they were not.
type Known func(ctx context.Context, manifest digest.Digest) (raw, config []byte)

// ResolveKnown is [Resolver.Resolve] that asks the registry for the reference
// only, where known has the rest.
func (r *Resolver) ResolveKnown(ctx context.Context, ref string, platform ocispec.Platform, auth Auth, known Known) (*Image, error) {
	var img *Image
	err := r.each(ctx, ref, auth, func(s source, parsed name.Reference) (err error) {
		img, err = resolve(ctx, &remembering{source: s, known: known}, parsed, platform)
		return err
	})
	if err != nil {
		return nil, err
	}
	img.Ref = ref
	return img, nil
}

// remembering is a source that is not asked for what is known, but for the
// first manifest: whether one may have the image is the registry's to say.
type remembering struct {
	source
	known  Known
	asked  bool
	config []byte // of the last manifest; nil if it is not known
}

func (r *remembering) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	if !r.asked {
		r.asked = true
		desc, raw, err := r.source.manifest(ctx, ref)
		if err == nil {
			_, r.config = r.known(ctx, desc.Digest)
		}
		return desc, raw, err
	}
	var raw []byte
	if raw, r.config = r.known(ctx, digest.Digest(ref)); raw != nil && digest.FromBytes(raw).String() == ref {
		return ocispec.Descriptor{Digest: digest.Digest(ref), Size: int64(len(raw))}, raw, nil
	}
	return r.source.manifest(ctx, ref)
}

func (r *remembering) blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if r.config != nil && digest.FromBytes(r.config) == d.Digest {
		return io.NopCloser(bytes.NewReader(r.config)), nil
	}
	return r.source.blob(ctx, d)
}

// A Store has images elsewhere than in a registry. Its errors may wrap this
// package's sentinels.
type Store interface {
	// Bytes returns a manifest.
	Bytes(ctx context.Context, d digest.Digest) ([]byte, error)

	// Open returns a blob from off on.
	Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error)

	// String names the store for people.
	String() string
}

// ResolveIn is [Resolver.Resolve] for a manifest or index in a store.
func ResolveIn(ctx context.Context, s Store, at digest.Digest, platform ocispec.Platform) (*Image, error) {
	img, err := resolveAt(ctx, stored{s}, at.String(), platform)
	var wrong *PlatformError
	if errors.As(err, &wrong) {
		wrong.Ref = s.String()
	}
	if err != nil {
		return nil, err
	}
	img.Ref = s.String()
	return img, nil
}

// ResolveWholeIn is [Resolver.ResolveWhole] for a manifest or index in a store.
func ResolveWholeIn(ctx context.Context, s Store, at digest.Digest) (*Whole, error) {
	w, err := resolveWhole(ctx, stored{s}, at.String())
	if err != nil {
		return nil, err
	}
	for _, img := range w.Images {
		img.Ref = s.String()
	}
	return w, nil
}

// stored reads a Store.
type stored struct{ Store }

func (s stored) path() string { return "" }

func (s stored) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	raw, err := s.Bytes(ctx, digest.Digest(ref))
	return ocispec.Descriptor{Digest: digest.Digest(ref), Size: int64(len(raw))}, raw, err
}

func (s stored) blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return s.Open(ctx, d, 0)
}

func (s stored) blobAt(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	return s.Open(ctx, d, off)
}

func (stored) file(context.Context, ocispec.Descriptor) (string, bool) { return "", false }
