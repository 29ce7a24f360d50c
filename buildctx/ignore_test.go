package buildctx_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"

	"github.com/slipwayhq/slipway/buildctx"
)

func ignoreTree(t testing.TB) string {
	dir := t.TempDir()
	files := map[string]string{}
	for _, name := range []string{
		"Dockerfile", "README.md", "main.go", "a/b/c/deep.go", "a/b/c/deep.txt", "a/b/x.log", "a/x.log", "ab/x.go",
		"node_modules/p/index.js", "node_modules/p/node_modules/q/index.js", "src/app/keep.txt", "src/app/drop.txt",
		"src/[x]/y.go", "src/ünï/code.go", ".git/HEAD", ".git/objects/00/1", "empty/", "back\\slash", "x/y/z/w",
	} {
		files[name] = name
	}
	writeTree(t, dir, files)
	return dir
}

func TestIgnorePatterns(t *testing.T) {
	dir := ignoreTree(t)
	for _, tc := range []struct {
		name, patterns string
		want           []string // all of it, or probes if there are more than four
	}{
		{"nothing", "", []string{"Dockerfile", "README.md", "a/b/c/deep.go", "a/x.log", "node_modules/p/index.js", "empty", "main.go"}},
		{"all", "*", nil},
		{"all deep", "**", nil},
		{"names", "node_modules\n*.md", []string{"Dockerfile", "a/b/c/deep.go", "a/x.log", "empty", "main.go"}},
		{"suffix anywhere", "**/*.log", []string{"Dockerfile", "README.md", "a/b/c/deep.go", "node_modules/p/index.js", "empty", "main.go"}},
		{"star stops at slash", "*.log", []string{"Dockerfile", "README.md", "a/b/c/deep.go", "a/x.log", "node_modules/p/index.js", "empty", "main.go"}},
		{"back by name", "*\n!a/b/c/deep.go", []string{"a", "a/b", "a/b/c", "a/b/c/deep.go"}},
		{"back by wildcard", "*\n!a/*/c/*.go", []string{"a", "a/b", "a/b/c", "a/b/c/deep.go"}},
		{"back anywhere", "*\n!**/deep.go", []string{"a", "a/b", "a/b/c", "a/b/c/deep.go"}},
		{"back and out again", "*\n!a\na/b", []string{"a", "a/x.log"}},
		{"order decides", "!a\n*", nil},
		{"comments, blanks, BOM", "\ufeff# node_modules\n\n  Dockerfile  \n/README.md", []string{"a/b/c/deep.go", "a/x.log", "node_modules/p/index.js", "empty", "main.go"}},
		{"Dockerfile itself", "Dockerfile*", []string{"README.md", "a/b/c/deep.go", "a/x.log", "node_modules/p/index.js", "empty", "main.go"}},
		{"parents only with something in them", "*\n!a/nothing\n!x/y/z/v", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := scan(t, dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, tc.patterns)})
			got := paths(d.Manifest)
			for _, p := range []string{"Dockerfile", "README.md", "a/b/c/deep.go", "a/x.log", "node_modules/p/index.js", "empty", "main.go"} {
				if slices.Contains(tc.want, p) != slices.Contains(got, p) {
					t.Errorf("%s: in the context %v, want %v", p, slices.Contains(got, p), !slices.Contains(got, p))
				}
			}
			if len(tc.want) < 5 && !slices.Equal(got, tc.want) && len(got)+len(tc.want) > 0 {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func ignoreFile(t testing.TB, patterns string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ignore")
	if err := os.WriteFile(name, []byte(patterns), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// FuzzIgnore compares what a scan finds to what BuildKit's client would send.
func FuzzIgnore(f *testing.F) {
	for _, seed := range []string{
		"*\n!a", "**\n!a/b", "a/b\n!a/b/c/deep.go", "*\n!**/*.go", "**/node_modules\n!node_modules/p", "src/*\n!src/app\nsrc/app/drop*",
		"a*\n!ab\n!a/b/**", "!a\na\n!a/b", "*\n!a/**/deep.*\na/b/c/*.txt", "src/[[]x]\n", "?\n!x/y", "x\n!x/y/z\nx/y/z/w", "**/y\n!**/z",
		".git\n!.git/objects/**", "a/b/..\n!a", "*\n!./src//app/", "src/ün*", "back\\\\slash", "[^a]*\n!src/[[]x]/y.go", "*/*\n!a/b\n!src/app/keep.txt",
	} {
		f.Add(seed)
	}
	dir := ignoreTree(f)
	f.Fuzz(func(t *testing.T, patterns string) {
		if len(patterns) > 1000 {
			return
		}
		list, err := ignorefile.ReadAll(strings.NewReader(patterns))
		if err != nil {
			return
		}
		d, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, patterns)})
		if err != nil {
			if !errors.Is(err, buildctx.ErrIgnore) {
				t.Fatal(err)
			}
			return
		}
		defer d.Close()
		var want []string
		err = fsutil.WalkDir(context.Background(), dir, &fsutil.FilterOpt{ExcludePatterns: list}, func(path string, _ fs.DirEntry, err error) error {
			want = append(want, filepath.ToSlash(path))
			return err
		})
		if err != nil {
			return
		}
		if got := paths(d.Manifest); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("patterns %q\n got %q\nwant %q", patterns, got, want)
		}
	})
}

