package layer_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/builder/layer"
)

// zeros returns n MiB of zeros, compressed as one member or frame.
func zeros(t testing.TB, typ string, n int) []byte {
	t.Helper()
	plain := make([]byte, n<<20)
	if typ == "zstd" {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		check(t, err)
		defer w.Close()
		return w.EncodeAll(plain, nil)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(plain)
	check(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// allocated returns how many bytes f allocates, garbage included.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// Memory does not grow with what a blob unpacks to.
func TestDecompressIsBounded(t *testing.T) {
	for _, typ := range []string{"gzip", "zstd"} {
		for name, blob := range map[string][]byte{
			"one member":   zeros(t, typ, 512),
			"many members": bytes.Repeat(zeros(t, typ, 1), 512),
		} {
			t.Run(typ+" "+name, func(t *testing.T) {
				var n int64
				took := allocated(func() {
					r, err := layer.Decompress(bytes.NewReader(blob))
					check(t, err)
					defer r.Close()
					n, err = io.CopyBuffer(onlyWriter{io.Discard}, r, make([]byte, 64<<10))
					check(t, err)
				})
				if n != 512<<20 || took > 64<<20 {
					t.Errorf("%d bytes took %d bytes of memory", n, took)
				}
			})
		}
	}
}

type onlyWriter struct{ io.Writer }

// Who stops reading stops the decompressor, which has read little ahead.
func TestDecompressStopsWithItsReader(t *testing.T) {
	for _, typ := range []string{"gzip", "zstd"} {
		one := zeros(t, typ, 16)
		src := &counter{r: &endless{piece: one}}
		r, err := layer.Decompress(src)
		check(t, err)
		_, err = io.CopyN(io.Discard, r, 32<<20)
		check(t, err)
		check(t, r.Close())
		if ahead := src.n - 2*int64(len(one)); ahead > 2<<20 {
			t.Errorf("%s: %d bytes were read ahead", typ, ahead)
		}
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Errorf("%s: the stream ends well after Close", typ)
		}
	}
}

// An endless stream repeats a piece.
type endless struct {
	piece []byte
	at    int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.piece[e.at:])
	e.at = (e.at + n) % len(e.piece)
	return n, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// A frame that wants more memory than any layer needs gets none.
func TestDecompressRefusesLargeWindows(t *testing.T) {
	for name, frame := range map[string][]byte{
		"window of 128 MiB": {0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3},
		"window of 2 TiB":   {0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3},
		"one segment":       {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x10},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			took := allocated(func() {
				var r io.ReadCloser
				if r, err = layer.Decompress(bytes.NewReader(append(frame, zeros(t, "zstd", 1)...))); err != nil {
					return
				}
				defer r.Close()
				_, err = io.Copy(io.Discard, r)
			})
			if err == nil || took > 64<<20 {
				t.Errorf("error %v after %d bytes of memory", err, took)
			}
		})
	}
}
