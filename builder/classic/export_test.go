package classic

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// What tests need of the parts.
var (
	ParsePorts   = parsePorts
	Destination  = destination
	HasWildcards = hasWildcards
	ComparePaths = comparePaths
	Sum          = sum
	WithPath     = withPath
	CheckAddress = checkAddress
	EncodeFiles  = encodeFiles
	DecodeFiles  = decodeFiles
)

// StartsArchive reports whether ADD would unpack r.
func StartsArchive(r io.Reader) bool {
	is, err := startsArchive(r)
	return is && err == nil
}

// Parsed is a Dockerfile as the pipeline sees it before anything runs.
type Parsed struct {
	Needed []string // stages, by name or index
	Steps  []string // sources of their steps
}

// Parse reads a Dockerfile and chooses stages, without images.
func Parse(content []byte, target string, args map[string]string) (Parsed, error) {
	job := &builder.Job{Request: builder.Request{Start: &slipwayv1.Start{Target: target, BuildArgs: args}}}
	job.Platform.OS, job.Platform.Architecture = "linux", "amd64"
	file, err := parse("Dockerfile", content)
	if err != nil {
		return Parsed{}, err
	}
	b := &build{Pipeline: New(Options{}), job: job, file: file}
	if err := b.selectStages(); err != nil {
		return Parsed{}, err
	}
	b.number()
	var out Parsed
	for i, s := range b.stages {
		if !s.needed {
			continue
		}
		out.Needed = append(out.Needed, b.stageNames()[i])
		for _, st := range s.steps {
			if st.id == 0 || st.number > 1 && st.cmd == nil {
				return Parsed{}, errors.New("step without a number or a command")
			}
			out.Steps = append(out.Steps, st.source)
		}
	}
	return out, nil
}

// A Scope holds a stage's ARGs.
type Scope struct{ s *scope }

// NewScope returns a scope with build args and ARGs from before FROM.
func NewScope(given, meta map[string]string) Scope {
	job := &builder.Job{Request: builder.Request{Start: &slipwayv1.Start{BuildArgs: given}}}
	return Scope{newScope(&build{job: job, meta: meta})}
}

func (s Scope) Declare(name string, def *string) { s.s.declare(name, def) }

// Values are what RUN sees; Recorded the part of it in keys and history.
func (s Scope) Values(env ...string) (values, recorded []string) {
	v := s.s.values(env)
	return pairs(v), pairs(s.s.recorded(v))
}

// A MemoryTree is a tree of nothing but names, by path: "d" for a directory,
// "d+s" for one that hands its group on, "->x" for a link, "cap" for a file with
// capabilities, anything else for a file.
type MemoryTree map[string]string

func (m MemoryTree) lstat(p string) (*file, error) {
	what, ok := m[p]
	if p == "/" {
		return &root, nil
	}
	if !ok {
		return nil, fs.ErrNotExist
	}
	f := &file{path: p, typ: tar.TypeReg, mode: 0o644, size: int64(len(what)), mtime: time.Unix(1, 0)}
	if link, ok := strings.CutPrefix(what, "->"); ok {
		f.typ, f.link, f.mode, f.size = tar.TypeSymlink, link, 0o777, 0
	}
	if what == "d" {
		f.typ, f.mode, f.size = tar.TypeDir, 0o700, 0
	}
	if what == "d+s" {
		f.typ, f.mode, f.size = tar.TypeDir, 0o2775, 0
	}
	if what == "cap" {
		f.xattrs = map[string]string{capability: "c"}
	}
	if inode, ok := strings.CutPrefix(what, "inode "); ok {
		f.inode = inode
	}
	return f, nil
}

func (m MemoryTree) list(dir string) ([]*file, error) {
	var out []*file
	for _, p := range slices.Sorted(maps.Keys(m)) {
		if p == "/" || path.Dir(p) != dir {
			continue
		}
		f, err := m.lstat(p)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func (m MemoryTree) open(_ context.Context, f *file) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(m[f.path])), nil
}

func (m MemoryTree) hash(_ context.Context, f *file) (string, error) { return sum(m[f.path]), nil }

// Relocate writes an archive's entries below dest, where the tree has what m has.
func (m MemoryTree) Relocate(w io.Writer, r *tar.Reader, dest string) error {
	return relocateInto(m, marks{})(w, r, dest)
}

// Follow resolves links in p, scoped to the tree.
func (m MemoryTree) Follow(p string, last bool) (string, error) { return follow(m, p, last) }

// A Copy is a COPY over memory trees.
type Copy struct {
	From     MemoryTree
	Patterns []string
	Dest     string
	UID, GID int // -1 keeps owners
}

func (c Copy) transfer() (*transfer, error) {
	t := &transfer{what: "COPY", from: c.From, context: true, dest: c.Dest}
	return t, t.choose(c.Patterns)
}

// Hash is that of history and key.
func (c Copy) Hash() (string, error) {
	t, err := c.transfer()
	if err != nil {
		return "", err
	}
	return t.hash(context.Background())
}

// Over writes the layer that the copy makes over a tree.
func (c Copy) Over(below MemoryTree, put func(*tar.Header, io.Reader) error) error {
	t, err := c.transfer()
	if err != nil {
		return err
	}
	d := newDraft(nil, below)
	if err := t.plan(d, c.UID, c.GID); err != nil {
		return err
	}
	return d.write(context.Background(), put)
}

// Workdir writes the layer that WORKDIR makes over a tree.
func Workdir(below MemoryTree, dir string, put func(*tar.Header, io.Reader) error) error {
	d := newDraft(nil, below)
	if err := d.workdir(dir); err != nil {
		return err
	}
	return d.write(context.Background(), put)
}

// LowerStat says what overlay directories, topmost first, show at p.
func LowerStat(dirs []string, p string) (typ byte, err error) {
	f, err := layersTree(dirs).lstat(p)
	if err != nil {
		return 0, err
	}
	return f.typ, nil
}

// RunArgs is what a RUN instruction executes.
func RunArgs(text string) ([]string, error) {
	f, err := parse("Dockerfile", []byte("FROM x\n"+text))
	if err != nil {
		return nil, err
	}
	return runArgs([]string{"/bin/sh", "-c"}, f.stages[0].Commands[0].(*instructions.RunCommand)), nil
}
