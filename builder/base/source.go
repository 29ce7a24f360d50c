package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A source is a repository that manifests and blobs are read from. Its
// errors wrap this package's sentinels.
type source interface {
	manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	String() string
}

// local reads the daemon's own registry in this process.
type local struct {
	host    string
	repo    Repository
	missing func(error) bool
}

func (l *local) String() string { return l.host }

func (l *local) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	desc, raw, err := l.repo.Manifest(ctx, ref)
	return desc, raw, l.wrap(err)
}

func (l *local) blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	path, _, err := l.repo.Blob(ctx, d.Digest)
	if err != nil {
		return nil, l.wrap(err)
	}
	return os.Open(path)
}

func (l *local) wrap(err error) error {
	if err != nil && l.missing != nil && l.missing(err) {
		return fmt.Errorf("%w: %v", ErrNotFound, err)
	}
	return err
}

// remoteSource reads a registry over HTTP.
type remoteSource struct {
	host, repo string
	plain      bool
	auth       Auth
	transport  http.RoundTripper
}

func (r *remoteSource) String() string { return r.host }

func (r *remoteSource) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	parsed, err := r.reference(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	got, err := remote.Get(parsed, r.options(ctx)...)
	if err != nil {
		return ocispec.Descriptor{}, nil, classify(ctx, err)
	}
	return ocispec.Descriptor{
		MediaType: string(got.MediaType), Digest: digest.Digest(got.Digest.String()), Size: got.Size,
	}, got.Manifest, nil
}

func (r *remoteSource) blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	ref, err := r.reference(d.Digest.String())
	if err != nil {
		return nil, err
	}
	l, err := remote.Layer(ref.(name.Digest), r.options(ctx)...)
	if err != nil {
		return nil, classify(ctx, err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, classify(ctx, err)
	}
	return rc, nil
}

func (r *remoteSource) reference(ref string) (name.Reference, error) {
	sep := ":"
	if _, err := digest.Parse(ref); err == nil {
		sep = "@"
	}
	var opts []name.Option
	if r.plain {
		opts = append(opts, name.Insecure)
	}
	parsed, err := name.ParseReference(r.host+"/"+r.repo+sep+ref, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return parsed, nil
}

func (r *remoteSource) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(r.transport),
		remote.WithUserAgent("slipway"),
		remote.WithAuth(asked{ctx, r}),
	}
}

// asked gets credentials when the registry's challenge needs them.
type asked struct {
	ctx context.Context // of one registry operation
	src *remoteSource
}

func (a asked) Authorization() (*authn.AuthConfig, error) {
	if a.src.auth == nil {
		return &authn.AuthConfig{}, nil
	}
	cfg, err := a.src.auth(a.ctx, a.src.host)
	return &cfg, err
}

// classify gives a registry's answer one of this package's sentinels.
func classify(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %v", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %v", ErrDenied, err)
	}
	return fmt.Errorf("%w: %v", ErrUnavailable, err)
}
