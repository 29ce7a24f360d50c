package rootfs

// SetShare sets how many known names one look examines.
func (g *Gauge) SetShare(n int) { g.share = n }
