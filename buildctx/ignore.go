package buildctx

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const ignoreName = ".dockerignore"

// ignore decides what a context leaves out. One walk uses it, for one
// goroutine. The zero value leaves nothing out.
type ignore struct {
	file       string // as people know it; empty if there is none
	matcher    *patternmatcher.PatternMatcher
	patterns   int
	exceptions [][]string // components of the "!" patterns
}

// findIgnore reads the ignore file that applies to the context dir: the one
// asked for, the Dockerfile's own, or the directory's.
func findIgnore(dir string, o *ScanOptions) (*ignore, error) {
	if o.IgnoreFile != "" {
		return readIgnore(o.IgnoreFile, o.IgnoreFile)
	}
	var candidates []string
	if o.Dockerfile != "" {
		candidates = append(candidates, o.Dockerfile+ignoreName)
	}
	candidates = append(candidates, filepath.Join(dir, ignoreName))
	for _, file := range candidates {
		g, err := readIgnore(file, shownPath(dir, file))
		if !errors.Is(err, fs.ErrNotExist) {
			return g, err
		}
	}
	return &ignore{}, nil
}

// shownPath is file as seen from the context, if it lies in there.
func shownPath(dir, file string) string {
	abs, err := filepath.Abs(file)
	if err != nil {
		return file
	}
	rel, err := filepath.Rel(dir, abs)
	if err != nil || !filepath.IsLocal(rel) {
		return file
	}
	return filepath.ToSlash(rel)
}

func readIgnore(file, shown string) (*ignore, error) {
	fail := func(pattern string, err error) (*ignore, error) {
		return nil, &IgnoreError{File: shown, Pattern: pattern, Err: err}
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail("", err)
	}
	if !info.Mode().IsRegular() {
		return fail("", errors.New("not a regular file"))
	}
	f, err := os.Open(file)
	if err != nil {
		return fail("", err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		return fail("", err)
	}
	for _, p := range patterns {
		if err := checkPattern(p); err != nil {
			return fail(p, err)
		}
	}
	g, err := newIgnore(patterns)
	if err != nil {
		return fail("", err)
	}
	g.file = shown
	return g, nil
}

// checkPattern finds out now what the matcher would only notice at the first
// path it is asked about.
func checkPattern(pattern string) error {
	m, err := patternmatcher.New([]string{strings.TrimPrefix(pattern, "!")})
	if err == nil && pattern == "!" {
		err = errors.New("nothing to include")
	}
	if err == nil {
		_, err = m.MatchesOrParentMatches("x")
	}
	return err
}

func newIgnore(patterns []string) (*ignore, error) {
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	g := &ignore{matcher: m, patterns: len(m.Patterns())}
	for _, p := range m.Patterns() {
		if p.Exclusion() {
			g.exceptions = append(g.exceptions, strings.Split(filepath.ToSlash(p.String()), "/"))
		}
	}
	return g, nil
}

// match reports whether path is left out. parent is what match returned for
// the directory it lies in, the zero value for the root.
func (g *ignore) match(path string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if g.patterns == 0 {
		return false, parent, nil
	}
	return g.matcher.MatchesUsingParentResults(path, parent)
}

// mayInclude reports whether something below dir, which is left out, could
// come back by a "!" pattern. It may err towards yes.
func (g *ignore) mayInclude(dir string) bool {
	if len(g.exceptions) == 0 {
		return false
	}
	names := strings.Split(dir, "/")
	return slices.ContainsFunc(g.exceptions, func(pattern []string) bool { return mayMatchBelow(pattern, names) })
}

// mayMatchBelow reports whether a pattern could match a path below the
// directory of the given names.
func mayMatchBelow(pattern, names []string) bool {
	for i, name := range names {
		if i == len(pattern) {
			return false // it names a parent, and that has been decided
		}
		if strings.Contains(pattern[i], "**") {
			return true
		}
		ok, err := filepath.Match(pattern[i], name)
		if err != nil {
			return true // a class that spans the separator, "[a/b]"
		}
		if !ok {
			return false
		}
	}
	return len(pattern) > len(names)
}
