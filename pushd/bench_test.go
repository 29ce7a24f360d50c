package pushd_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// A fileBlob is a finished blob on disk.
type fileBlob struct {
	path string
	desc ocispec.Descriptor
}

func (f fileBlob) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	r, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	_, err = r.Seek(off, io.SeekStart)
	return r, err
}

func (f fileBlob) Descriptor(context.Context) (ocispec.Descriptor, error) { return f.desc, nil }

// BenchmarkPush pushes four blobs of BENCH_MB megabytes over TCP to a registry
// in this process. What it costs includes the registry's own work.
func BenchmarkPush(b *testing.B) {
	mb, _ := strconv.Atoi(os.Getenv("BENCH_MB"))
	if mb == 0 {
		mb = 16
	}
	chunkMB, _ := strconv.Atoi(os.Getenv("BENCH_CHUNK"))
	n := int64(mb) * 1e6
	b.SetBytes(4 * n)
	dir := b.TempDir()
	for b.Loop() {
		b.StopTimer()
		g := newRegistry(b)
		server := httptest.NewServer(g.app)
		var blobs []fileBlob
		for i := range 4 {
			path := filepath.Join(dir, fmt.Sprint(i))
			f, err := os.Create(path)
			if err != nil {
				b.Fatal(err)
			}
			h := digest.SHA256.Digester()
			if _, err := io.CopyN(io.MultiWriter(f, h.Hash()), rand.Reader, n); err != nil {
				b.Fatal(err)
			}
			f.Close()
			blobs = append(blobs, fileBlob{path, ocispec.Descriptor{Digest: h.Digest(), Size: n}})
		}
		tr := pushd.NewTransport()
		target, err := pushd.NewHTTP(server.URL+"/"+repo, &pushd.HTTPOptions{Transport: tr, Chunk: int64(chunkMB) << 20})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		push := pushd.NewEngine(nil).Push(b.Context(), target, nil)
		var uploads []*pushd.Upload
		for _, f := range blobs {
			uploads = append(uploads, push.Add(pushd.Blob{Descriptor: f.desc, Source: f}))
		}
		for _, u := range uploads {
			if _, _, err := u.Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		push.Abort(nil)
		tr.CloseIdleConnections()
		server.Close()
		b.StartTimer()
	}
}
