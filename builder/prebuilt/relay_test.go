package prebuilt_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/prebuilt"
)

// A lake is an opener of one blob that notes where it was opened.
type lake struct {
	raw    []byte
	mu     sync.Mutex
	opened []int64
	closed atomic.Int32
	hold   chan struct{} // if not nil, reads after the first KiB send here and wait for their context
}

func (l *lake) Open(ctx context.Context, _ ocispec.Descriptor, off int64) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened = append(l.opened, off)
	return &stream{lake: l, r: bytes.NewReader(l.raw[off:]), ctx: ctx}, nil
}

func (l *lake) File(ocispec.Descriptor) func(context.Context) (string, error) { return nil }

type stream struct {
	*lake
	r   *bytes.Reader
	ctx context.Context
	n   int
}

func (s *stream) Read(p []byte) (int, error) {
	if s.hold != nil && s.n >= 1024 {
		s.hold <- struct{}{}
		<-s.ctx.Done()
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Read(p[:min(len(p), 1024)])
	s.n += n
	return n, err
}

func (s *stream) Close() error {
	s.closed.Add(1)
	return nil
}

func (l *lake) offsets() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]int64{}, l.opened...)
}

func lakeOf(t *testing.T, n int) (*lake, ocispec.Descriptor, digest.Digest, int64) {
	raw := tarOf(t, map[string]int{"a": n})
	z := gzipped(t, raw)
	return &lake{raw: z.raw}, ocispec.Descriptor{Digest: digest.FromBytes(z.raw), Size: int64(len(z.raw))}, z.diffID, int64(len(raw))
}

// Readers at other places, one after the other or at once, show the count each
// byte once; between chunks the source stays open.
func TestRelay(t *testing.T) {
	for _, tc := range []struct {
		name  string
		read  func(t *testing.T, size int64, open func(off int64) io.ReadCloser)
		opens []int64 // nil: any
	}{
		{"chunks", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			for off := int64(0); off < size; off += 10_000 {
				readN(t, open(off), min(10_000, size-off))
			}
		}, []int64{0}},
		{"again from the start", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			readN(t, open(0), 30_000)
			readN(t, open(0), size)
		}, []int64{0, 0}},
		{"a step back", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			readN(t, open(0), 30_000)
			readN(t, open(20_000), size-20_000)
		}, []int64{0, 20_000}},
		{"resumed by another daemon", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			readN(t, open(50_000), size-50_000)
		}, []int64{0}},
		{"only the end", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			readN(t, open(size-1), 1)
		}, []int64{0}},
		{"at once", func(t *testing.T, size int64, open func(int64) io.ReadCloser) {
			var all sync.WaitGroup
			for _, off := range []int64{0, 0, 40_000, 70_000} {
				all.Go(func() { readN(t, open(off), size-off) })
			}
			all.Wait()
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, d, diffID, unpacked := lakeOf(t, 100_000)
			ctx, end := context.WithCancel(t.Context())
			src, result, stop := prebuilt.NewRelay(ctx, d, diffID, l)
			tc.read(t, d.Size, func(off int64) io.ReadCloser {
				r, err := src.Open(t.Context(), off)
				if err != nil {
					t.Error(err)
				}
				return &checked{t: t, ReadCloser: r, want: l.raw[off:]}
			})
			n, err := result(t.Context())
			if err != nil || n != unpacked {
				t.Errorf("counted %d of %d bytes, %v", n, unpacked, err)
			}
			if at := l.offsets(); tc.opens != nil && !equal(at, tc.opens) {
				t.Errorf("opened at %d, want %d", at, tc.opens)
			}
			stop()
			end()
			waitUntil(t, func() bool { return int(l.closed.Load()) == len(l.offsets()) })
		})
	}
}

func equal(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("a source was not closed")
		}
		<-time.After(time.Millisecond)
	}
}

type checked struct {
	t *testing.T
	io.ReadCloser
	want []byte
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > len(c.want) || !bytes.Equal(p[:n], c.want[:n]) {
		c.t.Error("other bytes than the blob's")
		return 0, io.ErrUnexpectedEOF
	}
	c.want = c.want[n:]
	return n, err
}

func readN(t *testing.T, r io.ReadCloser, n int64) {
	t.Helper()
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, n); err != nil {
		t.Errorf("read: %v", err)
	}
}

// Close ends a Read that waits for its source, as HTTP clients rely on.
func TestRelayCloseWhileReading(t *testing.T) {
	l, d, diffID, _ := lakeOf(t, 100_000)
	l.hold = make(chan struct{})
	src, _, stop := prebuilt.NewRelay(t.Context(), d, diffID, l)
	defer stop()
	r, err := src.Open(t.Context(), 0)
	check(t, err)
	if _, err := io.ReadFull(r, make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1024))
		ended <- err
	}()
	<-l.hold
	check(t, r.Close())
	if err := <-ended; err == nil {
		t.Error("a closed reader reads on")
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	waitUntil(t, func() bool { return int(l.closed.Load()) == len(l.offsets()) })
}

// The end of a blob that is not what it should be is withheld.
func TestRelayWithholdsTheEnd(t *testing.T) {
	l, d, _, _ := lakeOf(t, 100_000)
	src, result, stop := prebuilt.NewRelay(t.Context(), d, digest.FromString("another"), l)
	defer stop()
	r, err := src.Open(t.Context(), 0)
	check(t, err)
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if _, want := result(t.Context()); want == nil || !errors.Is(err, want) || n == d.Size {
		t.Errorf("read %d of %d bytes, %v", n, d.Size, err)
	}
}

// A source that falls silent is asked again.
func TestSilentSource(t *testing.T) {
	src, d := newHub(t), newDaemon(t, 0)
	d.stall = 100 * time.Millisecond
	d.restart()
	img := src.image("team/shop", "amd64", "v1", noisy(t, "a", 1_000_000))
	var silent atomic.Bool
	src.breaks(onlyLayers(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || silent.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}))
	d.deploy("shop", src.ref("team/shop:v1"))
	checkImage(t, src, "team/shop", d.own, "shop", img.Digest)
}
