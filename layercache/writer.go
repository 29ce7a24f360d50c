package layercache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A BlobWriter is a blob in the making: a spool file that others may read
// while it grows, and that becomes a blob of the cache without a copy. Write,
// Commit and Abort are for one goroutine; the rest is for any. Every writer
// ends with Commit or Abort.
type BlobWriter struct {
	c       *Cache
	lease   *Lease // of the context that Create got
	file    *sharedFile
	path    string // of the spool file
	hash    hash.Hash
	room    int64 // bytes until the disk is looked at again
	started int64 // bytes that the kernel was told to write out

	mu    sync.Mutex
	size  int64
	tails int           // readers that wait
	wake  chan struct{} // closed when size grows or the writer ends

	ended chan struct{} // closed after desc or err is set
	desc  ocispec.Descriptor
	err   error
}

// roomStep is how much is written between two looks at the disk.
const roomStep = 64 << 20

// Create begins a blob; the lease of ctx will hold it. It makes room in the
// cache first if that is over its ceiling or the disk is nearly full.
func (c *Cache) Create(ctx context.Context) (*BlobWriter, error) {
	c.s.relieve(ctx)
	return c.create(leaseFrom(ctx))
}

func (c *Cache) create(l *Lease) (*BlobWriter, error) {
	f, err := os.CreateTemp(c.s.path("spool"), "blob-")
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return &BlobWriter{
		c:     c,
		lease: l,
		file:  newSharedFile(f),
		path:  f.Name(),
		hash:  sha256.New(),
		room:  roomStep,
		wake:  make(chan struct{}),
		ended: make(chan struct{}),
	}, nil
}

// parallelHash is the size of a write from which on hashing on another core
// pays.
const parallelHash = 64 << 10

// Write appends p. Readers see it at once.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.done() {
		return 0, fmt.Errorf("write blob: %w", os.ErrClosed)
	}
	n, err := w.write(p)
	w.mu.Lock()
	w.size += int64(n)
	w.wakeTails()
	w.mu.Unlock()
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	w.startWriteback()
	if w.room -= int64(n); w.room <= 0 {
		w.room = roomStep
		w.c.s.relieve(context.Background())
	}
	return n, nil
}

func (w *BlobWriter) write(p []byte) (n int, err error) {
	if len(p) < parallelHash {
		w.hash.Write(p)
		return w.append(p)
	}
	hashed := make(chan struct{})
	go func() {
		w.hash.Write(p)
		close(hashed)
	}()
	n, err = w.append(p)
	<-hashed
	return n, err // after an error the hash is wrong, and Commit fails
}

// append writes to the file; on a full disk it evicts and goes on.
func (w *BlobWriter) append(p []byte) (int, error) {
	n, err := w.file.f.Write(p)
	if !errors.Is(err, unix.ENOSPC) {
		return n, err
	}
	w.c.s.used.futile.Store(0)
	w.c.s.relieve(context.Background())
	m, err := w.file.f.Write(p[n:])
	return n + m, err
}

// writebackStep is how much is written before the disk is told to begin.
const writebackStep = 8 << 20

// startWriteback has the kernel write out what is complete, so that Commit
// does not begin with all of it. It is a hint: errors show at Commit.
func (w *BlobWriter) startWriteback() {
	if w.size-w.started < writebackStep {
		return
	}
	unix.SyncFileRange(int(w.file.f.Fd()), w.started, w.size-w.started, unix.SYNC_FILE_RANGE_WRITE)
	w.started = w.size
}

func (w *BlobWriter) wakeTails() {
	if w.tails > 0 {
		close(w.wake)
		w.wake, w.tails = make(chan struct{}), 0
	}
}

func (w *BlobWriter) done() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// Commit makes the spool file a blob of the cache and returns its digest and
// size. The bytes are on the disk by then. If it fails, the writer is aborted
// with that error.
func (w *BlobWriter) Commit(ctx context.Context) (ocispec.Descriptor, error) {
	return w.commit(ctx, true, nil)
}

// commit is Commit; also, if not nil, takes part in the transaction that
// registers the blob, and may run more than once.
func (w *BlobWriter) commit(ctx context.Context, durable bool, also func(*bolt.Tx, ocispec.Descriptor) error) (ocispec.Descriptor, error) {
	if w.done() {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", os.ErrClosed)
	}
	desc := ocispec.Descriptor{Digest: digest.NewDigestFromBytes(digest.SHA256, w.hash.Sum(nil)), Size: w.size}
	if err := w.store(ctx, desc, durable, also); err != nil {
		err = fmt.Errorf("commit blob: %w", err)
		w.Abort(err)
		return ocispec.Descriptor{}, err
	}
	w.end(desc, nil)
	w.c.s.relieve(ctx)
	return desc, nil
}

