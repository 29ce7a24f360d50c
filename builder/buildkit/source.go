package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"archive/tar"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/local"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/slipwayhq/slipway/buildctx"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/rescue"
)

// Names by which a Dockerfile's frontend asks for its files.
const (
	localContext    = "context"
	localDockerfile = "dockerfile"
)

// A contextSource is BuildKit's source of local files. Those of a deploy are
// in its manifest and in the cache; others come from their client's session.
type contextSource struct {
	source.Source
	tenant *tenant
}

// Resolve implements BuildKit's source.
func (s *contextSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	stock, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	local, ok := id.(*local.LocalIdentifier)
	if !ok {
		return nil, fmt.Errorf("%s is no local source", id.Scheme())
	}
	return &contextInstance{SourceInstance: stock, id: local, tenant: s.tenant}, nil
}

type contextInstance struct {
	source.SourceInstance
	id     *local.LocalIdentifier
	tenant *tenant
}

// view returns the deploy whose files are asked for, nil if it is none.
func (i *contextInstance) view(job solver.JobContext) *view {
	ids := []string{i.id.SessionID}
	if i.id.SessionID == "" {
		ids = session.AllSessionIDs(job.Session())
	}
	for _, id := range ids {
		if b := i.tenant.builds.get(id); b != nil && b.view != nil {
			return b.view
		}
	}
	return nil
}

// CacheKey implements BuildKit's source: what the files are, and nothing of
// when and by whom they were sent.
func (i *contextInstance) CacheKey(ctx context.Context, job solver.JobContext, index int) (string, string, solver.CacheOpts, bool, error) {
	v := i.view(job)
	if v == nil {
		return i.SourceInstance.CacheKey(ctx, job, index)
	}
	sel, err := v.selection(ctx, i.id)
	if err != nil {
		return "", "", nil, false, err
	}
	key := "slipway:" + i.id.Name + ":" + sel.digest.String()
	return key, sel.digest.String(), nil, true, nil
}

// Snapshot implements BuildKit's source: it writes the files.
func (i *contextInstance) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	v := i.view(job)
	if v == nil {
		return i.SourceInstance.Snapshot(ctx, job)
	}
	sel, err := v.selection(ctx, i.id)
	if err != nil {
		return nil, err
	}
	ref, err := v.write(ctx, i.id.Name, sel)
	if err != nil {
		return nil, v.build.fail(failure.At(err, failure.Context, 0))
	}
	return ref, nil
}

// A view is a deploy's context as BuildKit asks for it: whole, or the paths
// that some steps need.
type view struct {
	build *build

	mu   sync.Mutex
	made map[string]*selection
}

// A selection is some of a context's entries, sorted by path, directories
// before what they hold.
type selection struct {
	entries []selected
	digest  digest.Digest
}

// A selected entry is one of the manifest, or the Dockerfile.
type selected struct {
	*buildctx.Entry
	index int    // in the manifest; -1 if it is not from there
	data  []byte // of one that is not
}

// selection returns what an identifier asks for.
func (v *view) selection(ctx context.Context, id *local.LocalIdentifier) (*selection, error) {
	key := fmt.Sprintf("%q %q %q %q", id.Name, id.IncludePatterns, id.ExcludePatterns, id.FollowPaths)
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.made[key]; s != nil {
		return s, nil
	}
	fs, err := v.fs(ctx, id.Name)
	if err != nil {
		return nil, err
	}
	s, err := fs.choose(ctx, &fsutil.FilterOpt{
		IncludePatterns: id.IncludePatterns, ExcludePatterns: id.ExcludePatterns, FollowPaths: id.FollowPaths,
	})
	if err != nil {
		return nil, err
	}
	if v.made == nil {
		v.made = map[string]*selection{}
	}
	v.made[key] = s
	return s, nil
}

// fs returns all files of a name.
func (v *view) fs(ctx context.Context, name string) (*manifestFS, error) {
	switch name {
	case localDockerfile:
		file := v.build.job.GetDockerfile()
		data := file.GetContent()
		e := &buildctx.Entry{Path: dockerfileName(file), Type: buildctx.TypeFile, Mode: 0o644, Size: int64(len(data)), Digest: sha256.Sum256(data)}
		// The client has applied the ignore file. An ignore file of the Dockerfile's
		// own, with no pattern in it, keeps the frontend from doing so again.
		none := []byte("# applied already\n")
		i := &buildctx.Entry{Path: e.Path + ".dockerignore", Type: buildctx.TypeFile, Mode: 0o644, Size: int64(len(none)), Digest: sha256.Sum256(none)}
		return newManifestFS([]selected{{Entry: e, index: -1, data: data}, {Entry: i, index: -1, data: none}}), nil
	case localContext:
		m, err := v.build.job.Session.Manifest(ctx)
		if err != nil {
			return nil, v.build.fail(failure.At(err, failure.Context, 0))
		}
		all := make([]selected, len(m.Entries))
		for i := range m.Entries {
			all[i] = selected{Entry: &m.Entries[i], index: i}
		}
		return newManifestFS(all), nil
	}
	return nil, fmt.Errorf("there is no local source %q", name)
}

