package pushd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

// places are the requests of a push that faults are planted in.
var places = []string{"head", "mount", "start", "chunk", "finish", "manifest"}

// An evil is something that a registry does to a request.
type evil struct {
	name  string
	do    func(*registry) func(http.ResponseWriter, *http.Request, http.Handler)
	ever  bool     // to each request of the class, not to the first alone
	fatal []string // places where it ends the push
	says  int      // the status that the error then has; 0: any
}

func always(do func(http.ResponseWriter, *http.Request, http.Handler)) func(*registry) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(*registry) func(http.ResponseWriter, *http.Request, http.Handler) { return do }
}

// needed are the places without which there is no push.
var needed = []string{"head", "start", "finish", "manifest"}

var evils = []evil{
	{name: "nothing"},
	{name: "token revoked", do: func(g *registry) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			g.tokens.revoke()
			next.ServeHTTP(w, r)
		}
	}},
	{name: "token revoked after the answer", do: func(g *registry) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(w, r)
			g.tokens.revoke()
		}
	}},
	{name: "401 once", do: always(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="test"`)
		answer(401, "UNAUTHORIZED")(w, r, nil)
	})},
	{name: "404", do: always(answer(404, "NOT_FOUND")), fatal: []string{"start", "manifest"}, says: 404},
	{name: "session lost", do: always(answer(404, "BLOB_UPLOAD_UNKNOWN")), fatal: []string{"start", "manifest"}, says: 404},
	{name: "416", do: always(answer(416, "RANGE_INVALID")), fatal: []string{"head", "start", "manifest"}, says: 416},
	{name: "429", do: always(answer(429, "TOOMANYREQUESTS", "Retry-After", "7"))},
	{name: "429 until a date", do: always(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		answer(429, "", "Retry-After", time.Now().Add(9*time.Second).UTC().Format(http.TimeFormat))(w, r, nil)
	})},
	{name: "500", do: always(answer(500, "UNKNOWN"))},
	{name: "502", do: always(answer(502, ""))},
	{name: "wrong Range", do: always(rewriting(set("Range", "0-77")))},
	{name: "no such method", do: always(answer(405, "UNSUPPORTED")), fatal: needed, says: 405},
	{name: "reset", do: always(reset(1000))},
	{name: "answer lost", do: always(mute)},
	{name: "silence", do: func(g *registry) func(http.ResponseWriter, *http.Request, http.Handler) { return g.silence }},
	{name: "100 kB/s", ever: true, do: always(slowly(100_000))},
	{name: "wrong digest", do: always(rewriting(set("Docker-Content-Digest", digest.FromString("x").String()))), fatal: []string{"head", "finish", "manifest"}},
	{name: "elsewhere", ever: true, do: always(rewriting(func(h http.Header) {
		if l := h.Get("Location"); strings.HasPrefix(l, "/") {
			h.Set("Location", "http://"+other+l)
		}
	}))},
	{name: "401 for ever", ever: true, do: always(answer(401, "UNAUTHORIZED")), fatal: []string{"head", "start", "chunk", "finish", "manifest"}, says: 401},
	{name: "403 for ever", ever: true, do: always(answer(403, "DENIED")), fatal: []string{"head", "start", "chunk", "finish", "manifest"}, says: 403},
	{name: "500 for ever", ever: true, do: always(answer(500, "UNKNOWN")), fatal: []string{"head", "start", "chunk", "finish", "manifest"}, says: 500},
	{name: "silence for ever", ever: true, do: func(g *registry) func(http.ResponseWriter, *http.Request, http.Handler) { return g.silence }, fatal: []string{"head", "start", "chunk", "finish", "manifest"}},
	{name: "answers lost for ever", ever: true, do: always(mute), fatal: []string{"head", "start", "manifest"}},
}

// slowly lets a body through at so many bytes a second.
func slowly(rate int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Body = struct {
			io.Reader
			io.Closer
		}{slowReader{r.Body, rate}, r.Body}
		next.ServeHTTP(w, r)
	}
}

type slowReader struct {
	r    io.Reader
	rate int
}

func (s slowReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
	return n, err
}

// Each evil alone at each place, and each pair of evils at each pair of
// places: the push ends with the right image or with an error that says where
// and why.
func TestFaults(t *testing.T) {
	rows := pairwise(len(places), len(evils))
	for p := range places {
		for e := range evils {
			row := make([]int, len(places))
			row[p] = e
			rows = append(rows, row)
		}
	}
	t.Logf("%d combinations", len(rows))
	const parts = 8
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			for i := part; i < len(rows); i += parts {
				for _, growing := range []bool{false, true} {
					if growing == (i%2 == 0) && i < len(rows)-len(places)*len(evils) {
						continue // pairs alternate
					}
					pushThrough(t, rows[i], growing)
				}
			}
		})
	}
}

// pushThrough pushes an image past the evils of a row.
func pushThrough(t *testing.T, row []int, growing bool) {
	const chunk = 64 << 10
	g := newRegistry(t)
	layer, base, config := targettest.Noise(4*chunk+77, 1), targettest.Noise(3000, 2), []byte(`{"os":"linux"}`)
	image := imageOf(t, config, layer)
	src := targettest.NewSpool(t)
	src.Write(layer)
	first := pushd.Blob{Name: "layer", Source: src}
	if !growing {
		first.Descriptor = src.Commit(t)
	}
	synctest.Test(t, func(t *testing.T) {
		defer func() {
			for p, e := range row {
				if t.Failed() && e > 0 {
					t.Logf("%s: %s", places[p], evils[e].name)
				}
			}
		}()
		g.tokens = newTokens(time.Hour)
		g.start(t)
		o := &pushd.HTTPOptions{Chunk: chunk, MaxChunk: chunk}
		if _, err := g.target(t, o).Upload(t.Context(), described(base), pushd.Bytes(base), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		had := len(g.calls())
		for p, e := range row {
			if e == 0 {
				continue
			}
			f := &fault{class: places[p], from: 1 + len(g.calls(places[p])), do: evils[e].do(g)}
			if evils[e].ever {
				f.to = -1
			}
			g.faults = append(g.faults, f)
		}
		if growing {
			go func() {
				synctest.Wait()
				src.Commit(t)
			}()
		}
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, o), nil)
		defer push.Abort(nil)
		based := known(base)
		based.Digest = digest.FromBytes(base)
		based.MountFrom = []string{repo}
		for _, b := range []pushd.Blob{first, based, known(config)} {
			if _, _, err := push.Add(b).Wait(t.Context()); err != nil {
				break // Manifests says it too
			}
		}
		image.Tags = []string{"v1"}
		err := push.Manifests(t.Context(), image)
		checkEnd(t, g, err, row, image, layer, config)
		for _, c := range g.calls()[had:] {
			if c.host == other && c.auth != "" {
				t.Errorf("%s at another host got Authorization", c.class)
			}
		}
	})
}

// checkEnd holds the end of a push against what stood in its way.
func checkEnd(t *testing.T, g *registry, err error, row []int, image pushd.Manifest, blobs ...[]byte) {
	t.Helper()
	deadly, statuses := false, []int{0}
	for p, e := range row {
		if slices.Contains(evils[e].fatal, places[p]) {
			deadly = true
			statuses = append(statuses, evils[e].says)
			if evils[e].name == "wrong digest" {
				statuses = append(statuses, 200, 201)
			}
		}
	}
	raw, tagged := g.manifest("v1")
	if tagged && !bytes.Equal(raw, image.Raw) {
		t.Errorf("the tag has another manifest: %s", raw)
	}
	if tagged || err == nil {
		for _, b := range blobs {
			g.mustHave(t, b)
		}
	}
	if err == nil {
		if !tagged {
			t.Error("the push succeeded, but there is no image")
		}
		return
	}
	if !deadly {
		t.Errorf("the push failed: %v", err)
	}
	var e *pushd.Error
	if !errors.As(err, &e) {
		t.Errorf("the error has no cause: %v", err)
		return
	}
	if e.Host != host && e.Host != other || e.Repository != repo || !slices.Contains(statuses, e.Status) || e.Status == 0 && !errors.Is(err, pushd.ErrUnavailable) {
		t.Errorf("host %q, repository %q, status %d (want one of %v): %v", e.Host, e.Repository, e.Status, statuses, err)
	}
	for _, s := range []string{e.Host, repo, fmt.Sprintf("HTTP %d", e.Status)} {
		if !strings.Contains(err.Error(), s) && (e.Status != 0 || !strings.HasPrefix(s, "HTTP")) {
			t.Errorf("the error lacks %q: %v", s, err)
		}
	}
}

// pairwise returns rows of k numbers below n in which each two columns have
// each two numbers somewhere.
func pairwise(k, n int) [][]int {
	missing := make(map[[4]int]bool)
	for a := range k {
		for b := a + 1; b < k; b++ {
			for x := range n {
				for y := range n {
					missing[[4]int{a, b, x, y}] = true
				}
			}
		}
	}
	var rows [][]int
	for turn := 0; len(missing) > 0; turn++ {
		row := make([]int, k)
		for i := range row {
			row[i] = -1
		}
		for i := range k { // begin with another column each time
			c := (turn + i) % k
			best, gain := 0, -1
			for v := range n {
				v := (v + turn) % n
				new := 0
				for o, w := range row {
					if w >= 0 && missing[pair(c, v, o, w)] {
						new++
					}
					if w < 0 { // pairs that may still come
						for u := range n {
							if missing[pair(c, v, o, u)] {
								new++
								break
							}
						}
					}
				}
				if new > gain {
					best, gain = v, new
				}
			}
			row[c] = best
		}
		for a := range k {
			for b := a + 1; b < k; b++ {
				delete(missing, [4]int{a, b, row[a], row[b]})
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func pair(a, x, b, y int) [4]int {
	if a < b {
		return [4]int{a, b, x, y}
	}
	return [4]int{b, a, y, x}
}

// A stream is a blob that is made as it is read.
type stream int64

const block = 1 << 20

var noise = targettest.Noise(block, 9)

// Open implements [pushd.Source].
func (s stream) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(&streamReader{off: off, end: int64(s)}), nil
}

// Descriptor implements [pushd.Source].
func (s stream) Descriptor(context.Context) (ocispec.Descriptor, error) {
	d := digest.SHA256.Digester()
	n, err := io.CopyBuffer(struct{ io.Writer }{d.Hash()}, &streamReader{end: int64(s)}, make([]byte, block))
	return ocispec.Descriptor{Digest: d.Digest(), Size: n}, err
}

type streamReader struct{ off, end int64 }

// Read gives noise in which each block begins with its number.
func (r *streamReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	at := r.off % block
	n := copy(p[:min(int64(len(p)), r.end-r.off)], noise[at:])
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], uint64(r.off/block))
	if at < int64(len(number)) {
		copy(p[:n], number[at:])
	}
	r.off += int64(n)
	return n, nil
}

// After a break in the middle of a large blob little is sent twice: nothing
// but what was on the way if the registry keeps what it got, and one chunk if
// it does not, which then is a few seconds' worth.
func TestBreakInTheMiddle(t *testing.T) {
	const rate = 20_000_000 // bytes a second of the line to the registry that loses
	for _, tc := range []struct {
		name  string
		size  stream
		loses bool
		again int64
	}{
		{"registry keeps", 500_000_000, false, 1 << 20},
		{"registry loses", 180_000_000, true, 5 * rate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newFileRegistry(t)
			desc, err := tc.size.Descriptor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			src := described500{tc.size, desc}
			synctest.Test(t, func(t *testing.T) {
				var received int64
				broken := false
				f := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					left := int64(tc.size)/2 - received
					if tc.loses {
						time.Sleep(time.Duration(r.ContentLength) * time.Second / rate)
					}
					received += r.ContentLength
					if broken || r.ContentLength < left {
						next.ServeHTTP(w, r)
						return
					}
					broken = true
					if tc.loses {
						_, _ = io.CopyN(io.Discard, r.Body, left)
						hangUp(w)
						return
					}
					reset(left)(w, r, next)
				}
				g.faults = []*fault{{class: "chunk", from: 1, to: -1, do: f}, {class: "finish", from: 1, to: -1, do: f}}
				g.start(t)
				w := &watcher{}
				target := g.target(t, &pushd.HTTPOptions{Chunk: 16 << 20})
				if _, err := target.Upload(t.Context(), desc, src, w); err != nil {
					t.Fatal(err)
				}
				if found, err := target.Exists(t.Context(), desc, pushd.Ignore()); !found || err != nil {
					t.Errorf("Exists: %v, %v", found, err)
				}
				if !broken || len(w.retries) != 1 {
					t.Errorf("broken: %v, %d retries", broken, len(w.retries))
				}
				if again := w.sent - int64(tc.size); again > tc.again {
					t.Errorf("%d bytes sent again, want at most %d", again, tc.again)
				}
				t.Logf("%d bytes sent again, %d chunks", w.sent-int64(tc.size), len(g.calls("chunk")))
			})
		})
	}
}

// described500 is a stream whose descriptor is known.
type described500 struct {
	stream
	desc ocispec.Descriptor
}

func (d described500) Descriptor(context.Context) (ocispec.Descriptor, error) { return d.desc, nil }
