package layercache

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// ErrNotFound says that the cache does not have it, or no longer has it whole.
var ErrNotFound = errors.New("not in the cache")

// ErrDigest says that bytes are not those that their digest promised.
var ErrDigest = errors.New("content does not match its digest")

// ErrAborted is what readers of a blob get when its writer gave no cause.
var ErrAborted = errors.New("blob was not finished")

// A DigestError says which digest was promised and which arrived. It wraps
// [ErrDigest].
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("%v: want %s, got %s", ErrDigest, e.Want, e.Got)
}

func (e *DigestError) Unwrap() error { return ErrDigest }

// A TooLargeError says that a blob is larger than its reader allows.
type TooLargeError struct {
	Digest    digest.Digest
	Size, Max int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("blob %s: %d bytes, at most %d are read", e.Digest, e.Size, e.Max)
}
