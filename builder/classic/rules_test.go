package classic_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/classic"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, file, target string
		args               map[string]string
		needed, steps      []string
		err                string
	}{
		{name: "one stage", file: "FROM scratch\nENV a=b \\\n # comment\n c=d", needed: []string{"0"}, steps: []string{"FROM scratch", "ENV a=b  c=d"}},
		{name: "CRLF and BOM", file: "\ufeffFROM scratch\r\nRUN a; \\\r\n b\r\n", needed: []string{"0"}, steps: []string{"FROM scratch", "RUN a;  b"}},
		{name: "escape", file: "# escape=`\nfrom scratch\nRUN a `\n b\\c", needed: []string{"0"}, steps: []string{"from scratch", "RUN a  b\\c"}},
		{name: "only what is needed", file: "FROM x AS a\nFROM x AS b\nFROM a AS c\nFROM scratch\nCOPY --from=C /x /y", needed: []string{"a", "c", "3"}, steps: []string{"FROM x AS a", "FROM a AS c", "FROM scratch", "COPY --from=C /x /y"}},
		{name: "target by name", file: "FROM x AS a\nFROM x AS b", target: "A", needed: []string{"a"}, steps: []string{"FROM x AS a"}},
		{name: "target by index", file: "FROM x AS a\nFROM x AS b", target: "0", needed: []string{"a"}, steps: []string{"FROM x AS a"}},
		{name: "no such target", file: "FROM x AS a", target: "z", err: "target stage \"z\" could not be found"},
		{name: "what comes after the target", file: "FROM x AS a\nFROM $blank AS b\nFROM y AS a\nCOPY --from=9 / /", target: "a", needed: []string{"a"}, steps: []string{"FROM x AS a"}},
		{name: "name of a stage", file: "FROM x AS 1a", err: "invalid name for build stage: \"1a\", name can't start with a number or contain symbols"},
		{name: "argument", file: "ARG T=1\nARG I=x:$T\nFROM $I AS a\nFROM $S", args: map[string]string{"S": "a"}, err: "should not be blank"},
		{name: "proxies before FROM", file: "ARG I=$HTTP_PROXY\nFROM $I", args: map[string]string{"HTTP_PROXY": "p"}, needed: []string{"0"}, steps: []string{"FROM $I"}},
		{name: "stage by argument", file: "ARG S=none\nFROM x AS a\nFROM $S", args: map[string]string{"S": "a"}, needed: []string{"a", "1"}, steps: []string{"FROM x AS a", "FROM $S"}},
		{name: "stage named scratch", file: "FROM x AS scratch\nFROM scratch", needed: []string{"scratch", "1"}, steps: []string{"FROM x AS scratch", "FROM scratch"}},
		{name: "index is no name", file: "FROM x\nFROM 0", needed: []string{"1"}, steps: []string{"FROM 0"}},
		{name: "name twice", file: "FROM x AS a\nFROM x AS A", err: "a stage name already used"},
		{name: "itself", file: "FROM x AS a\nCOPY --from=a / /", err: "refers to current build stage"},
		{name: "own index", file: "FROM x\nCOPY --from=0 / /", err: "refers to current build stage"},
		{name: "index too large", file: "FROM x\nCOPY --from=3 / /", err: "index out of bounds"},
		{name: "empty", file: " \n", err: "cannot be empty"},
		{name: "no stage", file: "ARG A", err: "no build stage"},
		{name: "unknown instruction", file: "FROM x\nRUNN y", err: "unknown instruction: RUNN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := classic.Parse([]byte(tc.file), tc.target, tc.args)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || !slices.Equal(got.Needed, tc.needed) || !slices.Equal(got.Steps, tc.steps) {
				t.Errorf("stages %q, steps %q, error %v\nwant %q, %q", got.Needed, got.Steps, err, tc.needed, tc.steps)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("ARG A=1\nFROM x AS a\nCOPY --from=a --chown=$A . /\nFROM a\nONBUILD RUN <<E\nx\nE\n"), "a")
	f.Add([]byte("# escape=`\nFROM --platform=$B scratch\nEXPOSE 1-2\nHEALTHCHECK NONE"), "")
	f.Fuzz(func(t *testing.T, content []byte, target string) {
		got, err := classic.Parse(content, target, map[string]string{"A": "b"})
		if err == nil && (len(got.Needed) == 0 || len(got.Steps) < len(got.Needed)) {
			t.Errorf("%q: stages %q, steps %q", content, got.Needed, got.Steps)
		}
	})
}

