// Package imagefile reads images that lie on this machine, in an OCI layout or
// in an archive of "docker save", and presents their blobs as a build context:
// the daemon asks for those that it lacks. Read [Open] first.
package imagefile

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/buildctx"
)

// What stands before the colon of a name that is no registry's.
const (
	layoutPrefix  = "oci:"
	archivePrefix = "docker-archive:"
)

// ErrInvalid says that the files are not an image, or not a whole one.
var ErrInvalid = errors.New("invalid image")

// ErrName says that a name does not say which image is meant.
var ErrName = errors.New("no such image")

// An Error says what is wrong with an image's files and what to do. It wraps
// [ErrInvalid] or [ErrName].
type Error struct {
	Kind    error
	Message string
	Hint    string
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Kind }

func invalid(hint, format string, args ...any) error {
	return &Error{ErrInvalid, fmt.Sprintf(format, args...), hint}
}

func unknown(hint, format string, args ...any) error {
	return &Error{ErrName, fmt.Sprintf(format, args...), hint}
}

// Is reports whether a name given as image is one of files.
func Is(spec string) bool {
	return strings.HasPrefix(spec, layoutPrefix) || strings.HasPrefix(spec, archivePrefix)
}

// An Image is an image's files, open. It may be used concurrently until it is
// closed.
type Image struct {
	// Name is the name as it was given, then @ and the digest of the image's
	// manifest or index.
	Name string

	// Manifest lists the image's blobs: each is a file whose path is its
	// digest.
	Manifest *buildctx.Manifest

	blobs map[string]blob // by path
	close func() error
}

// A blob is something that can be opened again and again.
type blob struct {
	size int64
	open func() (io.ReadCloser, error)
}

// Open opens the image that spec names: "oci:DIR", "oci:DIR:NAME",
// "oci:DIR@DIGEST", "docker-archive:FILE" or "docker-archive:FILE:NAME". It
// reads manifests and configs, and of layers as little as it can. Errors are
// of type [*Error] or come from the file system.
func Open(ctx context.Context, spec string) (*Image, error) {
	if path, ok := strings.CutPrefix(spec, layoutPrefix); ok {
		return openLayout(spec, path)
	}
	if path, ok := strings.CutPrefix(spec, archivePrefix); ok {
		return openArchive(ctx, spec, path)
	}
	return nil, unknown("", "%s names no files", spec)
}

// Open implements [buildctx.Source].
func (i *Image) Open(e *buildctx.Entry) (io.ReadCloser, error) {
	b, ok := i.blobs[e.Path]
	if !ok {
		return nil, os.ErrNotExist
	}
	return b.open()
}

// Close lets go of the files.
func (i *Image) Close() error {
	if i.close == nil {
		return nil
	}
	return i.close()
}

// newImage lists blobs.
func newImage(name string, blobs map[digest.Digest]blob, close func() error) *Image {
	i := &Image{Name: name, Manifest: &buildctx.Manifest{}, blobs: map[string]blob{}, close: close}
	for d, b := range blobs {
		sum, err := hex.DecodeString(d.Encoded())
		if err != nil || len(sum) != 32 {
			continue // digests were checked before
		}
		i.blobs[d.String()] = b
		i.Manifest.Entries = append(i.Manifest.Entries, buildctx.Entry{
			Path: d.String(), Type: buildctx.TypeFile, Mode: 0o444, Size: b.size, Digest: [32]byte(sum),
		})
	}
	slices.SortFunc(i.Manifest.Entries, func(a, b buildctx.Entry) int { return strings.Compare(a.Path, b.Path) })
	return i
}

// inMemory returns a blob of raw.
func inMemory(raw []byte) blob {
	return blob{int64(len(raw)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
}

// maxJSON bounds manifests and configs.
const maxJSON = 8 << 20

// readAll reads a small file.
func readAll(what string, r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err == nil && len(raw) > maxJSON {
		err = invalid("", "%s has more than %d MB", what, maxJSON>>20)
	}
	return raw, err
}

// checkDigest accepts SHA-256 digests, of which paths may be made.
func checkDigest(what string, d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return invalid("make it again", "%s names %.80q, which is no SHA-256 digest", what, d)
	}
	return nil
}

// cutName splits "PATH:NAME" where the path exists. A path may hold colons.
func cutName(s string) (path, name string) {
	path = s
	for {
		if _, err := os.Stat(path); err == nil {
			return path, strings.TrimPrefix(s[len(path):], ":")
		}
		i := strings.LastIndexByte(path, ':')
		if i <= 0 {
			return s, ""
		}
		path = path[:i]
	}
}
