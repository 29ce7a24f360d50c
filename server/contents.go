package server

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

// contents lets a receiver write to the cache's contents.
type contents struct {
	*layercache.Contents
	writer *layercache.ContentWriter
}

// Add implements buildctx.Store.
func (c *contents) Add(_ context.Context, d digest.Digest, size int64, r io.Reader) error {
	return c.writer.Add(d, size, r)
}
