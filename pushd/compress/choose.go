package compress

import (
	"math"
	"runtime"
	"time"
)

// Auto leaves the choice to [Choose]: [New] does not take it.
const Auto Type = "auto"

// SampleSize is how much of a layer's begin Choose is best given.
const SampleSize = 1 << 20

// candidates are what Choose chooses from. Gzip is not among them: zstd is
// faster and smaller on all input.
var candidates = []Options{{Type: None}, {Type: Zstd, Level: 1}, {Type: Zstd, Level: 3}, {Type: Zstd, Level: 7}}

// alike is by how much one way must be faster than another that makes less
// bytes.
const alike = 0.97

// Choose returns the way in which a layer that begins with sample is in its
// registry first, over a link that carries uplink bytes a second: compressing
// and sending overlap, so the slower of both decides. An uplink of 0 is
// unknown, and taken for one that a fast compressor keeps up with; where
// nothing is sent it is infinite.
func Choose(sample []byte, uplink float64, o Options) Options {
	best, bestTime := Options{Type: Zstd, Level: DefaultZstdLevel}, math.Inf(1)
	if uplink > 0 {
		for _, c := range candidates {
			c.Parallel = o.Parallel
			took := c.measure(sample, uplink)
			if took < bestTime*alike {
				best, bestTime = c, took
			}
		}
	}
	best.Parallel, best.Members = o.Parallel, o.Members
	return best
}

// measure returns seconds for each byte of input.
func (o Options) measure(sample []byte, uplink float64) float64 {
	newEncoder, err := o.encoder()
	if err != nil || newEncoder == nil || len(sample) == 0 {
		return 1 / uplink
	}
	e := newEncoder()
	e.encode(nil, sample[:len(sample)/16]) // tables are made once
	begun := time.Now()
	out := e.encode(make([]byte, 0, len(sample)), sample)
	work := time.Since(begun).Seconds() / float64(len(sample)) / float64(min(o.parallel(), runtime.GOMAXPROCS(0)))
	return max(work, float64(len(out))/float64(len(sample))/uplink)
}
