package buildkit

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/overlay"
	buildkit "github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// An idleStep is a vertex and its job.
type idleStep struct {
	solver.Vertex
	solver.JobContext
}

func (idleStep) Digest() digest.Digest         { return digest.FromString("step") }
func (idleStep) Options() solver.VertexOptions { return solver.VertexOptions{} }
func (idleStep) Name() string                  { return "step" }
func (idleStep) Inputs() []solver.Edge         { return nil }
func (idleStep) Session() session.Group        { return nil }

// A lab runs steps on a worker.
type lab struct {
	*testing.T
	w *worker
}

// tree makes a record whose files fill writes.
func (l *lab) tree(parent cache.ImmutableRef, fill func(dir string)) cache.ImmutableRef {
	l.Helper()
	ref, err := l.w.Worker.CacheManager().New(l.Context(), parent, nil)
	fatal(l.T, err)
	m, err := ref.Mount(l.Context(), false, nil)
	fatal(l.T, err)
	mounter := snapshot.LocalMounter(m)
	dir, err := mounter.Mount()
	fatal(l.T, err)
	fill(dir)
	fatal(l.T, mounter.Unmount())
	done, err := ref.Commit(l.Context())
	fatal(l.T, err)
	return done
}

// run runs a step, on ours or BuildKit's way.
func (l *lab) run(ours bool, actions []*pb.FileAction, inputs ...cache.ImmutableRef) (cache.ImmutableRef, error) {
	var results []solver.Result
	for i := len(inputs) - 1; i >= 0; i-- {
		if inputs[i] == nil {
			continue
		}
		results = append([]solver.Result{buildkit.NewWorkerRefResult(inputs[i].Clone(), l.w)}, results...)
	}
	how := func(v solver.Vertex, s *pb.Op_File) (solver.Op, error) {
		return ops.NewFileOp(v, s, l.w.newVertex(v), l.w.ParallelismSem, l.w)
	}
	if ours {
		how = l.w.newFileOp
	}
	op, err := how(idleStep{}, &pb.Op_File{File: &pb.FileOp{Actions: actions}})
	fatal(l.T, err)
	out, err := op.Exec(l.Context(), idleStep{}, results)
	if err != nil {
		return nil, err
	}
	return out[0].Sys().(*buildkit.WorkerRef).ImmutableRef, nil
}

// look lists the files of a record, with all that can be seen of them, as it is
// mounted and as its layer has it.
func (l *lab) look(ref cache.ImmutableRef) []string {
	l.Helper()
	var list []string
	l.mounted(ref, func(dir string) {
		names := map[uint64]string{}
		fatal(l.T, filepath.WalkDir(dir, func(p string, _ iofs.DirEntry, err error) error {
			fatal(l.T, err)
			list = append(list, describeFile(l.T, dir, p, names))
			return nil
		}))
	})
	var layer bytes.Buffer
	fatal(l.T, overlay.WriteUpperdir(l.Context(), &layer, l.upper(ref), nil))
	for r := tar.NewReader(&layer); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		fatal(l.T, err)
		delete(h.PAXRecords, "mtime") // it is in ModTime
		list = append(list, fmt.Sprintf("layer: %s %c %o %d:%d %q %d %v %s", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Size, h.PAXRecords, when(h.ModTime)))
	}
}

func (l *lab) upper(ref cache.ImmutableRef) string {
	l.Helper()
	m, err := ref.Mount(l.Context(), true, nil)
	fatal(l.T, err)
	mounts, release, err := m.Mount()
	fatal(l.T, err)
	defer func() { fatal(l.T, release()) }()
	if len(mounts) != 1 {
		l.Fatalf("mounts %v", mounts)
	}
	if dirs := lowersOf(mounts); dirs != nil {
		return dirs[0]
	}
	return mounts[0].Source
}

func (l *lab) mounted(ref cache.ImmutableRef, do func(dir string)) {
	l.Helper()
	m, err := ref.Mount(l.Context(), true, nil)
	fatal(l.T, err)
	mounter := snapshot.LocalMounter(m)
	dir, err := mounter.Mount()
	fatal(l.T, err)
	do(dir)
	fatal(l.T, mounter.Unmount())
}

