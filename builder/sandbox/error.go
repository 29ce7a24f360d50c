package sandbox

import "errors"

var (
	// ErrClosed is returned by a Runner that has been closed, and stops the
	// processes that run while it is.
	ErrClosed = errors.New("sandbox is closed")

	// ErrInUse is returned by New when another Runner holds the root.
	ErrInUse = errors.New("sandbox root is in use")

	// ErrUser is wrapped when the user of a Process cannot be resolved in its
	// root file system.
	ErrUser = errors.New("cannot resolve user")

	// ErrNotRunning is wrapped when there is no container to run a Command in,
	// or none any more.
	ErrNotRunning = errors.New("container is not running")

	// ErrNetwork is wrapped when the [Sandbox] network could not be set up, or
	// put back after somebody took parts of it away.
	ErrNetwork = errors.New("sandbox network cannot be set up")
)

// A StartError reports a process that never ran, for a reason that lies in what
// was to be run: a program that does not exist or may not be executed, a mount
// that does not fit the root file system.
type StartError struct {
	// Message is what the runtime said, such as
	//	unable to start container process: exec: "nope": executable file not found in $PATH
	Message string
}

func (e *StartError) Error() string { return e.Message }

// A userError keeps the wording of the lookup and matches ErrUser.
type userError struct{ err error }

func (e userError) Error() string   { return e.err.Error() }
func (e userError) Unwrap() []error { return []error{ErrUser, e.err} }
