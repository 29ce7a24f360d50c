package pushd

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Linker is a repository of a registry in this process.
type Linker interface {
	// Exists reports whether the repository has the blob.
	Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error)

	// Link makes the file at path a blob of the repository, by a hard link
	// where it can. The file must not change afterwards.
	Link(ctx context.Context, desc ocispec.Descriptor, path string) error

	// PutManifest stores raw under its digest and under each tag.
	PutManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags ...string) error
}

// A Reader is a [Linker] that can be asked what it has. Without it a [Local]
// keeps no lists of what refers to a manifest.
type Reader interface {
	Tags(ctx context.Context) ([]string, error)
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
}

// Local is a [Target] that moves no bytes: it links files into a registry of
// this process.
type Local struct {
	name   string
	linker Linker
	temp   string
	lists  chan struct{} // held by who changes a list of referrers
}

var _ Target = (*Local)(nil)

// NewLocal returns the repository that l gives access to. Name is its
// HOST/REPOSITORY. Blobs that are not files, such as configs, are written to
// directory temp first, which should be on the registry's file system; ""
// means the system's.
func NewLocal(name string, l Linker, temp string) *Local {
	return &Local{name: name, linker: l, temp: temp, lists: make(chan struct{}, 1)}
}

// Name returns the repository's name.
func (l *Local) Name() string { return l.name }

// Probe always succeeds: who has the Linker may push.
func (l *Local) Probe(ctx context.Context) error { return context.Cause(ctx) }

// Exists implements [Target].
func (l *Local) Exists(ctx context.Context, desc ocispec.Descriptor, _ Watcher) (bool, error) {
	return l.linker.Exists(ctx, desc)
}

// Mount reports false: linking is as cheap.
func (l *Local) Mount(context.Context, ocispec.Descriptor, []string, Watcher) (bool, error) {
	return false, nil
}

// Upload links the file of src once it is complete.
func (l *Local) Upload(ctx context.Context, _ ocispec.Descriptor, src Source, _ Watcher) (Outcome, error) {
	desc, err := src.Descriptor(ctx)
	if err != nil {
		return "", err
	}
	if f, ok := src.(FileSource); ok {
		path, err := f.File(ctx)
		if err != nil {
			return "", err
		}
		return Linked, l.linker.Link(ctx, desc, path)
	}
	path, err := l.spool(ctx, src, desc)
	if err != nil {
		return "", err
	}
	defer os.Remove(path)
	return Linked, l.linker.Link(ctx, desc, path)
}

// spool writes src to a temporary file and checks its digest: nobody did when
// the file was made.
func (l *Local) spool(ctx context.Context, src Source, desc ocispec.Descriptor) (path string, err error) {
	r, err := src.Open(ctx, 0)
	if err != nil {
		return "", err
	}
	defer r.Close()
	f, err := os.CreateTemp(l.temp, "push-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	verifier := desc.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(f, verifier), r)
	if err != nil {
		return "", err
	}
	if n != desc.Size || !verifier.Verified() {
		return "", &Error{Kind: ErrDigest, Op: "link blob", Host: l.name, Message: fmt.Sprintf("%d bytes read for %s", n, desc.Digest)}
	}
	return f.Name(), f.Sync()
}

// PutManifest implements [Target].
func (l *Local) PutManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags []string, _ Watcher) error {
	if d := digest.FromBytes(raw); d != desc.Digest {
		return &Error{Kind: ErrDigest, Op: "put manifest", Host: l.name, Message: fmt.Sprintf("%s has content %s", desc.Digest, d)}
	}
	refs, err := parseReferences(raw)
	if err != nil {
		return err
	}
	if reader, ok := l.linker.(Reader); ok && refs.Subject != nil {
		if err := l.linker.PutManifest(ctx, desc, raw); err != nil {
			return err
		}
		if err := l.refer(ctx, reader, desc, refs); err != nil {
			return fmt.Errorf("list what refers to %s: %w", refs.Subject.Digest, err)
		}
	}
	return l.linker.PutManifest(ctx, desc, raw, tags...)
}

// refer adds a manifest that has a subject to the subject's list.
func (l *Local) refer(ctx context.Context, r Reader, desc ocispec.Descriptor, refs references) error {
	select { // one change of a list at a time
	case l.lists <- struct{}{}:
		defer func() { <-l.lists }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	tags, err := r.Tags(ctx)
	if err != nil {
		return err
	}
	tag := referrersTag(refs.Subject.Digest)
	var list []byte
	if slices.Contains(tags, tag) {
		if _, list, err = r.Manifest(ctx, tag); err != nil {
			return err
		}
	}
	next, d, err := withReferrer(list, desc, refs)
	if err != nil || next == nil {
		return err
	}
	return l.linker.PutManifest(ctx, d, next, tag)
}
