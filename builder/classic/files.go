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
	"slices"
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
	// children names what a directory holds, sorted.
	children(path string) ([]string, error)
	// open returns a regular file's content.
	open(ctx context.Context, f *file) (io.ReadCloser, error)
	// hash returns the hex SHA-256 of a regular file's content.
	hash(ctx context.Context, f *file) (string, error)
}

// manifestFS is the build context, of which the manifest is enough to plan.
type manifestFS struct {
	job   *builder.Job
	files map[string]*file
	names map[string][]string // by directory
}

var entryTypes = map[buildctx.Type]byte{
	buildctx.TypeFile: tar.TypeReg, buildctx.TypeDirectory: tar.TypeDir, buildctx.TypeSymlink: tar.TypeSymlink,
	buildctx.TypeHardlink: tar.TypeReg, buildctx.TypeFIFO: tar.TypeFifo,
}

func newManifestFS(m *buildctx.Manifest, job *builder.Job) *manifestFS {
	out := &manifestFS{job: job, files: map[string]*file{"/": &root}, names: map[string][]string{}}
	for i := range m.Entries {
		out.add(i, &m.Entries[i])
	}
	for _, names := range out.names {
		slices.Sort(names)
	}
	return out
}

func (m *manifestFS) add(i int, e *buildctx.Entry) {
	f := &file{
		path: "/" + e.Path, typ: entryTypes[e.Type], mode: int64(e.Mode), size: e.Size, link: e.Link,
		mtime: time.Unix(0, e.ModTime), sha256: hexDigest(e), entry: i,
	}
	if len(e.Xattrs) > 0 {
		f.xattrs = map[string]string{}
		for k, v := range e.Xattrs {
			f.xattrs[k] = string(v)
		}
	}
	if e.Type == buildctx.TypeHardlink {
		first := m.files["/"+e.Link]
		first.inode = "first:" + first.path
		f.size, f.sha256, f.entry, f.inode, f.link = first.size, first.sha256, first.entry, first.inode, ""
		f.mode, f.mtime, f.xattrs = first.mode, first.mtime, first.xattrs
	}
	m.files[f.path] = f
	dir := path.Dir(f.path)
	m.names[dir] = append(m.names[dir], path.Base(f.path))
}

func hexDigest(e *buildctx.Entry) string {
	if e.Type != buildctx.TypeFile {
		return ""
	}
	return e.Content().Encoded()
}

func (m *manifestFS) lstat(p string) (*file, error) {
	if f, ok := m.files[p]; ok {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (m *manifestFS) children(p string) ([]string, error) { return m.names[p], nil }

func (m *manifestFS) hash(_ context.Context, f *file) (string, error) { return f.sha256, nil }

func (m *manifestFS) open(ctx context.Context, f *file) (io.ReadCloser, error) {
	return m.job.Cache.Contents().Open(ctx, digest.NewDigestFromEncoded(digest.SHA256, f.sha256))
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

func (d dirFS) children(p string) ([]string, error) {
	list, err := os.ReadDir(filepath.Join(string(d), p))
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names, err
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
