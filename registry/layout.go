package registry

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A layout knows where distribution keeps what, as its storage package
// documents it (registry/storage/paths.go), and what we keep beside it.
type layout struct{ root string }

// repositoryName is what distribution's router and its paths both accept.
var repositoryName = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)

func (l layout) v2() string           { return filepath.Join(l.root, "docker", "registry", "v2") }
func (l layout) repositories() string { return filepath.Join(l.v2(), "repositories") }
func (l layout) tmp() string          { return filepath.Join(l.root, "tmp") }
func (l layout) secret() string       { return filepath.Join(l.root, "upload.key") }

// blob is the file of a blob, whichever repositories have it.
func (l layout) blob(d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(l.v2(), "blobs", d.Algorithm().String(), hex[:2], hex, "data")
}

// link is the file that says that a repository has a blob. It holds the
// digest.
func (l layout) link(repository string, d digest.Digest) string {
	return filepath.Join(l.repositories(), filepath.FromSlash(repository), "_layers", d.Algorithm().String(), d.Encoded(), "link")
}

// prepare makes the directories of a registry, drops what an earlier process
// left half made, and returns the key that signs the state of uploads: it
// outlives the process so that uploads can.
func (l layout) prepare() (key string, err error) {
	if err := os.RemoveAll(l.tmp()); err != nil {
		return "", err
	}
	for _, dir := range []string{l.root, l.tmp()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	b, err := os.ReadFile(l.secret())
	if key = strings.TrimSpace(string(b)); err == nil && len(key) >= 32 {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key = newKey()
	tmp, err := l.write([]byte(key + "\n"))
	if err != nil {
		return "", err
	}
	return key, os.Rename(tmp, l.secret())
}

func newKey() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// write stores b durably in a temporary file, and returns its name.
func (l layout) write(b []byte) (string, error) {
	f, err := os.CreateTemp(l.tmp(), "write-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// supported refuses digests other than the one that distribution addresses
// content by.
func supported(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: %w", d, ErrInvalid)
	}
	return nil
}
