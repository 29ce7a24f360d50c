package pushd_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

const size = 9*chunk + 1000

// Each fault must end with the right blob, within few retries and with little
// sent twice.
func TestUploadSurvives(t *testing.T) {
	for _, tc := range []struct {
		name    string
		faults  func(*registry) []*fault
		auth    bool
		retries int   // at most; at least one if not 0
		again   int64 // bytes sent twice at most
		within  time.Duration
	}{
		{name: "nothing"},
		{name: "expired token before a chunk", auth: true, again: chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 5, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				g.tokens.revoke()
				g.tokens.protect(next).ServeHTTP(w, r)
			}}}
		}},
		{name: "reset in the middle of a chunk", retries: 1, again: 100, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 6, do: reset(100_000)}}
		}},
		{name: "reset in the first byte", retries: 1, again: chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 1, do: reset(0)}}
		}},
		{name: "answer to a chunk lost", retries: 1, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 3, do: mute}}
		}},
		{name: "answer to the last request lost", retries: 1, faults: func(g *registry) []*fault {
			return []*fault{{class: "finish", from: 1, do: mute}}
		}},
		{name: "500", retries: 2, again: 2 * chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, to: 5, do: answer(500, "UNKNOWN")}}
		}},
		{name: "502 while asking how far", retries: 3, again: chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: answer(502, "")}, {class: "status", from: 1, to: 2, do: answer(502, "")}}
		}},
		{name: "429 with Retry-After", retries: 1, again: chunk, within: 12 * time.Second, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: answer(429, "TOOMANYREQUESTS", "Retry-After", "9")}}
		}},
		{name: "416", retries: 1, again: chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: answer(416, "RANGE_INVALID")}}
		}},
		{name: "session lost", retries: 1, again: 4 * chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: answer(404, "BLOB_UPLOAD_UNKNOWN")}}
		}},
		{name: "wrong Range", retries: 1, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: rewriting(set("Range", "0-77"))}}
		}},
		{name: "Range beyond what was sent", retries: 1, again: 4 * chunk, faults: func(g *registry) []*fault {
			return []*fault{
				{class: "chunk", from: 4, do: rewriting(set("Range", "0-999999999"))},
				{class: "status", from: 1, do: rewriting(set("Range", "0-999999999"))},
			}
		}},
		{name: "Range that is no range", retries: 1, again: chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: rewriting(set("Range", "lots"))}, {class: "chunk", from: 5, do: reset(5)}}
		}},
		{name: "no PATCH", faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 1, to: -1, do: answer(405, "UNSUPPORTED")}}
		}, again: chunk},
		{name: "PATCH is not found", faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 1, to: -1, do: answer(404, "")}}
		}, retries: 1, again: 2 * chunk},
		{name: "no PATCH and a break", retries: 1, again: chunk + 1_000_001, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 1, to: -1, do: answer(405, "")}, {class: "finish", from: 1, do: reset(1_000_000)}}
		}},
		{name: "no way to ask how far", retries: 2, again: 5 * chunk, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: reset(10)}, {class: "status", from: 1, to: -1, do: answer(405, "UNSUPPORTED")}}
		}},
		{name: "silence", retries: 1, again: chunk, within: 40 * time.Second, faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: g.silence}}
		}},
		{name: "silence at the end", retries: 1, within: 3 * time.Minute, faults: func(g *registry) []*fault {
			return []*fault{{class: "finish", from: 1, do: g.silence}}
		}},
		{name: "bytes of the last request overlooked", retries: 1, again: size, faults: func(g *registry) []*fault {
			return []*fault{{class: "finish", from: 1, to: -1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body, r.ContentLength = http.NoBody, 0
				next.ServeHTTP(w, r)
			}}}
		}},
		{name: "damage on the way", retries: 1, again: size, faults: func(g *registry) []*fault {
			return []*fault{{class: "finish", from: 1, do: answer(400, "DIGEST_INVALID")}}
		}},
		{name: "503 at the start", retries: 3, faults: func(g *registry) []*fault {
			return []*fault{{class: "start", from: 1, to: 3, do: answer(503, "UNAVAILABLE")}}
		}},
		{name: "long chunks wanted", faults: func(g *registry) []*fault {
			return []*fault{
				{class: "start", from: 1, do: rewriting(set("OCI-Chunk-Min-Length", "1000000"))},
				{class: "chunk", from: 1, to: -1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.ContentLength < 1_000_000 {
						answer(400, "SIZE_INVALID")(w, r, next)
						return
					}
					next.ServeHTTP(w, r)
				}},
			}
		}},
		{name: "Location on another host", auth: true, faults: func(g *registry) []*fault {
			elsewhere := rewriting(func(h http.Header) { h.Set("Location", "http://"+other+h.Get("Location")) })
			return []*fault{{class: "start", from: 1, to: -1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				elsewhere(w, r, g.tokens.protect(next))
			}}}
		}},
		{name: "redirect of a chunk", faults: func(g *registry) []*fault {
			return []*fault{{class: "chunk", from: 4, do: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("Location", "http://"+other+r.URL.String())
				w.WriteHeader(http.StatusTemporaryRedirect)
			}}}
		}, again: chunk},
	} {
		for _, growing := range []bool{false, true} {
			name := tc.name + "/finished"
			if growing {
				name = tc.name + "/growing"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel() // the registry syncs each chunk to disk
				g := newFileRegistry(t)
				data := targettest.Noise(size, 1)
				src := targettest.NewSpool(t)
				var known ocispec.Descriptor
				if !growing {
					src.Write(data)
					known = src.Commit(t)
				}
				synctest.Test(t, func(t *testing.T) {
					if tc.auth {
						g.tokens = newTokens(time.Hour)
					}
					if tc.faults != nil {
						g.faults = tc.faults(g)
					}
					g.start(t)
					began := time.Now()
					if growing {
						go func() {
							for p := data; len(p) > 0; p = p[min(len(p), 70_000):] {
								src.Write(p[:min(len(p), 70_000)])
								time.Sleep(time.Millisecond)
							}
							src.Commit(t)
						}()
					}
					w := &watcher{}
					outcome, err := g.target(t, nil).Upload(t.Context(), known, src, w)
					if outcome != pushd.Uploaded || err != nil {
						t.Fatalf("Upload: %v, %v", outcome, err)
					}
					g.mustHave(t, data)
					if n := len(w.retries); n > tc.retries || n == 0 && tc.retries > 0 {
						t.Errorf("%d retries, want 1 to %d: %v", n, tc.retries, w.retries)
					}
					if over := w.sent - size; over < 0 || over > tc.again+slack {
						t.Errorf("%d bytes sent twice, want at most %d", over, tc.again)
					}
					if within := max(tc.within, 3*time.Second); time.Since(began) > within {
						t.Errorf("took %v, want at most %v", time.Since(began), within)
					}
					for _, c := range g.calls() {
						if c.host == other && c.auth != "" {
							t.Errorf("%s at another host got Authorization", c.class)
						}
					}
				})
			})
		}
	}
}

