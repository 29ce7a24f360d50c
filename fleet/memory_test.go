package fleet_test

import (
	"testing"

	"github.com/slipwayhq/slipway/fleet"
	"github.com/slipwayhq/slipway/fleet/fleettest"
)

func TestMemory(t *testing.T) {
	fleettest.Run(t, func(t *testing.T, opts *fleet.Options) fleet.Engine {
		e := fleet.NewMemory(opts)
		t.Cleanup(func() { closeEngine(t, e) })
		return e
	})
}
