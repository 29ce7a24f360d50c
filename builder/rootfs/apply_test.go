package rootfs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
)

// archiveOf writes entries with content "data" for files.
func archiveOf(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, ".wh.") {
			h.Size = 4
		}
		must(t, tw.WriteHeader(&h))
		if h.Size > 0 {
			_, err := tw.Write([]byte("data"))
			must(t, err)
		}
	}
	must(t, tw.Close())
	return b.Bytes()
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name + "/"} }
func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// paths lists a tree.
func paths(t testing.TB, root string) string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if path != root {
			out = append(out, path[len(root)+1:])
		}
		return err
	}))
	return strings.Join(out, " ")
}

func TestApplyOverParents(t *testing.T) {
	for _, tc := range []struct {
		name, lower string
		layer       []tar.Header
		want        string
	}{
		{"whiteout then the directory", "mkdir d; touch d/old", []tar.Header{file(".wh.d"), dir("d"), file("d/new")}, "d d/new"},
		{"whiteout then below it", "mkdir -p d/e; touch d/e/old", []tar.Header{file(".wh.d"), file("d/e/new")}, "d d/e d/e/new"},
		{"directory then its whiteout", "mkdir d; touch d/old", []tar.Header{dir("d"), file("d/new"), file(".wh.d")}, "d d/new"},
		{"file then its whiteout", "touch f", []tar.Header{file("f"), file(".wh.f")}, "f"},
		{"whiteout twice", "touch f g", []tar.Header{file(".wh.f"), file(".wh.f")}, "g"},
		{"opaque last", "mkdir d; touch d/old", []tar.Header{file("d/new"), file("d/.wh..wh..opq")}, "d d/new"},
		{"opaque below a whiteout", "mkdir -p d/e; touch d/e/old", []tar.Header{file(".wh.d"), file("d/e/.wh..wh..opq")}, "d d/e"},
		{"opaque root", "mkdir d e; touch d/old f g", []tar.Header{file("e/new"), file(".wh..wh..opq"), dir("d"), file("g")}, "d e e/new g"},
		{"file then a directory", "mkdir d; touch d/old", []tar.Header{file("d"), dir("d"), file("d/new")}, "d d/new"},
		{"names of AUFS", "touch f", []tar.Header{file(".wh..wh.aufs")}, "f"},
		{"link of the layer", "mkdir d", []tar.Header{symlink("l", "d"), file("l/f")}, "d d/f l"},
		{"link of the parents", "mkdir d; ln -s d l", []tar.Header{file("l/f")}, "d l l/f"},
		{"dots", "touch f", []tar.Header{dir("."), file("./a/../b"), file("../c"), file("/d")}, "b c d f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newOverlay(t)
			sh(t, o.lowers[0], tc.lower)
			must(t, rootfs.Apply(t.Context(), bytes.NewReader(archiveOf(t, tc.layer...)), rootfs.Dirs{Upper: o.upper, Parents: o.lowers}))
			o.within(func(root string) {
				if got := paths(t, root); got != tc.want {
					t.Errorf("the image has %q, want %q", got, tc.want)
				}
			})
		})
	}
}

func TestApplyKeepsParentDirectories(t *testing.T) {
	lower, over := newOverlay(t).lowers[0], newOverlay(t).lowers[0]
	sh(t, lower, "mkdir -p a/b; chmod 1750 a/b; chown 5:6 a/b; chmod 700 a; touch -d @99 a/b")
	sh(t, over, "mkdir a; chmod 711 a")
	o := newOverlay(t, over, lower)
	must(t, rootfs.Apply(t.Context(), bytes.NewReader(archiveOf(t, file("a/b/c/f"))), rootfs.Dirs{Upper: o.upper, Parents: o.lowers}))
	o.within(func(root string) {
		for path, want := range map[string]os.FileMode{"a": 0o711, "a/b": 0o750 | os.ModeSticky, "a/b/c": 0o755} {
			fi, err := os.Stat(filepath.Join(root, path))
			must(t, err)
			if got := fi.Mode() &^ os.ModeDir; got != want {
				t.Errorf("%s has mode %v, want %v", path, got, want)
			}
		}
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(root, "a/b"), &st))
		if st.Uid != 5 || st.Gid != 6 {
			t.Errorf("a/b belongs to %d:%d", st.Uid, st.Gid)
		}
	})
}

func TestApplyLinksToParents(t *testing.T) {
	lower := newOverlay(t).lowers[0]
	sh(t, lower, "mkdir -p a; echo content >a/f; chmod 640 a/f; chown 5:6 a/f; chmod 700 a; ln -s nowhere a/s")
	o := newOverlay(t, lower)
	layer := archiveOf(t, tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "/a/f", Uid: 5, Gid: 6, Mode: 0o640}, link("s", "a/s"))
	must(t, rootfs.Apply(t.Context(), bytes.NewReader(layer), rootfs.Dirs{Upper: o.upper, Parents: o.lowers}))
	o.within(func(root string) {
		var a, b unix.Stat_t
		must(t, unix.Stat(filepath.Join(root, "a/f"), &a))
		must(t, unix.Stat(filepath.Join(root, "b"), &b))
		if a.Ino != b.Ino || b.Nlink != 2 || b.Uid != 5 || b.Mode&0o777 != 0o640 {
			t.Errorf("b is %+v, want another name of %+v", b, a)
		}
		if content, err := os.ReadFile(filepath.Join(root, "b")); err != nil || string(content) != "content\n" {
			t.Errorf("b has %q, %v", content, err)
		}
		if to, err := os.Readlink(filepath.Join(root, "s")); err != nil || to != "nowhere" {
			t.Errorf("s points to %q, %v", to, err)
		}
	})
	if err := rootfs.Apply(t.Context(), bytes.NewReader(archiveOf(t, link("c", "missing"))), rootfs.Dirs{Upper: newOverlay(t).upper, Parents: o.lowers}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("link to nothing: %v", err)
	}
}

