// Package compress turns a layer's tar into the bytes that go over the wire,
// on all cores and in one pass.
//
// The stream is cut into members of at most 1 MiB that are compressed
// independently and written in order: gzip members (RFC 1952, section 2.2) or
// zstd frames (RFC 8878, section 3). Every standard decoder reads them as one
// stream. Where a member is cut depends only on the input, never on how it
// arrives, on timing or on the number of cores, so that the same layer always
// gets the same digest.
//
// Members may begin where the input's units do, such as the entries of a tar,
// at units chosen by their names. Then most members of a layer that changed a
// little are those of the layer before, and [Members] has them: they are
// copied instead of made.
//
// Read [New] first.
package compress

import (
	"fmt"
	"io"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Type is a compression that layers may have.
type Type string

// The types that [New] writes.
const (
	Gzip Type = "gzip"
	Zstd Type = "zstd"
	None Type = "none"
)

// MediaType returns the media type of a layer compressed by t. An unknown t
// has none.
func (t Type) MediaType() string {
	switch t {
	case "", Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	case None:
		return ocispec.MediaTypeImageLayer
	}
	return ""
}

// Default levels. On trees of programs and sources gzip 2 is as fast as gzip 1
// and 3 percent smaller; the next level up costs a fifth of the speed (gzip 3)
// or a quarter (zstd 3) and saves 3 to 6 percent, which pays only on a slow
// uplink.
const (
	DefaultGzipLevel = 2
	DefaultZstdLevel = 1
)

const (
	memberSize = 1 << 20
	maxMemory  = 44 << 20 // of buffers and tables, on any machine
)

// Options says how to compress. The zero value means gzip at its default
// level on all cores.
type Options struct {
	Type     Type // "" means Gzip
	Level    int  // gzip 1 to 9, zstd 1 to 22; 0 means the type's default
	Parallel int  // members compressed at once; 0 means GOMAXPROCS; memory bounds it to about 9, less at high levels

	Members Members // nil means that every member is made
}

// parallel returns how many goroutines compress, each with tables and about
// three buffers of a member.
func (o Options) parallel() int {
	n := o.Parallel
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return max(1, min(n, maxMemory/(3*memberSize+o.tables())))
}

// tables is the memory of one encoder, as measured.
func (o Options) tables() int {
	switch {
	case o.Type != Zstd:
		return 3 << 19
	case o.Level < 3:
		return 3 << 19
	case o.Level < 6:
		return 5 << 19
	case o.Level < 10:
		return 11 << 19
	default:
		return 36 << 20
	}
}

// New returns a Writer that compresses to w. It fails if the type is unknown
// or has no such level.
//
// The caller must Close the Writer; that does not close w. All writes to w
// come from one goroutine at a time and hold one member each.
func New(w io.Writer, o Options) (*Writer, error) {
	newEncoder, err := o.encoder()
	if err != nil {
		return nil, err
	}
	return &Writer{w: w, newEncoder: newEncoder, parallel: o.parallel(), members: o.Members, salt: o.salt()}, nil
}

func (o Options) encoder() (func() encoder, error) {
	level := o.Level
	switch o.Type {
	case "", Gzip:
		if level == 0 {
			level = DefaultGzipLevel
		}
		if level < 1 || level > 9 {
			return nil, fmt.Errorf("gzip has no level %d: choose 1 to 9", level)
		}
		return func() encoder { return newGzip(level) }, nil
	case Zstd:
		if level == 0 {
			level = DefaultZstdLevel
		}
		if level < 1 || level > 22 {
			return nil, fmt.Errorf("zstd has no level %d: choose 1 to 22", level)
		}
		return func() encoder { return newZstd(level) }, nil
	case None:
		return nil, nil
	}
	return nil, fmt.Errorf("unknown compression %q: choose gzip, zstd or none", string(o.Type))
}
