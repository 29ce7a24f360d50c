package compress

import (
	"bytes"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// An encoder makes one complete member of src, appended to dst. It keeps
// tables from one call to the next, so that it serves one goroutine only.
type encoder interface {
	encode(dst, src []byte) []byte
}

type gzipEncoder struct{ z *gzip.Writer }

func newKlauspost(level int) encoder {
	z, err := gzip.NewWriterLevel(nil, level)
	if err != nil {
		panic(err) // the level was checked
	}
	return gzipEncoder{z}
}

func (e gzipEncoder) encode(dst, src []byte) []byte {
	out := bytes.NewBuffer(dst)
	e.z.Reset(out)
	// Writes to a bytes.Buffer do not fail.
	_, _ = e.z.Write(src)
	_ = e.z.Close()
	return out.Bytes()
}

type zstdEncoder struct{ z *zstd.Encoder }

func newZstd(level int) encoder {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(memberSize),
		zstd.WithZeroFrames(true),
		zstd.WithLowerEncoderMem(true),
	)
	if err != nil {
		panic(err) // constant options
	}
	return zstdEncoder{z}
}

func (e zstdEncoder) encode(dst, src []byte) []byte { return e.z.EncodeAll(src, dst) }
