package builder

import (
	"errors"
	"fmt"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
)

// SourceFailure returns what it means for the user that an image cannot be had
// from its registry; what is the image, for people. It is nil for other errors.
func SourceFailure(what string, err error) *failure.Error {
	e := &failure.Error{Blame: failure.User, Message: fmt.Sprintf("%s: %v", what, err), Err: err}
	switch {
	case errors.Is(err, base.ErrNotFound):
		e.Code, e.Hint = failure.BaseNotFound, "check the name and the tag; a private image needs docker login where you deploy"
	case errors.Is(err, base.ErrDenied):
		e.Code, e.Hint = failure.BaseDenied, "run docker login for its registry where you deploy; a misspelt name gives the same answer at many registries"
	case errors.Is(err, base.ErrUnavailable):
		e.Code, e.Blame, e.Retryable = failure.BaseUnavailable, failure.Registry, true
		e.Hint = "the daemon cannot reach the registry; check its network, or give it --registry-mirror"
	default:
		return nil
	}
	return e
}
