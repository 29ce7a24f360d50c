package pushd_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

// sharing returns options of targets that share what they know, whose requests
// have no bound.
func sharing() *pushd.HTTPOptions { return &pushd.HTTPOptions{Chunk: chunk, Hosts: pushd.NewHosts()} }

// That a registry takes no chunks is found out once, not for each blob.
func TestNoChunksIsRemembered(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{
			{class: "chunk", from: 1, to: -1, do: answer(405, "UNSUPPORTED")},
			{class: "finish", from: 1, to: -1, do: slowly(chunk / 8)}, // so slow that chunks are called for
		}
		g.start(t)
		o := sharing()
		for i := range byte(3) {
			data := targettest.Noise(3*chunk, i)
			if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
				t.Fatal(err)
			}
			g.mustHave(t, data)
		}
		if n := len(g.calls("chunk")); n != 1 {
			t.Errorf("%d chunks were refused, want 1", n)
		}
		time.Sleep(2 * time.Hour) // perhaps it does by now
		data := targettest.Noise(3*chunk, 9)
		if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		if n := len(g.calls("chunk")); n != 2 {
			t.Errorf("%d chunks were refused after two hours, want 2", n)
		}
	})
}

// A registry that kept what came of a broken request gets all the rest in one;
// one that did not gets no more than it may lose.
func TestPartsKeptAreRemembered(t *testing.T) {
	const chunk = 2 << 20
	for _, tc := range []struct {
		name string
		do   func(http.ResponseWriter, *http.Request, http.Handler)
		want int // requests for the next blob, the last among them
	}{
		{"kept", reset(3 << 19), 1},
		{"lost", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			_, _ = io.CopyN(io.Discard, r.Body, 3<<19)
			hangUp(w)
		}, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newFileRegistry(t)
			synctest.Test(t, func(t *testing.T) {
				slow := slowly(chunk / 8) // a chunk takes longer than one should
				g.faults = []*fault{
					{class: "chunk", from: 1, to: -1, do: slow}, {class: "finish", from: 1, to: -1, do: slow},
					{class: "chunk", from: 2, do: tc.do},
				}
				g.start(t)
				o := sharing()
				o.Chunk = chunk
				data := targettest.Noise(6*chunk, 1)
				if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				g.mustHave(t, data)
				before := len(g.calls("chunk", "finish"))
				data = targettest.Noise(6*chunk, 2)
				if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
					t.Fatal(err)
				}
				g.mustHave(t, data)
				if n := len(g.calls("chunk", "finish")) - before; n != tc.want {
					t.Errorf("%d requests for the next blob, want %d", n, tc.want)
				}
			})
		})
	}
}

// A registry that refuses a large request does so before its body travels.
func TestRefusalCostsNoBody(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{
			{class: "chunk", from: 1, to: -1, do: answer(405, "UNSUPPORTED")},
			{class: "finish", from: 2, do: answer(403, "DENIED")},
		}
		g.start(t)
		o := sharing()
		for i, want := range []error{nil, pushd.ErrDenied} {
			data := targettest.Noise(9*chunk, byte(i))
			w := &watcher{}
			if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), w); !errors.Is(err, want) {
				t.Errorf("Upload: %v, want %v", err, want)
			}
			if want != nil && w.sent != 0 {
				t.Errorf("%d bytes travelled to be refused", w.sent)
			}
		}
	})
}

// A registry that gives no digest is asked whether it has the blob.
func TestBlobIsCheckedWithoutDigestInTheAnswer(t *testing.T) {
	mute := rewriting(func(h http.Header) { h.Del("Docker-Content-Digest") })
	for _, tc := range []struct {
		name string
		head func(http.ResponseWriter, *http.Request, http.Handler)
		to   int
		want error
	}{
		{"there", mute, -1, nil},
		{"there later", answer(404, ""), 1, nil},
		{"never there", answer(404, ""), -1, pushd.ErrUnavailable},
		{"of another size", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "17")
			w.WriteHeader(200)
		}, -1, pushd.ErrDigest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRegistry(t)
			data := targettest.Noise(1000, 1)
			synctest.Test(t, func(t *testing.T) {
				g.faults = []*fault{
					{class: "finish", from: 1, to: -1, do: mute},
					{class: "head", from: 1, to: tc.to, do: tc.head},
				}
				g.start(t)
				_, err := g.target(t, nil).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore())
				if !errors.Is(err, tc.want) {
					t.Errorf("Upload: %v, want %v", err, tc.want)
				}
				if len(g.calls("head")) == 0 {
					t.Error("nobody asked")
				}
			})
		})
	}
}

// A registry takes its time to move a large blob to its place.
func TestLargeBlobsMaySettle(t *testing.T) {
	g := newFileRegistry(t)
	const size = 50_000_000
	desc, err := stream(size).Descriptor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "finish", from: 1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(w, r)
			time.Sleep(5500 * time.Millisecond)
		}}}
		g.start(t)
		w := &watcher{}
		o := &pushd.HTTPOptions{Timeout: time.Second, Chunk: 16 << 20}
		if _, err := g.target(t, o).Upload(t.Context(), desc, described500{stream(size), desc}, w); err != nil {
			t.Fatal(err)
		}
		if len(w.retries) != 0 {
			t.Errorf("retried: %v", w.retries)
		}
	})
}

// A blob that makes no progress is given up, however often it seems to.
func TestRetriesAreBounded(t *testing.T) {
	g := newFileRegistry(t)
	data := targettest.Noise(200*1000, 1)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "chunk", from: 1, to: -1, do: reset(1000)}, {class: "finish", from: 1, to: -1, do: reset(1000)}}
		g.start(t)
		w := &watcher{}
		_, err := g.target(t, &pushd.HTTPOptions{Retries: 3}).Upload(t.Context(), described(data), pushd.Bytes(data), w)
		if !errors.Is(err, pushd.ErrUnavailable) {
			t.Errorf("Upload: %v, want %v", err, pushd.ErrUnavailable)
		}
		if n := len(w.retries); n != 16*3 {
			t.Errorf("%d retries, want 48", n)
		}
		varied := make(map[time.Duration]bool)
		for _, d := range w.waits {
			varied[d] = true
			if d > 15*time.Second {
				t.Errorf("waited %v", d)
			}
		}
		if len(varied) < 10 {
			t.Errorf("%d different waits: there is no jitter", len(varied))
		}
	})
}
