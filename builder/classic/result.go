package classic

import (
	"context"
	"slices"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
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
	out := &builder.Image{Config: n.config(), Layers: n.layers(), RootFS: n.rootfs}
	out.Config.History = n.fullHistory()
	if h := out.Config.History; len(h) > 0 {
		out.Config.Created = h[len(h)-1].Created
	} else if n.nothing() {
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

// origin is the node that n is an unchanged copy of: n itself, if a step made it.
func (n *node) origin() *node {
	for n.from {
		n = n.parent
	}
	return n
}

// config is the config of the node's image. What FROM alone leads to is the base
// image as it is, with all that its children would not inherit.
func (n *node) config() dockerspec.DockerOCIImage {
	at := n.origin()
	if at.parent == nil && at.stage.base != nil {
		return cloneImage(at.stage.base.Config)
	}
	return at.image
}

// nothing reports whether FROM scratch is all that led to the node.
func (n *node) nothing() bool {
	at := n.origin()
	return at.parent == nil && at.stage.base == nil
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
