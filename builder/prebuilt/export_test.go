package prebuilt

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/limits"
	"github.com/slipwayhq/slipway/pushd"
)

// Opener is an opener.
type Opener = opener

// NewRelay returns a relay that counts, and what waits for the count.
func NewRelay(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest, from Opener) (pushd.Source, func(context.Context) (int64, error), func()) {
	c := newCounter(d, diffID, 0, func() *limits.Layer { return limits.NewLedger(0).Begin(limits.Source{}) })
	r := newRelay(ctx, d, from, c, relayOptions{pause: time.Nanosecond, stall: time.Minute, log: slog.New(slog.DiscardHandler)})
	return r, func(ctx context.Context) (int64, error) {
		out, err := c.result(ctx)
		if err != nil {
			return 0, err
		}
		return out.Uncompressed, nil
	}, c.stop
}
