package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
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
func (l layout) tokenKey() string     { return filepath.Join(l.root, "token.key") }

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
	return key, l.replace(l.secret(), []byte(key+"\n"))
}

// signingKey returns the key that signs bearer tokens. It outlives the process
// so that pushes under way can go on; one that cannot be read is replaced,
// which costs clients a new bearer token.
func (l layout) signingKey() (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(l.tokenKey())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if key, ok := parseKey(b); ok {
		return key, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, l.replace(l.tokenKey(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func parseKey(b []byte) (*ecdsa.PrivateKey, bool) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, false
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ec, ok := key.(*ecdsa.PrivateKey)
	return ec, err == nil && ok && ec.Curve == elliptic.P256()
}

// replace makes b the content of the file at path, whole or not at all, for
// its owner only.
func (l layout) replace(path string, b []byte) error {
	tmp, err := l.write(b)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
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
