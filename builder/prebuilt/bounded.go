package prebuilt

import (
	"fmt"
	"io"

	"github.com/slipwayhq/slipway/builder/base"
)

// bounded stops a stream that unpacks to much more than any root file system
// within the limit needs: a ledger does not charge all that may follow the
// end of an archive.
type bounded struct {
	r      io.Reader
	packed func() int64 // bytes read before unpacking
	most   int64        // of the root file system; below 0 means none
	n      int64
}

const (
	slack    = 1 << 30 // a tar may be larger than what it adds
	maxRatio = 1100    // more than gzip can reach is nobody's layer
)

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > slack && (b.most >= 0 && b.n-slack > 2*b.most || b.n/maxRatio > b.packed()) {
		return n, fmt.Errorf("%w: %d bytes unpack to more than %d", base.ErrInvalid, b.packed(), b.n)
	}
	return n, err
}

// A metered reader counts its bytes and remembers its error.
type metered struct {
	r   io.Reader
	n   int64
	err error // other than io.EOF
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}
