package pushd

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What a registry may refuse. Each comes wrapped in an [*Error].
var (
	// ErrUnauthorized: no credentials, or the registry does not know them,
	// or they have expired.
	ErrUnauthorized = errors.New("unauthorized")

	// ErrDenied: the credentials are good, but not for this.
	ErrDenied = errors.New("access denied")

	// ErrUnavailable: the registry did not answer, or answered that it
	// cannot now. All retries are used up.
	ErrUnavailable = errors.New("registry unavailable")

	// ErrDigest: the registry holds other bytes than were sent, or the
	// source gave other bytes than its digest says.
	ErrDigest = errors.New("digest does not match")

	// ErrBlobUnknown: the manifest names a blob that the repository lacks.
	ErrBlobUnknown = errors.New("blob unknown to registry")

	// ErrRefused: any other refusal; the registry's message says why.
	ErrRefused = errors.New("registry refused")
)

// An Error is an answer of a registry, or the lack of one. It wraps one of
// the errors above and never holds a secret: no credentials, no token, no
// upload address.
type Error struct {
	Kind       error  // one of the errors above
	Op         string // what was asked: "start upload", "send chunk", …
	Host       string // of the registry, its token server, or where it sends uploads
	Repository string
	Status     int           // of HTTP; 0 if there was no answer
	Code       string        // of the registry: "DENIED", "BLOB_UPLOAD_UNKNOWN", …
	Message    string        // of the registry
	RetryAfter time.Duration // as the registry asked
	Err        error         // below HTTP: time-out, reset, certificate, …

	permanent bool // trying again will not help
	elsewhere bool // Host is not the registry's own
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %v", e.Op, strings.TrimSuffix(e.Host+"/"+e.Repository, "/"), e.Kind)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (HTTP %d %s)", e.Status, http.StatusText(e.Status))
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	} else if e.Code != "" {
		fmt.Fprintf(&b, ": %s", e.Code)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// temporary reports whether the same request may succeed later.
func (e *Error) temporary() bool { return e.Kind == ErrUnavailable && !e.permanent }