// slack is what buffers of a broken connection may have taken.
const slack = 160 << 10

func TestRetryAfterIsKept(t *testing.T) {
	g := newRegistry(t)
	src := targettest.Finished(t, targettest.Noise(1000, 1))
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "start", from: 1, do: answer(429, "", "Retry-After", "40")}}
		g.start(t)
		w := &watcher{}
		if _, err := g.target(t, nil).Upload(t.Context(), ocispec.Descriptor{}, src, w); err != nil {
			t.Fatal(err)
		}
		if len(w.waits) != 1 || w.waits[0] < 40*time.Second || w.waits[0] > 45*time.Second {
			t.Errorf("waits %v, want one of 40 s", w.waits)
		}
	})
}

// A proxy may take small requests only.
func TestChunksShrink(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(9<<20, 1)
	synctest.Test(t, func(t *testing.T) {
		app := g.app
		g.app = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > 3<<20 {
				answer(413, "")(w, r, nil)
				return
			}
			app.ServeHTTP(w, r)
		})
		g.start(t)
		target := g.target(t, &pushd.HTTPOptions{Chunk: 8 << 20})
		if _, err := target.Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		g.mustHave(t, data)
	})
}

// A registry that is fast, or known to keep what it got, gets a finished blob
// in few requests; a slow one in small ones, of which a break loses few.
func TestChunksGrow(t *testing.T) {
	for _, tc := range []struct {
		name  string
		delay time.Duration // for a chunk's worth
		most  int64         // that a request may carry
		want  int           // chunks; the rest comes with the last request
	}{
		{"fast", 0, 0, 1},
		{"fast, with a bound", 0, 4 * chunk, 4}, // 1+4+4+4, 1
		{"a chunk a second", time.Second, 0, 4}, // 1+4+4+4, 1
		{"slow", 4 * time.Second, 0, 13},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			data := targettest.Noise(14*chunk, 1)
			synctest.Test(t, func(t *testing.T) {
				g.faults = []*fault{{class: "chunk", from: 1, to: -1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					time.Sleep(tc.delay * time.Duration(r.ContentLength) / chunk)
					next.ServeHTTP(w, r)
				}}}
				g.start(t)
				target := g.target(t, &pushd.HTTPOptions{Chunk: chunk, MaxChunk: tc.most})
				if _, err := target.Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				g.mustHave(t, data)
				if n := len(g.calls("chunk")); n != tc.want {
					t.Errorf("%d chunks, want %d", n, tc.want)
				}
			})
		})
	}
}

