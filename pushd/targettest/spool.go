package targettest

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// A Spool is a [pushd.FileSource] that a test fills while it is read.
type Spool struct {
	dir string

	mu    sync.Mutex
	grown *sync.Cond
	data  []byte
	ended bool
	err   error // if given up
	desc  ocispec.Descriptor
	path  string
	opens []int64
}

var _ pushd.FileSource = (*Spool)(nil)

// NewSpool returns an empty spool that is still being written.
func NewSpool(t testing.TB) *Spool {
	s := &Spool{dir: t.TempDir()}
	s.grown = sync.NewCond(&s.mu)
	return s
}

// Finished returns a spool that holds data.
func Finished(t testing.TB, data []byte) *Spool {
	t.Helper()
	s := NewSpool(t)
	s.Write(data)
	s.Commit(t)
	return s
}

// Write appends p.
func (s *Spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data = append(s.data, p...)
	s.grown.Broadcast()
	return len(p), nil
}

// Commit ends the blob.
func (s *Spool) Commit(t testing.TB) ocispec.Descriptor {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.path = filepath.Join(s.dir, "blob")
	if err := os.WriteFile(s.path, s.data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.desc = ocispec.Descriptor{Digest: digest.FromBytes(s.data), Size: int64(len(s.data))}
	s.ended = true
	s.grown.Broadcast()
	return s.desc
}

// Abort gives the blob up.
func (s *Spool) Abort(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.err = true, cause
	s.grown.Broadcast()
}

// Lie changes the digest that a finished spool gives.
func (s *Spool) Lie(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.desc.Digest = d
}

// Opens returns the offsets at which the spool was opened.
func (s *Spool) Opens() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int64(nil), s.opens...)
}

// wait returns with the lock held, when cond is true or the spool has ended or
// ctx has.
func (s *Spool) wait(ctx context.Context, cond func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grown.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	for !cond() && !s.ended && ctx.Err() == nil {
		s.grown.Wait()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.err
}

// Open implements [pushd.Source].
func (s *Spool) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens = append(s.opens, off)
	return &spoolReader{ctx: ctx, s: s, off: off}, nil
}

// Descriptor implements [pushd.Source].
func (s *Spool) Descriptor(ctx context.Context) (ocispec.Descriptor, error) {
	err := s.wait(ctx, func() bool { return false })
	defer s.mu.Unlock()
	return s.desc, err
}

// File implements [pushd.FileSource].
func (s *Spool) File(ctx context.Context) (string, error) {
	err := s.wait(ctx, func() bool { return false })
	defer s.mu.Unlock()
	return s.path, err
}

type spoolReader struct {
	ctx context.Context // of Open
	s   *Spool
	off int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	err := r.s.wait(r.ctx, func() bool { return int64(len(r.s.data)) > r.off })
	defer r.s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if r.off >= int64(len(r.s.data)) {
		return 0, io.EOF
	}
	n := copy(p, r.s.data[r.off:])
	r.off += int64(n)
	return n, nil
}

func (r *spoolReader) Close() error { return nil }

// Plain hides that a source is a file.
func Plain(s pushd.Source) pushd.Source { return plain{s} }

type plain struct{ pushd.Source }

// Noise returns n bytes that are the same for the same n and seed.
func Noise(n int, seed byte) []byte {
	b := bytes.Repeat([]byte{seed}, n)
	x := uint32(seed)*2654435761 + uint32(n)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}
