package pushd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	smallestChunk = 1 << 20
	scoutBuffer   = 256 << 10
	cancelTime    = 5 * time.Second
)

// A session is an upload that the registry has open.
type session struct {
	location *url.URL
	offset   int64 // confirmed by the registry
	minChunk int64
	top      int64 // up to which bytes were ever sent; 0: not known
	patched  bool  // bytes were sent by PATCH
	unsure   bool  // offset must be asked for
}

// open starts an upload.
func (t *HTTP) open(ctx context.Context) (session, error) {
	u, err := t.url(ctx, "blobs/uploads/")
	if err != nil {
		return session{}, err
	}
	a, err := t.send(ctx, request{op: "start upload", method: http.MethodPost, url: u, body: Bytes(nil), want: []int{202}})
	if err != nil {
		return session{}, err
	}
	s, err := a.session()
	if err != nil {
		return session{}, t.broken("start upload", err)
	}
	return s, nil
}

func (a *answer) session() (session, error) {
	u, err := a.location()
	if err != nil {
		return session{}, err
	}
	minChunk, _ := strconv.ParseInt(a.header.Get("OCI-Chunk-Min-Length"), 10, 64)
	return session{location: u, minChunk: max(0, minChunk)}, nil
}

// cancel gives a session up, if the registry listens: it forgets sessions by
// itself too. It works after ctx has ended.
func (t *HTTP) cancel(ctx context.Context, s session) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
	defer stop()
	_, _ = t.send(ctx, request{op: "cancel upload", method: http.MethodDelete, url: s.location, want: []int{202, 204, 404}})
}

// Upload implements [Target]. While src grows, its bytes are sent in chunks as
// soon as there is one. After a break the registry is asked how far it came,
// and only the rest is sent.
func (t *HTTP) Upload(ctx context.Context, known ocispec.Descriptor, src Source, w Watcher) (Outcome, error) {
	u := &upload{t: t, src: src, w: w, chunk: t.opts.Chunk, most: math.MaxInt64, budget: t.budget()}
	outcome, err := u.run(ctx, known)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	u.close(ctx, err)
	return outcome, err
}

// An upload is one blob on its way.
type upload struct {
	t      *HTTP
	src    Source
	w      Watcher
	budget *budget
	chunk  int64 // bytes of the next chunk
	most   int64 // that a proxy in between takes
	sent   int64 // of the last chunk

	s        *session
	whole    bool  // the registry takes no chunks: one PUT has it all
	bareEnd  bool  // the last chunk must not come with the PUT
	lost     int   // sessions that ended with the first chunk
	mismatch bool  // the registry once got other bytes than we have
	best     int64 // offset that was ever confirmed

	done  bool               // desc is known
	desc  ocispec.Descriptor // of the complete blob
	scout *scout
}

func (u *upload) run(ctx context.Context, known ocispec.Descriptor) (Outcome, error) {
	if known.Digest != "" {
		if err := u.know(ctx); err != nil {
			return "", err
		}
		if u.desc.Digest != known.Digest {
			return "", u.t.error(ErrDigest, "upload", fmt.Sprintf("%s was promised, %s came", known.Digest, u.desc.Digest))
		}
	}
	u.resume(ctx)
	for {
		finished, err := u.step(ctx)
		if finished {
			return Uploaded, nil
		}
		if err != nil {
			present, err := u.recover(ctx, err)
			if err != nil {
				return "", err
			}
			if present {
				return Uploaded, nil // the answer to the last PUT was lost
			}
		}
	}
}

// resume takes up what another process began, or what a mount left open.
func (u *upload) resume(ctx context.Context) {
	if j := u.t.opts.Journal; j != nil && u.done {
		if kept, ok := j.Load(ctx, u.t.Name(), u.desc.Digest); ok {
			if loc, err := url.Parse(kept.Location); err == nil {
				u.s = &session{location: loc, offset: kept.Offset, minChunk: kept.MinChunk, patched: true, unsure: true}
				return
			}
		}
	}
	if s, ok := u.t.takeSpare(); ok {
		u.s = &s
	}
}

// step makes one request towards the end.
func (u *upload) step(ctx context.Context) (finished bool, err error) {
	switch {
	case u.s == nil:
		return false, u.begin(ctx)
	case u.s.unsure:
		return false, u.ask(ctx)
	}
	if err := u.peek(ctx); err != nil {
		return false, err
	}
	size := max(min(u.chunk, u.most), u.s.minChunk)
	if !u.done && u.whole {
		return false, u.know(ctx)
	}
	if !u.done {
		n, err := u.available(ctx, size)
		if err != nil {
			return false, err
		}
		if n < size {
			return false, u.know(ctx)
		}
		return false, u.patch(ctx, size)
	}
	rest := u.desc.Size - u.s.offset
	switch {
	case rest < 0:
		return false, u.t.error(ErrDigest, "upload", fmt.Sprintf("registry has %d bytes of a blob of %d", u.s.offset, u.desc.Size))
	case u.whole || rest == 0 || rest <= size && !(u.s.patched && u.bareEnd):
		return u.put(ctx, rest)
	default:
		return false, u.patch(ctx, min(size, rest))
	}
}