func TestScope(t *testing.T) {
	text := func(s string) *string { return &s }
	s := classic.NewScope(map[string]string{"GIVEN": "g", "HTTP_PROXY": "p", "no_proxy": "n", "UNDECLARED": "u"}, map[string]string{"META": "m", "GIVEN": "x"})
	s.Declare("GIVEN", text("default"))
	s.Declare("META", nil)
	s.Declare("NONE", nil)
	s.Declare("EMPTY", text(""))
	s.Declare("HIDDEN", text("h"))
	s.Declare("no_proxy", nil)
	values, recorded := s.Values("HIDDEN=env", "OTHER=x")
	if want := []string{"EMPTY=", "GIVEN=g", "HTTP_PROXY=p", "META=m", "no_proxy=n"}; !slices.Equal(values, want) {
		t.Errorf("values %q, want %q", values, want)
	}
	if want := []string{"EMPTY=", "GIVEN=g", "META=m", "no_proxy=n"}; !slices.Equal(recorded, want) {
		t.Errorf("recorded %q, want %q", recorded, want)
	}
}

func TestPorts(t *testing.T) {
	for word, want := range map[string]string{
		"80": "80/tcp", "53/UDP": "53/udp", "9000-9002/sctp": "9000/sctp 9001/sctp 9002/sctp", "8080:81": "81/tcp", "127.0.0.1:90:91/sctp": "91/sctp",
		"80/xyz": "invalid proto: xyz", "70000": "invalid containerPort: 70000", "90-80": "invalid containerPort: 90-80", "x": "invalid containerPort: x", "-1": "invalid containerPort: -1",
		"80:": "no port specified: 80:<empty>", "/udp": "no port specified: /udp<empty>", "x:80": "invalid hostPort: x", "1.2.3:80:80": "invalid IP address: 1.2.3",
		"[::1]:80:81": "81/tcp", "::81": "81/tcp", "1-3:5": "5/tcp", "1-3:5-6": "invalid ranges specified for container and host Ports: 5-6 and 1-3",
	} {
		ports, err := classic.ParsePorts(word)
		got := strings.Join(ports, " ")
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", word, got, want)
		}
	}
}

func TestDestination(t *testing.T) {
	for _, tc := range [][3]string{
		{"/w", "x", "/w/x"}, {"/w", "x/", "/w/x/"}, {"/w", ".", "/w/"}, {"/w", "./", "/w/"}, {"/w", "../x", "/x"}, {"", "x", "/x"},
		{"/w", "/x//y/", "/x/y/"}, {"/w", "/", "/"}, {"/w", "/../../x", "/x"}, {"/w", "", "/w"}, {"w", "../../..", "/"},
	} {
		if got := classic.Destination(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%s below %s is %s, want %s", tc[1], tc[0], got, tc[2])
		}
	}
}

func FuzzDestination(f *testing.F) {
	f.Add("/w", "../x/", "/a", "->../../b")
	f.Fuzz(func(t *testing.T, workdir, dest, at, link string) {
		d := classic.Destination(workdir, dest)
		if !strings.HasPrefix(d, "/") || strings.Contains(d, "/../") || strings.Contains(d, "//") {
			t.Fatalf("destination %q", d)
		}
		tree := classic.MemoryTree{filepath.Clean("/" + at): "->" + link}
		got, err := tree.Follow(d, true)
		if err != nil {
			return // too many links
		}
		if got != filepath.Clean(got) || !strings.HasPrefix(got, "/") {
			t.Fatalf("%q leads to %q", d, got)
		}
		if again, err := tree.Follow(got, true); err != nil || again != got {
			t.Fatalf("%q leads to %q, %v", got, again, err)
		}
	})
}

