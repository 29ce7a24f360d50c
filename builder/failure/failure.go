// Package failure holds the one error type that leaves a build: what went
// wrong, in which phase, who can mend it, and what to do. Stages below return
// their own errors; whoever knows the phase wraps them in an [Error]. Read
// Error first, then [As].
package failure

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/slipwayhq/slipway/limits"
)

// Codes of errors, as docs/errors.md lists them. Scripts match them.
const (
	Internal            = "internal"
	InvalidArgument     = "invalid_argument"
	DockerfileInvalid   = "dockerfile_invalid"
	DockerfileNotFound  = "dockerfile_not_found"
	StepFailed          = "step_failed"
	ContextInvalid      = "context_invalid"
	ContextChanged      = "context_changed"
	FileNotFound        = "file_not_found"
	BaseNotFound        = "base_not_found"
	BaseDenied          = "base_denied"
	BaseUnavailable     = "base_unavailable"
	PlatformMismatch    = "platform_mismatch"
	ImageInvalid        = "image_invalid"
	FetchFailed         = "fetch_failed"
	NotSupported        = "not_supported"
	TooLarge            = "too_large"
	Unauthorized        = "unauthorized"
	PermissionDenied    = "permission_denied"
	NotFound            = "not_found"
	RegistryDenied      = "registry_denied"
	RegistryUnavailable = "registry_unavailable"
	RegistryRefused     = "registry_refused"
	DiskFull            = "disk_full"
	Busy                = "busy"
	Unavailable         = "unavailable"
	DaemonStopped       = "daemon_stopped"
	Network             = "network"
	ClientLost          = "client_lost"
	Timeout             = "timeout"
	Cancelled           = "cancelled"
)

// Phases of a build.
const (
	Auth      = "auth"
	Queue     = "queue"
	Preflight = "preflight"
	Context   = "context"
	Build     = "build"
	Push      = "push"
)

// Blame says who can mend an error.
type Blame string

// The parties of a build.
const (
	User     Blame = "user"
	Builder  Blame = "builder"
	Registry Blame = "registry"
	Net      Blame = "network"
)

// An Error is a failure that people and scripts can act on. Message never
// holds a secret. Err, the cause, is for logs and errors.Is; it is not shown.
type Error struct {
	Code      string
	Phase     string
	Blame     Blame
	Retryable bool
	Line      int // of the Dockerfile; 0 if none
	ExitCode  int // of a RUN step; 0 if none
	Message   string
	Hint      string
	Size      *limits.Report // of a root file system that is too large
	Err       error
}

func (e *Error) Error() string {
	if e.Code == Internal && e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Code, e.Err)
	}
	if e.Line > 0 {
		return fmt.Sprintf("%s: line %d: %s", e.Code, e.Line, e.Message)
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// Userf returns an error that the user can mend.
func Userf(code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Blame: User, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// At returns err with a line and a phase, where it has none yet.
func At(err error, phase string, line int) error {
	if err == nil {
		return nil
	}
	e := *As(err)
	if e.Line == 0 {
		e.Line = line
	}
	if e.Phase == "" {
		e.Phase = phase
	}
	return &e
}

// As returns err as an Error: the one it wraps, or one made for a cause that
// every stage may meet. What nobody foresaw is an internal error, whose Message
// keeps err's text to itself; Error tells it to the log.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var size *limits.SizeError
	switch {
	case errors.As(err, &size):
		return tooLarge(size, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &Error{Code: DiskFull, Blame: Builder, Retryable: true, Err: err,
			Message: "the daemon's disk is full",
			Hint:    "free disk space or run slipway cache prune, then deploy again; finished steps stay cached"}
	case errors.Is(err, context.Canceled):
		return &Error{Code: Cancelled, Blame: User, Retryable: true, Err: err, Message: "the build was cancelled"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: Timeout, Blame: User, Retryable: true, Err: err, Message: "the build took too long",
			Hint: "the operator sets the time limit with --build-timeout"}
	}
	return &Error{Code: Internal, Blame: Builder, Retryable: true, Message: "internal error", Err: err,
		Hint: "the daemon's log has more; deploy again, and report it if it stays"}
}

func tooLarge(size *limits.SizeError, err error) *Error {
	return &Error{
		Code: TooLarge, Blame: User, Size: &size.Report, Err: err,
		Message: fmt.Sprintf("unpacked root file system reached %s of %s at %s", bytes(size.Total), bytes(size.Max), size.Path),
		Hint:    advice(size.Advice),
	}
}

// advice writes what would help, a line each.
func advice(all []limits.Advice) string {
	if len(all) == 0 {
		return "build in one stage and copy the result into a smaller base, or leave large paths out with .dockerignore"
	}
	lines := make([]string, len(all))
	for i, a := range all {
		lines[i] = a.Text
	}
	return strings.Join(lines, ";\n")
}

// bytes writes a size for people, in a unit that shows three digits.
func bytes(n int64) string {
	if n < 1e9 {
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.2f GB", float64(n)/1e9)
}
