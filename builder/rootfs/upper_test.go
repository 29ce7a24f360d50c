package rootfs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
)

// Files that are written in the background make the same directory as files
// that are written one by one, times of directories included.
func TestUpperFiles(t *testing.T) {
	entries := []tar.Header{dir("a")}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprintf("a/f%03d", i)))
	}
	entries = append(entries, dir("a/sub"), file("a/sub/g"), tar.Header{Typeflag: tar.TypeLink, Name: "a/sub/h", Linkname: "a/f299"}, file("b"), dir("c"))
	for i := range entries {
		entries[i].ModTime = time.Unix(1_000_000_000+int64(i), 0)
		if entries[i].Typeflag == tar.TypeReg {
			entries[i].Size = int64(len(entries[i].Name))
		}
	}
	one, many := t.TempDir(), t.TempDir()
	for upper, background := range map[string]bool{one: false, many: true} {
		u, err := rootfs.OpenUpper(upper)
		must(t, err)
		for i := range entries {
			h := &entries[i]
			switch {
			case h.Typeflag != tar.TypeReg:
				must(t, u.Entry(h, nil))
			case background:
				must(t, u.File(h, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(h.Name)), nil }))
			default:
				must(t, u.Entry(h, strings.NewReader(h.Name)))
			}
		}
		must(t, u.Close())
	}
	if a, b := write(t, one), write(t, many); !bytes.Equal(a, b) {
		t.Errorf("in the background:\n%s\none by one:\n%s", list(t, b), list(t, a))
	}
}

// What fails in the background ends the work, and is the error.
func TestUpperFilesFail(t *testing.T) {
	boom := errors.New("boom")
	for name, open := range map[string]func() (io.ReadCloser, error){
		"open":  func() (io.ReadCloser, error) { return nil, boom },
		"short": func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil },
	} {
		t.Run(name, func(t *testing.T) {
			u, err := rootfs.OpenUpper(t.TempDir())
			must(t, err)
			h := file("f")
			h.Size = 2
			must(t, u.File(&h, open))
			err = u.Close()
			if want := map[string]error{"open": boom, "short": rootfs.ErrLayer}[name]; !errors.Is(err, want) {
				t.Errorf("Close: %v, want %v", err, want)
			}
		})
	}
}

// linkable is content that is in a file: the first who asks gets a link.
type linkable struct {
	io.Reader
	path  string
	taken *bool
}

func (l linkable) Close() error   { return nil }
func (l linkable) Linkable() bool { return true }

func (l linkable) Link(dir int, name string) (bool, error) {
	if *l.taken {
		return false, nil
	}
	*l.taken = true
	return true, unix.Linkat(unix.AT_FDCWD, l.path, dir, name, 0)
}

// A linked file is what its entry says, whatever the file was before, and a
// copy of the same content cannot be told from it.
func TestUpperLinks(t *testing.T) {
	content := filepath.Join(t.TempDir(), "content")
	must(t, os.WriteFile(content, []byte("data"), 0o444))
	must(t, os.Chown(content, 7, 8))
	must(t, unix.Setxattr(content, "user.old", []byte("x"), 0))
	taken := false
	var seen []syscall.Stat_t
	for range 2 {
		upper := filepath.Join(t.TempDir(), "fs")
		must(t, os.Mkdir(upper, 0o755))
		u, err := rootfs.OpenUpper(upper)
		must(t, err)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o4755, Size: 4, ModTime: time.Unix(1e9, 0)}
		must(t, u.File(h, func() (io.ReadCloser, error) { return linkable{strings.NewReader("data"), content, &taken}, nil }))
		must(t, u.Close())
		var st syscall.Stat_t
		must(t, syscall.Lstat(filepath.Join(upper, "f"), &st))
		if st.Mode&0o7777 != 0o4755 || st.Uid != 0 || st.Gid != 0 || st.Mtim.Sec != 1e9 || st.Size != 4 {
			t.Errorf("file is %+v", st)
		}
		if n, err := unix.Listxattr(filepath.Join(upper, "f"), nil); err != nil || n != 0 {
			t.Errorf("%d bytes of attributes, %v", n, err)
		}
		seen = append(seen, st)
	}
	if seen[0].Ino == seen[1].Ino {
		t.Error("two files share an inode")
	}
	if seen[0].Nlink != seen[1].Nlink {
		t.Errorf("%d and %d links tell a linked file from a copied one", seen[0].Nlink, seen[1].Nlink)
	}
}
