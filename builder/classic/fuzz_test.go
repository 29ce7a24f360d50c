package classic_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/classic"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/rootfs"
	"github.com/slipwayhq/slipway/limits"
)

// onDisk makes the files of a tree below dir. It reports whether the file
// system takes them.
func onDisk(tree classic.MemoryTree, dir string) bool {
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		at, what := filepath.Join(dir, p), tree[p]
		var err error
		switch target, link := strings.CutPrefix(what, "->"); {
		case link:
			err = os.Symlink(target, at)
		case what == "d":
			err = os.Mkdir(at, 0o700)
		default:
			err = os.WriteFile(at, []byte(what), 0o644)
		}
		if err != nil {
			return false
		}
	}
	return true
}

// FuzzFollow holds the three trees that COPY resolves destinations in to one
// another, and to the resolver that containerd uses.
func FuzzFollow(f *testing.F) {
	f.Add("/a ->../../b\n/b d\n/b/c ->/a/../d\n/d ->e/f", "/a/c/x")
	f.Add("/a ->a", "/a/../b")
	f.Add("/f file\n/l ->f/../g", "/l/x/..")
	f.Add("/a ->/b/\n/b ->.\n/c/d ->..", "/c/d/a//x")
	f.Add("/a ->b/../../c\n/b ->/", "/a")
	f.Fuzz(func(t *testing.T, text, dest string) {
		tree, dir := memoryTree(text), t.TempDir()
		if !onDisk(tree, dir) || strings.ContainsRune(dest, 0) || len(dest) > 200 {
			return
		}
		dest = classic.Destination("/", dest)
		got, err := tree.Follow(dest, true)
		if err == nil && (got != filepath.Clean(got) || !strings.HasPrefix(got, "/")) {
			t.Fatalf("%q leads to %q", dest, got)
		}
		if dirs, dirsErr := classic.FollowDirs([]string{dir}, dest); dirs != got || (dirsErr == nil) != (err == nil) {
			t.Errorf("%q leads to %q (%v), in directories to %q (%v)", dest, got, err, dirs, dirsErr)
		}
		ledger := limits.NewLedger(-1)
		layer := ledger.Begin(limits.Source{})
		counted := true
		for _, p := range slices.Sorted(maps.Keys(tree)) {
			h := &tar.Header{Name: p[1:], Typeflag: tar.TypeReg}
			if target, link := strings.CutPrefix(tree[p], "->"); link {
				h.Typeflag, h.Linkname = tar.TypeSymlink, target
			} else if tree[p] == "d" {
				h.Typeflag = tar.TypeDir
			}
			counted = counted && layer.Entry(h) == nil
		}
		if led, ledErr := classic.FollowLedger(ledger, dest); counted && (led != got || (ledErr == nil) != (err == nil)) {
			t.Errorf("%q leads to %q (%v), in the ledger to %q (%v)", dest, got, err, led, ledErr)
		}
		want, wantErr := fs.RootPath(dir, dest)
		if errors.Is(wantErr, unix.ENOTDIR) {
			return // COPY says so when it makes directories
		}
		if (wantErr == nil) != (err == nil) || err == nil && filepath.Join(dir, got) != want {
			t.Errorf("%q leads to %q (%v), want %q (%v)", dest, got, err, strings.TrimPrefix(want, dir), wantErr)
		}
	})
}

