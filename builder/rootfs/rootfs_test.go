package rootfs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/rootfs"
)

// An overlay is a mount of real directories.
type overlay struct {
	t                         *testing.T
	lowers                    []string // topmost first
	upper, work, mount, outer string
}

// newOverlay makes the directories of a mount; nothing is mounted yet.
func newOverlay(t *testing.T, lowers ...string) *overlay {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	outer := t.TempDir()
	o := &overlay{t: t, lowers: lowers, outer: outer, upper: filepath.Join(outer, "upper"),
		work: filepath.Join(outer, "work"), mount: filepath.Join(outer, "mount")}
	for _, d := range []string{o.upper, o.work, o.mount} {
		must(t, os.Mkdir(d, 0o755))
	}
	if len(lowers) == 0 {
		o.lowers = []string{filepath.Join(outer, "lower")}
		must(t, os.Mkdir(o.lowers[0], 0o755))
	}
	return o
}

// within calls f with the mounted overlay.
func (o *overlay) within(f func(root string)) {
	o.t.Helper()
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(o.lowers, ":"), o.upper, o.work)
	must(o.t, unix.Mount("overlay", o.mount, "overlay", 0, opts))
	defer func() { must(o.t, unix.Unmount(o.mount, 0)) }()
	f(o.mount)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sh runs a script in dir.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-euc", "umask 022\n"+script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

const base = `
mkdir -p usr/bin usr/lib/deep/er etc/conf.d var/cache/apt empty keep
echo sh >usr/bin/sh; ln usr/bin/sh usr/bin/bash; ln -s bash usr/bin/rbash
echo lib >usr/lib/libc; echo x >usr/lib/deep/er/x
for i in 1 2 3; do echo $i >etc/conf.d/$i; echo $i >var/cache/apt/$i; done
echo p >etc/passwd; chmod 600 etc/passwd; chown 3:4 etc/passwd
ln -s usr/bin bin; echo k >keep/k; chmod 1777 keep; chown 7:8 keep
mkfifo fifo; mknod null c 1 3`

var changes = []struct{ name, script string }{
	{"nothing", ""},
	{"create", "mkdir -p new/dir; echo a >new/dir/a; echo b >usr/bin/b; chmod 4755 usr/bin/b; touch -d @1234567890.5 usr/bin/b"},
	{"modify", "echo more >>usr/lib/libc; chmod 640 etc/passwd; chown 9:9 etc/conf.d"},
	{"delete file", "rm etc/passwd usr/lib/deep/er/x"},
	{"delete directory", "rm -r var/cache usr/lib empty"},
	{"replace directory", "rm -r etc; mkdir etc; echo new >etc/new"},
	{"replace directory by file", "rm -r etc; echo etc >etc"},
	{"replace file by directory", "rm usr/lib/libc; mkdir usr/lib/libc; echo f >usr/lib/libc/f"},
	{"replace link by directory", "rm bin; mkdir bin; echo b >bin/b"},
	{"rename", "mv usr/lib/libc usr/lib/libd; mv fifo fofi"},
	{"hard links", "ln usr/lib/libc again; ln usr/lib/libc usr/again; echo n >n1; ln n1 n2; mkdir z; ln n1 z/n3; ln -s n1 s1; ln s1 s2"},
	{"link of links", "rm usr/bin/sh; echo x >>usr/bin/bash"},
	{"symbolic links", "ln -s /etc/passwd l1; ln -s " + strings.Repeat("x", 300) + " l2; ln -sfn lib bin"},
	{"devices", "mknod dev c 1 5; mknod blk b 7 0; mkfifo pipe; chmod 622 pipe; rm null"},
	{"long and odd names", "mkdir -p '" + strings.Repeat("long/", 40) + "'; echo x >'" + strings.Repeat("n", 255) + "'; echo n >'a\nb'; echo u >\"$(printf 'a\\377b')\""},
	{"attributes", "setcap cap_net_raw+ep usr/bin/sh || true; echo a >a; cp usr/bin/sh capable; setcap cap_net_raw+ep capable; mkdir d"},
	{"opaque twice", "rm -r etc; mkdir etc; mkdir etc/conf.d; echo 9 >etc/conf.d/9; rm -r usr/lib/deep/er; mkdir usr/lib/deep/er"},
	{"sparse and empty", "truncate -s 1M holes; : >none; printf x | dd of=holes bs=1 seek=500000 conv=notrunc 2>/dev/null"},
	{"everything", "rm -r usr etc var empty keep bin fifo null; mkdir usr; echo u >usr/u"},
}