func describeFile(t *testing.T, dir, p string, names map[uint64]string) string {
	t.Helper()
	var st unix.Stat_t
	fatal(t, unix.Lstat(p, &st))
	name := strings.TrimPrefix(p, dir)
	text := fmt.Sprintf("%s %o %d:%d dev %d %s", name, st.Mode, st.Uid, st.Gid, st.Rdev, when(time.Unix(st.Mtim.Sec, st.Mtim.Nsec)))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		fatal(t, err)
		return text + " -> " + to
	case unix.S_IFREG:
		data, err := os.ReadFile(p)
		fatal(t, err)
		text += " " + string(data)
		if first, ok := names[st.Ino]; ok {
			text += " as " + first
		}
		names[st.Ino] = name
	}
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(p, list)
	fatal(t, err)
	attrs := strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00")
	slices.Sort(attrs)
	for _, a := range attrs {
		if a == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, a, value)
		fatal(t, err)
		text += fmt.Sprintf(" %s=%q", a, value[:n])
	}
	return text
}

// when is a time, but that of the test's own is one.
func when(at time.Time) string {
	if time.Since(at) < time.Hour {
		return "now"
	}
	return at.UTC().String()
}

var longAgo = time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)

func put(t *testing.T, dir, name string, mode uint32) {
	t.Helper()
	p := filepath.Join(dir, name)
	fatal(t, os.WriteFile(p, []byte("this is "+name), 0o600))
	fatal(t, unix.Chmod(p, mode))
	fatal(t, os.Chtimes(p, longAgo, longAgo))
}

