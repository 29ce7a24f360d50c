// Package pushd takes finished and unfinished blobs to a registry.
//
// A blob's bytes come from a [Source], which may still grow while it is
// uploaded: the compressor writes at one end, the registry reads at the other.
// An [Engine] lives as long as the daemon. It uploads a blob once, however
// many builds want it, and remembers what a registry confirmed. A [Push] is
// one image on its way to one repository, the [Target]: blobs are added while
// the build runs, manifests go last and tags after them. A [Group] is the same
// for several targets at once.
//
// An upload that breaks goes on where the registry says that it stopped, also
// in the next process: a [Journal] keeps what must be known for it. [Hosts]
// keeps how registries behave.
//
// A target is a repository in any registry, reached over HTTP ([HTTP]), or in
// a registry of the same process, where blobs are linked ([Local]). Both keep
// the contract of package targettest.
//
// Read [Target] first, then [Engine.Push].
package pushd

import (
	"bytes"
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Source is where the bytes of a blob come from, as often as they are
// needed. It may be opened again and concurrently.
type Source interface {
	// Open returns a reader from offset off on. It may wait for bytes that
	// are not yet written, and gives io.EOF only at the end of a complete
	// blob. When the blob is given up, it gives the cause.
	Open(ctx context.Context, off int64) (io.ReadCloser, error)

	// Descriptor waits until the blob is complete and returns its digest and
	// size, or the cause for which it was given up.
	Descriptor(ctx context.Context) (ocispec.Descriptor, error)
}

// A FileSource is a Source that ends as a file, which a target on the same
// file system may link.
type FileSource interface {
	Source

	// File waits until the blob is complete and returns its path.
	File(ctx context.Context) (string, error)
}

// A LateSource is a Source of known digest whose first byte may be long in
// coming. Until then its upload takes no turn from others.
type LateSource interface {
	Source

	// Begun waits until Open gives bytes without much delay, or an error.
	Begun(ctx context.Context) error
}

// Bytes returns a Source of data, for configs and other small blobs.
func Bytes(data []byte) Source { return memory(data) }

type memory []byte

func (m memory) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	r := bytes.NewReader(m)
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

func (m memory) Descriptor(context.Context) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{Digest: digest.FromBytes(m), Size: int64(len(m))}, nil
}

// A Target is one repository of one registry. Its methods may be called
// concurrently. They retry by themselves what may pass, and return errors of
// type [*Error] for what the registry refuses.
type Target interface {
	// Name returns HOST/REPOSITORY. Targets of one name are the same place.
	Name() string

	// Probe checks that a push would be let in, without leaving a trace.
	Probe(ctx context.Context) error

	// Exists reports whether the repository has the blob. It never takes a
	// failed question for a no.
	Exists(ctx context.Context, desc ocispec.Descriptor, w Watcher) (bool, error)

	// Mount makes a blob of one of the repositories from, on the same
	// registry, a blob of this one. It reports false if the registry will
	// not; the blob must be uploaded then.
	Mount(ctx context.Context, desc ocispec.Descriptor, from []string, w Watcher) (bool, error)

	// Upload stores the blob and returns when the registry has it under the
	// digest of src. Known holds what is known of it: without a digest, src
	// may still grow.
	Upload(ctx context.Context, known ocispec.Descriptor, src Source, w Watcher) (Outcome, error)

	// PutManifest stores raw under its digest, then under each tag. If it has
	// a subject, the repository's list of what refers to that has it before
	// the tags are set. A failure that leaves only some of the tags set is a
	// [*TagError].
	PutManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tags []string, w Watcher) error
}

// An Outcome says how a blob came to be in the repository.
type Outcome string

// The outcomes of a blob.
const (
	Uploaded Outcome = "uploaded" // its bytes were sent
	Mounted  Outcome = "mounted"  // taken from another repository of the registry
	Present  Outcome = "present"  // it was there, or another push brought it
	Linked   Outcome = "linked"   // linked on disk
)
