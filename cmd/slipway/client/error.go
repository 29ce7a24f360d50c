package client

import (
	"context"
	"errors"
	"strings"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Codes that the client itself gives; the daemon has more.
const (
	CodeInternal         = "internal"
	CodeInvalidArgument  = "invalid_argument"
	CodeUnauthorized     = "unauthorized"
	CodePermissionDenied = "permission_denied"
	CodeNotFound         = "not_found"
	CodeTooLarge         = "too_large"
	CodeUnavailable      = "unavailable"
	CodeBusy             = "busy"
	CodeUnsupported      = "unsupported"
	CodeTLS              = "tls_failed"
	CodeTimeout          = "timeout"
	CodeConnectionLost   = "connection_lost"
	CodeCancelled        = "cancelled"
)

// Error is what a command failed with, in the terms that people and scripts
// get to see. It is made by [AsError], [NewError] and the calls of [Client].
type Error struct {
	*wire
}

// wire is the message under a name that leaves room for the method Error.
type wire = slipwayv1.Error

// FromProto returns the error that a result or a status carries, nil for nil.
func FromProto(e *slipwayv1.Error) *Error {
	if e == nil {
		return nil
	}
	return &Error{e}
}

// Proto returns the message that holds the error.
func (e *Error) Proto() *slipwayv1.Error {
	if e == nil {
		return nil
	}
	return e.wire
}

// NewError returns an error that has no cause but itself.
func NewError(code string, blame slipwayv1.Blame, message, hint string) *Error {
	return &Error{&slipwayv1.Error{Code: code, Blame: blame, Message: message, Hint: hint}}
}

// UserError returns an error about what the user gave us.
func UserError(message, hint string) *Error {
	return NewError(CodeInvalidArgument, slipwayv1.Blame_BLAME_USER, message, hint)
}

// AsError returns err as an [Error]: itself if it is one, what a gRPC status
// says, else an internal error. It returns nil for nil.
func AsError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return cancelled("interrupted")
	}
	if _, ok := status.FromError(err); ok {
		return fromStatus(err)
	}
	return NewError(CodeInternal, slipwayv1.Blame_BLAME_UNSPECIFIED, err.Error(), "")
}

// Error returns "code (blame): message".
func (e *Error) Error() string {
	s := e.GetCode()
	if b := BlameName(e.GetBlame()); b != "" {
		s += " (" + b + ")"
	}
	return s + ": " + e.GetMessage()
}

// BlameName returns the blame as JSON and people read it, "" when nobody is
// to blame.
func BlameName(b slipwayv1.Blame) string {
	if b == slipwayv1.Blame_BLAME_UNSPECIFIED {
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(b.String(), "BLAME_"))
}

func cancelled(message string) *Error {
	return NewError(CodeCancelled, slipwayv1.Blame_BLAME_USER, message, "")
}

// detail returns the [slipwayv1.Error] that a status carries.
func detail(err error) (*Error, bool) {
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*slipwayv1.Error); ok {
			return &Error{e}, true
		}
	}
	return nil, false
}

// statusErrors says what a status means when the daemon gave no detail, which
// happens when something between us and it answered, or an older daemon.
var statusErrors = map[codes.Code]struct {
	code  string
	blame slipwayv1.Blame
	phase string
}{
	codes.Unauthenticated:    {CodeUnauthorized, slipwayv1.Blame_BLAME_USER, "auth"},
	codes.PermissionDenied:   {CodePermissionDenied, slipwayv1.Blame_BLAME_USER, "auth"},
	codes.InvalidArgument:    {CodeInvalidArgument, slipwayv1.Blame_BLAME_USER, ""},
	codes.FailedPrecondition: {CodeInvalidArgument, slipwayv1.Blame_BLAME_USER, ""},
	codes.AlreadyExists:      {CodeInvalidArgument, slipwayv1.Blame_BLAME_USER, ""},
	codes.OutOfRange:         {CodeInvalidArgument, slipwayv1.Blame_BLAME_USER, ""},
	codes.NotFound:           {CodeNotFound, slipwayv1.Blame_BLAME_USER, ""},
	codes.Unimplemented:      {CodeUnsupported, slipwayv1.Blame_BLAME_USER, ""},
	codes.Unavailable:        {CodeUnavailable, slipwayv1.Blame_BLAME_BUILDER, "connect"},
	codes.DeadlineExceeded:   {CodeTimeout, slipwayv1.Blame_BLAME_NETWORK, "connect"},
	codes.Canceled:           {CodeCancelled, slipwayv1.Blame_BLAME_USER, ""},
}

func fromStatus(err error) *Error {
	if e, ok := detail(err); ok {
		return e
	}
	st := status.Convert(err)
	e := NewError(CodeInternal, slipwayv1.Blame_BLAME_BUILDER, st.Message(), "")
	if s, ok := statusErrors[st.Code()]; ok {
		e.Code, e.Blame, e.Phase = s.code, s.blame, s.phase
	}
	if e.Message == "" {
		e.Message = st.Code().String()
	}
	e.Retryable = e.Code == CodeUnavailable || e.Code == CodeTimeout
	return e
}
