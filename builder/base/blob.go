package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Open returns the bytes of one of the image's blobs from off on. They are not
// verified. A connection that breaks shows as an error of Read: open the rest
// again.
func (i *Image) Open(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	return i.source.blobAt(ctx, d, off)
}

// File returns the path of a blob's file if the image lies in the daemon's own
// registry. Nobody may write to it.
func (i *Image) File(ctx context.Context, d ocispec.Descriptor) (path string, ok bool) {
	return i.source.file(ctx, d)
}

// Origins returns the repositories that have the image's blobs, as
// "host/path": the one that was named and the one that was read.
func (i *Image) Origins() []string {
	all := []string{i.source.String() + "/" + i.source.path()}
	if named := i.Host + "/" + i.Repository; i.Host != "" && named != all[0] {
		all = append(all, named)
	}
	return all
}

func (l *local) path() string { return l.name }

func (l *local) blobAt(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	r, err := l.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := skip(r, off); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (l *local) file(ctx context.Context, d ocispec.Descriptor) (string, bool) {
	path, size, err := l.repo.Blob(ctx, d.Digest)
	return path, err == nil && size == d.Size
}

// skip reads over the first n bytes, or seeks.
func skip(r io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	if s, ok := r.(*os.File); ok {
		_, err := s.Seek(n, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

func (r *remoteSource) path() string { return r.repo }

func (*remoteSource) file(context.Context, ocispec.Descriptor) (string, bool) { return "", false }

// blobAt asks for the rest of a blob only, where the registry can do that.
func (r *remoteSource) blobAt(ctx context.Context, d ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	ref, err := r.reference(d.Digest.String())
	if err != nil {
		return nil, err
	}
	body, err := r.dialer.get(ctx, ref.Context(), d.Digest, off)
	if err != nil {
		return nil, classify(ctx, err)
	}
	return body, nil
}

// A dialer opens blobs over HTTP at any offset. It logs in once.
type dialer struct {
	tr   http.RoundTripper
	auth authn.Authenticator

	mu     sync.Mutex
	client *http.Client // nil until logged in
}

func (d *dialer) login(ctx context.Context, repo name.Repository) (*http.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		tr, err := transport.NewWithContext(ctx, repo.Registry, d.auth, transport.NewUserAgent(d.tr, "slipway"), []string{repo.Scope(transport.PullScope)})
		if err != nil {
			return nil, err
		}
		d.client = &http.Client{Transport: tr, CheckRedirect: checkRedirect}
	}
	return d.client, nil
}

func (d *dialer) get(ctx context.Context, repo name.Repository, blob digest.Digest, off int64) (io.ReadCloser, error) {
	client, err := d.login(ctx, repo)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/" + blob.String()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if off > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	err = transport.CheckError(resp, http.StatusOK, http.StatusPartialContent)
	if err == nil && resp.StatusCode == http.StatusPartialContent {
		err = checkRange(resp.Header.Get("Content-Range"), off)
	} else if err == nil {
		err = skip(resp.Body, off) // it knows no ranges
	}
	if err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp.Body, nil
}

// checkRange makes sure that a part of a blob is the one that was asked for.
func checkRange(got string, off int64) error {
	if strings.HasPrefix(got, "bytes "+strconv.FormatInt(off, 10)+"-") {
		return nil
	}
	return fmt.Errorf("registry sent the range %.80q instead of the bytes from %d on", got, off)
}

const maxRedirects = 10

// checkRedirect keeps registries elsewhere from sending the daemon to
// addresses of its own network.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("too many redirects")
	}
	to, from := req.URL.Hostname(), via[0].URL.Hostname()
	if to == from || !innerAddress(to) {
		return nil
	}
	return fmt.Errorf("%s sends to the private address %s", from, to)
}

// innerAddress reports whether host is an address that is not public. What
// only looks like an address, such as 127.1, is none.
func innerAddress(host string) bool {
	host, _, _ = strings.Cut(host, "%")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		last := host[strings.LastIndexByte(host, '.')+1:]
		return last != "" && last[0] >= '0' && last[0] <= '9'
	}
	ip = ip.Unmap()
	return !ip.IsGlobalUnicast() || ip.IsPrivate()
}
