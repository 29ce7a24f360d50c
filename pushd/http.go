package pushd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// HTTPOptions tunes an [HTTP] target. Nil means the defaults.
type HTTPOptions struct {
	// Auth returns the credentials for host. It is asked again for each
	// request that needs them, so that they may change during a push. The
	// zero AuthConfig means none. Nil means none.
	Auth func(ctx context.Context, host string) (authn.AuthConfig, error)

	// Insecure allows plain HTTP if the registry speaks no HTTPS. Registries
	// on a loopback address may always speak it.
	Insecure bool

	// Transport makes the connections; targets should share one. Nil means
	// http.DefaultTransport. See [NewTransport].
	Transport http.RoundTripper

	// Chunk is how many bytes one request carries; 0 means 16 MiB. Registries
	// sync each chunk to disk, so a finished blob goes in larger ones: a few
	// seconds' worth by the rate that the registry is known to have, or all
	// that is left if it is known to keep what came of a request that broke.
	// A break costs one chunk at most. MaxChunk bounds them; 0 means it does
	// not.
	Chunk, MaxChunk int64

	Retries int           // failures in a row that one blob may have; 0 means 7, negative none
	Timeout time.Duration // for an answer; 0 means 30 s; four times that after a body
	Stall   time.Duration // without a byte taken by the network before it is given up; 0 means 30 s

	Hosts   *Hosts  // what is known of registries; nil means nothing
	Journal Journal // nil means none
}

func (o *HTTPOptions) orDefault() HTTPOptions {
	var v HTTPOptions
	if o != nil {
		v = *o
	}
	if v.Auth == nil {
		v.Auth = func(context.Context, string) (authn.AuthConfig, error) { return authn.AuthConfig{}, nil }
	}
	if v.Transport == nil {
		v.Transport = http.DefaultTransport
	}
	if v.Chunk <= 0 {
		v.Chunk = 16 << 20
	}
	if v.MaxChunk <= 0 {
		v.MaxChunk = math.MaxInt64
	}
	if v.Hosts == nil {
		v.Hosts = NewHosts()
	}
	if v.Retries == 0 {
		v.Retries = 7
	}
	if v.Timeout <= 0 {
		v.Timeout = 30 * time.Second
	}
	if v.Stall <= 0 {
		v.Stall = 30 * time.Second
	}
	return v
}

// NewTransport returns a transport that suits pushes: HTTP/1.1, so that blobs
// sent at once have connections of their own and a stalled one can be dropped
// alone, and large buffers.
func NewTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.MaxIdleConnsPerHost = 16
	t.WriteBufferSize = 128 << 10
	t.DisableCompression = true
	return t
}

// HTTP is a [Target] in a registry that speaks the OCI distribution protocol.
type HTTP struct {
	repo name.Repository
	opts HTTPOptions
	auth *authorizer

	lists chan struct{} // held by who changes a list of referrers

	mu     sync.Mutex
	scheme string    // "" until known
	spare  []session // opened by mounts that were refused; the next uploads take them
}

var _ Target = (*HTTP)(nil)

// NewHTTP returns the target HOST/REPOSITORY. A scheme may stand before it;
// otherwise HTTPS is used, or what [HTTPOptions.Insecure] allows.
func NewHTTP(repository string, o *HTTPOptions) (*HTTP, error) {
	scheme, rest, ok := strings.Cut(repository, "://")
	if !ok {
		scheme, rest = "", repository
	}
	if scheme != "" && scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("repository %q: unknown scheme %q", repository, scheme)
	}
	repo, err := name.NewRepository(rest)
	if err != nil {
		return nil, fmt.Errorf("repository %q: %w", repository, err)
	}
	t := &HTTP{repo: repo, opts: o.orDefault(), scheme: scheme, lists: make(chan struct{}, 1)}
	if scheme == "" && !t.opts.Insecure && !loopback(repo.RegistryStr()) {
		t.scheme = "https"
	}
	t.auth = newAuthorizer(repo, t.opts)
	return t, nil
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Name returns HOST/REPOSITORY.
func (t *HTTP) Name() string { return t.repo.Name() }

func (t *HTTP) host() string { return t.repo.RegistryStr() }

func (t *HTTP) facts() hostFacts { return t.opts.Hosts.of(t.host()) }

// Probe opens an upload and cancels it. It retries once, so that it fails
// within seconds.
func (t *HTTP) Probe(ctx context.Context) error {
	b := &budget{left: 1, max: 1, total: 1}
	if t.opts.Retries < 0 {
		b = t.budget()
	}
	return t.retry(ctx, Ignore(), b, func() error {
		s, err := t.open(ctx)
		if err == nil {
			t.cancel(ctx, s)
		}
		return err
	})
}