func TestFollow(t *testing.T) {
	tree := classic.MemoryTree{
		"/srv": "d", "/srv/data": "d", "/srv/link": "->data", "/abs": "->/srv/data", "/up": "->../../../srv", "/loop": "->loop", "/gone": "->/no/where", "/two": "->/abs/../link",
	}
	for p, want := range map[string]string{
		"/srv/link/x": "/srv/data/x", "/abs": "/srv/data", "/up/data": "/srv/data", "/gone/x": "/no/where/x", "/two": "/srv/data", "/srv/../../abs/x": "/srv/data/x",
	} {
		if got, err := tree.Follow(p, true); err != nil || got != want {
			t.Errorf("%s leads to %s (%v), want %s", p, got, err, want)
		}
	}
	if got, _ := tree.Follow("/up/link", false); got != "/srv/link" {
		t.Errorf("the last link was followed to %s", got)
	}
	if _, err := tree.Follow("/loop/x", true); err == nil {
		t.Error("a loop ends somewhere")
	}
}

// lines shows a layer: type, mode, owner, name, target.
func lines(into *[]string) func(*tar.Header, io.Reader) error {
	return func(h *tar.Header, r io.Reader) error {
		text := ""
		if r != nil {
			raw, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			text = "=" + string(raw)
		}
		if h.PAXRecords["SCHILY.xattr.security.capability"] != "" {
			text += "+cap"
		}
		*into = append(*into, strings.TrimSpace(fmt.Sprintf("%c %o %d:%d %s%s %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Name, text, h.Linkname)))
		return nil
	}
}

func TestCopy(t *testing.T) {
	below := classic.MemoryTree{"/etc": "d", "/etc/f": "old", "/dir": "d", "/dir/name": "d", "/dir/name/x": "x", "/link": "->/dir", "/sg": "d+s"}
	from := classic.MemoryTree{
		"/a": "A", "/b": "B", "/l": "->a", "/d": "d", "/d/name": "N", "/d/sub": "d", "/d/sub/s": "->../x", "/e": "d", "/e/f": "d", "/e/f/g": "G", "/dangling": "->nowhere", "/z": "d", "/z/loop": "->loop",
		"/h": "d", "/h/1": "inode 7", "/h/2": "inode 7", "/k": "d", "/k/c": "cap",
	}
	for _, tc := range []struct {
		name string
		copy classic.Copy
		want []string
		err  string
	}{
		{"file to file", classic.Copy{Patterns: []string{"a"}, Dest: "/x"}, []string{"0 644 0:0 x=A"}, ""},
		{"file to new directory", classic.Copy{Patterns: []string{"/a"}, Dest: "/n/m/", UID: 5, GID: 6}, []string{"5 755 5:6 n/", "5 755 5:6 n/m/", "0 644 5:6 n/m/a=A"}, ""},
		{"link to directory keeps its name", classic.Copy{Patterns: []string{"./l"}, Dest: "/etc"}, []string{"5 700 0:0 etc/", "0 644 0:0 etc/l=A"}, ""},
		{"through a link of the image", classic.Copy{Patterns: []string{"a"}, Dest: "/link/x"}, []string{"5 700 0:0 dir/", "0 644 0:0 dir/x=A"}, ""},
		{"content of a directory", classic.Copy{Patterns: []string{"e"}, Dest: "/n"}, []string{"5 755 0:0 n/", "5 700 0:0 n/f/", "0 644 0:0 n/f/g=G"}, ""},
		{"file over directory", classic.Copy{Patterns: []string{"d"}, Dest: "/dir"}, []string{"5 700 0:0 dir/", "0 644 0:0 dir/name=N", "5 700 0:0 dir/sub/", "2 777 0:0 dir/sub/s ../x"}, ""},
		{"directory over file", classic.Copy{Patterns: []string{"e/"}, Dest: "/etc/"}, []string{"5 700 0:0 etc/", "5 700 0:0 etc/f/", "0 700 0:0 etc/f/.wh..wh..opq", "0 644 0:0 etc/f/g=G"}, ""},
		{"hard links", classic.Copy{Patterns: []string{"h"}, Dest: "/n"}, []string{"5 755 0:0 n/", "0 644 0:0 n/1=inode 7", "1 644 0:0 n/2 n/1"}, ""},
		{"wildcard", classic.Copy{Patterns: []string{"[ab]"}, Dest: "/n/"}, []string{"5 755 0:0 n/", "0 644 0:0 n/a=A", "0 644 0:0 n/b=B"}, ""},
		{"directories on the way to a directory are root's", classic.Copy{Patterns: []string{"e"}, Dest: "/n/m/o", UID: 5, GID: 6}, []string{"5 755 0:0 n/", "5 755 0:0 n/m/", "5 755 5:6 n/m/o/", "5 700 5:6 n/m/o/f/", "0 644 5:6 n/m/o/f/g=G"}, ""},
		{"an existing directory keeps its owner", classic.Copy{Patterns: []string{"e"}, Dest: "/dir", UID: 5, GID: 6}, []string{"5 700 0:0 dir/", "5 700 5:6 dir/f/", "0 644 5:6 dir/f/g=G"}, ""},
		{"a file in the place of a directory", classic.Copy{Patterns: []string{"d/name"}, Dest: "/dir/"}, []string{"5 700 0:0 dir/", "0 644 0:0 dir/name=N"}, ""},
		{"setgid is handed on", classic.Copy{Patterns: []string{"a"}, Dest: "/sg/n/m/"}, []string{"5 2775 0:0 sg/", "5 2755 0:0 sg/n/", "5 2755 0:0 sg/n/m/", "0 644 0:0 sg/n/m/a=A"}, ""},
		{"capabilities go with a directory", classic.Copy{Patterns: []string{"k"}, Dest: "/n", UID: -1, GID: -1}, []string{"5 755 0:0 n/", "0 644 0:0 n/c=cap+cap"}, ""},
		{"but not with a file", classic.Copy{Patterns: []string{"k/c"}, Dest: "/n", UID: -1, GID: -1}, []string{"0 644 0:0 n=cap"}, ""},
		{"nor with a change of owner", classic.Copy{Patterns: []string{"k"}, Dest: "/n"}, []string{"5 755 0:0 n/", "0 644 0:0 n/c=cap"}, ""},
		{"several to a file", classic.Copy{Patterns: []string{"?"}, Dest: "/n"}, nil, "must be a directory and end with a /"},
		{"below a file", classic.Copy{Patterns: []string{"a"}, Dest: "/etc/f/x"}, nil, "mkdir /etc/f: not a directory"},
		{"missing", classic.Copy{Patterns: []string{"no"}, Dest: "/x"}, nil, "stat no: file does not exist"},
		{"missing, as written", classic.Copy{Patterns: []string{"//./no/"}, Dest: "/x"}, nil, "excluded by .dockerignore: stat /./no/: file does not exist"},
		{"dangling", classic.Copy{Patterns: []string{"dangling"}, Dest: "/x"}, nil, "file does not exist"},
		{"out of the context", classic.Copy{Patterns: []string{"d/../../a"}, Dest: "/x"}, nil, "forbidden path outside the build context"},
		{"the parent of the context", classic.Copy{Patterns: []string{".."}, Dest: "/x"}, nil, "forbidden path outside the build context"},
		{"links in a circle", classic.Copy{Patterns: []string{"./z/loop"}, Dest: "/x"}, nil, "COPY failed: forbidden path outside the build context: z/loop ()"},
		{"bad pattern", classic.Copy{Patterns: []string{"[a"}, Dest: "/x"}, nil, "COPY failed: no source files were specified"},
		{"nothing matches", classic.Copy{Patterns: []string{"y*"}, Dest: "/x"}, nil, "no source files"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.copy.From = from
			var got []string
			err := tc.copy.Over(below, lines(&got))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%v\n got %q\nwant %q", err, got, tc.want)
			}
		})
	}
}

func TestWorkdir(t *testing.T) {
	below := classic.MemoryTree{"/srv": "d", "/link": "->srv", "/file": "f"}
	for dir, want := range map[string][]string{
		"/srv": nil, "/link": nil, "/": nil, "/proc": nil, "/etc": nil, "/dev/shm/": nil, "/dev/x": {"5 755 0:0 dev/", "5 755 0:0 dev/x/"}, "/link/new/er": {"5 700 0:0 srv/", "5 755 0:0 srv/new/", "5 755 0:0 srv/new/er/"},
	} {
		var got []string
		if err := classic.Workdir(below, dir, lines(&got)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", dir, got, err, want)
		}
	}
	for dir, want := range map[string]string{"/file": "Cannot mkdir: /file is not a directory", "/file/x": "mkdir /file: not a directory"} {
		if err := classic.Workdir(below, dir, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", dir, err, want)
		}
	}
}

// TestHash says what of the sources counts.
func TestHash(t *testing.T) {
	hash := func(from classic.MemoryTree, patterns ...string) string {
		t.Helper()
		h, err := classic.Copy{From: from, Patterns: patterns, Dest: "/x/"}.Hash()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	dir := classic.MemoryTree{"/d": "d", "/d/a": "1", "/d/b": "2"}
	all := map[string]string{}
	for name, h := range map[string]string{
		"a directory": hash(dir, "d"), "more in it": hash(classic.MemoryTree{"/d": "d", "/d/a": "1", "/d/b": "2", "/d/c": ""}, "d"),
		"contents swapped": hash(classic.MemoryTree{"/d": "d", "/d/a": "2", "/d/b": "1"}, "d"), "a link": hash(classic.MemoryTree{"/d": "d", "/d/a": "1", "/d/b": "->a"}, "d"),
		"another link": hash(classic.MemoryTree{"/d": "d", "/d/a": "1", "/d/b": "->b"}, "d"), "linked": hash(classic.MemoryTree{"/d": "d", "/d/a": "inode 1", "/d/b": "inode 1"}, "d"),
		"not linked": hash(classic.MemoryTree{"/d": "d", "/d/a": "inode 1", "/d/b": "inode 1x"}, "d"), "a file": hash(dir, "d/a"), "its name": hash(classic.MemoryTree{"/b": "1"}, "b"),
		"two": hash(dir, "d/a", "d/b"), "two in order": hash(dir, "d/b", "d/a"),
	} {
		if other, ok := all[h]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		all[h] = name
	}
	if a, b := hash(dir, "d"), hash(dir, "d/"); a != b || !strings.HasPrefix(a, "dir:") {
		t.Errorf("%s and %s for one directory", a, b)
	}
	if h := hash(dir, "d/?"); h != hash(dir, "d/a", "d/b") || !strings.HasPrefix(h, "multi:") {
		t.Errorf("%s for a wildcard", h)
	}
	// A hash that changes drops every user's cache.
	if h, want := hash(dir, "d"), "dir:cd0b55c5541601d31da13aca1c0f3b5518e0798cd0099fa6c39abd66912bca17"; h != want {
		t.Errorf("%s, want %s as it always was", h, want)
	}
	if classic.Sum("a", "bc") == classic.Sum("ab", "c") {
		t.Error("fields run into each other")
	}
}

// FuzzCopy copies whatever trees over whatever trees: the layer must be a tar
// that can be unpacked as it comes.
func FuzzCopy(f *testing.F) {
	f.Add("/d d\n/d/a x\n/d/b inode 1\n/c inode 1", "/x d\n/l ->x\n/d f", "*", "/l/y/")
	f.Add("/a 1", "/a d\n/a/b ->/a", "a", "/a/b/c")
	f.Fuzz(func(t *testing.T, source, image, pattern, dest string) {
		from, below := memoryTree(source), memoryTree(image)
		var layer bytes.Buffer
		tw := tar.NewWriter(&layer)
		seen := map[string]byte{"": tar.TypeDir}
		err := classic.Copy{From: from, Patterns: []string{pattern, "d"}, Dest: classic.Destination("/", dest)}.Over(below, func(h *tar.Header, r io.Reader) error {
			name := strings.TrimSuffix(h.Name, "/")
			up := strings.TrimPrefix(filepath.Dir("/"+name), "/")
			if seen[up] != tar.TypeDir {
				t.Errorf("%q comes before its directory", h.Name)
			}
			if _, twice := seen[name]; twice || name != strings.TrimPrefix(filepath.Clean("/"+name), "/") {
				t.Errorf("%q comes twice or is not clean", h.Name)
			}
			if target, ok := seen[h.Linkname]; h.Typeflag == tar.TypeLink && (!ok || target != tar.TypeReg) {
				t.Errorf("%q links to %q, which is not there yet", h.Name, h.Linkname)
			}
			seen[name] = h.Typeflag
			if err := tw.WriteHeader(h); err != nil {
				return nil // a name that no tar can hold
			}
			if r != nil {
				_, err := io.Copy(tw, r)
				return err
			}
			return nil
		})
		if err != nil {
			return
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// memoryTree reads "path what" lines and adds the directories on the way.
func memoryTree(text string) classic.MemoryTree {
	tree := classic.MemoryTree{}
	for _, line := range strings.Split(text, "\n") {
		p, what, _ := strings.Cut(line, " ")
		p = filepath.Clean("/" + p)
		if p == "/" || strings.ContainsRune(p, 0) || len(p) > 200 || strings.Contains(p, ".wh.") {
			continue
		}
		tree[p] = what
	}
	for p := range tree {
		for up := filepath.Dir(p); up != "/"; up = filepath.Dir(up) {
			tree[up] = "d"
		}
	}
	return tree
}

func TestRelocate(t *testing.T) {
	var archive, out bytes.Buffer
	tw := tar.NewWriter(&archive)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeReg, Name: "../../etc/x"}, {Typeflag: tar.TypeReg, Name: "/abs"},
		{Typeflag: tar.TypeLink, Name: "l", Linkname: "../etc/x"}, {Typeflag: tar.TypeSymlink, Name: "s", Linkname: "/etc"},
		{Typeflag: tar.TypeReg, Name: "s/f"}, {Typeflag: tar.TypeReg, Name: "in/f"}, {Typeflag: tar.TypeReg, Name: "rel/g"},
		{Typeflag: tar.TypeDir, Name: "rel/"}, {Typeflag: tar.TypeReg, Name: "rel/f"}, {Typeflag: tar.TypeLink, Name: "h", Linkname: "s/x"},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	raw := archive.Bytes()
	image := classic.MemoryTree{"/a": "d", "/a/b": "d", "/a/b/in": "->/sub", "/a/b/rel": "->sub", "/a/b/sub": "d", "/in": "->/x/y"}
	for dest, want := range map[string]string{
		"a/b": "a/b/etc/x a/b/abs a/b/l>a/b/etc/x a/b/s>/etc a/b/etc/f a/b/sub/f a/b/sub/g a/b/rel/ a/b/rel/.wh..wh..opq a/b/rel/f a/b/h>a/b/etc/x",
		"":    "etc/x abs l>etc/x s>/etc etc/f x/y/f rel/g rel/ rel/f h>etc/x",
	} {
		out.Reset()
		if err := image.Relocate(&out, tar.NewReader(bytes.NewReader(raw)), dest); err != nil {
			t.Fatal(err)
		}
		var got []string
		for tr := tar.NewReader(&out); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := h.Name
			if h.Linkname != "" {
				name += ">" + h.Linkname
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("below %q: %q\nwant %q", dest, strings.Join(got, " "), want)
		}
	}
}

// FuzzRelocate unpacks whatever archives over whatever images: nothing leads out
// of the destination, and nothing is reached through a link.
func FuzzRelocate(f *testing.F) {
	f.Add("/a d\n/a/l ->/x\n/x d", "l/f f\n../../x f\nl d\nl/g f\nh =l/../x", "a")
	f.Add("/l ->..", "s ->/etc\ns/passwd f\n.wh.s f\ns/.wh..wh..opq f", "")
	f.Fuzz(func(t *testing.T, image, archive, dest string) {
		dest = strings.TrimPrefix(filepath.Clean("/"+dest), "/")
		var in, out bytes.Buffer
		tw := tar.NewWriter(&in)
		for _, line := range strings.Split(archive, "\n") {
			name, what, _ := strings.Cut(line, " ")
			h := tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX}
			switch {
			case what == "d":
				h.Typeflag = tar.TypeDir
			case strings.HasPrefix(what, "->"):
				h.Typeflag, h.Linkname = tar.TypeSymlink, what[2:]
			case strings.HasPrefix(what, "="):
				h.Typeflag, h.Linkname = tar.TypeLink, what[1:]
			}
			if tw.WriteHeader(&h) != nil {
				return // no archive has that
			}
		}
		if tw.Close() != nil || memoryTree(image).Relocate(&out, tar.NewReader(&in), dest) != nil {
			return
		}
		inside := func(p string) bool {
			p = "/" + strings.TrimSuffix(p, "/")
			return p == filepath.Clean(p) && (dest == "" || strings.HasPrefix(p, "/"+dest+"/"))
		}
		links := map[string]bool{}
		for tr := tar.NewReader(&out); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !inside(h.Name) || h.Typeflag == tar.TypeLink && !inside(h.Linkname) {
				t.Errorf("%q (%q) leads out of %q", h.Name, h.Linkname, dest)
			}
			for up := filepath.Dir(strings.TrimSuffix(h.Name, "/")); up != "."; up = filepath.Dir(up) {
				if links[up] {
					t.Errorf("%q is reached through a link", h.Name)
				}
			}
			links[strings.TrimSuffix(h.Name, "/")] = h.Typeflag == tar.TypeSymlink
		}
	})
}

func TestStartsArchive(t *testing.T) {
	for text, want := range map[string]bool{"": false, "plain": false, string(make([]byte, 2048)): false, "\x1f\x8b": false, "BZh": false, "\xfd7zXZ\x00": false} {
		if got := classic.StartsArchive(strings.NewReader(text)); got != want {
			t.Errorf("%.10q: %t", text, got)
		}
	}
}

// TestLowerStat looks through directories of an overlay.
func TestLowerStat(t *testing.T) {
	if os.Getuid() != 0 {
		needMeans(t)
	}
	top, low := t.TempDir(), t.TempDir()
	for _, d := range []string{top + "/opaque/sub", low + "/opaque/sub/deep", low + "/seen", low + "/gone", top + "/opaque/own"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(top+"/opaque", "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skip("no trusted attributes here:", err)
	}
	if err := unix.Mknod(top+"/gone", unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	for p, there := range map[string]bool{"/opaque/sub": true, "/opaque/own": true, "/opaque/sub/deep": false, "/seen": true, "/gone": false, "/gone/x": false, "/no": false, "/": true} {
		if _, err := classic.LowerStat([]string{top, low}, p); (err == nil) != there {
			t.Errorf("%s: %v, want there: %t", p, err, there)
		}
	}
}

func TestRunArgs(t *testing.T) {
	for text, want := range map[string][]string{
		`RUN echo  a`:                        {"/bin/sh", "-c", "echo  a"},
		`RUN ["a", "$B"]`:                    {"a", "$B"},
		`RUN ['a']`:                          {"/bin/sh", "-c", "['a']"},
		"RUN <<E\na\nb\nE":                   {"/bin/sh", "-c", "a\nb\n"},
		"RUN cat <<E > /x\na\nE":             {"/bin/sh", "-c", "cat <<E > /x\na\nE"},
		"RUN cat <<A && cat <<B\n1\nA\n2\nB": {"/bin/sh", "-c", "cat <<A && cat <<B\n1\nA\n2\nB"},
	} {
		if got, err := classic.RunArgs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestWithPath(t *testing.T) {
	if got := classic.WithPath([]string{"PATHS=x", "PATH="}); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := classic.WithPath([]string{"PATHS=x"}); len(got) != 2 || !strings.HasPrefix(got[1], "PATH=/usr/local/sbin:") {
		t.Errorf("%q", got)
	}
}

func TestCheckAddress(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	for address, ok := range map[string]bool{
		"8.8.8.8:80": true, "[2606:4700::1111]:443": true, "10.1.2.3:80": true, "10.2.0.1:80": false, "127.0.0.1:80": false, "169.254.169.254:80": false,
		"[::1]:80": false, "[::ffff:127.0.0.1]:80": false, "[fe80::1%eth0]:80": false, "100.64.0.1:80": false, "0.0.0.0:80": false, "224.0.0.1:80": false, "nonsense": false,
		"0.0.0.1:80": false, "240.0.0.1:80": false, "[64:ff9b::a00:1]:80": false,
	} {
		if err := classic.CheckAddress(address, allow); (err == nil) != ok {
			t.Errorf("%s: %v, want allowed: %t", address, err, ok)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		p := netip.MustParsePrefix(a.String())
		at := netip.AddrPortFrom(p.Addr(), 80).String()
		if classic.CheckAddress(at, allow) == nil {
			t.Errorf("%s is this machine's, and open", at)
		}
		if err := classic.CheckAddress(at, []netip.Prefix{netip.PrefixFrom(p.Addr(), p.Addr().BitLen())}); err != nil {
			t.Errorf("%s is allowed: %v", at, err)
		}
	}
}