func TestIgnoreFilePrecedence(t *testing.T) {
	outside := t.TempDir()
	writeTree(t, outside, map[string]string{"Other": "", "Other.dockerignore": "by-other\n"})
	flag := ignoreFile(t, "by-flag\n*.x\n")
	for _, tc := range []struct {
		name        string
		o           buildctx.ScanOptions
		own, common bool // <Dockerfile>.dockerignore and .dockerignore exist
		missing     string
		file        string
		patterns    int
	}{
		{name: "none", missing: "", file: ""},
		{name: "common", common: true, missing: "by-common", file: ".dockerignore", patterns: 1},
		{name: "own before common", own: true, common: true, missing: "by-own", file: "d/Dockerfile.dockerignore", patterns: 1},
		{name: "flag before all", own: true, common: true, o: buildctx.ScanOptions{IgnoreFile: flag}, missing: "by-flag", file: flag, patterns: 2},
		{name: "Dockerfile outside", common: true, o: buildctx.ScanOptions{Dockerfile: filepath.Join(outside, "Other")},
			missing: "by-other", file: filepath.Join(outside, "Other.dockerignore"), patterns: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"d/Dockerfile": "", "by-flag": "", "by-own": "", "by-common": "", "by-other": ""}
			if tc.own {
				files["d/Dockerfile.dockerignore"] = "by-own"
			}
			if tc.common {
				files[".dockerignore"] = "by-common"
			}
			writeTree(t, dir, files)
			if tc.o.Dockerfile == "" {
				tc.o.Dockerfile = filepath.Join(dir, "d", "Dockerfile")
			}
			d := scan(t, dir, &tc.o)
			if d.IgnoreFile != tc.file || d.IgnorePatterns != tc.patterns {
				t.Errorf("used %q with %d patterns, want %q with %d", d.IgnoreFile, d.IgnorePatterns, tc.file, tc.patterns)
			}
			for _, p := range []string{"by-flag", "by-own", "by-common", "by-other"} {
				if _, found := d.Find(p); found == (p == tc.missing) {
					t.Errorf("%s is in the context: %v", p, found)
				}
			}
		})
	}
}

func TestIgnoreFileErrors(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"f": "x"})
	for name, file := range map[string]string{
		"missing":         filepath.Join(dir, "nowhere"),
		"directory":       dir,
		"bad pattern":     ignoreFile(t, "ok\na[\n"),
		"bad exception":   ignoreFile(t, "*\n!a[\n"),
		"lone exclaim":    ignoreFile(t, "!\n"),
		"endless pattern": ignoreFile(t, strings.Repeat("x", 70_000)),
	} {
		_, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{IgnoreFile: file})
		if !errors.Is(err, buildctx.ErrIgnore) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	_, err := buildctx.Scan(t.Context(), dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, "ok\na[\n")})
	var bad *buildctx.IgnoreError
	if !errors.As(err, &bad) || bad.Pattern != "a[" {
		t.Errorf("error %v does not name the pattern", err)
	}
}

func TestUnreadableDirectoryThatIsLeftOut(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a": "x", "secret/key": "x"})
	if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "secret"), 0o700) })
	if d := scan(t, dir, &buildctx.ScanOptions{IgnoreFile: ignoreFile(t, "secret\n!**/x")}); len(d.Entries) != 1 {
		t.Errorf("got %q", paths(d.Manifest))
	}
	if _, err := buildctx.Scan(t.Context(), dir, nil); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}
