package classic

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher"

	"github.com/slipwayhq/slipway/builder/failure"
)

// A copySource is one thing to copy, after wildcards.
type copySource struct {
	name string   // its last element as written; a link's own
	file *file    // what it leads to
	from sourceFS // what it is in
	url  bool     // it was downloaded
}

// A transfer copies sources to one place of an image.
type transfer struct {
	what     string // "COPY" or "ADD", for messages
	from     sourceFS
	context  bool     // from is the build context
	patterns []string // of the context's files, as written; for explaining a miss
	sources  []copySource
	dest     string // absolute; ends in "/" if it must be a directory
	chown    string // as written, expanded; "" keeps owners (context: 0:0)
	chmod    *int64
	exclude  *patternmatcher.PatternMatcher
	excludes []string     // what exclude was made of
	inline   []inlineFile // here-documents
}

// An inlineFile is a file that the Dockerfile itself holds.
type inlineFile struct {
	name    string
	content string
}

func (t *transfer) failf(code, hint, format string, args ...any) error {
	return failure.Userf(code, hint, t.what+" failed: "+format, args...)
}

// choose finds the sources that the patterns name.
func (t *transfer) choose(patterns []string) error {
	for _, p := range patterns {
		if err := t.chooseOne(p); err != nil {
			return err
		}
	}
	return t.checkCount()
}

// checkCount refuses to copy nothing, or many things to one name.
func (t *transfer) checkCount() error {
	if len(t.sources)+len(t.inline) == 0 {
		return t.failf(failure.FileNotFound, "check the pattern against the files that .dockerignore leaves", "no source files were specified")
	}
	if len(t.sources)+len(t.inline) > 1 && !strings.HasSuffix(t.dest, "/") {
		return failure.Userf(failure.DockerfileInvalid, "end the destination with /",
			"When using %s with more than one source file, the destination must be a directory and end with a /", t.what)
	}
	return nil
}

func (t *transfer) chooseOne(pattern string) error {
	if t.context && escapes(pattern) {
		return t.failf(failure.FileNotFound, "copy the file into the context, or deploy a directory further up",
			"forbidden path outside the build context: %s ()", pattern)
	}
	if !hasWildcards(pattern) {
		return t.take(pattern, path.Clean("/"+pattern))
	}
	glob := strings.TrimPrefix(strings.TrimPrefix(pattern, "/"), "./")
	if _, err := filepath.Match(glob, ""); err != nil {
		return t.failf(failure.DockerfileInvalid, "close each [ with a ]", "%s: %v", pattern, err)
	}
	deepest := strings.Count(glob, "/")
	if strings.ContainsAny(glob, `[\\`) {
		deepest = maxDepth // a class may match a slash
	}
	return t.walk("/", deepest, func(f *file) error {
		if ok, err := filepath.Match(glob, f.path[1:]); err != nil || !ok {
			return err
		}
		return t.take(f.path[1:], f.path)
	})
}

// maxDepth is deeper than any path that can be opened.
const maxDepth = 4096

// hasWildcards reports whether a source is a pattern. A backslash takes the
// meaning from what follows it.
func hasWildcards(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// escapes reports whether a relative path climbs out of its root.
func escapes(p string) bool {
	clean := path.Clean(strings.TrimLeft(p, "/"))
	return clean == ".." || strings.HasPrefix(clean, "../")
}

func (t *transfer) take(written, clean string) error {
	at, err := follow(t.from, clean, true)
	if err != nil {
		return err
	}
	f, err := t.from.lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return t.missing(written)
	}
	if err != nil {
		return err
	}
	t.sources = append(t.sources, copySource{name: path.Base(clean), file: f, from: t.from})
	return nil
}

func (t *transfer) missing(written string) error {
	name := strings.TrimLeft(strings.TrimPrefix(written, "./"), "/")
	if t.context {
		return t.failf(failure.FileNotFound, "check the spelling and the ignore file that the output names",
			"file not found in build context or excluded by .dockerignore: stat %s: file does not exist", name)
	}
	return t.failf(failure.FileNotFound, "check what the stage or image has at that path", "stat %s: file does not exist", name)
}

