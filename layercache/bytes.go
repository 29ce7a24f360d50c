package layercache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// PutBytes stores a small blob, such as a ledger or a manifest; the lease of
// ctx holds it.
func (c *Cache) PutBytes(ctx context.Context, data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	if _, err := c.find(ctx, d); err == nil {
		return d, nil
	}
	w, err := c.Create(ctx)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(data); err != nil {
		w.Abort(err)
		return "", err
	}
	// Not synced: GetBytes compares the digest.
	if _, err := w.commit(ctx, false, nil); err != nil {
		return "", err
	}
	return d, nil
}

// GetBytes returns a blob of at most max bytes; the lease of ctx holds it. A
// larger one is a [*TooLargeError], one whose bytes do not match its digest is
// [ErrNotFound].
func (c *Cache) GetBytes(ctx context.Context, d digest.Digest, max int64) ([]byte, error) {
	size, err := c.find(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if size > max {
		return nil, &TooLargeError{Digest: d, Size: size, Max: max}
	}
	f, err := os.Open(c.s.blobPath(d))
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	defer f.Close()
	buf := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	if _, err := buf.ReadFrom(io.LimitReader(f, size)); err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if digest.FromBytes(buf.Bytes()) != d {
		if err := c.Reject(ctx, d); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	return buf.Bytes(), nil
}
