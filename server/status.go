package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/sqldb"
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

// databaseFaults says what clients are told of a database that is at fault. What
// its operator has to do is in the log.
var databaseFaults = []struct {
	kind    error
	code    string
	message string
}{
	{sqldb.ErrBusy, failure.Unavailable, "the daemon's database is in use by others"},
	{sqldb.ErrFull, failure.DiskFull, "the disk of the daemon's database is full"},
	{sqldb.ErrCorrupt, failure.Unavailable, "the daemon's database is damaged"},
	{sqldb.ErrReadOnly, failure.Unavailable, "the daemon cannot write to its database"},
	{sqldb.ErrUnreachable, failure.Unavailable, "the daemon cannot reach its database"},
}

// ofDatabase returns the failure that an error of the database is to clients;
// other errors as they are.
func ofDatabase(err error) error {
	if known := (*failure.Error)(nil); errors.As(err, &known) {
		return err
	}
	for _, f := range databaseFaults {
		if errors.Is(err, f.kind) {
			return &failure.Error{Code: f.code, Blame: failure.Builder, Retryable: true, Err: err, Message: f.message,
				Hint: "try again in a moment; what was acknowledged is kept, and the daemon's log says what its operator can do"}
		}
	}
	return err
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
	e := *failure.As(ofDatabase(err))
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
