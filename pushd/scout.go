package pushd

import (
	"context"
	"errors"
	"hash/crc32"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/rescue"
)

const scoutBuffer = 256 << 10

// A scout runs ahead of the upload of a growing blob and says how many bytes
// can be sent without waiting for the source: a chunk's length stands before
// its bytes, and a slow source must not look like a stalled registry.
type scout struct {
	complete chan struct{} // closed when the descriptor is known, or never will be
	cancel   context.CancelFunc
	src      Source
	r        io.ReadCloser
	buf      []byte
	sum      Sum // of all bytes read
}

// newScout calls done, if the blob is completed, before complete is closed.
func newScout(ctx context.Context, src Source, done func(ocispec.Descriptor)) *scout {
	ctx, cancel := context.WithCancel(ctx)
	s := &scout{complete: make(chan struct{}), cancel: cancel, src: src}
	go func() {
		defer close(s.complete)
		defer rescue.Into(new(error)) // who asks for the descriptor next meets it too
		if desc, err := src.Descriptor(ctx); err == nil {
			done(desc)
		}
	}()
	return s
}

func (s *scout) close() {
	s.cancel()
	<-s.complete
	if s.r != nil {
		s.r.Close()
	}
}

var errEnds = errors.New("the blob ends before")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// reach waits until the source has n bytes; errEnds says that it never will.
func (s *scout) reach(ctx context.Context, n int64) error {
	if s.r == nil {
		r, err := s.src.Open(ctx, 0)
		if err != nil {
			return &sourceError{err}
		}
		s.r, s.buf = r, make([]byte, scoutBuffer)
	}
	for s.sum.Bytes < n {
		m, err := s.r.Read(s.buf[:min(int64(len(s.buf)), n-s.sum.Bytes)])
		s.sum.CRC = crc32.Update(s.sum.CRC, castagnoli, s.buf[:m])
		s.sum.Bytes += int64(m)
		if s.sum.Bytes >= n {
			return nil
		}
		if err == io.EOF {
			return errEnds
		}
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return &sourceError{err}
		}
	}
	return nil
}
