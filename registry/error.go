package registry

import (
	"errors"
	"fmt"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
)

var (
	// ErrUnauthorized is what an [Access] answers about a token that is no good.
	// The client is asked for another one.
	ErrUnauthorized = errors.New("authentication required")

	// ErrDenied is what an [Access] answers about a good token that does not
	// suffice. Asking again will not help.
	ErrDenied = errors.New("requested access to the resource is denied")

	// ErrTooMany is what an [Access] answers, as a [*TooManyError], to a client
	// that tried too many tokens that are no good.
	ErrTooMany = errors.New("too many failed logins")

	// ErrNotFound means that the repository has no such blob, manifest or tag.
	ErrNotFound = errors.New("not found in the registry")

	// ErrInvalid means a name, digest or manifest that the registry refuses.
	ErrInvalid = errors.New("refused by the registry")

	// ErrMismatch means content that is not what its descriptor says.
	ErrMismatch = errors.New("content does not match its descriptor")

	// ErrTooLarge means a manifest of more than [MaxManifest] bytes.
	ErrTooLarge = errors.New("manifest too large")
)

// A MissingError says which blobs or manifests a manifest refers to that its
// repository does not have. It wraps [ErrInvalid].
type MissingError struct{ Digests []digest.Digest }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%v: the repository lacks what it refers to: %v", ErrInvalid, e.Digests)
}

func (e *MissingError) Unwrap() error { return ErrInvalid }

// refused turns what the manifest service answers into our errors.
func refused(err error) error {
	var why distribution.ErrManifestVerification
	if !errors.As(err, &why) {
		return err
	}
	missing := new(MissingError)
	for _, w := range why {
		var unknown distribution.ErrManifestBlobUnknown
		if errors.As(w, &unknown) {
			missing.Digests = append(missing.Digests, unknown.Digest)
		}
	}
	if len(missing.Digests) > 0 {
		return missing
	}
	return fmt.Errorf("%w: %v", ErrInvalid, err)
}

func isNotFound(err error) bool {
	var (
		path       driver.PathNotFoundError
		revision   distribution.ErrManifestUnknownRevision
		tag        distribution.ErrTagUnknown
		repository distribution.ErrRepositoryUnknown
	)
	return errors.Is(err, distribution.ErrBlobUnknown) || errors.As(err, &path) ||
		errors.As(err, &revision) || errors.As(err, &tag) || errors.As(err, &repository)
}
