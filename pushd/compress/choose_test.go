package compress_test

import (
	"crypto/rand"
	"math"
	"testing"

	"github.com/slipwayhq/slipway/pushd/compress"
)

// What ends first depends on the link and on the data.
func TestChoose(t *testing.T) {
	noise := make([]byte, compress.SampleSize)
	rand.Read(noise)
	words := text(compress.SampleSize)
	for _, tc := range []struct {
		name   string
		sample []byte
		uplink float64
		want   func(compress.Options) bool
	}{
		{"nothing to send", words, math.Inf(1), func(o compress.Options) bool { return o.Type == compress.None }},
		{"unknown link", words, 0, func(o compress.Options) bool { return o.Type == compress.Zstd && o.Level == compress.DefaultZstdLevel }},
		{"slow link", words, 100e3, func(o compress.Options) bool { return o.Type == compress.Zstd && o.Level > 1 }},
		{"slow link, noise", noise, 100e3, func(o compress.Options) bool { return o.Type == compress.None }},
		{"no sample", nil, 1e6, func(o compress.Options) bool { return o.Type != compress.Auto }},
	} {
		got := compress.Choose(tc.sample, tc.uplink, compress.Options{Type: compress.Auto, Parallel: 3})
		if !tc.want(got) || got.Parallel != 3 {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}
