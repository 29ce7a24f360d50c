package pushd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/rescue"
)

const (
	maxErrorBody = 64 << 10
	maxMessage   = 500
	maxHops      = 5
)

var (
	errStalled   = errors.New("no byte was taken for too long")
	errNoAnswer  = errors.New("no answer in time")
	errDowngrade = errors.New("registry sends an upload from HTTPS to plain HTTP")
)

// A request is sent until it has an answer: again with a fresh token after
// 401, again elsewhere after a redirect. Its body is opened for each.
type request struct {
	op     string // for errors
	method string
	url    *url.URL
	header http.Header
	from   string // repository to be read besides
	want   []int  // statuses that are no error

	body   Source // nil means none
	off    int64  // of the body in the source
	size   int64  // of the body
	answer int64  // most bytes of the answer's body that are wanted; 0: none
	stored int64  // bytes that the registry must look through before it answers
	w      Watcher
}

// An answer is a response that was read.
type answer struct {
	status int
	header http.Header
	url    *url.URL      // that answered
	body   []byte        // one byte more than was wanted if it is longer
	waited time.Duration // for bytes of the request's body
}

// send returns an answer of a wanted status, a *Error, the error of the body's
// source, or the cause for which ctx ended.
func (t *HTTP) send(ctx context.Context, r request) (*answer, error) {
	refreshed := false
	for hop := 0; ; {
		credentials := ""
		own := r.url.Host == t.host()
		if own {
			var err error
			if credentials, err = t.auth.header(ctx, r.url.Scheme, r.from); err != nil {
				return nil, err
			}
		}
		a, err := t.once(ctx, r, credentials)
		if err != nil {
			return nil, err
		}
		switch {
		case slices.Contains(r.want, a.status):
			return a, nil
		case a.status == http.StatusUnauthorized && own && !refreshed:
			if refreshed = t.auth.challenged(a.header, credentials, r.from); refreshed {
				continue
			}
		case a.status == http.StatusTemporaryRedirect || a.status == http.StatusPermanentRedirect:
			if hop++; hop <= maxHops {
				if r.url, err = a.location(); err != nil {
					return nil, t.broken(r.op, err)
				}
				continue
			}
		}
		return nil, t.refusal(r, a, credentials != "")
	}
}

// once makes one HTTP exchange.
func (t *HTTP) once(ctx context.Context, r request, credentials string) (*answer, error) {
	attempt, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := &guard{stall: t.opts.Stall, answer: t.opts.Timeout, cancel: cancel}
	defer guard.stop()

	req, err := http.NewRequestWithContext(attempt, r.method, r.url.String(), nil)
	if err != nil {
		return nil, t.broken(r.op, errors.New("registry gave a bad address"))
	}
	req.Header.Set("User-Agent", "slipway")
	for k, v := range r.header {
		req.Header[k] = v
	}
	if credentials != "" {
		req.Header.Set("Authorization", credentials)
	}
	var sent *body
	if r.body != nil && r.size > 0 {
		src, err := r.body.Open(ctx, r.off)
		if err != nil {
			return nil, &sourceError{err}
		}
		sent = &body{src: src, left: r.size, guard: guard, answer: t.settle(r.stored), w: r.w}
		req.Body, req.ContentLength = sent, r.size
		if r.size > t.opts.Chunk {
			// A refusal should cost a round trip, not the body.
			req.Header.Set("Expect", "100-continue")
		}
	} else if r.body != nil {
		req.Body = http.NoBody // makes the length 0 explicit
	}
	guard.start(sent != nil)

	resp, err := t.opts.Transport.RoundTrip(req)
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(resp.Body, max(maxErrorBody, r.answer+1)))
		resp.Body.Close()
		if err == nil || r.answer == 0 {
			return &answer{resp.StatusCode, resp.Header, r.url, text, sent.slept()}, nil
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if serr := sent.failed(); serr != nil {
		return nil, &sourceError{serr}
	}
	if attempt.Err() != nil {
		err = context.Cause(attempt)
	}
	return nil, t.broken(r.op, err)
}

// settleRate is the least rate, in bytes a second, at which a registry is
// expected to move a finished blob to its place. Object stores copy it.
const settleRate = 20 << 20

// settle is how long an answer may take after the body was sent.
func (t *HTTP) settle(stored int64) time.Duration {
	return 4*t.opts.Timeout + time.Duration(stored/settleRate)*time.Second
}

