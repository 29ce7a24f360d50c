package base_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// A bomb is a blob that is much more when it is unpacked.
type bomb struct {
	t      testing.TB
	blob   bytes.Buffer
	zstd   bool
	zeroes []byte // megabytes of zeros, compressed
}

const megabytes = 64 // of zeroes

func newBomb(t testing.TB, typ string) *bomb {
	b := &bomb{t: t, zstd: typ == "zstd"}
	b.zeroes = b.pack(make([]byte, megabytes<<20))
	return b
}

// pack returns a gzip member or a zstd frame.
func (b *bomb) pack(data []byte) []byte {
	b.t.Helper()
	if b.zstd {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		check(b.t, err)
		defer w.Close()
		return w.EncodeAll(data, nil)
	}
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, 5)
	check(b.t, err)
	_, err = w.Write(data)
	check(b.t, errors.Join(err, w.Close()))
	return z.Bytes()
}

// write appends bytes.
func (b *bomb) write(data []byte) { b.blob.Write(b.pack(data)) }

// zeros appends n times 64 MiB of zeros.
func (b *bomb) zeros(n int) { b.blob.Write(bytes.Repeat(b.zeroes, n)) }

// header appends the header of a file.
func (b *bomb) header(name string, size int64) {
	var h bytes.Buffer
	check(b.t, tar.NewWriter(&h).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}))
	b.write(h.Bytes())
}

// archive appends a whole archive of empty or small files.
func (b *bomb) archive(files int, size int64) {
	var a bytes.Buffer
	w := tar.NewWriter(&a)
	content := make([]byte, size)
	for i := range files {
		check(b.t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir-%d/%d", i/1000, i), Mode: 0o644, Size: size}))
		_, err := w.Write(content)
		check(b.t, err)
		if a.Len() > 32<<20 {
			b.write(a.Bytes())
			a.Reset()
		}
	}
	check(b.t, w.Close())
	b.write(a.Bytes())
}

// zstdFrame returns the beginning of a frame that declares a window and a
// content size, 0 for none of the latter.
func zstdFrame(exponent byte, content uint64) []byte {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd}
	if content > 0 { // in one segment: the window is as large
		return binary.LittleEndian.AppendUint64(append(frame, 0xe0), content)
	}
	return append(frame, 0x00, exponent<<3)
}