// A manifestFS shows a manifest's entries as a tree, for fsutil to select
// from.
type manifestFS struct {
	all    []selected // sorted as fsutil walks
	byPath map[string]int
}

func newManifestFS(all []selected) *manifestFS {
	all = slices.Clone(all)
	sort.Slice(all, func(i, j int) bool { return walksBefore(all[i].Path, all[j].Path) })
	f := &manifestFS{all: all, byPath: make(map[string]int, len(all))}
	for i, e := range all {
		f.byPath[e.Path] = i
	}
	return f
}

// walksBefore is the order of a walk: name by name.
func walksBefore(a, b string) bool {
	return strings.ReplaceAll(a, "/", "\x00") < strings.ReplaceAll(b, "/", "\x00")
}

// Walk implements fsutil.FS.
func (f *manifestFS) Walk(ctx context.Context, target string, fn iofs.WalkDirFunc) error {
	target = strings.Trim(path.Clean("/"+target), "/")
	skip := ""
	for i := f.first(target); i < len(f.all); i++ {
		e := f.all[i]
		if !within(e.Path, target) {
			break
		}
		if skip != "" && within(e.Path, skip) {
			continue
		}
		skip = ""
		err := fn(e.Path, &fsutil.DirEntryInfo{Stat: e.stat()}, nil)
		switch {
		case errors.Is(err, iofs.SkipAll):
			return nil
		case errors.Is(err, iofs.SkipDir):
			if skip = e.Path; e.Type != buildctx.TypeDirectory {
				skip = path.Dir(e.Path)
			}
			if skip == "." {
				return nil
			}
		case err != nil:
			return err
		}
	}
	return context.Cause(ctx)
}

func (f *manifestFS) first(target string) int {
	if target == "" {
		return 0
	}
	if i, ok := f.byPath[target]; ok {
		return i
	}
	return len(f.all)
}

// within reports whether a path is dir or below it.
func within(p, dir string) bool { return dir == "" || p == dir || strings.HasPrefix(p, dir+"/") }

// Open implements fsutil.FS. Selecting reads no file.
func (f *manifestFS) Open(p string) (io.ReadCloser, error) {
	return nil, &os.PathError{Op: "open", Path: p, Err: errors.ErrUnsupported}
}

// stat is the entry as fsutil has it.
func (e *selected) stat() *fstypes.Stat {
	s := &fstypes.Stat{Path: e.Path, Mode: e.Mode & 0o777, Size: e.Size, ModTime: e.ModTime, Linkname: e.Link, Xattrs: e.Xattrs}
	for bit, mode := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if e.Mode&bit != 0 {
			s.Mode |= uint32(mode)
		}
	}
	switch e.Type {
	case buildctx.TypeDirectory:
		s.Mode |= uint32(os.ModeDir)
	case buildctx.TypeSymlink:
		s.Mode |= uint32(os.ModeSymlink)
	case buildctx.TypeFIFO:
		s.Mode |= uint32(os.ModeNamedPipe)
	}
	return s
}

// choose returns the entries that a filter leaves.
func (f *manifestFS) choose(ctx context.Context, o *fsutil.FilterOpt) (*selection, error) {
	filtered, err := fsutil.NewFilterFS(f, o)
	if err != nil {
		return nil, err
	}
	s := &selection{}
	sum := sha256.New()
	err = filtered.Walk(ctx, "", func(p string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, ok := f.byPath[p]
		if !ok {
			return fmt.Errorf("%s: %w", p, iofs.ErrNotExist)
		}
		s.entries = append(s.entries, f.all[i])
		id := f.all[i].identity()
		sum.Write(id[:])
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.digest = digest.NewDigest(digest.SHA256, sum)
	return s, nil
}

// identity is a digest of all that decides what an entry is: not its time.
func (e *selected) identity() [sha256.Size]byte {
	h := sha256.New()
	field := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	field([]byte(e.Path))
	content := e.properties()
	field(content[:])
	return [sha256.Size]byte(h.Sum(nil))
}

// properties is identity without the path.
func (e *selected) properties() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "slipway context entry 1\n%d %o %d %q %x\n", e.Type, e.Mode, e.Size, e.Link, e.Digest)
	names := make([]string, 0, len(e.Xattrs))
	for n := range e.Xattrs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(h, "%q %x\n", n, e.Xattrs[n])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// write makes a file system of a selection. The contents that the cache lacks
// are asked for first.
func (v *view) write(ctx context.Context, name string, s *selection) (_ cache.ImmutableRef, err error) {
	records := v.build.tenant.worker.Worker.CacheManager()
	ref, err := records.New(ctx, nil, nil, cache.WithRecordType(client.UsageRecordTypeLocalSource), cache.WithDescription("context of "+v.build.app))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = ref.Release(context.WithoutCancel(ctx))
		}
	}()
	if err := v.fill(ctx, ref, s); err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	done, err := ref.Commit(ctx)
	if err != nil {
		return nil, err
	}
	v.build.tenant.worker.note(ctx, done, v.build.app)
	if err := done.SetString(contextKey, name, ""); err != nil { // it is copied then, not linked
		v.build.tenant.engine.log.WarnContext(ctx, "note whose context a BuildKit record is", "err", err)
	}
	return done, nil
}

