package classic

import (
	"context"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
)

// image puts the target's image together.
func (s *stage) image(ctx context.Context) (*builder.Image, error) {
	n, err := s.result(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.wait(ctx); err != nil {
		return nil, err
	}
	out := &builder.Image{Config: n.image, Layers: n.layers(), RootFS: n.rootfs}
	out.Config.History = n.fullHistory()
	if h := out.Config.History; len(h) > 0 {
		out.Config.Created = h[len(h)-1].Created
	} else if len(out.Layers) == 0 {
		return nil, failure.Userf(failure.DockerfileInvalid, "add an instruction after FROM scratch", "No image was generated. Is your Dockerfile empty?")
	}
	for _, st := range s.build.stages {
		if st.needed {
			st.countSteps(out)
			out.Portable = append(out.Portable, st.portable()...)
		}
	}
	return out, nil
}

func (n *node) fullHistory() []ocispec.History {
	if n.parent == nil {
		return append([]ocispec.History(nil), n.history...)
	}
	if n.from {
		return n.parent.fullHistory()
	}
	created := n.created
	return append(n.parent.fullHistory(), ocispec.History{
		Created: &created, CreatedBy: n.createdBy, Author: n.image.Author, EmptyLayer: n.layer == nil,
	})
}

// countSteps counts the stage's own steps and lists their keys, in order.
func (s *stage) countSteps(out *builder.Image) {
	var keys []layercache.Key
	for at := s.node; at != nil && at.stage == s; at = at.parent {
		out.Steps++
		if at.cached {
			out.Cached++
		}
		if at.key != (layercache.Key{}) {
			keys = append(keys, at.key)
		}
	}
	slices.Reverse(keys)
	out.Keys = append(out.Keys, keys...)
}