func (u *upload) begin(ctx context.Context) error {
	s, err := u.t.open(ctx)
	if err == nil {
		u.s = &s
		u.w.At(0)
	}
	return err
}

// patch sends the next n bytes.
func (u *upload) patch(ctx context.Context, n int64) error {
	off, began := u.s.offset, time.Now()
	u.w.At(off)
	u.s.patched, u.s.top, u.sent = true, off+n, n
	a, err := u.t.send(ctx, request{
		op: "send chunk", method: http.MethodPatch, url: u.s.location,
		header: contentRange(off, n), body: u.src, off: off, size: n, w: u.w,
		want: []int{201, 202, 204},
	})
	if err != nil {
		u.chunk = min(u.chunk, u.t.opts.Chunk)
		return err
	}
	if u.done && time.Since(began) < time.Second {
		u.chunk = min(4*u.chunk, max(u.chunk, u.t.opts.MaxChunk))
	}
	u.follow(a)
	switch got, ok := confirmed(a.header); {
	case !ok:
		u.advance(ctx, off+n)
	case got == off+n:
		u.advance(ctx, got)
	default:
		u.s.unsure = true
		return u.t.broken("send chunk", fmt.Errorf("registry confirmed %d bytes of %d", got, off+n))
	}
	return nil
}

// put ends the upload with its last n bytes.
func (u *upload) put(ctx context.Context, n int64) (bool, error) {
	loc := *u.s.location
	q := loc.Query()
	q.Set("digest", u.desc.Digest.String())
	loc.RawQuery = q.Encode()
	u.w.At(u.s.offset)
	u.s.top = u.desc.Size
	h := http.Header{"Content-Type": {"application/octet-stream"}}
	if n > 0 && u.s.offset > 0 {
		h = contentRange(u.s.offset, n)
	}
	a, err := u.t.send(ctx, request{
		op: "finish upload", method: http.MethodPut, url: &loc,
		header: h, body: u.src, off: u.s.offset, size: n, w: u.w,
		want: []int{200, 201, 204},
	})
	if err != nil {
		return false, err
	}
	if err := u.t.verify("finish upload", a, u.desc.Digest); err != nil {
		return false, err
	}
	return true, nil
}

// ask learns from the registry how far the upload has come. Its word counts,
// not ours.
func (u *upload) ask(ctx context.Context) error {
	a, err := u.t.send(ctx, request{op: "resume upload", method: http.MethodGet, url: u.s.location, want: []int{200, 202, 204}})
	if err != nil {
		return err
	}
	got, ok := confirmed(a.header)
	if !ok || got <= 1 || u.whole || u.s.top > 0 && got > u.s.top {
		// "0-0" stands for one byte and for none, and what was never sent
		// cannot be there. Little is lost by a new start.
		u.forget(ctx)
		return nil
	}
	u.follow(a)
	u.s.unsure, u.s.patched = false, true
	u.confirm(got)
	u.w.At(got)
	return nil
}

// confirm sets the offset. Only bytes that were never confirmed before count
// as progress.
func (u *upload) confirm(off int64) {
	u.s.offset = off
	if off > u.best {
		u.best = off
		u.budget.progress()
	}
}

// follow takes over where the registry wants the next request.
func (u *upload) follow(a *answer) {
	if next, err := a.session(); err == nil {
		u.s.location = next.location
	}
}

func (u *upload) advance(ctx context.Context, off int64) {
	u.confirm(off)
	u.lost = 0
	if j := u.t.opts.Journal; j != nil && u.done {
		j.Save(ctx, u.t.Name(), u.desc.Digest, Session{Location: u.s.location.String(), Offset: off, MinChunk: u.s.minChunk})
	}
}

// recover decides how to go on after err, and waits. It reports true if the
// blob turns out to be there.
func (u *upload) recover(ctx context.Context, err error) (present bool, fatal error) {
	var e *Error
	if !errors.As(err, &e) {
		return false, err
	}
	op := e.Op
	chunk := op == "send chunk"
	switch {
	case e.Kind == ErrUnauthorized || e.Kind == ErrDenied || e.permanent && e.Status == 0:
		return false, err
	case e.Kind == ErrDigest:
		if e.permanent || u.mismatch {
			return false, err
		}
		// Bytes were damaged on the way, or a registry overlooks those that
		// come with the last request: once more from the start.
		u.mismatch, u.bareEnd = true, true
		u.forget(ctx)
	case chunk && refusesChunks(e), chunk && u.gone(e) && u.s.offset == 0 && u.lost > 0:
		u.whole = true
		u.forget(ctx)
		return false, nil
	case u.gone(e):
		if chunk {
			u.lost++
		}
		u.drop(ctx)
		if u.done && op != "start upload" {
			if present, err := u.t.Exists(ctx, u.desc, u.w); present || err != nil {
				return present, err
			}
		}
	case chunk && e.Status == http.StatusRequestEntityTooLarge && u.most > max(smallestChunk, u.s.minChunk):
		u.most = max(smallestChunk, min(u.most, u.sent)/4)
		u.s.unsure = u.s.offset > 0
	case e.Status == http.StatusRequestedRangeNotSatisfiable && u.s != nil && !u.s.unsure:
		u.s.unsure = true
	case e.temporary():
		if u.s != nil {
			u.s.unsure = true
		}
	case op == "resume upload":
		u.forget(ctx) // no way to ask: from the start
	default:
		return false, err
	}
	return false, u.budget.wait(ctx, u.w, err)
}

