package buildctx

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

var (
	// ErrUnsupported says that a context holds files that no image can take
	// from it. See [UnsupportedError].
	ErrUnsupported = errors.New("sockets and devices cannot be part of a build context")

	// ErrIgnore says that an ignore file is missing or does not parse. See
	// [IgnoreError].
	ErrIgnore = errors.New("invalid ignore file")

	// ErrChanged says that a file changed while it was read. See
	// [ChangedError].
	ErrChanged = errors.New("file changed while it was read")

	// ErrManifest says that a manifest breaks its own rules. See
	// [ManifestError].
	ErrManifest = errors.New("invalid manifest")

	// ErrWant says that a want asks for what the manifest does not offer.
	ErrWant = errors.New("invalid want")

	// ErrProtocol says that the frames of a want are not what was asked for.
	// See [ProtocolError].
	ErrProtocol = errors.New("invalid content stream")

	// ErrDigest says that a content is not the one that its digest names. A
	// [Store] wraps it.
	ErrDigest = errors.New("content does not match its digest")

	// ErrSource says that the client could not send a content that it had
	// promised. See [SourceError].
	ErrSource = errors.New("client could not send a file")
)

// An UnsupportedError names files that cannot be sent. It wraps
// [ErrUnsupported].
type UnsupportedError struct {
	Files []UnsupportedFile // at most ten
	More  int               // how many there are besides
}

// UnsupportedFile is a path and what is there: "socket", "device" or "special
// file".
type UnsupportedFile struct{ Path, Kind string }

func (e *UnsupportedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: ", ErrUnsupported)
	for i, f := range e.Files {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s (%s)", Quote(f.Path), f.Kind)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, " and %d more", e.More)
	}
	return b.String()
}

func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

// An IgnoreError names an ignore file that cannot be used, and the pattern if
// one is to blame. It wraps [ErrIgnore] and the cause.
type IgnoreError struct {
	File    string
	Pattern string
	Err     error
}

func (e *IgnoreError) Error() string {
	if e.Pattern == "" {
		return fmt.Sprintf("ignore file %s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("ignore file %s: pattern %s: %v", e.File, Quote(e.Pattern), e.Err)
}

func (e *IgnoreError) Unwrap() []error { return []error{ErrIgnore, e.Err} }

// A ChangedError names a file whose content is no longer, or was never, what
// the manifest says. It wraps [ErrChanged].
type ChangedError struct {
	Path   string
	Reason string
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s: %v: %s", Quote(e.Path), ErrChanged, e.Reason)
}

func (e *ChangedError) Unwrap() error { return ErrChanged }

// A ManifestError says which entry of a manifest is wrong. It wraps
// [ErrManifest].
type ManifestError struct {
	Path   string // empty if the fault is not an entry's
	Reason string
}

func (e *ManifestError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%v: %s", ErrManifest, e.Reason)
	}
	return fmt.Sprintf("%v: %s: %s", ErrManifest, Quote(e.Path), e.Reason)
}

func (e *ManifestError) Unwrap() error { return ErrManifest }

// A ProtocolError says what is wrong with a want's frames. It wraps
// [ErrProtocol].
type ProtocolError struct {
	Want   uint64
	Reason string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%v: want %d: %s", ErrProtocol, e.Want, e.Reason)
}

func (e *ProtocolError) Unwrap() error { return ErrProtocol }

// A SourceError is the client's report of a file that it could not send. It
// wraps [ErrSource].
type SourceError struct {
	Path    string
	Message string // the client's words
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("%v: %s: %s", ErrSource, Quote(e.Path), e.Message)
}

func (e *SourceError) Unwrap() error { return ErrSource }

// Quote returns a path as people may see it: as it is where it is plain, and
// quoted where it could be misread or upset a terminal.
func Quote(path string) string {
	quoted := strconv.Quote(path)
	if path != "" && quoted[1:len(quoted)-1] == path && !strings.ContainsAny(path, " \t") {
		return path
	}
	return quoted
}
