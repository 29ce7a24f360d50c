package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A tree is a directory: contents by path. A path that ends in "/" is a
// directory, a content that begins with "-> " a symbolic link, one that begins
// with "#!" an executable.
type tree map[string]string

// write makes the tree in a new directory.
func (f tree) write(t testing.TB) string {
	t.Helper()
	dir := t.(interface{ TempDir() string }).TempDir()
	for path, content := range f {
		f.entry(t, dir, path, content)
	}
	return dir
}

func (f tree) entry(t testing.TB, dir, path, content string) {
	t.Helper()
	full := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	link, isLink := strings.CutPrefix(content, "-> ")
	switch {
	case strings.HasSuffix(path, "/"):
		err = os.MkdirAll(full, 0o755)
	case isLink:
		err = os.Symlink(link, full)
	case strings.HasPrefix(content, "#!"):
		err = os.WriteFile(full, []byte(content), 0o755)
	default:
		err = os.WriteFile(full, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dockerfile is a tree with nothing else.
func dockerfile(lines ...string) tree {
	return tree{"Dockerfile": strings.Join(lines, "\n") + "\n"}
}

// and returns f with more entries.
func (f tree) and(path, content string) tree {
	f[path] = content
	return f
}

func writeFile(t testing.TB, dir, path, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// freshCopy copies a tree as a new checkout would: same contents and modes,
// other times.
func freshCopy(t testing.TB, from string) string {
	t.Helper()
	to := t.(interface{ TempDir() string }).TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-12345 * time.Second)
	err := filepath.WalkDir(to, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink != 0 {
			return err
		}
		at = at.Add(time.Second)
		if err := os.Chtimes(path, at, at); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, filepath.Join(from, strings.TrimPrefix(path, to)))
		if err != nil {
			return err
		}
		info, err := os.Lstat(filepath.Join(from, rel))
		if err != nil {
			return err
		}
		return os.Chmod(path, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}
