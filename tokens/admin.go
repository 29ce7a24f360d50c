package tokens

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// DefaultOrg is the org of the admin token, and of a daemon that has no other.
const DefaultOrg = "default"

// ErrExposed means that others than its owner can read a token's file.
var ErrExposed = errors.New("others can read this token")

// An Admin knows one token: the one that may do everything. It keeps the hash,
// not the value.
type Admin struct{ hash [sha256.Size]byte }

var _ Authenticator = (*Admin)(nil)

// AdminFile returns the admin token whose value is in the file at path. If
// there is no file it makes one, which only its owner can read, with a fresh
// value; a crash leaves the whole file or none, and of two that try at once,
// one makes it and both return the same token. A file that others can read is
// refused: the error wraps [ErrExposed].
func AdminFile(path string) (*Admin, error) {
	value, err := readAdmin(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = writeAdmin(path, New(Prefix(TypeAdmin))); err == nil || errors.Is(err, fs.ErrExist) {
			value, err = readAdmin(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("admin token: %w", err)
	}
	return &Admin{Hash(value)}, nil
}

// Authenticate implements [Authenticator]. It takes the same time for every
// wrong value.
func (a *Admin) Authenticate(_ context.Context, value string) (Principal, error) {
	if given := Hash(value); subtle.ConstantTimeCompare(given[:], a.hash[:]) != 1 {
		return Principal{}, ErrUnauthorized
	}
	return admin(), nil
}

// Principal returns whom the token of that ID stands for. The error wraps
// [ErrUnauthorized] unless it is the admin's.
func (a *Admin) Principal(_ context.Context, id string) (Principal, error) {
	if p := admin(); id == p.ID {
		return p, nil
	}
	return Principal{}, ErrUnauthorized
}

const adminName = "admin"

func admin() Principal {
	return Principal{
		ID:     adminName,
		Name:   adminName,
		User:   adminName,
		Role:   RoleAdmin,
		Org:    DefaultOrg,
		Type:   TypeAdmin,
		Scopes: Scopes(TypeAdmin),
	}
}

func readAdmin(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("%w: %s has mode %04o; run chmod 600 %s, or remove it to get a new token", ErrExposed, path, mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", err
	}
	value := strings.TrimSpace(string(b))
	typ, err := Check(value)
	if err == nil && typ != TypeAdmin {
		err = fmt.Errorf("it holds a %s", kindOf(typ).noun)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w; remove it to get a new token", path, err)
	}
	return value, nil
}

// writeAdmin makes the file at path, durable and complete at once. It is an
// error that wraps fs.ErrExist if there is one.
func writeAdmin(path, value string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp") // O_EXCL, mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // never replaces
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
