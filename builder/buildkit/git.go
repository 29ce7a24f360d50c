package buildkit

import (
	"context"
	"errors"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
)

// noGit takes the place of BuildKit's source of Git repositories, which would
// reach from the daemon what steps may not.
type noGit struct{}

var errGit = errors.New("git sources are not supported by the BuildKit pipeline here: the classic pipeline (leave --buildkit out) has them")

// Schemes implements BuildKit's source.
func (noGit) Schemes() []string { return []string{"git"} }

// Identifier implements BuildKit's source.
func (noGit) Identifier(string, string, map[string]string, *pb.Platform) (source.Identifier, error) {
	return nil, errGit
}

// Resolve implements BuildKit's source.
func (noGit) Resolve(context.Context, source.Identifier, *session.Manager, solver.Vertex) (source.SourceInstance, error) {
	return nil, errGit
}
