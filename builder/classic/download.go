package classic

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
)

// A download is a fetched file, as a tree of one.
type download struct {
	file
	name    string
	content digest.Digest
	cache   *layercache.Cache
}

func (d *download) lstat(string) (*file, error)                 { return &d.file, nil }
func (d *download) list(string) ([]*file, error)                { return nil, nil }
func (d *download) hash(context.Context, *file) (string, error) { return d.content.Encoded(), nil }

func (d *download) open(ctx context.Context, _ *file) (io.ReadCloser, error) {
	b, err := d.cache.Blob(ctx, d.content)
	if err != nil {
		return nil, err
	}
	return b.Open(ctx, 0)
}

// download fetches a URL. Its file needs a name where the destination is a
// directory.
func (s *stage) download(ctx context.Context, st *step, link string, named bool) (*download, error) {
	u, err := url.Parse(link)
	if err != nil {
		return nil, failure.Userf(failure.DockerfileInvalid, "mend the URL", "ADD failed: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return nil, failure.Userf(failure.DockerfileInvalid, "mend the URL", "ADD failed: %v", err)
	}
	resp, err := (&http.Client{Transport: s.build.opts.Fetch}).Do(req)
	if err != nil {
		return nil, fetchError(link, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, failure.Userf(failure.FetchFailed, "check the URL", "ADD failed: failed to GET %s with status %s: %s", u.Redacted(), resp.Status, bytes.TrimSpace(body))
	}
	d, err := s.keep(ctx, resp, u)
	if err != nil {
		return nil, err
	}
	s.note(st, "")
	if d.name == "" && named {
		return nil, failure.Userf(failure.DockerfileInvalid, "name the file in the destination", "ADD failed: cannot determine filename for source %s", u.Redacted())
	}
	return d, nil
}

func fetchError(link string, err error) error {
	var closed *closedError
	if errors.As(err, &closed) {
		return failure.Userf(failure.FetchFailed, "copy the file into the context, or ask the operator for --allow-egress", "ADD failed: %v", err)
	}
	return &failure.Error{Code: failure.FetchFailed, Blame: failure.Net, Retryable: true, Err: err,
		Message: fmt.Sprintf("ADD failed: %v", err), Hint: "check the URL; the daemon reaches public addresses only, unless the operator allows more"}
}

// keep stores the response's body in the cache.
func (s *stage) keep(ctx context.Context, resp *http.Response, u *url.URL) (*download, error) {
	d := &download{cache: s.build.job.Cache, name: fileName(resp, u)}
	blob, err := d.cache.Create(ctx)
	if err != nil {
		return nil, err
	}
	most := s.build.job.MaxSize
	if most < 0 {
		most = 1 << 62
	}
	n, err := io.Copy(blob, io.LimitReader(resp.Body, most+1))
	if err == nil && n > most {
		err = failure.Userf(failure.TooLarge, "fetch a smaller file", "%s is larger than the limit of %d bytes", u.Redacted(), most)
	}
	if err != nil {
		blob.Abort(err)
		if ctx.Err() == nil && failure.As(err).Code == failure.Internal {
			err = fetchError(u.Redacted(), err)
		}
		return nil, err
	}
	desc, err := blob.Commit(ctx)
	if err != nil {
		return nil, err
	}
	d.content = desc.Digest
	d.file = file{path: "/" + d.name, typ: tar.TypeReg, mode: 0o600, size: n, mtime: time.Unix(0, 0)}
	if at, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		d.mtime = at
	}
	return d, nil
}

// fileName is the name that a URL's path ends in, or else the one that the
// response gives.
func fileName(resp *http.Response, u *url.URL) string {
	if name := path.Base(u.Path); !strings.HasSuffix(u.Path, "/") && name != "." && name != "/" {
		return name
	}
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
	name := params["filename"]
	if err != nil || name == "" || strings.HasSuffix(name, "/") {
		return ""
	}
	return path.Base(name)
}
