package prebuilt

import (
	"errors"
	"fmt"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
)

// imageFailure names what went wrong with an image.
func imageFailure(ref string, err error) error {
	var known *failure.Error
	var size *limits.SizeError
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.As(err, &size) {
		e := *failure.As(err)
		e.Hint = "deploy a smaller image: build it in stages, and leave the largest paths out"
		return &e
	}
	what := "image " + ref
	e := &failure.Error{Blame: failure.User, Message: fmt.Sprintf("%s: %v", what, err), Err: err}
	var wrong *base.PlatformError
	switch shared := builder.SourceFailure(what, err); {
	case errors.As(err, &wrong):
		e.Code, e.Hint = failure.PlatformMismatch, "give --platform the one that your machines have, if the image has it"
	case shared != nil:
		return shared
	case errors.Is(err, base.ErrInvalid):
		e.Code, e.Hint = failure.ImageInvalid, "check the name; an image that is damaged or of an old format must be made and pushed again"
	default:
		return err
	}
	return e
}
