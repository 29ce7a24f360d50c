package classic

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder"
)

// A sourceFS is a tree that files are copied from.
type sourceFS interface {
	tree
	// list returns what a directory holds, by name.
	list(path string) ([]*file, error)
	// open returns a regular file's content.
	open(ctx context.Context, f *file) (io.ReadCloser, error)
	// hash returns the hex SHA-256 of a regular file's content.
	hash(ctx context.Context, f *file) (string, error)
}

// manifestFS is the build context, of which the manifest is enough to plan.
// Its files are made as they are asked for: a context may have very many.
type manifestFS struct {
	*buildctx.Manifest
	job   *builder.Job
	first map[int]bool // entries that have further names
}

var entryTypes = map[buildctx.Type]byte{
	buildctx.TypeFile: tar.TypeReg, buildctx.TypeDirectory: tar.TypeDir, buildctx.TypeSymlink: tar.TypeSymlink,
	buildctx.TypeHardlink: tar.TypeReg, buildctx.TypeFIFO: tar.TypeFifo,
}

func newManifestFS(m *buildctx.Manifest, job *builder.Job) *manifestFS {
	out := &manifestFS{Manifest: m, job: job, first: map[int]bool{}}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Type == buildctx.TypeHardlink {
			at, _ := m.Find(e.Link) // the manifest was checked
			out.first[at] = true
		}
	}
	return out
}

// file describes an entry. A further name is described as the file itself.
func (m *manifestFS) file(i int) *file {
	e := &m.Entries[i]
	p := "/" + e.Path
	if e.Type == buildctx.TypeHardlink {
		i, _ = m.Find(e.Link)
		e = &m.Entries[i]
	}
	f := &file{
		path: p, typ: entryTypes[e.Type], mode: int64(e.Mode), size: e.Size, link: e.Link, mtime: time.Unix(0, e.ModTime), entry: i,
	}
	if m.first[i] {
		f.inode = "first:/" + e.Path
	}
	if len(e.Xattrs) > 0 {
		f.xattrs = map[string]string{}
		for k, v := range e.Xattrs {
			f.xattrs[k] = string(v)
		}
	}
	return f
}

func (m *manifestFS) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	i, ok := m.Find(p[1:])
	if !ok {
		return nil, fs.ErrNotExist
	}
	return m.file(i), nil
}

func (m *manifestFS) list(p string) ([]*file, error) {
	var out []*file
	for i, end := m.Below(p[1:]); i < end; {
		out = append(out, m.file(i))
		if m.Entries[i].Type == buildctx.TypeDirectory {
			_, i = m.Below(m.Entries[i].Path)
		} else {
			i++
		}
	}
	return out, nil
}

func (m *manifestFS) hash(_ context.Context, f *file) (string, error) {
	return m.Entries[f.entry].Content().Encoded(), nil
}

// open returns a content; one that has not arrived is waited for.
func (m *manifestFS) open(ctx context.Context, f *file) (io.ReadCloser, error) {
	store, content := m.job.Cache.Contents(), m.Entries[f.entry].Content()
	r, err := store.Open(ctx, content)
	if missing(err) {
		if err := m.job.Session.Need(ctx, []int{f.entry}); err != nil {
			return nil, err
		}
		r, err = store.Open(ctx, content)
	}
	if err != nil {
		return nil, err // not a nil *Content
	}
	return r, nil
}

// dirFS is a mounted root file system.
type dirFS string

func (d dirFS) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	host := filepath.Join(string(d), p)
	var st syscall.Stat_t
	if err := syscall.Lstat(host, &st); err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			err = fs.ErrNotExist
		}
		return nil, err
	}
	f, err := statFile(host, p, &st)
	if err != nil {
		return nil, err
	}
	f.xattrs, err = xattrsOf(host)
	return f, err
}

func (d dirFS) list(p string) ([]*file, error) {
	names, err := os.ReadDir(filepath.Join(string(d), p))
	out := make([]*file, 0, len(names))
	for _, e := range names {
		f, err := d.lstat(path.Join(p, e.Name()))
		if err != nil {
			return out, err
		}
		out = append(out, f)
	}
	return out, err
}

func (d dirFS) open(_ context.Context, f *file) (io.ReadCloser, error) {
	return os.OpenFile(filepath.Join(string(d), f.path), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
}

func (d dirFS) hash(ctx context.Context, f *file) (string, error) {
	r, err := d.open(ctx, f)
	if err != nil {
		return "", err
	}
	defer r.Close()
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(sum.Hash(), r); err != nil {
		return "", err
	}
	return sum.Digest().Encoded(), nil
}

func inodeName(st *syscall.Stat_t) string {
	return strconv.FormatUint(st.Dev, 36) + ":" + strconv.FormatUint(st.Ino, 36)
}

// capability is the attribute that a copy keeps; it drops all others.
const capability = "security.capability"

// xattrsOf reads the attributes that a copy keeps.
func xattrsOf(host string) (map[string]string, error) {
	size, err := unix.Llistxattr(host, nil)
	if err != nil || size == 0 {
		return nil, ignoreUnsupported(err)
	}
	buf := make([]byte, size)
	if size, err = unix.Llistxattr(host, buf); err != nil {
		return nil, ignoreUnsupported(err)
	}
	var out map[string]string
	for _, name := range strings.Split(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		if name != capability {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(host, name, value)
		if err != nil {
			return nil, ignoreUnsupported(err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}
