package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"golang.org/x/sys/unix"
)

// What containers need reaches no layer, whatever the image has in its place.
func TestInitLayer(t *testing.T) {
	r := sharedRunner(t)
	for name, files := range map[string][]file{
		"empty":    nil,
		"complete": {{name: "etc/resolv.conf", data: "x"}, {name: "etc/hosts", data: "x"}, {name: "etc/hostname", data: "x"}, {name: "dev/console"}, {name: "dev/pts/"}, {name: "dev/shm/"}, {name: "proc/"}, {name: "sys/"}, {name: ".dockerenv"}},
		"links":    {{name: "usr/etc/"}, {name: "etc", link: "usr/etc"}, {name: "dev", link: "/nowhere"}, {name: "proc", link: "/"}, {name: "sys", link: "sys"}},
		"files":    {{name: "etc"}, {name: "dev"}, {name: "proc"}, {name: "sys"}},
		"inner":    {{name: "etc/hosts", link: "/bin/busybox"}, {name: "etc/resolv.conf", link: "../run/resolv.conf"}, {name: "dev/shm", link: "/run/shm"}, {name: "etc/mtab", data: "x"}},
		"folders":  {{name: "etc/hosts/"}, {name: "etc/resolv.conf/"}, {name: ".dockerenv/"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := step(t, "cat /etc/hosts /etc/resolv.conf >/dev/null && ls /.dockerenv && readlink /etc/mtab && echo 10.0.0.1 x >>/etc/hosts", tree(t, files...))
			want(t, r, p, "/.dockerenv", "/proc/mounts")
			wantLayer(t, p)
		})
	}
}

// A directory of the init layer that a process changes looks like the image's.
func TestInitAttributes(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "etc/", mode: 0o700}, file{name: "etc/old"}, file{name: "dev/shm/", mode: 0o711})
	etc := filepath.Join(base, "etc")
	then := time.Unix(1_000_000_000, 0)
	for _, err := range []error{
		os.Lchown(etc, 12, 34),
		unix.Setxattr(etc, "user.note", []byte("kept"), 0),
		os.Chtimes(etc, then, then),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The topmost layer that has the directory decides, but for one that
	// changes other things.
	other := t.TempDir()
	want(t, r, step(t, "stat -c '%a %u %g' /etc; ls /etc", other, base),
		"700 12 34", "hostname", "hosts", "mtab", "old", "resolv.conf")

	p := step(t, "echo new >/etc/new", other, base)
	want(t, r, p)
	wantLayer(t, p, "etc", "etc/new")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(p.Upper, "etc"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o700 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("etc in the layer is %o %d:%d, want 700 12:34", st.Mode&0o7777, st.Uid, st.Gid)
	}
	// The classic builder makes files in it before the process runs, so that a
	// change to a file that the image has takes a new time of etc with it.
	p = step(t, "echo more >>/etc/old", other, base)
	want(t, r, p)
	wantLayer(t, p, "etc", "etc/old")
	if err := unix.Stat(filepath.Join(p.Upper, "etc"), &st); err != nil {
		t.Fatal(err)
	}
	if at := time.Unix(st.Mtim.Unix()); time.Since(at) > time.Hour {
		t.Errorf("etc in the layer is of %s, want now", at)
	}
	note := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(p.Upper, "etc"), "user.note", note); err != nil || string(note[:n]) != "kept" {
		t.Errorf("attribute %q, %v", note[:max(n, 0)], err)
	}
}

// Lower directories in the form of overlayfs: removed and replaced ones.
func TestInitOverDeleted(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "etc/", mode: 0o700}, file{name: "etc/old"})
	gone := t.TempDir()
	if err := unix.Mknod(filepath.Join(gone, "etc"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	want(t, r, step(t, "stat -c %a /etc; ls /etc", gone, base), "755", "hostname", "hosts", "mtab", "resolv.conf")

	opaque := t.TempDir()
	addFiles(t, opaque, []file{{name: "etc/", mode: 0o711}, {name: "etc/new"}})
	if err := unix.Setxattr(filepath.Join(opaque, "etc"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	want(t, r, step(t, "stat -c %a /etc; ls /etc", opaque, base), "711", "hostname", "hosts", "mtab", "new", "resolv.conf")
}

func TestLayer(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "a/one"}, file{name: "a/two"}, file{name: "b/three"})
	for _, volatile := range []bool{false, true} {
		p := step(t, "echo x >/a/new; rm /a/one; rm -r /b; mkdir -p /c/d; mv /a /moved; sync", base)
		p.Volatile = volatile
		want(t, r, p)
		wantLayer(t, p, "a", "b", "c", "c/d", "moved", "moved/new", "moved/two")
		// Each step may be the base of the next, and go on in the same directory.
		next := step(t, "ls /; cat /moved/new; touch /c/e", p.Upper, base)
		next.Volatile = volatile
		want(t, r, next, "bin", "c", "dev", "etc", "moved", "proc", "sys", "x")
		wantLayer(t, next, "c", "c/e")
		next.Args[3] = "touch /c/f"
		want(t, r, next)
		wantLayer(t, next, "c", "c/e", "c/f")
	}
}

func TestNoLowers(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "echo alone")
	addFiles(t, p.Upper, nil)
	if err := os.Rename(filepath.Join(p.Lowers[0], "bin"), filepath.Join(p.Upper, "bin")); err != nil {
		t.Fatal(err)
	}
	p.Lowers = nil
	want(t, r, p, "alone")
	wantLayer(t, p, "bin", "bin/busybox", "bin/sh")
}