// walk visits everything below dir in order, links not followed, down to depth
// levels below the first.
func (t *transfer) walk(dir string, depth int, visit func(f *file) error) error {
	list, err := t.from.list(dir)
	if err != nil {
		return err
	}
	for _, f := range list {
		if err := visit(f); err != nil {
			return err
		}
		if depth > 0 && f.isDir() {
			if err := t.walk(f.path, depth-1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// each visits the sources' files: a directory's content, not itself. rel is
// the path below the source, "" for a file.
func (t *transfer) each(visit func(src copySource, rel string, f *file) error) error {
	for _, src := range t.sources {
		if !src.file.isDir() {
			if err := visit(src, "", src.file); err != nil {
				return err
			}
			continue
		}
		base := strings.TrimSuffix(src.file.path, "/")
		err := t.walk(src.file.path, maxDepth, func(f *file) error {
			rel := strings.TrimPrefix(f.path, base+"/")
			if t.exclude != nil {
				if out, err := t.exclude.MatchesOrParentMatches(rel); err != nil || out {
					return err
				}
			}
			if f.typ == 0 {
				return nil
			}
			return visit(src, rel, f)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hash names what is copied in history and keys: "file:", "dir:" or "multi:"
// and a hash over names, attributes and contents. Times do not count.
func (t *transfer) hash(ctx context.Context) (string, error) {
	var all []string
	for _, src := range t.sources {
		h, err := t.hashSource(ctx, src)
		if err != nil {
			return "", err
		}
		all = append(all, h)
	}
	for _, in := range t.inline {
		all = append(all, "file:"+sum("inline", in.name, in.content))
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return "multi:" + sum(strings.Join(all, ",")), nil
}

func (t *transfer) hashSource(ctx context.Context, src copySource) (string, error) {
	if !src.file.isDir() {
		h, err := t.hashFile(ctx, src.from, src.name, src.file)
		if src.url {
			return h, err
		}
		return "file:" + h, err
	}
	one := transfer{from: t.from, sources: []copySource{src}, exclude: t.exclude}
	var parts []string
	if src.file.path != "/" {
		// Not copied itself, but a part of the hash as in Docker's.
		h, err := t.hashFile(ctx, src.from, "", src.file)
		if err != nil {
			return "", err
		}
		parts = append(parts, h)
	}
	inodes := map[string]string{}
	err := one.each(func(_ copySource, rel string, f *file) error {
		h, err := t.hashFile(ctx, src.from, rel, f)
		if f.inode != "" {
			if first, ok := inodes[f.inode]; ok {
				h += "=" + first
			} else {
				inodes[f.inode] = rel
			}
		}
		parts = append(parts, h)
		return err
	})
	slices.Sort(parts)
	return "dir:" + sum(strings.Join(parts, ",")), err
}

func (t *transfer) hashFile(ctx context.Context, from sourceFS, name string, f *file) (string, error) {
	fields := []string{
		"file/v1", name, string(f.typ), strconv.FormatInt(f.mode, 8), strconv.Itoa(f.uid), strconv.Itoa(f.gid),
		f.link, strconv.FormatInt(f.major, 10) + " " + strconv.FormatInt(f.minor, 10),
	}
	if f.typ == tar.TypeReg {
		content, err := from.hash(ctx, f)
		if err != nil {
			return "", err
		}
		fields = append(fields, content)
	}
	for _, k := range slices.Sorted(maps.Keys(f.xattrs)) {
		fields = append(fields, k, f.xattrs[k])
	}
	return sum(fields...), nil
}

// sum hashes fields, each with its length first so that no two lists read
// alike.
func sum(fields ...string) string {
	buf := make([]byte, 0, 256)
	for _, f := range fields {
		buf = strconv.AppendInt(buf, int64(len(f)), 10)
		buf = append(append(buf, ':'), f...)
	}
	digest := sha256.Sum256(buf)
	return hex.EncodeToString(digest[:])
}

// entries lists the manifest entries whose content the transfer reads.
func (t *transfer) entries() ([]int, error) {
	var out []int
	err := t.each(func(src copySource, _ string, f *file) error {
		if src.url {
			return nil
		}
		if f.typ == tar.TypeReg && f.size > 0 {
			out = append(out, f.entry)
		}
		return nil
	})
	return out, err
}

// plan drafts the layer over the tree below. own resolves the --chown pair.
func (t *transfer) plan(d *draft, uid, gid int) error {
	dest, err := follow(d, t.dest, true)
	if err != nil {
		return err
	}
	isDir := strings.HasSuffix(t.dest, "/")
	if f, err := d.lstat(dest); err == nil && f.isDir() {
		isDir = true
	}
	put := &putter{transfer: t, draft: d, uid: uid, gid: gid}
	for _, src := range t.sources {
		if err := put.source(src, dest, isDir); err != nil {
			return err
		}
	}
	for _, in := range t.inline {
		if err := put.inlined(in, dest, isDir); err != nil {
			return err
		}
	}
	return nil
}

// A putter turns a transfer's files into a draft's entries.
type putter struct {
	*transfer
	draft    *draft
	uid, gid int
}

func (p *putter) source(src copySource, dest string, isDir bool) error {
	if !src.file.isDir() {
		if isDir {
			dest = path.Join(dest, src.name)
		}
		if f, err := p.draft.lstat(dest); err == nil && f.isDir() {
			return p.failf(failure.DockerfileInvalid, "copy to another name", "cannot copy to directory: %s", dest)
		}
		_, err := p.put(src, src.file, dest)
		return err
	}
	if err := p.mkdir(dest); err != nil {
		return err
	}
	p.draft.touch(dest)
	one := transfer{from: p.from, sources: []copySource{src}, exclude: p.exclude}
	var dirs []*entry
	err := one.each(func(_ copySource, rel string, f *file) error {
		e, err := p.put(src, f, path.Join(dest, rel))
		if f.isDir() {
			dirs = append(dirs, e)
		}
		return err
	})
	// What came into them has not changed their times.
	for _, e := range dirs {
		e.mtime = e.copied
	}
	return err
}

func (p *putter) inlined(in inlineFile, dest string, isDir bool) error {
	if isDir {
		dest = path.Join(dest, in.name)
	}
	if err := p.mkdir(path.Dir(dest)); err != nil {
		return err
	}
	f := file{path: dest, typ: tar.TypeReg, mode: 0o644, uid: p.uid, gid: p.gid, size: int64(len(in.content)), mtime: p.draft.now}
	if p.chmod != nil {
		f.mode = *p.chmod
	}
	p.draft.put(&entry{file: f, text: in.content})
	return nil
}

func (p *putter) mkdir(dir string) error {
	var blocked *notDirError
	err := p.draft.mkdirAll(dir, max(p.uid, 0), max(p.gid, 0))
	if errors.As(err, &blocked) {
		return p.failf(failure.DockerfileInvalid, "choose a destination below a directory", "mkdir %s: not a directory", blocked.path)
	}
	return err
}

// put drafts one file of a source at a path of the image.
func (p *putter) put(src copySource, f *file, at string) (*entry, error) {
	if err := p.mkdir(path.Dir(at)); err != nil {
		return nil, err
	}
	e := &entry{file: *f, copied: f.mtime}
	e.path = at
	p.own(&e.file)
	if f.typ == tar.TypeReg {
		e.from, e.source = src.from, f.path
	}
	e.inode = ""
	if f.inode != "" && src.file.isDir() {
		e.inode = src.file.path + " " + f.inode
	}
	p.draft.put(e)
	return e, nil
}

// own sets owner and mode as a copy followed by a chown does: a chown takes
// setuid, setgid and capabilities from regular files.
func (p *putter) own(f *file) {
	xattrs := f.xattrs
	f.xattrs = nil
	if p.uid >= 0 {
		f.uid, f.gid = p.uid, p.gid
		if f.typ == tar.TypeReg {
			f.mode &^= 0o4000
			if f.mode&0o010 != 0 {
				f.mode &^= 0o2000
			}
		}
	} else if c, ok := xattrs[capability]; ok {
		f.xattrs = map[string]string{capability: c}
	}
	if p.chmod != nil && f.typ != tar.TypeSymlink {
		f.mode = *p.chmod
	}
}