// gone reports whether the registry no longer knows the session.
func (u *upload) gone(e *Error) bool {
	if u.s == nil {
		return false
	}
	return e.Status == http.StatusNotFound || e.Code == "BLOB_UPLOAD_UNKNOWN" || e.Code == "BLOB_UPLOAD_INVALID"
}

func refusesChunks(e *Error) bool {
	return e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented || e.Code == "UNSUPPORTED"
}

// forget starts over with a new session.
func (u *upload) forget(ctx context.Context) {
	if u.s != nil {
		u.t.cancel(ctx, *u.s)
	}
	u.drop(ctx)
}

func (u *upload) drop(ctx context.Context) {
	u.s = nil
	u.w.At(0)
	if j := u.t.opts.Journal; j != nil && u.done {
		j.Drop(ctx, u.t.Name(), u.desc.Digest)
	}
}

// close leaves nothing behind that nobody can use.
func (u *upload) close(ctx context.Context, err error) {
	if u.scout != nil {
		u.scout.close()
	}
	j := u.t.opts.Journal
	switch {
	case err == nil:
		if j != nil {
			j.Drop(context.WithoutCancel(ctx), u.t.Name(), u.desc.Digest)
		}
	case u.s != nil && (j == nil || !u.done) && !errors.Is(err, ErrUnavailable):
		u.t.cancel(ctx, *u.s)
	}
}

// know waits for the descriptor.
func (u *upload) know(ctx context.Context) error {
	desc, err := u.src.Descriptor(ctx)
	if err != nil {
		return &sourceError{err}
	}
	if desc.Digest.Validate() != nil || desc.Size < 0 {
		return &sourceError{fmt.Errorf("bad descriptor %q", desc.Digest)}
	}
	u.desc, u.done = desc, true
	return nil
}

// peek learns the descriptor if it is there by now.
func (u *upload) peek(ctx context.Context) error {
	if u.done {
		return nil
	}
	if u.scout == nil {
		u.scout = newScout(ctx, u.src)
	}
	select {
	case <-u.scout.complete:
		return u.know(ctx)
	default:
		return nil
	}
}

func contentRange(off, n int64) http.Header {
	return http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Content-Range": {fmt.Sprintf("%d-%d", off, off+n-1)},
	}
}

// confirmed reads "0-N" of the Range header as N+1 bytes.
func confirmed(h http.Header) (int64, bool) {
	v := strings.TrimPrefix(h.Get("Range"), "bytes=")
	first, last, ok := strings.Cut(v, "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 0 || n == 1<<63-1 {
		return 0, false
	}
	return n + 1, true
}

// A scout runs ahead of the upload of a growing blob and says how many bytes
// can be sent without waiting for the source: a chunk's length stands before
// its bytes, and a slow source must not look like a stalled registry.
type scout struct {
	complete chan struct{} // closed when the descriptor is known, or never will be
	cancel   context.CancelFunc
	r        io.ReadCloser
	pos      int64
	buf      []byte
}

func newScout(ctx context.Context, src Source) *scout {
	ctx, cancel := context.WithCancel(ctx)
	s := &scout{complete: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(s.complete)
		_, _ = src.Descriptor(ctx)
	}()
	return s
}

func (s *scout) close() {
	s.cancel()
	<-s.complete
	if s.r != nil {
		s.r.Close()
	}
}

// available waits until n bytes can be sent, or the blob ends, and returns how
// many there are.
func (u *upload) available(ctx context.Context, n int64) (int64, error) {
	s, off := u.scout, u.s.offset
	if s.r == nil {
		r, err := u.src.Open(ctx, off)
		if err != nil {
			return 0, &sourceError{err}
		}
		s.r, s.pos, s.buf = r, off, make([]byte, scoutBuffer)
	}
	for s.pos < off+n {
		m, err := s.r.Read(s.buf[:min(int64(len(s.buf)), off+n-s.pos)])
		s.pos += int64(m)
		if err == io.EOF {
			return s.pos - off, nil
		}
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return 0, &sourceError{err}
		}
	}
	return n, nil
}
