package classic

import (
	"slices"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
)

// portable lists the stage's own steps, in order, for caches elsewhere.
func (s *stage) portable() []builder.CachedStep {
	var out []builder.CachedStep
	for at := s.node; at != nil && at.stage == s; at = at.parent {
		if at.key != (layercache.Key{}) {
			out = append(out, at.portable())
		}
	}
	slices.Reverse(out)
	return out
}

func (n *node) portable() builder.CachedStep {
	out := builder.CachedStep{Step: stepcache.Step{
		Keys: n.keys(), Created: n.created, CreatedBy: n.createdBy, Empty: n.layer == nil, InImage: n.stage.final,
	}}
	out.RootFS, out.Peak = n.size()
	if n.claim != nil && !n.claim.isProven() {
		out.RootFS, out.Peak = n.claim.step.RootFS, n.claim.step.Peak // as it came
	}
	if n.layer == nil {
		return out
	}
	l := n.own()[0]
	out.DiffID, out.From = l.DiffID, l.MountFrom
	out.Blob = &stepcache.Blob{MediaType: l.Descriptor.MediaType, Digest: l.Descriptor.Digest, Size: l.Descriptor.Size}
	if n.claim != nil && n.claim.brought() == nil {
		img := n.claim.lender.image
		out.Open, out.From = n.claim.open(), []string{img.Host + "/" + img.Repository}
	}
	return out
}
