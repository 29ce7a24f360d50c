package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"

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
	blobAt(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error)
	file(ctx context.Context, d ocispec.Descriptor) (path string, ok bool)
	path() string // of the repository
	String() string
}

// local reads the daemon's own registry in this process.
type local struct {
	host    string
	name    string // of the repository
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
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: the file of blob %s is gone", ErrNotFound, d.Digest)
	}
	return f, err
}

func (l *local) wrap(err error) error {
	if err != nil && l.missing(err) {
		return fmt.Errorf("%w: %v", ErrNotFound, err)
	}
	return err
}

// remoteSource reads a registry over HTTP. It logs in once.
type remoteSource struct {
	host, repo string
	plain      bool
	puller     *remote.Puller
	dialer     dialer // for parts of blobs
}

func (r *remoteSource) String() string { return r.host }

func (r *remoteSource) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	parsed, err := r.reference(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	got, err := r.puller.Get(ctx, parsed)
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
	byDigest, ok := ref.(name.Digest)
	if !ok {
		return nil, fmt.Errorf("%w: %q is no digest of a blob", ErrInvalid, d.Digest)
	}
	l, err := r.puller.Layer(ctx, byDigest)
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

// asked gets credentials when the registry's challenge needs them.
type asked struct {
	auth       Auth // may be nil
	host       string
	challenged *atomic.Bool // by the registry
}

// A listener notes that a registry wants credentials.
type listener struct {
	http.RoundTripper
	challenged *atomic.Bool
}

func (l listener) RoundTrip(r *http.Request) (*http.Response, error) {
	if redirects(r) > maxRedirects {
		return nil, errors.New("too many redirects")
	}
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		l.challenged.Store(true)
	}
	return resp, err
}

// redirects counts the answers that led to r. The puller follows any number.
func redirects(r *http.Request) (n int) {
	for r != nil && r.Response != nil {
		r, n = r.Response.Request, n+1
	}
	return n
}

var (
	_ authn.Authenticator        = asked{}
	_ authn.ContextAuthenticator = asked{}
)

// Authorization implements authn.Authenticator. A ContextAuthenticator is
// asked by the other method.
func (a asked) Authorization() (*authn.AuthConfig, error) {
	return a.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator.
func (a asked) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	if a.auth == nil || !a.challenged.Load() {
		return &authn.AuthConfig{}, nil
	}
	cfg, err := a.auth(ctx, a.host)
	if err != nil {
		return nil, &authError{err}
	}
	return &cfg, nil
}

// An authError is a failure to get credentials: no word of the registry.
type authError struct{ err error }

func (e *authError) Error() string { return e.err.Error() }

// classify gives a registry's answer one of this package's sentinels.
func classify(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var unasked *authError
	if errors.As(err, &unasked) {
		return unasked.err
	}
	err = withoutQuery(err)
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

// withoutQuery takes the query out of an address that could not be reached:
// the one of a redirect is a password.
func withoutQuery(err error) error {
	var at *url.Error
	if !errors.As(err, &at) {
		return err
	}
	if u, parseErr := url.Parse(at.URL); parseErr == nil {
		u.RawQuery, u.User = "", nil
		return &url.Error{Op: at.Op, URL: u.String(), Err: at.Err}
	}
	return at.Err
}