// After a break exactly the rest is sent.
func TestBreakSendsOnlyTheRest(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 2)
	src := targettest.Finished(t, data)
	synctest.Test(t, func(t *testing.T) {
		const kept = 6*chunk + 123_456
		g.faults = []*fault{{class: "chunk", from: 7, do: reset(123_456)}}
		g.start(t)
		if _, err := g.target(t, nil).Upload(t.Context(), ocispec.Descriptor{Digest: digest.FromBytes(data)}, src, &watcher{}); err != nil {
			t.Fatal(err)
		}
		g.mustHave(t, data)
		if got := g.received(); got != size {
			t.Errorf("the registry read %d bytes, want %d", got, size)
		}
		found := false
		for _, off := range src.Opens() {
			found = found || off == kept
		}
		if !found {
			t.Errorf("opened at %v, never at %d", src.Opens(), kept)
		}
	})
}

func TestErrorsAreNamed(t *testing.T) {
	digestErr := rewriting(set("Docker-Content-Digest", digest.FromString("x").String()))
	for _, tc := range []struct {
		name   string
		class  string
		do     func(http.ResponseWriter, *http.Request, http.Handler)
		auth   *authn.AuthConfig
		want   error
		status int
		calls  int // of the class, at most; 0: any
	}{
		{name: "401", class: "start", do: answer(401, "UNAUTHORIZED"), want: pushd.ErrUnauthorized, status: 401, calls: 1},
		{name: "403", class: "start", do: answer(403, "DENIED"), want: pushd.ErrDenied, status: 403, calls: 1},
		{name: "403 on a chunk", class: "chunk", do: answer(403, "DENIED"), want: pushd.ErrDenied, status: 403, calls: 1},
		{name: "no such repository", class: "start", do: answer(404, "NAME_UNKNOWN"), want: pushd.ErrRefused, status: 404, calls: 1},
		{name: "503 for ever", class: "start", do: answer(503, "UNAVAILABLE"), want: pushd.ErrUnavailable, status: 503, calls: 8},
		{name: "429 for an hour", class: "start", do: answer(429, "TOOMANYREQUESTS", "Retry-After", "3600"), want: pushd.ErrUnavailable, status: 429, calls: 1},
		{name: "session lost for ever", class: "finish", do: answer(404, "BLOB_UPLOAD_UNKNOWN"), want: pushd.ErrRefused, status: 404},
		{name: "wrong digest in the answer", class: "finish", do: digestErr, want: pushd.ErrDigest, status: 201, calls: 1},
		{name: "digest refused", class: "finish", do: answer(400, "DIGEST_INVALID"), want: pushd.ErrDigest, status: 400, calls: 2},
		{name: "no Location", class: "start", do: rewriting(func(h http.Header) { h.Del("Location") }), want: pushd.ErrUnavailable, calls: 8},
		{name: "hangs up for ever", class: "chunk", do: mute, want: pushd.ErrUnavailable},
		{name: "wrong password", class: "none", auth: &authn.AuthConfig{Username: user, Password: "wrong-password"}, want: pushd.ErrUnauthorized, status: 401},
		{name: "no password", class: "none", auth: &authn.AuthConfig{}, want: pushd.ErrUnauthorized, status: 401},
		{name: "dead token", class: "none", auth: &authn.AuthConfig{RegistryToken: "long-dead-token"}, want: pushd.ErrUnauthorized, status: 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			src := targettest.Finished(t, targettest.Noise(3*chunk, 1))
			known, _ := src.Descriptor(t.Context())
			synctest.Test(t, func(t *testing.T) {
				o := &pushd.HTTPOptions{}
				if tc.auth != nil {
					g.tokens = newTokens(time.Hour)
					o.Auth = func(context.Context, string) (authn.AuthConfig, error) { return *tc.auth, nil }
				}
				g.faults = []*fault{{class: tc.class, from: 1, to: -1, do: tc.do}}
				g.start(t)
				_, err := g.target(t, o).Upload(t.Context(), known, src, pushd.Ignore())
				var e *pushd.Error
				if !errors.Is(err, tc.want) || !errors.As(err, &e) {
					if tc.name == "hangs up for ever" && err == nil {
						return // every answer is lost, but the registry says how far it came
					}
					t.Fatalf("Upload: %v, want %v", err, tc.want)
				}
				if e.Host != host || e.Repository != repo || e.Status != tc.status {
					t.Errorf("host %q, repository %q, status %d; want %q, %q, %d", e.Host, e.Repository, e.Status, host, repo, tc.status)
				}
				if n := len(g.calls(tc.class)); tc.calls > 0 && n > tc.calls {
					t.Errorf("asked %d times, want at most %d", n, tc.calls)
				}
				for _, secret := range []string{"wrong-password", "long-dead-token", "_state"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("error tells %q: %v", secret, err)
					}
				}
			})
		})
	}
}