// TestRoundTrip makes changes in an overlay, writes them as a layer, unpacks
// that for another overlay of the same lower directories and compares.
func TestRoundTrip(t *testing.T) {
	for _, tc := range changes {
		t.Run(tc.name, func(t *testing.T) {
			one := newOverlay(t)
			lower := one.lowers[0]
			sh(t, lower, base)
			var want string
			one.within(func(root string) {
				sh(t, root, tc.script)
				if tc.name == "attributes" {
					must(t, unix.Setxattr(filepath.Join(root, "d"), "user.key", []byte("value\x00\n="), 0))
				}
				want = describe(t, root)
			})
			layer := write(t, one.upper)
			if again := write(t, one.upper); !bytes.Equal(layer, again) {
				t.Error("two layers of one directory differ")
			}
			two := newOverlay(t, lower)
			must(t, rootfs.Apply(t.Context(), bytes.NewReader(layer), rootfs.Dirs{Upper: two.upper, Parents: two.lowers}))
			two.within(func(root string) {
				if got := describe(t, root); got != want {
					t.Errorf("unpacked:\n%s\nwant:\n%s\nlayer:\n%s", got, want, list(t, layer))
				}
			})
			if again := write(t, two.upper); !bytes.Equal(layer, again) {
				t.Errorf("the layer of an unpacked layer differs:\n%s\nwant:\n%s", list(t, again), list(t, layer))
			}
			three := newOverlay(t, lower)
			create(t, three.upper, layer)
			three.within(func(root string) {
				if got := describe(t, root); got != want {
					t.Errorf("written:\n%s\nwant:\n%s\nlayer:\n%s", got, want, list(t, layer))
				}
			})
			if again := write(t, three.upper); !bytes.Equal(layer, again) {
				t.Errorf("the layer of a written layer differs:\n%s\nwant:\n%s", list(t, again), list(t, layer))
			}
		})
	}
}

// create writes a layer that is in the order of a walk into an empty
// directory.
func create(t testing.TB, upper string, layer []byte) {
	t.Helper()
	u, err := rootfs.OpenUpper(upper)
	must(t, err)
	tr := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		must(t, u.Entry(h, tr))
	}
	must(t, u.Close())
}

// TestUpperRefuses gives entries that are not as a walk has them.
func TestUpperRefuses(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("old"), 0o600))
	for _, tc := range []struct {
		name    string
		entries []tar.Header
	}{
		{"no parent", []tar.Header{file("d/f")}},
		{"twice", []tar.Header{file("f"), file("f")}},
		{"a parent that was left", []tar.Header{dir("a"), file("b"), file("a/f")}},
		{"through a link", []tar.Header{symlink("l", filepath.Dir(secret)), file("l/secret")}},
		{"over a link", []tar.Header{symlink("l", secret), file("l")}},
		{"hard link out", []tar.Header{{Typeflag: tar.TypeLink, Name: "h", Linkname: "../../../../../.." + secret}}},
		{"hard link through a link", []tar.Header{symlink("l", filepath.Dir(secret)), {Typeflag: tar.TypeLink, Name: "m", Linkname: "l/secret"}}},
		{"up", []tar.Header{file("..")}},
		{"no name", []tar.Header{file("")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, err := rootfs.OpenUpper(t.TempDir())
			must(t, err)
			for i := range tc.entries {
				if err = u.Entry(&tc.entries[i], nil); err != nil {
					break
				}
			}
			if err == nil {
				t.Error("accepted")
			}
			must(t, u.Close())
			if b, err := os.ReadFile(secret); err != nil || string(b) != "old" {
				t.Errorf("secret is %q, %v", b, err)
			}
		})
	}
}

func write(t testing.TB, upper string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(t, rootfs.WriteUpper(t.Context(), tw, upper, nil))
	must(t, tw.Close())
	return b.Bytes()
}

// list names a layer's entries.
func list(t testing.TB, layer []byte) string {
	t.Helper()
	var out strings.Builder
	for _, h := range headers(t, layer) {
		fmt.Fprintf(&out, "%c %q", h.Typeflag, h.Name)
		if h.Linkname != "" {
			fmt.Fprintf(&out, " -> %q", h.Linkname)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func headers(t testing.TB, layer []byte) (hs []*tar.Header) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return hs
		}
		must(t, err)
		hs = append(hs, h)
	}
}

// describe says all about a tree that a layer has to keep.
func describe(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil || path == root {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&out, "%q %v %d:%d %d", path[len(root):], fi.Mode(), st.Uid, st.Gid, st.Rdev)
		switch mode := fi.Mode(); {
		case mode.IsRegular():
			b, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&out, " %d %x", fi.Size(), b[:min(len(b), 100)])
		case mode&os.ModeSymlink != 0:
			to, err := os.Readlink(path)
			must(t, err)
			fmt.Fprintf(&out, " -> %q", to)
		}
		if !fi.IsDir() {
			if other, ok := first[st.Ino]; ok && st.Nlink > 1 {
				fmt.Fprintf(&out, " = %q", other)
			} else {
				first[st.Ino] = path[len(root):]
			}
			fmt.Fprintf(&out, " %d links", st.Nlink)
		}
		fmt.Fprintf(&out, " at %d", fi.ModTime().Unix())
		for _, name := range []string{"security.capability", "user.key", "user.overlay.x", "security.selinux"} {
			v := make([]byte, 100)
			if n, err := unix.Lgetxattr(path, name, v); err == nil {
				fmt.Fprintf(&out, " %s=%q", name, v[:n])
			}
		}
		out.WriteByte('\n')
		return nil
	})
	must(t, err)
	return out.String()
}