func TestManyLowers(t *testing.T) {
	r := sharedRunner(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 20), "name, with : all \\ kinds")
	var lowers []string
	for i := range 100 {
		l := filepath.Join(dir, fmt.Sprint(i))
		addFiles(t, l, []file{{name: fmt.Sprintf("layers/%d", i)}})
		lowers = append(lowers, l)
	}
	if n := len(strings.Join(lowers, ":")); n <= os.Getpagesize() {
		t.Fatalf("names of %d bytes fit a page", n)
	}
	p := step(t, "ls /layers | wc -l", append(lowers, tree(t))...)
	want(t, r, p, "100")
	wantLayer(t, p)
}

func TestVolumes(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t,
		file{name: "data/", mode: 0o1777}, file{name: "data/old", data: "old\n"}, file{name: "data/sub/deep", data: "deep\n"},
		file{name: "way", link: "/data"}, file{name: "a:b,c\\d/f", data: "odd\n"})
	if err := os.Lchown(filepath.Join(base, "data"), 5, 6); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		volumes []string
		dir     string
		script  string
		want    []string
		layer   []string
	}{
		{"discards", []string{"/data"}, "",
			"cat /data/old; stat -c '%a %u %g' /data; echo new >/data/old; touch /data/x; rm -r /data/sub; ls /data; touch /kept",
			[]string{"old", "1777 5 6", "old", "x"}, []string{"kept"}},
		{"makes mount point", []string{"/new/vol/"}, "", "ls /new/vol | wc -l; touch /new/vol/x", []string{"0"}, []string{"new", "new/vol"}},
		{"nested", []string{"/data/sub", "data", "/data/more", "/data"}, "",
			"cat /data/sub/deep /data/old; touch /data/sub/x /data/x /data/more/y; ls /data",
			[]string{"deep", "old", "more", "old", "sub", "x"}, nil},
		{"through link", []string{"/way"}, "", "cat /data/old; touch /data/x", []string{"old"}, nil},
		{"odd name", []string{"/a:b,c\\d"}, "", "cat '/a:b,c\\d/f'; touch '/a:b,c\\d/g'", []string{"odd"}, nil},
		{"working directory", []string{"/w"}, "/w/d", "pwd; touch x", []string{"/w/d"}, []string{"w", "w/d"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := step(t, tc.script, base)
			p.Volumes, p.Dir = tc.volumes, tc.dir
			want(t, r, p, tc.want...)
			wantLayer(t, p, tc.layer...)
		})
	}
	if got := layer(t, base); !slices.Contains(got, "data/sub/deep") {
		t.Errorf("the image was changed: %q", got)
	}
}

func TestBuildCA(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("OPERATOR"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRunner(t, sandbox.Options{Network: sandbox.None, BuildCA: ca})
	base := tree(t, file{name: "etc/ssl/certs/ca-certificates.crt", data: "IMAGE\n"}, file{name: "etc/passwd", data: "app:x:7:7::/:\n"})

	p := step(t, "cat $SSL_CERT_FILE; echo $CURL_CA_BUNDLE; cat $APT_CONFIG; (echo x >>$SSL_CERT_FILE) 2>&1 | grep -oE 'Read-only|denied'", base)
	p.Env = []string{"CURL_CA_BUNDLE=/mine"}
	want(t, r, p, "OPERATOR", "IMAGE", "/mine", `Acquire::https::CAInfo "/dev/slipway/ca.crt";`, "Read-only")
	wantLayer(t, p)

	p.User = "app"
	p.Args[3] = "cat $NODE_EXTRA_CA_CERTS"
	want(t, r, p, "OPERATOR", "IMAGE")

	p = step(t, `for v in SSL_CERT_FILE CURL_CA_BUNDLE GIT_SSL_CAINFO NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE PIP_CERT AWS_CA_BUNDLE NPM_CONFIG_CAFILE; do
		eval "grep -c OPERATOR \$$v"; done`)
	want(t, r, p, "1", "1", "1", "1", "1", "1", "1", "1")

	// A new bundle counts from the next process on; one that is gone is an error.
	if err := os.WriteFile(ca, []byte("SECOND"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, r, step(t, "cat $SSL_CERT_FILE"), "SECOND")
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(t.Context(), step(t, "true")); err == nil {
		t.Error("ran without the bundle")
	}
	want(t, sharedRunner(t), step(t, "env | grep -c slipway; ls -d /dev/slipway 2>/dev/null; true"), "0")
}

// Init directories serve one container after the other, also side by side, and
// each looks like the image of the moment.
func TestInitDirectoriesFitTheImage(t *testing.T) {
	r := newRunner(t, sandbox.Options{Network: sandbox.None})
	strict, open := tree(t, file{name: "etc/", mode: 0o700}), tree(t, file{name: "etc/", mode: 0o777})
	look := func(t *testing.T, base string, mode string) {
		t.Helper()
		want(t, r, step(t, "stat -c %a /etc; ls -A /etc /dev/shm; echo x >/etc/x; rm -f /etc/mtab /.dockerenv", base),
			mode, "/dev/shm:", "", "/etc:", "hostname", "hosts", "mtab", "resolv.conf")
	}
	for range 2 {
		look(t, strict, "700")
		look(t, open, "777")
	}
	if err := os.Chmod(filepath.Join(open, "etc"), 0o711); err != nil {
		t.Fatal(err)
	}
	look(t, open, "711")
	for range 4 {
		t.Run("side by side", func(t *testing.T) {
			t.Parallel()
			look(t, strict, "700")
		})
	}
}