// listing describes all that is below a directory.
func listing(t *testing.T, dir string) string {
	var out []string
	err := filepath.WalkDir(dir, func(p string, e iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == dir {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d:%d", strings.TrimPrefix(p, dir), info.Mode(), st.Uid, st.Gid)
		if !e.IsDir() {
			line += fmt.Sprintf(" %d links, %d bytes", st.Nlink, st.Size)
		}
		if target, err := os.Readlink(p); err == nil {
			line += " -> " + target
		}
		var b [1]byte
		if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", b[:]); err == nil && n == 1 {
			line += " opaque"
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// FuzzCopyBoth holds the two ways to write a COPY, as a layer and into a
// snapshot, to each other, and to the directory that they are for.
func FuzzCopyBoth(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("needs root for attributes")
	}
	f.Add("/d d\n/d/a x\n/d/b inode 1\n/d/c inode 1", "/x d\n/l ->x\n/d f", "*", "/l/y/")
	f.Add("/a 1", "/a d\n/a/b ->/a", "a", "/a/b/c")
	f.Add("/d/e/f x\n/d/g ->e", "/to/e file\n/to/g/h x", "d", "/to")
	f.Add("/d/x/y z", "/out ->../../../../tmp", "d", "/out/x")
	f.Fuzz(func(t *testing.T, source, image, pattern, dest string) {
		from, below, outer := memoryTree(source), memoryTree(image), t.TempDir()
		dirs := []string{"lower", "layer", "upper", "beside"}
		for i, name := range dirs {
			dirs[i] = filepath.Join(outer, name)
			if err := os.Mkdir(dirs[i], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if strings.ContainsRune(dest, 0) || !onDisk(below, dirs[0]) || !onDisk(from, filepath.Join(outer, "beside")) {
			return
		}
		before := listing(t, dirs[0]) + listing(t, dirs[3])
		c := classic.Copy{From: from, Patterns: []string{pattern, "d"}, Dest: classic.Destination("/", dest), UID: 1, GID: 2}
		if err := c.Both(t.Context(), dirs[:1], dirs[1], dirs[2]); err != nil {
			if errors.Is(err, unix.ENAMETOOLONG) || strings.Contains(err.Error(), "archive/tar") {
				return
			}
			t.Fatal(err)
		}
		if a, b := listing(t, dirs[1]), listing(t, dirs[2]); a != b {
			t.Errorf("the layer unpacks to\n%s\nthe snapshot has\n%s", a, b)
		}
		all, err := os.ReadDir(outer)
		if after := listing(t, dirs[0]) + listing(t, dirs[3]); after != before || err != nil || len(all) != len(dirs) {
			t.Errorf("outside is %v\n%s\nwas\n%s", all, after, before)
		}
	})
}

// FuzzRehearse turns Dockerfiles into steps. What is refused names a code and
// a line.
func FuzzRehearse(f *testing.F) {
	for _, text := range []string{
		"ARG A=1\nFROM x AS a\nCOPY --from=a --chown=$A . /\nFROM a\nONBUILD RUN <<E\nx\nE\n",
		"# escape=`\nFROM --platform=$B scratch\nEXPOSE 1-2\nHEALTHCHECK NONE",
		"FROM scratch\nCOPY --parents --exclude=*.x ./a/./*/f** /d/\nADD --chmod=u+x,go= a $A /\nWORKDIR ../x\nENV a=$b b=\"${c:-d}\"\nEXPOSE $A 8080-8090/udp",
		"FROM scratch\nADD --checksum=$A https://h/r.git?ref=a#b:c git@h:x <<E /d/\n$A\nE\nCOPY --link [\"a\", \"b/\"]\nVOLUME [\"/x\"]\nSTOPSIGNAL 9\nUSER $A\nSHELL [\"s\"]\nCMD a\nENTRYPOINT [\"b\"]\nLABEL a=b c",
		"FROM scratch\nHEALTHCHECK --interval=1s CMD [\"a\"]\nMAINTAINER x\nONBUILD ADD a /\nRUN --mount=type=cache,target=/x <<E cat\nx\nE\nARG X=${A#b} Y",
		"\xef\xbb\xbfFROM scratch\r\nCOPY a \\\r\n  # comment\r\n /b\r\n",
	} {
		f.Add([]byte(text), "/a/b/f x\n/a/l ->b\n/f.x y")
	}
	f.Fuzz(func(t *testing.T, content []byte, files string) {
		err := classic.Rehearse(content, memoryTree(files), map[string]string{"A": "a/b"})
		if err == nil {
			return
		}
		e := failure.As(err)
		if e.Code == failure.Internal {
			t.Errorf("%q: %v", content, err)
		}
		if whole := strings.Contains(e.Message, "cannot be empty") || strings.Contains(e.Message, "no build stage"); e.Line == 0 && !whole {
			t.Errorf("%q: no line in %v", content, err)
		}
		if e.Hint == "" {
			t.Errorf("%q: no hint for %v", content, err)
		}
	})
}

// FuzzUnpack unpacks archives that a program in bytes writes, four bytes an
// entry, below whatever directory: nothing outside the root changes.
func FuzzUnpack(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("needs root to make devices")
	}
	names := []string{
		"a", "a/b", "a/b/c", "..", "../secret", "../../secret", "/secret", "a/../../../secret", "./", "", ".wh.a", "a/.wh..wh..opq", ".wh..wh..opq",
		"a/.wh.b", ".wh.", ".wh...", "a/", "../lower/x", "/../upper", "b", "b/secret", "./.wh./x",
	}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo, tar.TypeBlock, tar.TypeXGlobalHeader}
	f.Add([]byte{2, 0, 5, 0, 0, 1, 0, 0}, "/x")
	f.Add([]byte{3, 0, 6, 0, 1, 10, 0, 0, 0, 12, 0, 0}, "/")
	f.Add([]byte{2, 19, 3, 0, 2, 20, 5, 0, 0, 20, 0, 0}, "/a/b")
	f.Fuzz(func(t *testing.T, program []byte, dest string) {
		if strings.ContainsRune(dest, 0) || len(dest) > 200 {
			return
		}
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for p := program; len(p) >= 4 && len(p) > len(program)-120; p = p[4:] {
			h := &tar.Header{Typeflag: types[int(p[0])%len(types)], Name: names[int(p[1])%len(names)], Mode: int64(p[3]) << 4, Uid: int(p[3]), Size: 0}
			if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
				h.Linkname = names[int(p[2])%len(names)]
			}
			if h.Typeflag == tar.TypeXGlobalHeader {
				*h = tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": names[int(p[2])%len(names)]}}
			}
			if tw.WriteHeader(h) != nil {
				return
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		outer := t.TempDir()
		tree := classic.MemoryTree{"/upper": "d", "/lower": "d", "/lower/a": "d", "/lower/a/b": "->../../..", "/lower/b": "->../..", "/secret": "secret", "/etc": "d"}
		if !onDisk(tree, outer) {
			t.Fatal("cannot make the directories")
		}
		outside := func() string {
			var kept []string
			for _, line := range strings.Split(listing(t, outer), "\n") {
				if !strings.HasPrefix(line, "/upper/") {
					kept = append(kept, line)
				}
			}
			return strings.Join(kept, "\n")
		}
		before := outside()
		dirs := rootfs.Dirs{Upper: filepath.Join(outer, "upper"), Parents: []string{filepath.Join(outer, "lower")}}
		err := classic.Unpack(t.Context(), &b, strings.TrimPrefix(classic.Destination("/", dest), "/"), dirs)
		if after := outside(); after != before {
			t.Fatalf("outside is\n%s\nwas\n%s\n(%v)", after, before, err)
		}
	})
}

// FuzzArchive reads whatever bytes as an archive. It ends, in little memory.
func FuzzArchive(f *testing.F) {
	xz := "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01\x16\x00\x00\x00t/\xe5\xa3\x01\x00\x05hello\n\x00\x00\x00\x00"
	for _, s := range []string{xz, xz + xz, "BZh91AY&SY", "\x1f\x8b\x08\x00\x00\x00\x00\x00", "\x28\xb5\x2f\xfd\x04\x58", "", strings.Repeat("\x00", 1024)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		classic.StartsArchive(bytes.NewReader(data))
		r, err := classic.Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer r.Close()
		begun := time.Now()
		_, _ = io.CopyN(io.Discard, r, 16<<20)
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("%d bytes took %v", len(data), took)
		}
	})
}
