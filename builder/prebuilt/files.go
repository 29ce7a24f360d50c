package prebuilt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
)

// Kinds of images that a client has as files. They stand before a colon where
// else a registry's host is.
const (
	layoutKind  = "oci"            // an OCI image layout
	archiveKind = "docker-archive" // what "docker save" writes
)

// A filesName names an image among a client's files: "oci:shop@sha256:…". The
// client sends the image's blobs as build context, each as a file of its own. The digest is that of a manifest or an
// index among them.
type filesName struct {
	kind   string
	name   string // as the user wrote it, with the kind
	digest digest.Digest
}

// parseName reads a name; ok is false for one of a registry.
func parseName(s string) (n filesName, ok bool) {
	kind, _, _ := strings.Cut(s, ":")
	if kind != layoutKind && kind != archiveKind {
		return n, false
	}
	n.kind, n.name = kind, s
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		n.name, n.digest = s[:i], digest.Digest(s[i+1:])
	}
	return n, true
}

// planFiles plans for an image that the client has.
func (p *Pipeline) planFiles(ctx context.Context, job *builder.Job, name filesName) (builder.Plan, error) {
	if name.digest.Validate() != nil || job.GetContext() == nil {
		return nil, failure.Userf(failure.InvalidArgument, "use slipway deploy, which sends the image's files",
			"%s names files of the client, and none were sent", name.name)
	}
	m, err := job.Session.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	s := newFiles(job, name, m)
	if err := s.prefetch(ctx); err != nil {
		return nil, err
	}
	if name.kind == layoutKind && job.Start.Platform == builder.AllPlatforms {
		whole, err := base.ResolveWholeIn(ctx, s, name.digest)
		if err != nil {
			return nil, imageFailure(name.name, err)
		}
		if err := s.all(blobsOf(whole)); err != nil {
			return nil, err
		}
		return p.planWhole(ctx, p.newPlan(job), whole, s)
	}
	img, err := base.ResolveIn(ctx, s, name.digest, job.Platform)
	if err != nil {
		return nil, imageFailure(name.name, err)
	}
	if err := s.all(img.Manifest.Layers); err != nil {
		return nil, err
	}
	if name.kind == archiveKind {
		return p.planArchive(ctx, job, img, s)
	}
	return p.planImage(ctx, p.newPlan(job), img, s)
}

func blobsOf(w *base.Whole) []ocispec.Descriptor {
	all := w.Blobs
	for _, img := range w.Images {
		all = append(all, img.Manifest.Layers...)
	}
	return all
}

// files reads the blobs of an image that the client has. What the daemon lacks
// travels when it is opened.
type files struct {
	job   *builder.Job
	name  filesName
	index map[digest.Digest]int // of a blob in the manifest
	m     *buildctx.Manifest
}

var (
	_ base.Store = (*files)(nil)
	_ opener     = (*files)(nil)
)

func newFiles(job *builder.Job, name filesName, m *buildctx.Manifest) *files {
	s := &files{job: job, name: name, m: m, index: map[digest.Digest]int{}}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type == buildctx.TypeFile {
			s.index[e.Content()] = i
		}
	}
	return s
}

// String names the image for people.
func (s *files) String() string { return s.name.name }

// errMissing says that the client's files lack a blob.
var errMissing = errors.New("blob is missing")

// all checks that the client has the blobs, as large as they should be.
func (s *files) all(blobs []ocispec.Descriptor) error {
	for _, d := range blobs {
		if _, err := s.find(d.Digest, d.Size); err != nil {
			return err
		}
	}
	return nil
}

// find returns the entry of a blob. A size of -1 is any.
func (s *files) find(d digest.Digest, size int64) (int, error) {
	i, ok := s.index[d]
	switch {
	case !ok && d == emptyDigest:
		return -1, nil // contexts have empty files without contents
	case !ok:
		return 0, s.invalid(errMissing, "%s lacks the blob %s", s.name.name, d)
	case size >= 0 && s.m.Entries[i].Size != size:
		return 0, s.invalid(nil, "blob %s of %s has %d bytes, its descriptor says %d", d, s.name.name, s.m.Entries[i].Size, size)
	}
	return i, nil
}

var emptyDigest = digest.FromBytes(nil)

func (s *files) invalid(cause error, format string, args ...any) error {
	e := failure.Userf(failure.ImageInvalid, "make it again with all of its blobs, for example with skopeo copy --all or crane pull", format, args...)
	e.Err = cause
	return e
}

// smallBlob is the size up to which blobs travel before anything is known of
// the image: manifests and configs among them.
const smallBlob = 64 << 10

// prefetch has the manifests come in one go, and all that is there if the
// client of a detached build is about to leave.
func (s *files) prefetch(ctx context.Context) error {
	var first []int
	for i := range s.m.Entries {
		if e := &s.m.Entries[i]; e.Type == buildctx.TypeFile && (e.Size <= smallBlob || s.job.Detach) {
			first = append(first, i)
		}
	}
	return s.sent(s.job.Session.Need(ctx, first))
}

// sent gives an error of the client's the words of an image.
func (s *files) sent(err error) error {
	var known *failure.Error
	if !errors.As(err, &known) || known.Code != failure.ContextChanged {
		return err
	}
	return s.invalid(err, "%s is damaged, or changes while it is read: %s", s.name.name, known.Message)
}

// need returns when the daemon has a blob.
func (s *files) need(ctx context.Context, d digest.Digest, size int64) error {
	i, err := s.find(d, size)
	if err != nil || i < 0 {
		return err
	}
	return s.sent(s.job.Session.Need(ctx, []int{i}))
}

// maxManifest bounds a manifest that is read into memory.
const maxManifest = 8 << 20

// Bytes implements [base.Store].
func (s *files) Bytes(ctx context.Context, d digest.Digest) ([]byte, error) {
	r, err := s.open(ctx, d, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, io.LimitReader(r, maxManifest+1))
	return b.Bytes(), err
}

// Open implements [base.Store] and opener.
func (s *files) Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	r, err := s.open(ctx, d.Digest, d.Size)
	if err != nil {
		return nil, err
	}
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (s *files) open(ctx context.Context, d digest.Digest, size int64) (*layercache.Content, error) {
	if err := s.need(ctx, d, size); err != nil {
		return nil, err
	}
	return s.job.Cache.Contents().Open(ctx, d)
}

// File implements opener. A large content is a blob of the cache already, and a
// small one becomes one.
func (s *files) File(d ocispec.Descriptor) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if err := s.need(ctx, d.Digest, d.Size); err != nil {
			return "", err
		}
		blob, err := s.job.Cache.Blob(ctx, d.Digest)
		if err == nil {
			return blob.File(ctx)
		}
		if !errors.Is(err, layercache.ErrNotFound) {
			return "", err
		}
		return s.store(ctx, d)
	}
}

// store makes a content a blob of the cache.
func (s *files) store(ctx context.Context, d ocispec.Descriptor) (string, error) {
	r, err := s.job.Cache.Contents().Open(ctx, d.Digest)
	if err != nil {
		return "", err
	}
	defer r.Close()
	w, err := s.job.Cache.Create(ctx)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(w, r); err != nil {
		w.Abort(err)
		return "", err
	}
	if _, err := w.Commit(ctx); err != nil {
		return "", err
	}
	return w.File(ctx)
}

func isFailure(err error) bool {
	var known *failure.Error
	return errors.As(err, &known)
}
