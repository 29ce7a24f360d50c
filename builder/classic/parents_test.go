package classic_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/failure"
)

// below lists what an image has below a directory.
func (img *image) below(dir string) string {
	var out []string
	for _, p := range slices.Sorted(maps.Keys(img.tree)) {
		if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
			out = append(out, rest)
		}
	}
	return strings.Join(out, " ")
}

// The expected trees are those of BuildKit's own tests of the flag.
func TestCopyParents(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{
		"test/a/b/c/d/foo": "", "test/a/b/c/d/e/bay": "", "test/a/b2/c/d/e/bar": "", "test/a/b/c2/d/e/baz": "", "test/a/b/c2/d/e2/baz": "",
		"x/a.txt": "", "y/a.txt": "", "link": "->test/a", "x/y/b.txt": "", "x/y/c.md": "",
	})
	for _, from := range []string{"", "--from=src "} {
		var file strings.Builder
		file.WriteString("FROM scratch AS src\nCOPY . /\nFROM scratch\n")
		cases := []struct{ name, flags, sources, want string }{
			{"pivot", "", "/test/a/b/./c/d", "c c/d c/d/e c/d/e/bay c/d/foo"},
			{"end", "", "/test/a/b/c/d/.", "test test/a test/a/b test/a/b/c test/a/b/c/d test/a/b/c/d/e test/a/b/c/d/e/bay test/a/b/c/d/foo"},
			{"start", "", "./test/a/b/c/d/foo", "test test/a test/a/b test/a/b/c test/a/b/c/d test/a/b/c/d/foo"},
			{"double", "", "/test/a/./b/./c", "b b/c b/c/d b/c/d/e b/c/d/e/bay b/c/d/foo"},
			{"wildcard", "", "/test/a/./*/c", "b b/c b/c/d b/c/d/e b/c/d/e/bay b/c/d/foo b2 b2/c b2/c/d b2/c/d/e b2/c/d/e/bar"},
			{"doublewildcard", "", "/test/a/b*/./c/**/e", "c c/d c/d/e c/d/e/bar c/d/e/bay"},
			{"doubleinputs", "", "/test/a/b/c*/./d/**/baz /test/a/b*/./c/**/bar", "c c/d c/d/e c/d/e/bar d d/e d/e/baz d/e2 d/e2/baz"},
			{"none", "", "/test/a/b9*/c", ""},
			{"nonebelow", "", "/test/a/b/./c9*", ""},
			{"two", "", "x/a.txt y/a.txt", "x x/a.txt y y/a.txt"},
			{"below", "", "./x/**/*.txt", "x x/a.txt x/y x/y/b.txt"},
			{"exclude", "--exclude=x/y ", "x", "x x/a.txt"},
			{"but", "--exclude=y --exclude=!y/c.md ", "./x/./", "a.txt y y/c.md"},
			{"link", "", "link/./b2", "b2 b2/c b2/c/d b2/c/d/e b2/c/d/e/bar"},
			{"all", "", "x/y/./*", "b.txt c.md"},
		}
		for _, tc := range cases {
			file.WriteString("COPY " + from + "--parents " + tc.flags + tc.sources + " /" + tc.name + "/\n")
		}
		img := w.build(t.Context(), request{dir: dir, dockerfile: file.String()}).pull()
		for _, tc := range cases {
			if got := img.below("/" + tc.name); got != tc.want {
				t.Errorf("%s %s: %q, want %q", from, tc.name, got, tc.want)
			}
			if img.tree["/"+tc.name].Type != "d" {
				t.Errorf("%s %s: no destination", from, tc.name)
			}
		}
	}
}