func TestExistsNeverGuesses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults func(*registry) []*fault
		want   bool
		err    error
	}{
		{"there", nil, true, nil},
		{"silent, then there", func(g *registry) []*fault { return []*fault{{class: "head", from: 1, to: 2, do: g.silence}} }, true, nil},
		{"500, then there", func(g *registry) []*fault { return []*fault{{class: "head", from: 1, to: 3, do: answer(500, "")}} }, true, nil},
		{"silent for ever", func(g *registry) []*fault { return []*fault{{class: "head", from: 1, to: -1, do: g.silence}} }, false, pushd.ErrUnavailable},
		{"redirected", func(g *registry) []*fault {
			return []*fault{{class: "head", from: 1, to: -1, do: answer(307, "", "Location", "http://nowhere.test/x")}}
		}, true, nil},
		{"another digest", func(g *registry) []*fault {
			return []*fault{{class: "head", from: 1, to: -1, do: rewriting(set("Docker-Content-Digest", digest.FromString("x").String()))}}
		}, true, pushd.ErrDigest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			src := targettest.Finished(t, targettest.Noise(1000, 1))
			synctest.Test(t, func(t *testing.T) {
				if tc.faults != nil {
					g.faults = tc.faults(g)
				}
				g.start(t)
				target := g.target(t, nil)
				if _, err := target.Upload(t.Context(), ocispec.Descriptor{}, src, pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				desc, _ := src.Descriptor(t.Context())
				found, err := target.Exists(t.Context(), desc, pushd.Ignore())
				if !errors.Is(err, tc.err) || tc.err == nil && (err != nil || found != tc.want) {
					t.Errorf("Exists: %v, %v; want %v, %v", found, err, tc.want, tc.err)
				}
			})
		})
	}
}

func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(http.ResponseWriter, *http.Request, http.Handler)
		want error
	}{
		{"open", nil, nil},
		{"401", answer(401, "UNAUTHORIZED"), pushd.ErrUnauthorized},
		{"403", answer(403, "DENIED"), pushd.ErrDenied},
		{"503", answer(503, ""), pushd.ErrUnavailable},
		{"hangs up", mute, pushd.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			synctest.Test(t, func(t *testing.T) {
				if tc.do != nil {
					g.faults = []*fault{{class: "start", from: 1, to: -1, do: tc.do}}
				}
				g.start(t)
				began := time.Now()
				if err := g.target(t, nil).Probe(t.Context()); !errors.Is(err, tc.want) {
					t.Errorf("Probe: %v, want %v", err, tc.want)
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
				if tc.want == nil && len(g.calls("cancel")) != 1 {
					t.Error("the upload was not cancelled")
				}
			})
		})
	}
}

