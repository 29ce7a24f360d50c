package unixsocket_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/unixsocket"
)

// dir is a directory whose path is short.
func dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := filepath.Join(dir(t), "socket")
	for _, mode := range []fs.FileMode{0o600, 0o660} {
		l, err := unixsocket.Listen(t.Context(), path, mode)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(path)
		if err != nil || fi.Mode() != fs.ModeSocket|mode {
			t.Errorf("the socket is %v, %v; want mode %v", fi.Mode(), err, mode)
		}
		if _, err := unixsocket.Listen(t.Context(), path, mode); !errors.Is(err, unixsocket.ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("a second one: %v, want ErrInUse", err)
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Errorf("the second one broke the first: %v", err)
		} else {
			c.Close()
		}
		// As a process that was killed leaves it.
		l.SetUnlinkOnClose(false)
		l.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		}
	}
	l, err := unixsocket.Listen(t.Context(), path, 0o600)
	if err != nil {
		t.Fatalf("in the place of a dead one: %v", err)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("closed, it leaves the socket: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := dir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		file:                                   "no socket",
		link:                                   "no socket",
		dir:                                    "no socket",
		"socket":                               "absolute",
		"@slipway":                             "absolute",
		"":                                     "absolute",
		dir + "/" + strings.Repeat("x", 100):   "may have 103",
		filepath.Join(dir, "nosuch", "socket"): "no such file",
		filepath.Join(file, "socket"):          "not a directory",
	} {
		if l, err := unixsocket.Listen(t.Context(), path, 0o600); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v; want an error that says %q", path, l, err, says)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}
