package layercache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	packSize  = 32 << 20 // a pack is closed before it grows over this
	ownBlob   = 1 << 20  // a content of this size has a blob of its own
	packsOpen = 2        // packs that are synced while another one fills
)

// A ContentWriter stores contents. Nothing of what it got is there before a
// Flush, not even for itself; a process that is killed loses what was not
// flushed. Add may be called concurrently.
type ContentWriter struct {
	x     *Contents
	lease *Lease

	mu   sync.Mutex
	open *pack
	seen map[[32]byte]bool // in packs since the last Flush

	slots    chan struct{} // one for each pack that is being synced
	flushing sync.Mutex
	failed   onceError
}

// A pack is a blob that fills with contents.
type pack struct {
	blob    *BlobWriter
	entries []packed
	size    int64
}

type packed struct {
	digest    [32]byte
	off, size int64
}

// Writer returns a writer of contents; the lease of ctx will hold them. Flush
// ends it, also when an Add has failed: what came before is kept.
func (x *Contents) Writer(ctx context.Context) *ContentWriter {
	return &ContentWriter{
		x:     x,
		lease: leaseFrom(ctx),
		seen:  make(map[[32]byte]bool),
		slots: make(chan struct{}, packsOpen),
	}
}

// Add reads one content of the given size from r, to its end, and stores it.
// If the bytes are not those of the digest, the error is a [*DigestError] and
// nothing is stored.
func (w *ContentWriter) Add(d digest.Digest, size int64, r io.Reader) error {
	raw := rawDigest(d)
	if raw == nil || size < 0 {
		return fmt.Errorf("add content %q of %d bytes: not a SHA-256 digest and a size", d, size)
	}
	if err := w.failed.get(); err != nil {
		return fmt.Errorf("add content %s: %w", d, err)
	}
	e := packed{digest: [32]byte(raw), size: size}
	var err error
	if size >= ownBlob {
		err = w.addLarge(e, r)
	} else {
		err = w.addSmall(e, r)
	}
	if err != nil {
		return fmt.Errorf("add content %s: %w", d, err)
	}
	return nil
}

// addSmall verifies a content in memory, then appends it to the open pack.
func (w *ContentWriter) addSmall(e packed, r io.Reader) error {
	buf := w.x.c.s.buffers.get(int(e.size))
	defer w.x.c.s.buffers.put(buf)
	data := (*buf)[:e.size]
	if _, err := io.ReadFull(r, data); err != nil {
		return short(err)
	}
	if err := atEnd(r); err != nil {
		return err
	}
	if err := e.verify(sha256.Sum256(data)); err != nil {
		return err
	}
	if e.size == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[e.digest] {
		return nil
	}
	if w.open != nil && w.open.size+e.size > packSize {
		w.sealOpen()
	}
	if w.open == nil {
		blob, err := w.x.c.create(w.lease)
		if err != nil {
			return err
		}
		w.open = &pack{blob: blob}
	}
	if err := w.open.add(e, data); err != nil {
		w.failed.set(err)
		return err
	}
	w.seen[e.digest] = true
	return nil
}

func (p *pack) add(e packed, data []byte) error {
	if _, err := p.blob.Write(data); err != nil {
		return err
	}
	e.off = p.size
	p.entries, p.size = append(p.entries, e), p.size+e.size
	return nil
}

// addLarge streams a content into a blob of its own.
func (w *ContentWriter) addLarge(e packed, r io.Reader) error {
	blob, err := w.x.c.create(w.lease)
	if err != nil {
		return err
	}
	buf := w.x.c.s.buffers.get(copySize)
	n, err := io.CopyBuffer(blob, onlyReader{io.LimitReader(r, e.size)}, *buf)
	w.x.c.s.buffers.put(buf)
	if err == nil && n < e.size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = atEnd(r)
	}
	if err == nil {
		err = e.verify([32]byte(blob.hash.Sum(nil)))
	}
	if err != nil {
		blob.Abort(err)
		return err
	}
	w.seal(&pack{blob: blob, entries: []packed{e}, size: e.size})
	return nil
}

// sealOpen closes the open pack. The caller has mu.
func (w *ContentWriter) sealOpen() {
	p := w.open
	w.open = nil
	w.seal(p)
}

// seal commits a pack and the index of what is in it, in one transaction and
// in the background. It waits while too many are under way.
func (w *ContentWriter) seal(p *pack) {
	w.slots <- struct{}{}
	go func() { // Flush waits for it
		defer func() { <-w.slots }()
		ctx := context.Background() // a sync is not given up half way
		_, err := p.blob.commit(ctx, true, func(tx *bolt.Tx, desc ocispec.Descriptor) error {
			rec := packRecord{Digest: desc.Digest, Size: desc.Size, Count: len(p.entries), App: w.x.app}
			return w.x.c.putPack(ctx, tx, rec, p.entries)
		})
		w.failed.set(err)
	}()
}

// Flush makes everything that was added available, and durable. The first
// error of the writer is returned, also by every later Flush; contents that
// were not part of the failure are kept all the same.
func (w *ContentWriter) Flush(context.Context) error {
	w.mu.Lock()
	if w.open != nil {
		w.sealOpen()
	}
	clear(w.seen)
	w.mu.Unlock()
	w.flushing.Lock()
	for range packsOpen {
		w.slots <- struct{}{}
	}
	for range packsOpen {
		<-w.slots
	}
	w.flushing.Unlock()
	if err := w.failed.get(); err != nil {
		return fmt.Errorf("flush contents: %w", err)
	}
	return nil
}

func (e packed) verify(sum [32]byte) error {
	if sum == e.digest {
		return nil
	}
	return &DigestError{
		Want: digest.NewDigestFromBytes(digest.SHA256, e.digest[:]),
		Got:  digest.NewDigestFromBytes(digest.SHA256, sum[:]),
	}
}

// atEnd reads the end of r, which must be there.
func atEnd(r io.Reader) error {
	var one [1]byte
	_, err := io.ReadFull(r, one[:])
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	default:
		return errors.New("more bytes than its size says")
	}
}

func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// onlyReader hides what would keep io.CopyBuffer from its buffer.
type onlyReader struct{ io.Reader }

// A onceError keeps the first error that it is given.
type onceError struct {
	mu  sync.Mutex
	err error
}

func (o *onceError) set(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
}

func (o *onceError) get() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