// A sourceError comes from the blob, not from the registry.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read blob: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// broken says that there was no answer.
func (t *HTTP) broken(op string, err error) *Error {
	e := t.error(ErrUnavailable, op, "")
	e.Err = err
	var (
		cert    *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		dns     *net.DNSError
	)
	e.permanent = errors.As(err, &cert) || errors.As(err, &unknown) || errors.Is(err, errDowngrade) ||
		errors.As(err, &dns) && dns.IsNotFound
	return e
}

// refusal makes an error of an unwanted answer.
func (t *HTTP) refusal(r request, a *answer, known bool) *Error {
	e := t.error(ErrRefused, r.op, "")
	e.Host, e.elsewhere = r.url.Host, r.url.Host != t.host()
	e.Status = a.status
	e.RetryAfter = retryAfter(a.header)
	e.Code, e.Message = message(a.header, a.body)
	e.Message = t.auth.scrub(e.Message)
	switch {
	case a.status == http.StatusUnauthorized && known && insufficient(a.header):
		e.Kind = ErrDenied
	case a.status == http.StatusUnauthorized:
		e.Kind = ErrUnauthorized
		if !known && e.Message == "" {
			e.Message = "there are no credentials for " + e.Host
		}
	case a.status == http.StatusForbidden:
		e.Kind = ErrDenied
	case e.Code == "DIGEST_INVALID":
		e.Kind = ErrDigest
	case e.Code == "MANIFEST_BLOB_UNKNOWN" || e.Code == "BLOB_UNKNOWN":
		e.Kind = ErrBlobUnknown
	case passes(a.status):
		e.Kind = ErrUnavailable
		e.permanent = a.status == http.StatusNotImplemented || a.status == http.StatusHTTPVersionNotSupported
	}
	return e
}

// passes reports whether a status tells of a state that may pass.
func passes(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return true
	}
	return status >= 500
}

// message finds the registry's words. Bodies that are no registry errors, such
// as a proxy's page, count if they are plain text.
func message(h http.Header, text []byte) (code, msg string) {
	var parsed struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(text, &parsed) == nil && len(parsed.Errors) > 0 {
		first := parsed.Errors[0]
		return first.Code, clean(first.Message)
	}
	if strings.HasPrefix(h.Get("Content-Type"), "text/plain") {
		return "", clean(string(text))
	}
	return "", ""
}

// clean makes foreign text fit for one line of a terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}

func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// location resolves the Location header.
func (a *answer) location() (*url.URL, error) {
	v := a.header.Get("Location")
	if v == "" {
		return nil, errors.New("registry gave no Location")
	}
	u, err := a.url.Parse(v)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("registry gave a bad Location") // which may carry a signature
	}
	if a.url.Scheme == "https" && u.Scheme == "http" {
		// Registries behind a proxy that ends TLS often call themselves http.
		if u.Host != a.url.Host {
			return nil, errDowngrade
		}
		u.Scheme = "https"
	}
	u.User = nil
	return u, nil
}

// A guard cancels an exchange in which nothing moves. Time that the source
// takes does not count.
type guard struct {
	stall, answer time.Duration
	cancel        context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

func (g *guard) start(body bool) {
	if body {
		g.set(g.stall, errStalled)
	} else {
		g.set(g.answer, errNoAnswer)
	}
}

func (g *guard) set(d time.Duration, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
	if !g.ended {
		g.timer = time.AfterFunc(d, func() { g.cancel(fmt.Errorf("%w (%v)", cause, d)) })
	}
}

func (g *guard) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
}

func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	if g.timer != nil {
		g.timer.Stop()
	}
}

// A body is a part of a blob on its way out.
type body struct {
	src    io.ReadCloser
	left   int64
	guard  *guard
	answer time.Duration // to wait for after the last byte
	w      Watcher

	mu     sync.Mutex
	err    error         // of src
	waited time.Duration // for src
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.left)]
	b.guard.pause()
	asked := time.Now()
	n, err := b.fetch(p)
	b.note(time.Since(asked))
	b.left -= int64(n)
	if b.left == 0 {
		b.guard.set(b.answer, errNoAnswer)
	} else {
		b.guard.set(b.guard.stall, errStalled)
	}
	if b.w != nil && n > 0 {
		b.w.Sent(int64(n))
	}
	switch {
	case b.left == 0:
		err = nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF // the source promised more
	}
	if err != nil {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

// fetch reads the source, in a goroutine of the transport's.
func (b *body) fetch(p []byte) (n int, err error) {
	defer rescue.Into(&err)
	return b.src.Read(p)
}

func (b *body) note(wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waited += wait
}

// slept returns how long the source has let the network wait.
func (b *body) slept() time.Duration {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waited
}

func (b *body) Close() error { return b.src.Close() }

// failed returns the error of the source, if that is what broke the exchange.
func (b *body) failed() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