// TestApplyStaysInside looks at what lies beside and above the upper directory.
func TestApplyStaysInside(t *testing.T) {
	for _, tc := range []struct {
		name  string
		layer []tar.Header
	}{
		{"dots", []tar.Header{file("../out"), file("a/../../out"), dir("../../outer")}},
		{"absolute", []tar.Header{file("/OUTER/secret")}},
		{"link up", []tar.Header{symlink("l", ".."), file("l/secret"), file("l/out")}},
		{"absolute link", []tar.Header{symlink("l", "/OUTER"), file("l/secret")}},
		{"link to a file", []tar.Header{symlink("l", "../secret"), file("l")}},
		{"link to a link", []tar.Header{symlink("a", ".."), symlink("b", "a"), file("b/secret"), dir("b")}},
		{"hard link", []tar.Header{link("l", "../secret"), file("l")}},
		{"hard link by a link", []tar.Header{symlink("a", ".."), link("l", "a/secret"), file("l")}},
		{"hard link to a link then its owner", []tar.Header{symlink("a", "../secret"), {Typeflag: tar.TypeLink, Name: "l", Linkname: "a", Uid: 5, Mode: 0o777}}},
		{"whiteout up", []tar.Header{symlink("l", ".."), file("l/.wh.secret")}},
		{"whiteout of dots", []tar.Header{file("d/.wh...")}},
		{"opaque up", []tar.Header{symlink("l", ".."), file("l/.wh..wh..opq")}},
		{"directory through a link", []tar.Header{symlink("l", "../beside"), {Typeflag: tar.TypeDir, Name: "l/", Mode: 0o700, Uid: 5}}},
		{"loop", []tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/f")}},
		{"device", []tar.Header{symlink("l", ".."), {Typeflag: tar.TypeBlock, Name: "l/disk", Devmajor: 254}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newOverlay(t)
			must(t, os.WriteFile(filepath.Join(o.outer, "secret"), []byte("secret"), 0o600))
			must(t, os.Mkdir(filepath.Join(o.outer, "beside"), 0o755))
			for i := range tc.layer {
				h := &tc.layer[i]
				h.Name = strings.ReplaceAll(h.Name, "/OUTER", o.outer)
				h.Linkname = strings.ReplaceAll(h.Linkname, "/OUTER", o.outer)
			}
			before := outside(t, o)
			err := rootfs.Apply(t.Context(), bytes.NewReader(archiveOf(t, tc.layer...)), rootfs.Dirs{Upper: o.upper, Parents: o.lowers})
			if after := outside(t, o); after != before {
				t.Errorf("outside is\n%s\nwas\n%s\n(%v)", after, before, err)
			}
		})
	}
}

// outside describes all but the inside of the upper directory.
func outside(t testing.TB, o *overlay) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(describe(t, o.outer)) {
		if strings.HasPrefix(line, `"/upper`) {
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

func TestApplyStops(t *testing.T) {
	o := newOverlay(t)
	layer := archiveOf(t, file("a"), file("b"))
	if err := rootfs.Apply(t.Context(), bytes.NewReader(layer[:514]), rootfs.Dirs{Upper: o.upper}); err == nil {
		t.Error("half a layer was unpacked without an error")
	}
	if err := rootfs.Apply(t.Context(), bytes.NewReader(archiveOf(t, file(".wh."))), rootfs.Dirs{Upper: o.upper}); !errors.Is(err, rootfs.ErrLayer) {
		t.Errorf("whiteout of nothing: %v", err)
	}
}

// FuzzApply unpacks layers that a program in bytes writes: three bytes an entry.
func FuzzApply(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("needs root to make devices")
	}
	names := []string{
		"slipway-a", "slipway-b", "slipway-a/slipway-b", "slipway-b/slipway-a", "slipway-a/slipway-b/slipway-c", ".wh.slipway-a",
		"slipway-a/.wh.slipway-b", "slipway-a/.wh..wh..opq", ".wh..wh..opq", "..", ".", "../secret", "slipway-a/../../secret",
		"slipway-a/secret", ".wh.", ".wh...", "/secret", "slipway-b/../slipway-a", "slipway-a/.wh.secret", "slipway-b/beside",
	}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo, tar.TypeBlock, tar.TypeGNUSparse}
	f.Add([]byte{2, 0, 9, 0, 13, 0, 3, 1, 13})
	f.Add([]byte{0, 5, 0, 1, 0, 0, 0, 2, 0, 0, 8, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for p := program; len(p) >= 3 && len(p) > len(program)-90; p = p[3:] {
			h := &tar.Header{Typeflag: types[int(p[0])%len(types)], Name: names[int(p[1])%len(names)], Mode: 0o755, Uid: int(p[2])}
			if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
				h.Linkname = names[int(p[2])%len(names)]
			}
			if tw.WriteHeader(h) != nil {
				return
			}
		}
		must(t, tw.Close())
		outer := t.TempDir()
		o := &overlay{t: t, outer: outer, upper: filepath.Join(outer, "upper")}
		sh(t, outer, "mkdir upper beside lower lower/slipway-a; echo secret >secret; echo b >lower/slipway-a/slipway-b; ln -s ../.. lower/slipway-b")
		before := outside(t, o)
		err := rootfs.Apply(t.Context(), &b, rootfs.Dirs{Upper: o.upper, Parents: []string{filepath.Join(outer, "lower")}})
		if after := outside(t, o); after != before {
			t.Fatalf("outside is\n%s\nwas\n%s\n(%v)", after, before, err)
		}
	})
}
