package pushd

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const cancelTime = 5 * time.Second

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
