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

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// add carries out ADD: COPY, and URLs, and archives of the context unpacked.
func (s *stage) add(ctx, steps context.Context, st *step, cmd *instructions.AddCommand, done *slipwayv1.StepDone) error {
	f := copyFlags{what: "ADD", chown: cmd.Chown, chmod: cmd.Chmod, exclude: cmd.ExcludePatterns, src: cmd.SourcesAndDest}
	if cmd.KeepGitDir != nil {
		return failure.Userf(failure.NotSupported, "clone the repository in a RUN step", "ADD --keep-git-dir is not supported yet")
	}
	var urls, local []string
	for _, p := range f.src.SourcePaths {
		if isURL(p) {
			urls = append(urls, p)
		} else {
			local = append(local, p)
		}
	}
	if len(urls) > 0 {
		if len(local) > 0 || len(urls) > 1 {
			return failure.Userf(failure.NotSupported, "use an ADD for each URL", "ADD of a URL together with other sources is not supported yet")
		}
		return s.addURL(ctx, steps, st, urls[0], cmd.Checksum, f, done)
	}
	t, err := s.fromContext(steps, f, local)
	if err != nil {
		return err
	}
	archives, err := s.archives(steps, t, cmd.Unpack)
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		return s.transfer(ctx, steps, st, t, done)
	}
	return s.addArchives(ctx, steps, st, t, archives, done)
}

// archives finds the sources that are tar archives, by their content.
func (s *stage) archives(ctx context.Context, t *transfer, unpack *bool) (map[*file]bool, error) {
	if unpack != nil && !*unpack {
		return nil, nil
	}
	found := map[*file]bool{}
	for _, src := range t.sources {
		if src.file.typ != tar.TypeReg || src.file.size == 0 {
			continue
		}
		is, err := s.isArchive(ctx, t, src.file)
		if err != nil {
			return nil, err
		}
		if is {
			found[src.file] = true
		}
	}
	return found, nil
}

// isArchive remembers its answer by content, so that an unchanged archive
// need not travel to be recognised.
func (s *stage) isArchive(ctx context.Context, t *transfer, f *file) (bool, error) {
	cache := s.build.job.Cache
	key := layercache.NewKey(layercache.Part{Name: "archive", Value: f.sha256})
	rec, err := cache.Step(ctx, key)
	if err == nil {
		return string(rec.Extra) == "true", nil
	}
	if !missing(err) {
		return false, err
	}
	if err := s.build.job.Session.Need(ctx, []int{f.entry}); err != nil {
		return false, err
	}
	r, err := t.from.open(ctx, f)
	if err != nil {
		return false, err
	}
	defer r.Close()
	is := startsArchive(r)
	rec = layercache.Step{Created: time.Now().UTC(), Empty: true, App: s.build.job.App, Extra: fmt.Appendf(nil, "%t", is)}
	return is, cache.PutStep(ctx, key, rec)
}

// startsArchive reports whether a tar header can be read, after
// decompression by content.
func startsArchive(r io.Reader) bool {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil
}

// addArchives unpacks archives, and copies what else there is, into a
// snapshot: only a real file system unpacks as one does.
func (s *stage) addArchives(ctx, steps context.Context, st *step, t *transfer, archives map[*file]bool, done *slipwayv1.StepDone) error {
	hash, err := t.hash(steps)
	if err != nil {
		return err
	}
	comment := t.comment(hash, destOf(st))
	a := &unpacking{stage: s, transfer: t, archives: archives}
	return s.apply(ctx, steps, st, &change{
		image: cloneImage(s.node.image), createdBy: nopFS(&s.node.image, comment),
		key: fixed(layercache.Part{Name: "instruction", Value: comment}),
		run: a.run, write: a.write,
	}, done)
}

// An unpacking is an ADD of archives under way.
type unpacking struct {
	stage    *stage
	transfer *transfer
	archives map[*file]bool
	upper    string
}

func (a *unpacking) run(ctx context.Context, n *node) error {
	need, err := a.transfer.entries()
	if err != nil {
		return err
	}
	if err := a.stage.build.job.Session.Need(ctx, need); err != nil {
		return err
	}
	parent, err := n.parent.rootSnapshot(ctx)
	if err != nil {
		return err
	}
	name := snapshotName()
	err = layer.Fill(ctx, a.stage.build.job.Cache, parent, name, func(snap *layercache.Snapshot) error {
		a.upper = snap.Upper()
		return a.fill(ctx, n, snap)
	})
	if err == nil {
		n.snapshot = name
	}
	return err
}

func (a *unpacking) fill(ctx context.Context, n *node, snap *layercache.Snapshot) error {
	lowers := snap.Lowers()
	t := *a.transfer
	for _, src := range a.transfer.sources {
		t.sources = []copySource{src}
		dirs := rootfs.Dirs{Upper: snap.Upper(), Parents: lowers}
		merged := layersTree(append([]string{snap.Upper()}, lowers...))
		if a.archives[src.file] {
			if err := a.unpack(ctx, n, src.file, merged, dirs); err != nil {
				return err
			}
			continue
		}
		uid, gid, err := a.stage.owner(ctx, &t, n)
		if err != nil {
			return err
		}
		d := newDraft(n, merged)
		if err := t.plan(d, uid, gid); err != nil {
			return err
		}
		if err := d.unpack(ctx, dirs); err != nil {
			return err
		}
	}
	return nil
}

