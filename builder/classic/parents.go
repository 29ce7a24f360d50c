package classic

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/patternmatcher"

	"github.com/slipwayhq/slipway/builder/failure"
)

// chooseBelow finds what a source of COPY --parents names. What is before a
// "/./" in it is where the directories that are kept begin; they begin at the
// root otherwise. Behind it, patterns are those of ignore files: "**" stands
// for any directories.
func (t *transfer) chooseBelow(source string) error {
	top, pattern, found := strings.Cut(source, "/./")
	if !found {
		top, pattern = "/", source
	}
	if t.context && escapes(source) {
		return t.chooseOne(source) // which says so
	}
	pattern = strings.TrimPrefix(path.Clean("/"+pattern), "/")
	if pattern == "" {
		pattern = "**" // the pivot is at the end
	}
	include, err := patternmatcher.New([]string{pattern})
	if err != nil {
		return t.failf(failure.DockerfileInvalid, "close each [ with a ]", "%s: %v", source, err)
	}
	tops := &transfer{what: t.what, from: t.from, context: t.context}
	if err := tops.chooseOne(top); err != nil {
		return err
	}
	for _, src := range tops.sources {
		if !src.file.isDir() {
			return t.failf(failure.DockerfileInvalid, "put /./ behind a directory", "%s: %s is not a directory", source, src.file.path)
		}
		src.include = include
		t.sources = append(t.sources, src)
		if hasWildcards(top) || hasWildcards(pattern) {
			continue
		}
		if err := t.require(src, pattern, path.Join(top, pattern)); err != nil {
			return err
		}
	}
	return nil
}

// require refuses a path without wildcards that leads to nothing. Directories
// on the way are kept as directories, so none may be a link.
func (t *transfer) require(src copySource, pattern, written string) error {
	if pattern == "**" {
		return nil
	}
	at := src.file.path
	parts := strings.Split(pattern, "/")
	for i, name := range parts {
		at = path.Join(at, name)
		f, err := t.from.lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return t.missing(written)
		}
		if err != nil {
			return err
		}
		if i < len(parts)-1 && !f.isDir() {
			hint := "name the directory that the link leads to"
			return t.failf(failure.FileNotFound, hint, "%s: %s is not a directory", written, strings.TrimPrefix(at, "/"))
		}
	}
	return nil
}