func mkdir(t *testing.T, dir, name string, mode uint32) {
	t.Helper()
	fatal(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	fatal(t, unix.Chmod(filepath.Join(dir, name), mode))
}

// writeContext writes files of all kinds.
func writeContext(t *testing.T, dir string) {
	mkdir(t, dir, "app", 0o751)
	mkdir(t, dir, "app/deep/er", 0o2700)
	mkdir(t, dir, "app/void", 0o777)
	mkdir(t, dir, "more", 0o755)
	for name, mode := range map[string]uint32{"single": 0o644, "app/run": 0o4755, "app/secret": 0, "app/deep/er/file": 0o640, "app/capable": 0o755, "more/run": 0o600, "more/new": 0o644} {
		put(t, dir, name, mode)
	}
	fatal(t, os.Link(filepath.Join(dir, "app/run"), filepath.Join(dir, "app/deep/again")))
	fatal(t, os.Link(filepath.Join(dir, "single"), filepath.Join(dir, "app/single"))) // the other name is not copied with it
	fatal(t, os.Symlink("/etc/passwd", filepath.Join(dir, "app/absolute")))
	fatal(t, os.Symlink("../more", filepath.Join(dir, "app/up")))
	fatal(t, os.Symlink("app", filepath.Join(dir, "way")))
	fatal(t, unix.Mkfifo(filepath.Join(dir, "app/pipe"), 0o620))
	fatal(t, unix.Lchown(filepath.Join(dir, "app/deep/er/file"), 7, 8))
	fatal(t, unix.Lsetxattr(filepath.Join(dir, "app/capable"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	fatal(t, unix.Lsetxattr(filepath.Join(dir, "app/void"), "user.note", []byte("of a directory"), 0))
	for _, d := range []string{"app/void", "app/deep/er", "app/deep", "app", "more"} {
		fatal(t, os.Chtimes(filepath.Join(dir, d), longAgo, longAgo))
	}
}

func writeBase(t *testing.T, dir string) {
	for _, d := range []string{"srv/have", "empty", "gone/old"} {
		mkdir(t, dir, d, 0o711)
	}
	put(t, dir, "srv/have/run", 0o600)
	put(t, dir, "gone/old/file", 0o600)
	put(t, dir, "plain", 0o600)
	fatal(t, os.Symlink("/srv", filepath.Join(dir, "link")))
}

// copies is an action as COPY has it.
func copies(src, dest string, more ...func(*pb.FileActionCopy)) *pb.FileActionCopy {
	c := &pb.FileActionCopy{
		Src: src, Dest: dest, Mode: -1, Timestamp: -1,
		FollowSymlink: true, DirCopyContents: true, CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true,
	}
	for _, f := range more {
		f(c)
	}
	return c
}

// A copy by links is what BuildKit makes, whatever is copied where.
func TestCopyByLinks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	h := openHouse(t, 1<<30)
	tenant, err := h.engine.tenant(t.Context(), "acme")
	fatal(t, err)
	l := &lab{t, tenant.worker}
	source := l.tree(nil, func(dir string) { writeContext(t, dir) })
	stranger := l.tree(nil, func(dir string) { writeContext(t, dir) })
	fatal(t, source.SetString(contextKey, "context", ""))
	base := l.tree(nil, func(dir string) { writeBase(t, dir) })
	bereft := l.tree(base, func(dir string) { fatal(t, os.RemoveAll(filepath.Join(dir, "gone"))) })

	root := func(c *pb.FileActionCopy) { c.Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 5}}} }
	for name, tc := range map[string]struct {
		base, from cache.ImmutableRef
		copies     []*pb.FileActionCopy
		linked     bool // the files that are found there are those of the context
	}{
		"to nothing":             {base, source, []*pb.FileActionCopy{copies("/app", "/opt/app")}, true},
		"to nothing, slashes":    {base, source, []*pb.FileActionCopy{copies("/app/", "/opt/deep/app/")}, true},
		"all of it":              {base, source, []*pb.FileActionCopy{copies("/", "/opt")}, true},
		"to scratch":             {nil, source, []*pb.FileActionCopy{copies("/", "/")}, true},
		"to scratch, below":      {nil, source, []*pb.FileActionCopy{copies("/app", "/a/b")}, true},
		"to an empty directory":  {base, source, []*pb.FileActionCopy{copies("/app", "/empty")}, true},
		"through a link":         {base, source, []*pb.FileActionCopy{copies("/app", "/link/app")}, true},
		"where something was":    {bereft, source, []*pb.FileActionCopy{copies("/app", "/gone")}, true},
		"below where it was":     {bereft, source, []*pb.FileActionCopy{copies("/app", "/gone/old")}, true},
		"one after the other":    {base, source, []*pb.FileActionCopy{copies("/app", "/x"), copies("/more", "/x")}, true},
		"one over the other":     {nil, source, []*pb.FileActionCopy{copies("/more", "/x"), copies("/app", "/x")}, true},
		"an empty directory":     {base, source, []*pb.FileActionCopy{copies("/app/void", "/v")}, false},
		"where there are files":  {base, source, []*pb.FileActionCopy{copies("/app", "/srv/have")}, false},
		"to the root":            {base, source, []*pb.FileActionCopy{copies("/app", "/")}, false},
		"a file":                 {base, source, []*pb.FileActionCopy{copies("/single", "/opt/")}, false},
		"a file to a file":       {base, source, []*pb.FileActionCopy{copies("/single", "/plain")}, false},
		"a link to a directory":  {base, source, []*pb.FileActionCopy{copies("/way", "/opt")}, false},
		"through a source link":  {base, source, []*pb.FileActionCopy{copies("/way/deep", "/opt")}, false},
		"a wildcard":             {base, source, []*pb.FileActionCopy{copies("/a*", "/opt/")}, false},
		"another file system":    {base, stranger, []*pb.FileActionCopy{copies("/app", "/opt")}, false},
		"owner":                  {base, source, []*pb.FileActionCopy{copies("/app", "/opt", root)}, false},
		"mode":                   {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.Mode = 0o700 })}, false},
		"mode in letters":        {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.ModeStr = "go-r" })}, false},
		"time":                   {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.Timestamp = 10e9 })}, false},
		"exclude":                {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.ExcludePatterns = []string{"deep"} })}, false},
		"include":                {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.IncludePatterns = []string{"deep/er"} })}, false},
		"unpack":                 {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.AttemptUnpackDockerCompatibility = true })}, false},
		"one has an owner":       {base, source, []*pb.FileActionCopy{copies("/more", "/opt"), copies("/app", "/opt", root)}, false},
		"the directory, not in":  {base, source, []*pb.FileActionCopy{copies("/app", "/empty", func(c *pb.FileActionCopy) { c.DirCopyContents = false })}, false},
		"a directory, not in":    {base, source, []*pb.FileActionCopy{copies("/app", "/opt", func(c *pb.FileActionCopy) { c.DirCopyContents = false })}, true},
		"what is not there":      {base, source, []*pb.FileActionCopy{copies("/nothing", "/opt")}, false},
		"a directory to a file":  {base, source, []*pb.FileActionCopy{copies("/app", "/plain")}, false},
		"below a file":           {base, source, []*pb.FileActionCopy{copies("/app", "/plain/app")}, false},
		"no directory to put it": {base, source, []*pb.FileActionCopy{copies("/app", "/not/there", func(c *pb.FileActionCopy) { c.CreateDestPath = false })}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lab{t, l.w}
			actions := chained(tc.base != nil, tc.copies)
			want, wantErr := l.run(false, actions, tc.base, tc.from)
			got, gotErr := l.run(true, actions, tc.base, tc.from)
			if (wantErr == nil) != (gotErr == nil) {
				t.Fatalf("error %v, BuildKit's is %v", gotErr, wantErr)
			}
			if wantErr != nil {
				return
			}
			a, b := l.look(got), l.look(want)
			for _, line := range a {
				if !slices.Contains(b, line) {
					t.Errorf("ours alone: %s", line)
				}
			}
			for _, line := range b {
				if !slices.Contains(a, line) {
					t.Errorf("BuildKit's alone: %s", line)
				}
			}
			if linked := l.shares(got, tc.from); linked != tc.linked {
				t.Errorf("files are linked: %t, want %t", linked, tc.linked)
			}
			if l.shares(want, tc.from) {
				t.Error("BuildKit has linked files")
			}
		})
	}
	if got, want := l.look(source), l.look(stranger); !slices.Equal(got, want) {
		t.Errorf("the context has changed:\n%s\nwas\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// chained makes actions of copies, each on what the one before has left.
func chained(based bool, list []*pb.FileActionCopy) []*pb.FileAction {
	inputs, below, from := 1, -1, 0
	if based {
		inputs, below, from = 2, 0, 1
	}
	var out []*pb.FileAction
	for i, c := range list {
		a := &pb.FileAction{Input: int64(below), SecondaryInput: int64(from), Output: -1, Action: &pb.FileAction_Copy{Copy: c}}
		if i == len(list)-1 {
			a.Output = 0
		}
		out = append(out, a)
		below = inputs + i
	}
	return out
}

// shares reports whether two records have a file in common.
func (l *lab) shares(a, b cache.ImmutableRef) bool {
	l.Helper()
	inodes := func(ref cache.ImmutableRef) map[uint64]bool {
		all := map[uint64]bool{}
		fatal(l.T, filepath.WalkDir(l.upper(ref), func(p string, e iofs.DirEntry, err error) error {
			fatal(l.T, err)
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				all[info.Sys().(*syscall.Stat_t).Ino] = true
			}
			return nil
		}))
		return all
	}
	has := inodes(b)
	for i := range inodes(a) {
		if has[i] {
			return true
		}
	}
	return false
}

// What stands on a copy by links, and writes to it, writes to no other.
func TestLinkedFilesStay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	h := openHouse(t, 1<<30)
	tenant, err := h.engine.tenant(context.Background(), "acme")
	fatal(t, err)
	l := &lab{t, tenant.worker}
	source := l.tree(nil, func(dir string) { writeContext(t, dir) })
	fatal(t, source.SetString(contextKey, "context", ""))
	before := l.look(source)
	copied, err := l.run(true, chained(false, []*pb.FileActionCopy{copies("/", "/")}), nil, source)
	fatal(t, err)
	if !l.shares(copied, source) {
		t.Fatal("nothing was linked")
	}
	l.tree(copied, func(dir string) {
		p := filepath.Join(dir, "app/run")
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		fatal(t, err)
		_, err = f.WriteString("changed")
		fatal(t, err)
		fatal(t, f.Close())
		fatal(t, os.Chmod(p, 0o600))
		fatal(t, os.Chown(filepath.Join(dir, "single"), 3, 4))
		fatal(t, os.Truncate(filepath.Join(dir, "more/new"), 1))
		fatal(t, unix.Lsetxattr(filepath.Join(dir, "more/run"), "user.x", []byte("y"), 0))
	})
	_, err = l.run(true, chained(true, []*pb.FileActionCopy{copies("/more", "/app")}), copied, source)
	fatal(t, err)
	if after := l.look(source); !slices.Equal(before, after) {
		t.Errorf("the context has changed:\n%s\nwas\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}
