package pushd

import "math"

// Uplink returns how fast bytes have left for the registry of late, in bytes a
// second; 0 is not known yet.
func (t *HTTP) Uplink() float64 { return t.opts.Hosts.of(t.host()).rate }

// Uplink returns infinity: what is linked need not be sent.
func (t *Local) Uplink() float64 { return math.Inf(1) }
