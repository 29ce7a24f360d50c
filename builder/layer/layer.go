// Package layer makes an image's layers, each in one pass over its bytes: tar,
// limit, diff ID, compressor, digest and spool file, while a push may already
// read the spool. It also unpacks them into snapshots where a step needs a
// root file system. Read [Layer] first, then [Maker.Make] and [Unpacker].
package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd"
)

// A Layer is one finished layer of an image. It does not change once made.
type Layer struct {
	DiffID       digest.Digest
	Descriptor   ocispec.Descriptor // of the compressed blob in the cache
	Uncompressed int64              // bytes of the tar
	Ledger       digest.Digest      // blob that holds the layer's [limits.Delta]
	Origin       limits.Source      // the Dockerfile line it comes from
	CreatedBy    string
	Cached       bool     // no byte of it was made in this build
	MountFrom    []string // repositories of the target's registry that may have the blob
}

// A Pending layer is one in the making, as a push sees it from its first
// byte on.
type Pending struct {
	Descriptor ocispec.Descriptor // what is known: at least the media type
	MountFrom  []string           // as in [Layer], of a blob that is known
	Origin     limits.Source
	Blob       pushd.Source
	result     chan struct{}
	layer      *Layer
	err        error
}

// Wait returns the layer when it is made, or why it was not.
func (p *Pending) Wait(ctx context.Context) (*Layer, error) {
	select {
	case <-p.result:
		return p.layer, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Finished returns l as a pending layer that needs no waiting; blob reads it.
func Finished(l *Layer, blob pushd.Source) *Pending {
	p := &Pending{Descriptor: l.Descriptor, MountFrom: l.MountFrom, Origin: l.Origin, Blob: blob, result: make(chan struct{})}
	p.finish(l, nil)
	return p
}

func (p *Pending) finish(l *Layer, err error) {
	p.layer, p.err = l, err
	close(p.result)
}

// Lookup returns the cache's layer of a diff ID: the blob with the wanted
// media type, else any. It is [layercache.ErrNotFound] when there is none.
func Lookup(ctx context.Context, c *layercache.Cache, diffID digest.Digest, mediaType string) (*Layer, error) {
	rec, err := c.Layer(ctx, diffID)
	if err != nil {
		return nil, err
	}
	if len(rec.Blobs) == 0 {
		return nil, layercache.ErrNotFound
	}
	desc := rec.Blobs[0]
	for _, b := range rec.Blobs {
		if b.MediaType == mediaType {
			desc = b
		}
	}
	return &Layer{DiffID: diffID, Descriptor: desc, Uncompressed: rec.Uncompressed, Ledger: rec.Ledger, Cached: true}, nil
}

// Charge replays a layer's entries on the ledger of the image it belongs to.
func Charge(ctx context.Context, c *layercache.Cache, l *Layer, ledger *limits.Ledger) error {
	delta, err := c.GetBytes(ctx, l.Ledger, maxDelta)
	if err != nil {
		return fmt.Errorf("ledger of layer %s: %w", l.DiffID, err)
	}
	err = ledger.Replay(l.Origin, limits.Delta(delta))
	var size *limits.SizeError
	if err != nil && !errors.As(err, &size) {
		return fmt.Errorf("ledger of layer %s: %w", l.DiffID, err)
	}
	return err
}

// maxDelta bounds a stored ledger: a million paths take about 30 MB.
const maxDelta = 1 << 30