func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, syscall.ECONNREFUSED
		}}
		target, err := pushd.NewHTTP("https://"+host+"/"+repo, &pushd.HTTPOptions{Transport: refused})
		if err != nil {
			t.Fatal(err)
		}
		err = target.Probe(t.Context())
		var e *pushd.Error
		if !errors.Is(err, pushd.ErrUnavailable) || !errors.As(err, &e) || e.Host != host || e.Status != 0 || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Probe: %v", err)
		}
	})
}

// Tokens that expire during a push are replaced before they are refused, and
// each covers this repository alone.
func TestTokensAreRenewed(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 1)
	src := targettest.NewSpool(t)
	synctest.Test(t, func(t *testing.T) {
		g.tokens = newTokens(20 * time.Second)
		g.start(t)
		go func() { // a build of two minutes
			for p := data; len(p) > 0; p = p[min(len(p), chunk):] {
				src.Write(p[:min(len(p), chunk)])
				time.Sleep(10 * time.Second)
			}
			src.Commit(t)
		}()
		if _, err := g.target(t, nil).Upload(t.Context(), ocispec.Descriptor{}, src, pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		g.mustHave(t, data)
		if n := len(g.tokens.asked); n < 4 {
			t.Errorf("%d tokens for two minutes, want one each 20 s", n)
		}
		for _, q := range g.tokens.asked {
			if got := q["scope"]; len(got) != 1 || got[0] != "repository:"+repo+":pull,push" {
				t.Errorf("scopes %q", got)
			}
		}
		if got := g.received(); got != size {
			t.Errorf("the registry read %d bytes, want %d", got, size)
		}
	})
}

func TestCredentialsAreAskedForAgain(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.tokens = newTokens(time.Minute)
		g.start(t)
		current := "old-password"
		target := g.target(t, &pushd.HTTPOptions{Auth: func(_ context.Context, h string) (authn.AuthConfig, error) {
			if h != host {
				t.Errorf("asked for %q", h)
			}
			return authn.AuthConfig{Username: user, Password: current}, nil
		}})
		if err := target.Probe(t.Context()); !errors.Is(err, pushd.ErrUnauthorized) {
			t.Errorf("Probe: %v", err)
		}
		current = password
		if err := target.Probe(t.Context()); err != nil {
			t.Errorf("Probe: %v", err)
		}
	})
}

func TestBasicAuth(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(2*chunk+1, 1)
	src := targettest.Finished(t, data)
	synctest.Test(t, func(t *testing.T) {
		guarded := g.app
		g.app = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				answer(401, "UNAUTHORIZED")(w, r, nil)
				return
			}
			guarded.ServeHTTP(w, r)
		})
		g.start(t)
		if _, err := g.target(t, &pushd.HTTPOptions{Auth: login(user, password)}).Upload(t.Context(), ocispec.Descriptor{}, src, pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		if err := g.target(t, &pushd.HTTPOptions{Auth: login(user, "guess-password")}).Probe(t.Context()); !errors.Is(err, pushd.ErrUnauthorized) {
			t.Errorf("wrong password: %v", err)
		}
		g.app = guarded
		g.mustHave(t, data)
	})
}