// part is how much of a selection is asked for at a time: what has come is
// written while the next comes.
const part = 64 << 20

// parts splits a selection, in its order.
func (s *selection) parts() [][]selected {
	var out [][]selected
	var size int64
	begin := 0
	for i, e := range s.entries {
		if size += e.Size + 4096; size >= part {
			out = append(out, s.entries[begin:i+1])
			begin, size = i+1, 0
		}
	}
	return append(out, s.entries[begin:])
}

// arrive asks for all parts of a selection, and returns what waits for one.
func (v *view) arrive(ctx context.Context, parts [][]selected) (wait func(i int) error, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	groups := make([][]int, len(parts))
	for i, p := range parts {
		groups[i] = files(p)
	}
	var asking sync.WaitGroup
	asking.Go(func() {
		if err := rescue.Run(func() error { return v.build.job.Session.Need(ctx, groups...) }); err != nil {
			cancel(err)
		}
	})
	wait = func(i int) error {
		if len(groups[i]) == 0 {
			return nil
		}
		err := v.build.job.Session.Need(ctx, groups[i])
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		return err
	}
	return wait, func() { cancel(nil); asking.Wait() }
}

// files are the indices of those entries that have contents to come.
func files(entries []selected) []int {
	var out []int
	for _, e := range entries {
		if e.index >= 0 && e.Type == buildctx.TypeFile {
			out = append(out, e.index)
		}
	}
	return out
}

func (v *view) fill(ctx context.Context, ref cache.MutableRef, s *selection) error {
	sums, err := contenthash.GetCacheContext(ctx, ref)
	if err != nil {
		return err
	}
	err = writeTo(ctx, ref, func(upper *rootfs.Upper) error { return v.writeParts(upper, sums, s.parts()) }, nil)
	if err != nil {
		return err
	}
	return contenthash.SetCacheContext(ctx, ref, sums)
}

// writeTo writes the files of a file system that has none yet. After, which may
// be nil, is for what is left to do when all are there.
func writeTo(ctx context.Context, ref cache.MutableRef, write func(*rootfs.Upper) error, after func(dir string) error) (err error) {
	m, err := ref.Mount(ctx, false, nil)
	if err != nil {
		return err
	}
	mounter := snapshot.LocalMounter(m)
	dir, err := mounter.Mount()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounter.Unmount()) }()
	upper, err := rootfs.OpenUpper(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(write(upper), upper.Close()); err != nil || after == nil {
		return err
	}
	return after(dir)
}

// writeParts writes entries as their contents come.
func (v *view) writeParts(upper *rootfs.Upper, sums contenthash.CacheContext, parts [][]selected) error {
	wait, stop := v.arrive(v.build.ctx, parts)
	defer stop()
	for i, p := range parts {
		if err := wait(i); err != nil {
			return err
		}
		for _, e := range p {
			if err := v.writeEntry(upper, e); err != nil {
				return err
			}
			if err := sums.HandleChange(fsutil.ChangeKindAdd, e.Path, &known{Stat: e.stat(), properties: e.properties()}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *view) writeEntry(upper *rootfs.Upper, e selected) error {
	h := e.header()
	switch {
	case e.Type != buildctx.TypeFile:
		return upper.Entry(h, nil)
	case e.index < 0:
		return upper.Entry(h, strings.NewReader(string(e.data)))
	}
	return upper.File(h, func() (io.ReadCloser, error) {
		return v.build.tenant.cache.Contents().Open(v.build.ctx, e.Content())
	})
}

// header is the entry as a tar has it.
func (e *selected) header() *tar.Header {
	h := &tar.Header{Name: e.Path, Mode: int64(e.Mode), Size: e.Size, ModTime: time.Unix(0, e.ModTime), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	switch e.Type {
	case buildctx.TypeDirectory:
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
	case buildctx.TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case buildctx.TypeHardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, e.Link
	case buildctx.TypeFIFO:
		h.Typeflag = tar.TypeFifo
	}
	for name, value := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value)
	}
	return h
}

// A known entry is one whose digest, as BuildKit's content hashes want it, is
// known without reading it.
type known struct {
	*fstypes.Stat
	properties [sha256.Size]byte
}

// Digest implements fsutil.Hashed.
func (k *known) Digest() digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, k.properties[:])
}

// Name and the rest implement os.FileInfo.
func (k *known) Name() string       { return path.Base(k.Path) }
func (k *known) Size() int64        { return k.Stat.Size }
func (k *known) Mode() os.FileMode  { return os.FileMode(k.Stat.Mode) }
func (k *known) ModTime() time.Time { return time.Unix(0, k.Stat.ModTime) }
func (k *known) IsDir() bool        { return k.Mode().IsDir() }
func (k *known) Sys() any           { return k.Stat }
