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
	git  *clone   // it is a repository

	// Of a directory, what to take of it; nil is everything.
	include *patternmatcher.PatternMatcher
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
	chmod    *modeSet
	link     bool // the layer is made as if there were nothing below
	parents  bool // sources keep the directories that they are named in
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
	one := t.chooseOne
	if t.parents {
		one = t.chooseBelow
	}
	for _, p := range patterns {
		if err := one(p); err != nil {
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
	glob := relative(pattern)
	if _, err := filepath.Match(glob, ""); err != nil {
		return t.failf(failure.FileNotFound, "close each [ of "+pattern+" with a ], or write [[] for the character itself", "no source files were specified")
	}
	deepest := strings.Count(glob, "/")
	if strings.ContainsAny(glob, `[\\`) {
		deepest = maxDepth // a class may match a slash
	}
	return walk(t.from, "/", deepest, func(f *file) error {
		if ok, err := filepath.Match(glob, f.path[1:]); err != nil || !ok {
			return err
		}
		if out, err := t.leavesOut(path.Base(f.path)); err != nil || out && !f.isDir() {
			return err
		}
		return t.take(f.path[1:], f.path)
	})
}

// relative is a source as it is looked up in its tree.
func relative(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, "/"), "./") }

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
	var circle *failure.Error
	if errors.As(err, &circle) {
		return t.failf(failure.FileNotFound, circle.Message+": mend them, or copy what they stand for", "forbidden path outside the build context: %s ()", relative(written))
	}
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
	name := relative(written)
	if t.context {
		return t.failf(failure.FileNotFound, "check the spelling and the ignore file that the output names",
			"file not found in build context or excluded by .dockerignore: stat %s: file does not exist", name)
	}
	return t.failf(failure.FileNotFound, "check what the stage or image has at that path", "stat %s: file does not exist", name)
}

// walk visits everything of a tree below dir in order, links not followed, down to depth
// levels below the first.
func walk(tree sourceFS, dir string, depth int, visit func(f *file) error) error {
	list, err := tree.list(dir)
	if err != nil {
		return err
	}
	for _, f := range list {
		if err := visit(f); err != nil {
			return err
		}
		if depth > 0 && f.isDir() {
			if err := walk(tree, f.path, depth-1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// each visits the sources' files: a directory's content, not itself. rel is
// the path below the source, "" for a file. Directories come before what they
// hold, also those of which only some content is taken.
func (t *transfer) each(visit func(src copySource, rel string, f *file) error) error {
	for _, src := range t.sources {
		if !src.file.isDir() {
			if err := visit(src, "", src.file); err != nil {
				return err
			}
			continue
		}
		w := &pick{transfer: t, src: src, visit: visit, base: strings.TrimSuffix(src.file.path, "/") + "/"}
		if err := walk(src.from, src.file.path, maxDepth, w.file); err != nil {
			return err
		}
	}
	return nil
}

// A pick visits what is taken of a directory.
type pick struct {
	*transfer
	src   copySource
	base  string // the directory, with a slash at the end
	visit func(src copySource, rel string, f *file) error
	held  []*file // directories on the way here that were not taken themselves
}

func (p *pick) file(f *file) error {
	rel := strings.TrimPrefix(f.path, p.base)
	for len(p.held) > 0 && !strings.HasPrefix(f.path, p.held[len(p.held)-1].path+"/") {
		p.held = p.held[:len(p.held)-1]
	}
	take, err := p.takes(rel)
	if err != nil || f.typ == 0 {
		return err
	}
	if !take {
		if f.isDir() {
			p.held = append(p.held, f)
		}
		return nil
	}
	for _, up := range p.held {
		if err := p.visit(p.src, strings.TrimPrefix(up.path, p.base), up); err != nil {
			return err
		}
	}
	p.held = nil
	return p.visit(p.src, rel, f)
}

func (p *pick) takes(rel string) (bool, error) {
	if p.src.include != nil {
		if in, err := p.src.include.MatchesOrParentMatches(rel); err != nil || !in {
			return false, err
		}
	}
	out, err := p.leavesOut(rel)
	return !out, err
}

// leavesOut reports whether --exclude takes out what is at a path below a
// source.
func (t *transfer) leavesOut(rel string) (bool, error) {
	if t.exclude == nil {
		return false, nil
	}
	return t.exclude.MatchesOrParentMatches(rel)
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
	if src.git != nil {
		return src.git.identity(), nil
	}
	if !src.file.isDir() {
		h, err := t.hashFile(ctx, src.from, src.name, src.file)
		if src.url {
			return h, err
		}
		return "file:" + h, err
	}
	one := transfer{from: t.from, sources: []copySource{src}, exclude: t.exclude}
	var parts []string
	if src.file.path != "/" && src.include == nil {
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
	sent := *t
	sent.sources = slices.DeleteFunc(slices.Clone(t.sources), func(src copySource) bool { return src.url || src.git != nil })
	err := sent.each(func(_ copySource, _ string, f *file) error {
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
		_, err := p.put(src, src.file, dest)
		return err
	}
	if err := p.root(dest, src.include != nil); err != nil {
		return err
	}
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

// root makes the directory that a directory's content is copied into. Only
// itself, if it is new, gets the owner of --chown: the directories on the way
// to it are root's, unlike those on the way to a file or below --parents.
func (p *putter) root(dest string, parents bool) error {
	if parents {
		err := p.mkdir(dest)
		p.draft.touch(dest)
		return err
	}
	_, err := p.draft.lstat(dest)
	isNew := errors.Is(err, fs.ErrNotExist)
	if err := p.mkdirAs(dest, 0, 0); err != nil {
		return err
	}
	if e, ok := p.draft.entries[dest]; ok && isNew {
		e.uid, e.gid = max(p.uid, 0), max(p.gid, 0)
	}
	p.draft.touch(dest)
	return nil
}

func (p *putter) inlined(in inlineFile, dest string, isDir bool) error {
	if isDir {
		dest = path.Join(dest, in.name)
	}
	if err := p.mkdir(path.Dir(dest)); err != nil {
		return err
	}
	f := file{path: dest, typ: tar.TypeReg, mode: 0o644, uid: p.uid, gid: p.gid, size: int64(len(in.content)), mtime: p.draft.now}
	f.mode = p.chmod.apply(&f)
	p.draft.put(&entry{file: f, text: in.content})
	return nil
}

func (p *putter) mkdir(dir string) error { return p.mkdirAs(dir, max(p.uid, 0), max(p.gid, 0)) }

func (p *putter) mkdirAs(dir string, uid, gid int) error {
	var blocked *notDirError
	err := p.draft.mkdirAll(dir, uid, gid)
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
	if !src.file.isDir() {
		e.xattrs = nil // as in the classic builder, a file that is named loses them
	}
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
	xattrs, mode := f.xattrs, p.chmod.apply(f)
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
	if p.chmod != nil {
		f.mode = mode
	}
}
