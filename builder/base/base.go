// Package base brings the images that builds stand on: it resolves a
// reference to one platform's manifest, through mirrors, the daemon's own
// registry or any other, and pulls its layers into the cache, verified and
// with their size counted. Read [Resolver.Resolve] first, then
// [Resolver.Pull].
package base

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Decisions that callers take.
var (
	ErrNotFound    = errors.New("image not found")
	ErrDenied      = errors.New("registry denied access")
	ErrUnavailable = errors.New("registry unavailable")
	ErrInvalid     = errors.New("invalid image")
)

// A PlatformError says which platform was wanted and which there are.
type PlatformError struct {
	Ref  string
	Want string
	Have []string
}

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("%s has no image for %s", e.Ref, e.Want)
	}
	return fmt.Sprintf("%s has no image for %s, only for %s", e.Ref, e.Want, strings.Join(e.Have, ", "))
}

// Auth returns the credentials for a registry's host; none is the zero value.
type Auth func(ctx context.Context, host string) (authn.AuthConfig, error)

// A Repository is one repository of the daemon's own registry.
type Repository interface {
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	Blob(ctx context.Context, d digest.Digest) (path string, size int64, err error)
}

// Options tunes a Resolver.
type Options struct {
	Mirrors  map[string][]*url.URL  // by registry host, tried in order before it
	Insecure []string               // hosts that may speak plain HTTP or have any certificate
	IsLocal  func(host string) bool // says that a host is the daemon's own registry; nil: none is
	// Local opens a repository of it for builds of an org, which may be one
	// that they may not read.
	Local  func(org, name string) Repository
	Denied func(err error) bool // says that the local registry knows no such image
	Client http.RoundTripper    // nil means a default transport
	Pause  time.Duration        // before a second try, and longer before others; 0 means 250 ms
	Stall  time.Duration        // silence after which a blob is asked for again; 0 means a minute
	Log    *slog.Logger
}

// A Resolver finds and pulls images. It is safe for concurrent use.
type Resolver struct {
	opts Options
	lax  http.RoundTripper // for insecure hosts
	org  string            // whose builds ask
}

// NewResolver returns a resolver.
func NewResolver(o Options) *Resolver {
	if o.IsLocal == nil {
		o.IsLocal = func(string) bool { return false }
	}
	if o.Denied == nil {
		o.Denied = func(error) bool { return false }
	}
	if o.Client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = 30 * time.Second
		o.Client = t
	}
	if o.Pause == 0 {
		o.Pause = 250 * time.Millisecond
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{opts: o, lax: o.Client}
	if t, ok := o.Client.(*http.Transport); ok && len(o.Insecure) > 0 {
		t = t.Clone()
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{}
		}
		t.TLSClientConfig.InsecureSkipVerify = true
		r.lax = t
	}
	return r
}

// An Image is one platform's image, not pulled yet.
type Image struct {
	Ref        string        // as written
	Host       string        // of the registry that was named
	Repository string        // path there
	Digest     digest.Digest // of the platform's manifest
	Manifest   ocispec.Manifest
	Config     dockerspec.DockerOCIImage
	MediaType  string // of the manifest
	Raw        []byte // the manifest, byte for byte
	RawConfig  []byte // the config, byte for byte
	source     source
}

// Name returns the image's name with its digest.
func (i *Image) Name() string { return i.Host + "/" + i.Repository + "@" + i.Digest.String() }

// CompressedSize sums the layers' blobs.
func (i *Image) CompressedSize() int64 {
	var n int64
	for _, l := range i.Manifest.Layers {
		n += l.Size
	}
	return n
}

// Parse checks an image reference and completes it: docker.io, library/ and
// latest where they are missing.
func Parse(ref string) (name.Reference, error) {
	r, err := name.ParseReference(ref, name.WithDefaultRegistry("docker.io"))
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not an image reference: %v", ErrInvalid, ref, err)
	}
	return r, nil
}

// Resolve returns the image that ref names for the platform. It asks the
// mirrors of the reference's registry first. auth is called only when a
// registry wants credentials.
func (r *Resolver) Resolve(ctx context.Context, ref string, platform ocispec.Platform, auth Auth) (*Image, error) {
	return r.ResolveKnown(ctx, ref, platform, auth, func(context.Context, digest.Digest) (raw, config []byte) { return nil, nil })
}

// For returns the resolver for builds of an org.
func (r *Resolver) For(org string) *Resolver {
	own := *r
	own.org = org
	return &own
}

// pick returns what the sources' errors come to. The registry that was named,
// the last one, has the last word; that a mirror has failed before is told
// beside it.
func pick(errs []error) error {
	last := errs[len(errs)-1]
	for i := len(errs) - 2; i >= 0; i-- {
		last = fmt.Errorf("%w; mirror %v", last, errs[i])
	}
	return last
}

// sources lists where a reference may be read, in order.
func (r *Resolver) sources(ref name.Reference, auth Auth) ([]source, error) {
	host, repo := ref.Context().RegistryStr(), ref.Context().RepositoryStr()
	if host == "index.docker.io" {
		host = "docker.io"
	}
	var all []source
	for _, m := range r.opts.Mirrors[host] {
		s, err := r.source(m.Host, repo, m.Scheme == "http", auth)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	s, err := r.source(host, repo, false, auth)
	return append(all, s), err
}

func (r *Resolver) source(host, repo string, plain bool, auth Auth) (source, error) {
	if r.opts.IsLocal(host) {
		return &local{host: host, name: repo, repo: r.opts.Local(r.org, repo), missing: r.opts.Denied}, nil
	}
	tr := r.opts.Client
	if slices.Contains(r.opts.Insecure, host) {
		plain, tr = true, r.lax
	}
	var challenged atomic.Bool
	puller, err := remote.NewPuller(
		remote.WithTransport(listener{tr, &challenged}), remote.WithUserAgent("slipway"), remote.WithAuth(asked{auth, host, &challenged}),
		remote.WithRetryBackoff(remote.Backoff{Duration: r.opts.Pause, Factor: 3, Jitter: 0.1, Steps: 3}),
	)
	return &remoteSource{host: host, repo: repo, plain: plain, puller: puller, dialer: dialer{tr: listener{tr, &challenged}, auth: asked{auth, host, &challenged}}}, err
}

// Default returns the platform of the daemon, or the one that s spells.
func Default(s string) (ocispec.Platform, error) {
	if s == "" {
		p := platforms.DefaultSpec()
		return platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: p.Architecture}), nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return ocispec.Platform{}, fmt.Errorf("%w: platform %q: %v", ErrInvalid, s, err)
	}
	return platforms.Normalize(p), nil
}