func (w *BlobWriter) store(ctx context.Context, desc ocispec.Descriptor, durable bool, also func(*bolt.Tx, ocispec.Descriptor) error) error {
	st, err := w.file.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != desc.Size {
		return errors.New("an earlier write failed")
	}
	if durable {
		if err := unix.Fdatasync(int(w.file.f.Fd())); err != nil {
			return err
		}
	}
	if err := w.file.f.Chmod(0o444); err != nil {
		return err
	}
	s := w.c.s
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	if err := s.adopt(w.path, desc); err != nil {
		return err
	}
	res := w.c.blobResource(desc.Digest)
	err = s.write.do(func(tx *bolt.Tx) error {
		if err := w.c.register(ctx, tx, desc); err != nil {
			return err
		}
		if err := w.lease.keep(ctx, tx, res); err != nil || also == nil {
			return err
		}
		return also(tx, desc)
	})
	if err == nil {
		w.lease.hold(res)
	}
	return err
}

// adopt moves a spool file to its place in the content store. Where a blob of
// that digest and size is already, the spool file goes instead; registries
// may have links to the other. The caller has sweep.
func (s *Store) adopt(spool string, desc ocispec.Descriptor) error {
	blob := s.blobPath(desc.Digest)
	st, err := os.Stat(blob)
	if err == nil && st.Size() == desc.Size {
		return os.Remove(spool)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(spool, blob); err != nil {
		return err
	}
	s.used.bytes.Add(desc.Size)
	return nil
}

// Abort gives the blob up; nil stands for [ErrAborted]. Readers and those who
// wait get the cause. After Commit or another Abort it does nothing.
func (w *BlobWriter) Abort(cause error) {
	if w.done() {
		return
	}
	if cause == nil {
		cause = ErrAborted
	}
	os.Remove(w.path) // it may have its place already; what fails is cleared at the next Open
	w.end(ocispec.Descriptor{}, cause)
}

func (w *BlobWriter) end(desc ocispec.Descriptor, err error) {
	w.mu.Lock()
	w.desc, w.err = desc, err
	close(w.ended)
	w.wakeTails()
	w.mu.Unlock()
	w.file.release()
}

// Descriptor waits for the end of the blob and returns its digest and size, or
// why it was aborted.
func (w *BlobWriter) Descriptor(ctx context.Context) (ocispec.Descriptor, error) {
	select {
	case <-w.ended:
		return w.desc, w.err
	case <-ctx.Done():
		return ocispec.Descriptor{}, context.Cause(ctx)
	}
}

// File waits for the end of the blob and returns the path of its file, for
// hard links to it. Nobody may write to it.
func (w *BlobWriter) File(ctx context.Context) (string, error) {
	desc, err := w.Descriptor(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Clean(w.c.s.blobPath(desc.Digest)), nil
}

// Open returns the blob's bytes from off on, also while it grows: Read waits
// for bytes that are not written yet, until ctx ends. It returns io.EOF only
// after Commit, and after Abort the cause.
func (w *BlobWriter) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	if w.file.acquire() {
		return &tail{w: w, wait: ctx, off: off}, nil
	}
	desc, err := w.Descriptor(ctx) // it has ended, so this does not wait
	if err != nil {
		return nil, err
	}
	return (&Blob{path: w.c.s.blobPath(desc.Digest), desc: desc}).Open(ctx, off)
}

// A tail reads a blob that may still grow.
type tail struct {
	w      *BlobWriter
	wait   context.Context // of the caller of Open, whose reading it is
	off    int64
	closed atomic.Bool
}

func (t *tail) Read(p []byte) (int, error) {
	if t.closed.Load() {
		return 0, os.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := t.w.available(t.wait, t.off)
	if err != nil {
		return 0, err
	}
	got, err := t.w.file.f.ReadAt(p[:min(int64(len(p)), n)], t.off)
	t.off += int64(got)
	if got > 0 {
		err = nil
	}
	return got, err
}

// Close lets go of the file. It does not end a Read that waits: that is for
// the context.
func (t *tail) Close() error {
	if t.closed.CompareAndSwap(false, true) {
		t.w.file.release()
	}
	return nil
}

// available waits until there are bytes at off and returns how many.
func (w *BlobWriter) available(ctx context.Context, off int64) (int64, error) {
	for {
		w.mu.Lock()
		n, wake, ended := w.size-off, w.wake, w.done()
		if n <= 0 && !ended {
			w.tails++
		}
		w.mu.Unlock()
		switch {
		case ended && w.err != nil:
			return 0, w.err
		case n > 0:
			return n, nil
		case ended:
			return 0, io.EOF
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