// Exists implements [Target] by a HEAD request.
func (t *HTTP) Exists(ctx context.Context, desc ocispec.Descriptor, w Watcher) (bool, error) {
	found := false
	err := t.retry(ctx, w, t.budget(), func() error {
		u, err := t.url(ctx, "blobs/"+desc.Digest.String())
		if err != nil {
			return err
		}
		a, err := t.send(ctx, request{
			op: "check blob", method: http.MethodHead, url: u,
			// A registry redirects only to what it has.
			want: []int{200, 301, 302, 303, 307, 308, 404},
		})
		if err != nil {
			return err
		}
		found = a.status != http.StatusNotFound
		if found && a.status == http.StatusOK {
			return t.verifyBlob(a, desc)
		}
		return nil
	})
	return found, err
}

// maxMounts bounds the repositories that are tried as the origin of a blob.
const maxMounts = 3

// maxMountRetries bounds the retries of a mount.
const maxMountRetries = 2

// Mount implements [Target]. An upload session that the registry opens instead
// is kept for the Upload that follows.
func (t *HTTP) Mount(ctx context.Context, desc ocispec.Descriptor, from []string, w Watcher) (bool, error) {
	var opened *session
	for _, repo := range from[:min(len(from), maxMounts)] {
		if opened != nil {
			t.cancel(ctx, *opened)
			opened = nil
		}
		mounted, s, err := t.mount(ctx, desc, repo, w)
		if mounted || err != nil {
			return mounted, err
		}
		opened = s
	}
	if opened != nil {
		t.keep(*opened)
	}
	return false, nil
}

func (t *HTTP) mount(ctx context.Context, desc ocispec.Descriptor, from string, w Watcher) (mounted bool, opened *session, err error) {
	b := t.budget()
	b.left = min(b.left, maxMountRetries)
	err = t.retry(ctx, w, b, func() error {
		u, err := t.url(ctx, "blobs/uploads/")
		if err != nil {
			return err
		}
		u.RawQuery = url.Values{"mount": {desc.Digest.String()}, "from": {from}}.Encode()
		a, err := t.send(ctx, request{
			op: "mount blob", method: http.MethodPost, url: u, from: from, body: Bytes(nil),
			want: []int{201, 202},
		})
		if err != nil {
			return err
		}
		if mounted = a.status == http.StatusCreated; mounted {
			return t.verify("mount blob", a, desc.Digest)
		}
		if s, err := a.session(); err == nil {
			opened = &s
		}
		return nil
	})
	var refused *Error
	if errors.As(err, &refused) {
		// Perhaps there is no right to read from. To mount only saves bytes:
		// the upload will tell what stands in the way of a push.
		return false, nil, nil
	}
	return mounted, opened, err
}

// verify compares the digest that a registry answers with the one meant.
// Registries may leave it out.
func (t *HTTP) verify(op string, a *answer, want digest.Digest) error {
	got := a.header.Get("Docker-Content-Digest")
	if got == "" || got == want.String() {
		return nil
	}
	e := t.error(ErrDigest, op, fmt.Sprintf("registry answered %.80q for %s", got, want))
	e.Status = a.status
	e.permanent = true
	return e
}

// verifyBlob compares digest and size, as far as they are known and told.
func (t *HTTP) verifyBlob(a *answer, desc ocispec.Descriptor) error {
	if err := t.verify("check blob", a, desc.Digest); err != nil {
		return err
	}
	n, err := strconv.ParseInt(a.header.Get("Content-Length"), 10, 64)
	if err != nil || n <= 0 || desc.Size <= 0 || n == desc.Size {
		return nil
	}
	e := t.error(ErrDigest, "check blob", fmt.Sprintf("registry has %d bytes for %s of %d", n, desc.Digest, desc.Size))
	e.Status = a.status
	e.permanent = true
	return e
}

func (t *HTTP) error(kind error, op, message string) *Error {
	return &Error{Kind: kind, Op: op, Host: t.repo.RegistryStr(), Repository: t.repo.RepositoryStr(), Message: message}
}

func (t *HTTP) keep(s session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spare = append(t.spare, s)
}

func (t *HTTP) takeSpare() (session, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spare) == 0 {
		return session{}, false
	}
	s := t.spare[len(t.spare)-1]
	t.spare = t.spare[:len(t.spare)-1]
	return s, true
}

// url returns the address of path below the repository.
func (t *HTTP) url(ctx context.Context, path string) (*url.URL, error) {
	scheme, err := t.resolveScheme(ctx)
	if err != nil {
		return nil, err
	}
	return &url.URL{Scheme: scheme, Host: t.repo.RegistryStr(), Path: "/v2/" + t.repo.RepositoryStr() + "/" + path}, nil
}

// resolveScheme asks a registry that may speak plain HTTP which it speaks.
func (t *HTTP) resolveScheme(ctx context.Context) (string, error) {
	t.mu.Lock()
	scheme := t.scheme
	t.mu.Unlock()
	if scheme != "" {
		return scheme, nil
	}
	scheme = "http"
	ask, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ask, http.MethodGet, "https://"+t.repo.RegistryStr()+"/v2/", nil)
	if err != nil {
		return "", err
	}
	if resp, err := t.opts.Transport.RoundTrip(req); err == nil {
		resp.Body.Close()
		scheme = "https"
	} else if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scheme = scheme
	return scheme, nil
}