// unpack makes the destination and unpacks an archive below it.
func (a *unpacking) unpack(ctx context.Context, n *node, f *file, merged tree, dirs rootfs.Dirs) error {
	d := newDraft(n, merged)
	dest, err := follow(d, a.transfer.dest, true)
	if err != nil {
		return err
	}
	var blocked *notDirError
	if err := d.mkdirAll(dest, 0, 0); errors.As(err, &blocked) {
		return a.transfer.failf(failure.DockerfileInvalid, "choose a destination below a directory", "mkdir %s: not a directory", blocked.path)
	} else if err != nil {
		return err
	}
	if err := d.unpack(ctx, dirs); err != nil {
		return err
	}
	r, err := a.transfer.from.open(ctx, f)
	if err != nil {
		return err
	}
	defer r.Close()
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(relocate(pw, tar.NewReader(plain), strings.TrimPrefix(dest, "/"))) }()
	err = rootfs.Apply(ctx, pr, dirs)
	pr.CloseWithError(err)
	if err != nil {
		return a.transfer.failf(failure.DockerfileInvalid, "check the archive with tar -t", "%s: %v", strings.TrimPrefix(f.path, "/"), err)
	}
	return nil
}

// relocate writes an archive's entries below a directory.
func relocate(w io.Writer, r *tar.Reader, dest string) error {
	tw := tar.NewWriter(w)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		h.Name = path.Join(dest, path.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeLink {
			h.Linkname = path.Join(dest, path.Clean("/"+h.Linkname))
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, r); err != nil {
			return err
		}
	}
}

func (a *unpacking) write(ctx context.Context, _ *node, w *layer.Writer) error {
	return rootfs.WriteUpper(ctx, w.Tar(), a.upper, w.Charge)
}

// addURL downloads a file and copies it. It is always downloaded, and found
// in the cache by its content.
func (s *stage) addURL(ctx, steps context.Context, st *step, link, checksum string, f copyFlags, done *slipwayv1.StepDone) error {
	t, err := s.newTransfer(f)
	if err != nil {
		return err
	}
	got, err := s.download(steps, link, strings.HasSuffix(t.dest, "/"))
	if err != nil {
		return err
	}
	if checksum != "" && checksum != got.content.String() {
		return t.failf(failure.FetchFailed, "check the URL and the checksum", "%s has digest %s, not %s", link, got.content, checksum)
	}
	s.note(st, "")
	t.from, t.context = got, false
	t.sources = []copySource{{name: got.name, file: &got.file}}
	comment := t.comment(got.content.Encoded(), f.src.DestPath)
	c := drafted(func(ctx context.Context, d *draft) error {
		uid, gid, err := s.owner(ctx, t, d.node)
		if err != nil {
			return err
		}
		return t.plan(d, max(uid, 0), max(gid, 0))
	})
	c.image, c.createdBy = cloneImage(s.node.image), nopFS(&s.node.image, comment)
	c.key = fixed(layercache.Part{Name: "instruction", Value: comment}, layercache.Part{Name: "name", Value: got.name})
	return s.apply(ctx, steps, st, c, done)
}

// A download is a fetched file, as a tree of one.
type download struct {
	file
	name    string
	content digest.Digest
	cache   *layercache.Cache
}

func (d *download) lstat(string) (*file, error)                 { return &d.file, nil }
func (d *download) children(string) ([]string, error)           { return nil, nil }
func (d *download) hash(context.Context, *file) (string, error) { return d.sha256, nil }

func (d *download) open(ctx context.Context, _ *file) (io.ReadCloser, error) {
	b, err := d.cache.Blob(ctx, d.content)
	if err != nil {
		return nil, err
	}
	return b.Open(ctx, 0)
}

func (s *stage) download(ctx context.Context, link string, named bool) (*download, error) {
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
	return s.keep(ctx, resp, u, named)
}

func fetchError(link string, err error) error {
	return &failure.Error{Code: failure.FetchFailed, Blame: failure.Net, Retryable: true, Err: err,
		Message: fmt.Sprintf("ADD failed: %v", err), Hint: "check the URL; the daemon reaches public addresses only, unless the operator allows more"}
}

// keep stores the response's body in the cache.
func (s *stage) keep(ctx context.Context, resp *http.Response, u *url.URL, named bool) (*download, error) {
	d := &download{cache: s.build.job.Cache, name: fileName(resp, u)}
	if d.name == "" && named {
		return nil, failure.Userf(failure.DockerfileInvalid, "name the file in the destination", "ADD failed: cannot determine filename for source %s", u.Redacted())
	}
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
	d.file = file{path: "/" + d.name, typ: tar.TypeReg, mode: 0o600, size: n, sha256: desc.Digest.Encoded(), mtime: time.Unix(0, 0)}
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
	if name := path.Base("/" + params["filename"]); err == nil && name != "/" {
		return name
	}
	return ""
}
