package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
)

// statusCodes says which gRPC code a failure's code becomes; what is not
// listed is codes.Internal.
var statusCodes = map[string]codes.Code{
	failure.InvalidArgument:     codes.InvalidArgument,
	failure.DockerfileInvalid:   codes.InvalidArgument,
	failure.ContextInvalid:      codes.InvalidArgument,
	failure.NotSupported:        codes.Unimplemented,
	failure.Unauthorized:        codes.Unauthenticated,
	failure.PermissionDenied:    codes.PermissionDenied,
	failure.NotFound:            codes.NotFound,
	failure.TooLarge:            codes.ResourceExhausted,
	failure.Busy:                codes.ResourceExhausted,
	failure.DiskFull:            codes.ResourceExhausted,
	failure.Unavailable:         codes.Unavailable,
	failure.DaemonStopped:       codes.Unavailable,
	failure.RegistryUnavailable: codes.Unavailable,
	failure.ClientLost:          codes.Aborted,
	failure.Cancelled:           codes.Canceled,
	failure.Timeout:             codes.DeadlineExceeded,

	failure.DockerfileNotFound: codes.NotFound,
	failure.ContextChanged:     codes.Aborted,
	failure.FileNotFound:       codes.NotFound,
	failure.BaseNotFound:       codes.NotFound,
	failure.BaseDenied:         codes.PermissionDenied,
	failure.BaseUnavailable:    codes.Unavailable,
	failure.PlatformMismatch:   codes.InvalidArgument,
	failure.ImageInvalid:       codes.InvalidArgument,
	failure.FetchFailed:        codes.FailedPrecondition,
	failure.RegistryDenied:     codes.PermissionDenied,
	failure.RegistryRefused:    codes.FailedPrecondition,
	failure.Network:            codes.Unavailable,
	failure.Internal:           codes.Internal,
}

// StatusCode returns which gRPC code a failure's code becomes, if it has one.
func StatusCode(code string) (c codes.Code, ok bool) {
	c, ok = statusCodes[code]
	return c, ok
}

// toStatus turns any error into a status that carries a slipway.v1.Error.
// The text of an error that nobody foresaw stays inside.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var known *failure.Error
	if _, ok := status.FromError(err); ok && !errors.As(err, &known) {
		return err
	}
	e := *failure.As(err)
	if e.Code == failure.Internal {
		e.Message = "internal error"
	}
	code, ok := statusCodes[e.Code]
	if !ok {
		code = codes.Internal
	}
	if errors.Is(err, context.Canceled) {
		code = codes.Canceled
	}
	st, detailErr := status.New(code, e.Message).WithDetails(builder.Proto(&e))
	if detailErr != nil {
		return status.Error(code, e.Message)
	}
	return st.Err()
}