// TestBombs pulls layers that are larger than they look. Whatever they do, they
// end soon and take little memory, and say why.
func TestBombs(t *testing.T) {
	const most = 100_000_000
	for _, tc := range []struct {
		name   string
		types  []string
		max    int64
		write  func(*bomb)
		want   error
		at     string // of a size error
		within time.Duration
	}{
		{"a file of 64 GB", []string{"gzip", "zstd"}, most, func(b *bomb) {
			b.header("small", 0)
			b.header("d/huge", 64<<30)
			b.zeros(1024)
		}, limits.ErrTooLarge, "/d/huge", 5 * time.Second},
		{"a size that nothing follows", []string{"gzip", "zstd"}, -1, func(b *bomb) { b.header("huge", 1<<52) }, base.ErrInvalid, "", 5 * time.Second},
		{"many files of 1 MB", []string{"gzip"}, most, func(b *bomb) { b.archive(300, 1<<20) }, limits.ErrTooLarge, "/dir-0/95", 10 * time.Second},
		{"many files of a byte", []string{"gzip"}, most, func(b *bomb) { b.archive(100_000, 1) }, limits.ErrTooLarge, "/dir-24/24216", 10 * time.Second},
		{"many empty files", []string{"zstd"}, most, func(b *bomb) { b.archive(300_000, 0) }, nil, "", 30 * time.Second},
		{"zeros after the archive", []string{"gzip"}, most, func(b *bomb) { b.archive(1, 1); b.zeros(1024) }, base.ErrInvalid, "", 30 * time.Second},
		{"zeros after the archive, and no limit", []string{"zstd"}, -1, func(b *bomb) { b.archive(1, 1); b.zeros(1024) }, base.ErrInvalid, "", 30 * time.Second},
		{"only zeros", []string{"gzip", "zstd"}, most, func(b *bomb) { b.zeros(1024) }, base.ErrInvalid, "", 30 * time.Second},
		{"compressed twice", []string{"gzip", "zstd"}, most, func(b *bomb) { b.write(bytes.Repeat(b.zeroes, 1024)) }, base.ErrInvalid, "", 5 * time.Second},
		{"a hundred thousand empty members", []string{"gzip", "zstd"}, most, func(b *bomb) {
			b.blob.Write(bytes.Repeat(b.pack(nil), 100_000))
			b.archive(1, 1)
		}, nil, "", 10 * time.Second},
		{"a window of 2 GB", []string{"zstd"}, most, func(b *bomb) { b.blob.Write(zstdFrame(21, 0)); b.zeros(1) }, base.ErrInvalid, "", 5 * time.Second},
		{"a content of 2^60 bytes", []string{"zstd"}, most, func(b *bomb) { b.blob.Write(zstdFrame(0, 1<<60)); b.zeros(1) }, base.ErrInvalid, "", 5 * time.Second},
		{"a skippable frame of 4 GB", []string{"zstd"}, most, func(b *bomb) {
			b.archive(1, 1)
			b.blob.Write([]byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff})
		}, base.ErrInvalid, "", 5 * time.Second},
		{"attributes of 100 MB", []string{"gzip"}, most, func(b *bomb) { // a tar reader keeps them in memory
			b.write(xheader(100 << 20))
			b.zeros(2)
		}, base.ErrInvalid, "", 10 * time.Second},
	} {
		for _, typ := range tc.types {
			t.Run(tc.name+" "+typ, func(t *testing.T) {
				b := newBomb(t, typ)
				tc.write(b)
				f := serve(t)
				id := digest.FromString("not known in advance")
				f.packedImage(t, packed{b.blob.Bytes(), ocispec.MediaTypeImageLayerGzip, id})
				root := t.TempDir()
				s, err := layercache.Open(t.Context(), layercache.Options{Root: root, MinFree: -1})
				check(t, err)
				defer s.Close()
				lease, err := s.Org("acme").Lease(t.Context(), "test", 0)
				check(t, err)
				ctx := lease.Context(t.Context())
				img, err := resolver(base.Options{}).Resolve(ctx, f.ref(), amd64, nil)
				check(t, err)

				began, used := time.Now(), watchMemory()
				_, err = resolver(base.Options{}).Pull(ctx, s.Org("acme"), img, base.PullOptions{Max: tc.max})
				took, peak := time.Since(began), used()
				t.Logf("%d bytes took %v and %d MB: %v", b.blob.Len(), took.Round(time.Millisecond), peak>>20, err)
				if tc.want == nil { // all of it was read: only the diff ID is wrong
					if err == nil || !strings.Contains(err.Error(), "diff ID") {
						t.Errorf("%v, want one about the diff ID", err)
					}
				} else if !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v", err, tc.want)
				}
				var size *limits.SizeError
				if errors.As(err, &size) && size.Path != tc.at {
					t.Errorf("stopped at %s, want %s", size.Path, tc.at)
				}
				if took > tc.within {
					t.Errorf("it took %v to end", took)
				}
				if peak > 200<<20 {
					t.Errorf("it took %d MB of memory", peak>>20)
				}
				if left, err := os.ReadDir(filepath.Join(root, "spool")); err != nil || len(left) != 0 {
					t.Errorf("%d spool files left, %v", len(left), err)
				}
			})
		}
	}
}

// xheader is the beginning of an extended header that says it is n bytes long.
func xheader(n int64) []byte {
	h := make([]byte, 512)
	copy(h, "x")
	copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, 0, 0, n, 0))
	copy(h[148:], "        x")
	copy(h[257:], "ustar\x0000")
	var sum int
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// watchMemory returns what says how much the heap has grown at most since.
func watchMemory() func() int64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before := read()
	var peak int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				peak = max(peak, read()-before)
			case <-stop:
				return
			}
		}
	})
	return func() int64 {
		close(stop)
		wg.Wait()
		return peak
	}
}
