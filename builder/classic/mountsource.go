package classic

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
)

// mountWhat is how messages begin.
const mountWhat = "RUN --mount"

// A mountSource is what a mount shows or begins with: a path of the build
// context, or of a stage or image.
type mountSource struct {
	build *build
	path  string // absolute and clean, as written

	files *transfer // of the context, or
	tree  *node     // of a stage or image, or nothing at all

	mu   sync.Mutex
	hash string
}

// mountSource returns the source of a bind or a cache; nil for what begins
// empty.
func (s *stage) mountSource(ctx context.Context, st *step, m *instructions.Mount) (src *mountSource, err error) {
	bound := m.Type == instructions.MountTypeBind
	src = &mountSource{build: s.build, path: path.Join("/", m.Source)}
	switch {
	case m.From == "" && bound:
		return src, src.ofContext(ctx)
	case m.From == "scratch" && bound:
		src.tree = s.fromScratch(st)
	case m.From != "" && m.From != "scratch" && (bound || m.Type == instructions.MountTypeCache):
		src.tree, err = s.origin(ctx, st, m.From)
	default:
		return nil, nil
	}
	return src, err
}

// ofContext looks the path up in the build context.
func (m *mountSource) ofContext(ctx context.Context) error {
	files, err := m.build.files(ctx)
	if err != nil {
		return err
	}
	m.files = &transfer{what: mountWhat, from: files, context: true, dest: "/", patterns: []string{m.path}}
	return m.files.take(m.path, m.path)
}

// identity names what is shown: its content, or the stage's image and the path
// in it. Times do not count.
func (m *mountSource) identity(ctx context.Context) (string, error) {
	if m.tree != nil {
		if err := m.tree.wait(ctx); err != nil {
			return "", err
		}
		return m.tree.id.String() + " " + m.path, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hash == "" {
		hash, err := m.files.hash(ctx)
		if err != nil {
			return "", err
		}
		m.hash = hash
	}
	return m.hash, nil
}

// open returns the file or directory on the host, which must not be changed. It
// is there until the build ends.
func (m *mountSource) open(ctx context.Context) (string, error) {
	if m.files != nil {
		return m.openFiles(ctx)
	}
	dir, err := m.tree.mountTree(ctx)
	if err != nil {
		return "", err
	}
	tree := dirFS(dir)
	at, err := follow(tree, m.path, true)
	if err != nil {
		return "", err
	}
	if _, err := tree.lstat(at); errors.Is(err, fs.ErrNotExist) {
		return "", failure.Userf(failure.FileNotFound, "check what the stage or image has at that path",
			"RUN --mount failed: stat %s: file does not exist", m.path)
	} else if err != nil {
		return "", err
	}
	return filepath.Join(dir, at), nil
}

// openFiles has the contents sent and makes the files, once for the build.
func (m *mountSource) openFiles(ctx context.Context) (string, error) {
	hash, err := m.identity(ctx)
	if err != nil {
		return "", err
	}
	src := m.files.sources[0]
	dir, err := m.build.bound.get(src.name+" "+hash, func() (*layercache.Snapshot, error) { return m.fill(ctx) })
	if err != nil || src.file.isDir() {
		return dir, err
	}
	return filepath.Join(dir, src.name), nil
}

// fill makes the files in the directory of a new snapshot, where large ones can
// be linked.
func (m *mountSource) fill(ctx context.Context) (*layercache.Snapshot, error) {
	need, err := m.files.entries()
	if err != nil {
		return nil, err
	}
	if err := m.build.job.Session.Need(ctx, need); err != nil {
		return nil, err
	}
	d := newDraft(nil, layersTree(nil))
	if err := m.files.plan(d, 0, 0); err != nil {
		return nil, err
	}
	snap, err := m.build.job.Cache.Prepare(ctx, "")
	if err != nil {
		return nil, err
	}
	err = d.create(ctx, snap.Upper())
	if src := m.files.sources[0].file; err == nil && src.isDir() {
		err = os.Chmod(snap.Upper(), fs.FileMode(src.mode&0o777))
	}
	if err != nil {
		return nil, errors.Join(err, snap.Discard(context.WithoutCancel(ctx)))
	}
	return snap, nil
}

// boundFiles are the files of the context that steps have mounted.
type boundFiles struct {
	mu   sync.Mutex
	dirs map[string]*boundDir
}

type boundDir struct {
	making sync.Mutex
	snap   *layercache.Snapshot
}

// get returns the directory of a name, which fill makes the first time.
func (b *boundFiles) get(name string, fill func() (*layercache.Snapshot, error)) (string, error) {
	b.mu.Lock()
	d := b.dirs[name]
	if d == nil {
		if b.dirs == nil {
			b.dirs = map[string]*boundDir{}
		}
		d = &boundDir{}
		b.dirs[name] = d
	}
	b.mu.Unlock()

	d.making.Lock()
	defer d.making.Unlock()
	if d.snap == nil {
		snap, err := fill()
		if err != nil {
			return "", err
		}
		d.snap = snap
	}
	return d.snap.Upper(), nil
}

// close removes all of them.
func (b *boundFiles) close(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, d := range b.dirs {
		if d.snap != nil {
			errs = append(errs, d.snap.Discard(context.WithoutCancel(ctx)))
		}
	}
	b.dirs = nil
	return errors.Join(errs...)
}