func TestMount(t *testing.T) {
	data := targettest.Noise(5000, 1)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for _, tc := range []struct {
		name string
		from []string
		do   func(http.ResponseWriter, *http.Request, http.Handler)
		want bool
	}{
		{"from where it is", []string{repo}, nil, true},
		{"from the second", []string{"acme/other", repo}, nil, true},
		{"from where it is not", []string{"acme/other"}, nil, false},
		{"no right to read", []string{"acme/forbidden"}, nil, false},
		{"refused", []string{repo}, answer(403, "DENIED"), false},
		{"broken once", []string{repo}, mute, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			src := targettest.Finished(t, data)
			synctest.Test(t, func(t *testing.T) {
				g.tokens = newTokens(time.Hour)
				g.start(t)
				target := g.target(t, nil)
				if _, err := target.Upload(t.Context(), ocispec.Descriptor{}, src, pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				if tc.do != nil {
					g.faults = []*fault{{class: "mount", from: 1, do: tc.do}}
				}
				mounted, err := target.Mount(t.Context(), desc, tc.from, pushd.Ignore())
				if mounted != tc.want || err != nil {
					t.Errorf("Mount: %v, %v; want %v", mounted, err, tc.want)
				}
				last := g.tokens.asked[len(g.tokens.asked)-1]["scope"]
				if from := tc.from[len(tc.from)-1]; from != repo && (len(last) != 2 || last[1] != "repository:"+from+":pull") {
					t.Errorf("scopes %q", last)
				}
				// A session that the registry opened instead is used.
				before := len(g.calls("start"))
				if _, err := target.Upload(t.Context(), ocispec.Descriptor{}, src, pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				opened := len(g.calls("start")) - before
				if tc.name == "from where it is not" && opened != 0 {
					t.Errorf("%d sessions opened, want the one of the mount", opened)
				}
			})
		})
	}
}

// An abandoned upload leaves no session at the registry.
func TestGivenUpIsCancelled(t *testing.T) {
	g := newRegistry(t)
	src, known := targettest.NewSpool(t), ocispec.Descriptor{}
	boom := errors.New("step failed")
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			src.Write(make([]byte, 3*chunk))
			synctest.Wait()
			cancel(boom)
		}()
		if _, err := g.target(t, nil).Upload(ctx, known, src, pushd.Ignore()); !errors.Is(err, boom) {
			t.Errorf("Upload: %v, want %v", err, boom)
		}
		if len(g.calls("chunk")) != 3 || len(g.calls("cancel")) != 1 {
			t.Errorf("%d chunks, %d cancelled; want 3, 1", len(g.calls("chunk")), len(g.calls("cancel")))
		}
	})
}

func TestNewHTTP(t *testing.T) {
	for in, want := range map[string]string{
		"registry.test/acme/web":         "registry.test/acme/web",
		"http://127.0.0.1:5000/acme/web": "127.0.0.1:5000/acme/web",
		"https://registry.test/a":        "registry.test/a",
		"ftp://registry.test/a":          "",
		"registry.test/UPPER":            "",
		"":                               "",
	} {
		h, err := pushd.NewHTTP(in, nil)
		if (err == nil) != (want != "") || err == nil && h.Name() != want {
			t.Errorf("NewHTTP(%q): %v, want %q", in, err, want)
		}
	}
}

func TestHTTPS(t *testing.T) {
	g := newRegistry(t)
	server := httptest.NewTLSServer(g.app)
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	data := targettest.Noise(1000, 1)

	target, err := pushd.NewHTTP(server.URL+"/"+repo, &pushd.HTTPOptions{Transport: server.Client().Transport})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
		t.Fatal(err)
	}
	g.mustHave(t, data)

	// A certificate that nobody vouches for is final, not tried again.
	strict := pushd.NewTransport()
	defer strict.CloseIdleConnections()
	w := &watcher{}
	target, _ = pushd.NewHTTP(server.URL+"/"+repo, &pushd.HTTPOptions{Transport: strict})
	if _, err := target.Exists(t.Context(), described(data), w); !errors.Is(err, pushd.ErrUnavailable) || len(w.retries) != 0 {
		t.Errorf("Exists: %v after %d retries", err, len(w.retries))
	}
}

// A registry on a loopback address may speak plain HTTP without being told.
func TestPlainHTTPIsFound(t *testing.T) {
	g := newRegistry(t)
	server := httptest.NewServer(g.app)
	defer server.Close()
	tr := pushd.NewTransport()
	defer tr.CloseIdleConnections()
	target, err := pushd.NewHTTP(strings.TrimPrefix(server.URL, "http://")+"/"+repo, &pushd.HTTPOptions{Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Probe(t.Context()); err != nil {
		t.Errorf("Probe: %v", err)
	}
}