// Directories on the way look as they do at the source; new ones above them as
// COPY makes them.
func TestCopyParentsAttributes(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"p/q/f": "x", "p/q/skip": "x"})
	w.must(os.Chmod(filepath.Join(dir, "p"), 0o700))
	w.must(os.Chmod(filepath.Join(dir, "p/q"), 0o711))
	w.must(os.Chtimes(filepath.Join(dir, "p/q"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nCOPY --parents --chown=3:4 p/q/f /new/out\nCOPY --exclude=q --exclude=!q/f p /kept"}).pull()
	for p, want := range map[string]node{
		"/new": {Mode: "0755", Own: "3:4"}, "/new/out": {Mode: "0755", Own: "3:4"}, "/new/out/p": {Mode: "0700", Own: "3:4"},
		"/new/out/p/q": {Mode: "0711", Own: "3:4", MTime: "1000000000"}, "/new/out/p/q/f": {Mode: "0644", Own: "3:4"},
		"/kept/q": {Mode: "0711", Own: "0:0", MTime: "1000000000"}, "/kept/q/f": {Mode: "0644", Own: "0:0"},
	} {
		n := img.tree[p]
		if n.Mode != want.Mode || n.Own != want.Own || want.MTime != "" && n.MTime != want.MTime {
			t.Errorf("%s is %+v, want %+v", p, n, want)
		}
	}
}

func TestCopyParentsRefused(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"p/q/f": "x", "to": "->p"})
	for sources, want := range map[string]string{
		"p/none": "stat p/none", "none/./f": "stat none", "../p/q": "forbidden path", "p/./../../q": "forbidden path",
		"to/q": "to is not a directory", "p/q/f/./x": "is not a directory", "p/[": "[",
	} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nENV a=b\nCOPY --parents " + sources + " /d/"})
		e := o.Error
		if e == nil || e.Line != 3 || e.Hint == "" || !strings.Contains(e.Message, want) || e.Code != failure.FileNotFound && e.Code != failure.DockerfileInvalid {
			t.Errorf("%s: %v", sources, e)
		}
	}
}

// Wildcards and --exclude are BuildKit's documentation's.
func TestCopyExclude(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{
		"hom.txt": "", "home": "", "homer.md": "", "d/a.go": "", "d/a_test.go": "", "d/e/b_test.go": "", "d/v/x": "", "d/v/keep/y": "",
	})
	for _, tc := range [][3]string{
		{"--exclude=*.txt", "hom*", "home homer.md"},
		{"--exclude=*.txt --exclude=*.md", "hom*", "home"},
		{"--exclude=**/*_test.go", "d", "a.go e v v/keep v/keep/y v/x"},
		{"--exclude=*_test.go", "d", "a.go e e/b_test.go v v/keep v/keep/y v/x"},
		{"--exclude=v --exclude=!v/keep", "d", "a.go a_test.go e e/b_test.go v v/keep v/keep/y"},
		{"--exclude=*/*", "d", "a.go a_test.go e v"},
		{"--exclude=$X", "d", "a.go a_test.go e e/b_test.go v v/keep v/keep/y v/x"}, // as written, in BuildKit too
	} {
		img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nARG X=v\nCOPY " + tc[0] + " " + tc[1] + " /out/"}).pull()
		if got := img.below("/out"); got != tc[2] {
			t.Errorf("%s %s: %q, want %q", tc[0], tc[1], got, tc[2])
		}
	}
}

func TestCopyChmod(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "f", "d/x": "x", "d/l": "->x", "d/sub/y": "y"})
	w.must(os.Chmod(filepath.Join(dir, "d/x"), 0o750))
	w.must(os.Chmod(filepath.Join(dir, "d/sub"), 0o700))
	for _, tc := range []struct{ mode, f, x, sub string }{
		{"640", "0640", "0640", "0640"}, {"u+x,go-w", "0744", "0750", "0700"}, {"a=rX", "0444", "0555", "0555"},
		{"$M", "0666", "0767", "0767"}, {"g=u,o=", "0660", "0770", "0770"}, {"4755", "4755", "4755", "4755"}, {"+t", "1644", "1750", "1700"},
	} {
		img := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nARG M=ug=rw,o+rw,u+X,o+X\nCOPY --chmod=" + tc.mode + " f d /out/\nCOPY --chmod=" + tc.mode + " <<EOF /in\ntext\nEOF\n"}).pull()
		f, x, sub, in, link := img.tree["/out/f"].Mode, img.tree["/out/x"].Mode, img.tree["/out/sub"].Mode, img.tree["/in"].Mode, img.tree["/out/l"]
		if tc.mode == "$M" {
			tc.x, tc.sub = x, sub // asserted by the others
		}
		if f != tc.f || x != tc.x || sub != tc.sub || in != tc.f || link.Type != "l" || link.Mode != "0777" {
			t.Errorf("%s: f %s, x %s, sub %s, inline %s, link %+v", tc.mode, f, x, sub, in, link)
		}
	}
	for _, mode := range []string{"888", "10000", "-1", "u+z", "u", "rwxr-xr-x", "0x1ff"} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\n\nCOPY --chmod=" + mode + " f /"})
		if e := o.Error; e.GetCode() != failure.DockerfileInvalid || e.GetLine() != 3 || e.GetHint() == "" || !strings.Contains(e.GetMessage(), "--chmod="+mode) {
			t.Errorf("%s: %v", mode, e)
		}
	}
}
