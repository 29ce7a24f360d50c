// Package unixsocket listens on Unix sockets that others may not reach before
// their mode says so, in the place of sockets that nobody listens on any more.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrInUse means that somebody listens on a socket already.
var ErrInUse = errors.New("in use")

// maxPath is how long the path of a socket may be on every system.
const maxPath = 103

// Listen listens on a socket at path, which has the mode from its first moment
// (on Windows its directory's permissions count). A socket that a dead process
// left there is replaced; the error wraps [ErrInUse] if the process lives, and
// anything else at path is left alone. Closing the listener removes the socket.
// It changes the process's umask for a moment: call it before other goroutines
// make files.
func Listen(ctx context.Context, path string, mode fs.FileMode) (*net.UnixListener, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %s: want an absolute path", path)
	}
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, and sockets may have %d", path, len(path), maxPath)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := listen(&net.UnixAddr{Name: path, Net: "unix"}, mode)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, inUse(path)
	}
	return l, err
}

// removeStale removes a socket that nobody listens on.
func removeStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket; name another path, or remove it", path)
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return inUse(path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("socket %s is there, and nobody can tell whether it is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func inUse(path string) error {
	return fmt.Errorf("socket %s is %w: another process listens there", path, ErrInUse)
}
