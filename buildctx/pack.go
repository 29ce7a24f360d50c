package buildctx

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	// fastLink is the rate, in bytes a second, from which compression is not
	// worth its time: about what a core compresses at both ends together,
	// and more than a link of 1 Gb/s carries.
	fastLink = 150e6

	// rateAfter is how much must have been sent before a rate is believed.
	// What goes first only fills the buffers of the system.
	rateAfter = 4 << 20

	// rateWindow is over how many frames the rate is taken.
	rateWindow = 8
)

// A packer decides for each frame whether to compress it. It compresses while
// finished frames wait for a slow link, and leaves off when the link waits for
// frames or takes them faster than compression is worth.
type packer struct {
	mode  Compress
	zstd  func() *zstd.Encoder
	spare sync.Pool

	ready atomic.Int64 // frames finished and not sent
	rate  atomic.Int64 // bytes a second while sending; 0 while unknown

	sent   int64
	window [rateWindow]struct {
		bytes int64
		took  time.Duration
	}
	frames int
}

func newPacker(mode Compress, parallel int) *packer {
	return &packer{mode: mode, zstd: sync.OnceValue(func() *zstd.Encoder {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderConcurrency(parallel), zstd.WithWindowSize(frameSize), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err) // options are constant
		}
		return enc
	})}
}

// pack returns data compressed, or nil if it goes as it is.
func (p *packer) pack(data []byte) []byte {
	if !p.worthwhile() || len(data) == 0 {
		return nil
	}
	buf, _ := p.spare.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	out := p.zstd().EncodeAll(data, (*buf)[:0])
	if len(out) > len(data)-len(data)/16 {
		p.recycle(out)
		return nil
	}
	return out
}

func (p *packer) worthwhile() bool {
	switch p.mode {
	case CompressNever:
		return false
	case CompressAlways:
		return true
	}
	rate := p.rate.Load()
	return rate == 0 || rate < fastLink && p.ready.Load() > 0
}

// recycle takes back what pack returned.
func (p *packer) recycle(packed []byte) {
	if packed != nil {
		p.spare.Put(&packed)
	}
}

// meter measures the link while send puts n bytes onto it. It is for one
// goroutine.
func (p *packer) meter(n int, send func() error) error {
	p.ready.Add(-1)
	start := time.Now()
	err := send()
	w := &p.window[p.frames%rateWindow]
	w.bytes, w.took = int64(n), time.Since(start)
	p.frames++
	if p.sent += int64(n); p.sent >= rateAfter {
		p.rate.Store(p.measure())
	}
	return err
}

func (p *packer) measure() int64 {
	var (
		bytes int64
		took  time.Duration
	)
	for _, w := range p.window {
		bytes += w.bytes
		took += w.took
	}
	return int64(float64(bytes) / max(took, time.Microsecond).Seconds())
}
