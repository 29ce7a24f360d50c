package buildkit

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/limits"
)

// What was weighed last is had by one who needs it to begin with, and by nobody
// else.
func TestWeights(t *testing.T) {
	chain := func(names ...string) (out []ocispec.Descriptor) {
		for _, n := range names {
			out = append(out, ocispec.Descriptor{Annotations: map[string]string{labels.LabelUncompressed: digest.FromString(n).String()}})
		}
		return out
	}
	of := func(names ...string) *weighed {
		x := &weighed{ledger: limits.NewLedger(-1)}
		for _, d := range chain(names...) {
			x.layers = append(x.layers, diffID(d))
		}
		return x
	}
	ab := of("a", "b")
	for name, tc := range map[string]struct {
		last *weighed
		want []string
		same bool
	}{
		"one more":         {ab, []string{"a", "b", "c"}, true},
		"the same":         {ab, []string{"a", "b"}, true},
		"one less":         {ab, []string{"a"}, false},
		"another one":      {ab, []string{"a", "c", "b"}, false},
		"nothing":          {ab, nil, false},
		"not all counted":  {&weighed{ledger: limits.NewLedger(-1)}, []string{"a"}, false},
		"none was weighed": {nil, []string{"a"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var w weights
			w.put(tc.last)
			if got := w.take(chain(tc.want...)); (got == tc.last) != tc.same || got.ledger == nil {
				t.Errorf("got %+v", got)
			}
			if got := w.take(chain(tc.want...)); got == tc.last {
				t.Error("two have the same")
			}
			w.put(ab)
			w.drop()
			if got := w.take(chain("a", "b")); got == ab {
				t.Error("it was not forgotten")
			}
		})
	}
}
