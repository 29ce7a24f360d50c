package limits_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// What is too long for each run.
var (
	smallFiles = flag.Int("small-files", 20_000, "how many small files to unpack; images have up to a million")
	hugeFile   = flag.Int64("huge-file", 512<<20, "bytes of the huge file to unpack")
)

// TestLedgerAgainstRealImages unpacks Debian, a toolchain and runtimes on top of
// it, and then a layer that removes much of that again.
func TestLedgerAgainstRealImages(t *testing.T) {
	im := newDisk(t, 3<<30).image(t)
	remove := &remover{}
	for _, tc := range []struct {
		name string
		put  func()
	}{
		{"Debian", func() { im.unpackFile(debianTar(im.t), remove) }},
		{"Go", func() { im.unpackTree(goTree(im.t), "usr/local/go", remove) }},
		{"Node", func() { im.unpackTree(nodeTree(im.t), "opt/node/lib/node_modules", remove) }},
		{"JDK", func() { im.unpackTree(jdkTree(im.t), "usr/lib/jvm/jdk", remove) }},
		{"remove", func() { im.unpack(bytes.NewReader(remove.layer(im.t))) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im.t = t
			tc.put()
		})
	}
}

// unpackFile unpacks a compressed layer.
func (im *image) unpackFile(file string, seen *remover) {
	im.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		im.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		im.t.Fatal(err)
	}
	im.unpackSeen(z, seen)
}

// unpackTree unpacks a layer that has a directory of this machine at a path.
func (im *image) unpackTree(dir, at string, seen *remover) {
	im.t.Helper()
	cmd := exec.CommandContext(im.t.Context(), "tar", "-C", dir, "--xattrs", "--sort=name", "--transform", "flags=rh;s,^\\.,"+at+",", "-cf", "-", ".")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		im.t.Fatal(err)
	}
	im.unpackSeen(out, seen)
	if err := cmd.Wait(); err != nil {
		im.t.Fatalf("tar: %v\n%s", err, &stderr)
	}
}

func (im *image) unpackSeen(layer io.Reader, seen *remover) {
	im.t.Helper()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := seen.read(r)
		_, copyErr := io.Copy(io.Discard, r)
		done <- errors.Join(err, copyErr)
	}()
	im.unpack(io.TeeReader(layer, w))
	w.Close()
	if err := <-done; err != nil {
		im.t.Fatal(err)
	}
}

// A remover remembers a part of the paths that layers have.
type remover struct {
	n     int
	paths []*tar.Header
}

func (m *remover) read(r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.n++; m.n%7 == 0 {
			m.paths = append(m.paths, h)
		}
	}
}

// layer removes some of the paths, replaces some and hides what is in some of
// the directories.
func (m *remover) layer(tb testing.TB) []byte {
	s := &script{tb: tb}
	s.layer()
	done := map[string]bool{}
	for i, h := range m.paths {
		name := path.Clean(h.Name)
		if name == "." || below(done, name) || done["file "+name] {
			continue
		}
		switch {
		case i%3 == 0:
			done["file "+name] = true
			s.gone(name)
		case i%3 == 1 && h.Typeflag == tar.TypeReg:
			done["file "+name] = true
			s.file(name, h.Size/2)
		case i%9 == 2 && h.Typeflag == tar.TypeDir:
			s.opaque(name)
		}
	}
	return s.done()[0]
}

// debianTar returns Debian as debootstrap makes it, compressed. It is kept
// between runs, and shared with other tests.
func debianTar(t testing.TB) string {
	t.Helper()
	need(t, "root to mount", os.Getuid() == 0)
	dir := os.Getenv("SLIPWAY_TEST_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(user, "slipway-test")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "debian-bookworm-"+runtime.GOARCH+".tar.gz")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	tmp, err := os.MkdirTemp(dir, "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	root, done := filepath.Join(tmp, "root"), filepath.Join(tmp, "done")
	_, err = exec.LookPath("debootstrap")
	need(t, "debootstrap", err == nil)
	command(t, "unshare", "--mount", "debootstrap", "--variant=minbase", "bookworm", root, "http://deb.debian.org/debian")
	if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte("deb http://deb.debian.org/debian bookworm main\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, "tar", "-C", root, "--numeric-owner", "--xattrs", "--sort=name", "-I", "gzip -3",
		"--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*_*", "--exclude=./dev/*", "-cf", done, ".")
	if err := os.Rename(done, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// goTree is the Go installation that runs this test.
func goTree(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// nodeTree is what Node's package manager installed: itself at least.
func nodeTree(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/usr/local/lib/node_modules", "/usr/lib/node_modules", "/usr/share/nodejs"} {
		if holds(dir, 1000) {
			return dir
		}
	}
	return fromPackages(t, "npm", "node-typescript", "node-lodash")
}

// jdkTree is the machine's JDK.
func jdkTree(t testing.TB) string {
	t.Helper()
	homes, err := filepath.Glob("/usr/lib/jvm/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append([]string{os.Getenv("JAVA_HOME")}, homes...) {
		if _, err := os.Stat(filepath.Join(dir, "lib/modules")); err == nil && dir != "" {
			if dir, err = filepath.EvalSymlinks(dir); err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	for _, version := range []string{"17", "21", "25"} {
		if exec.Command("apt-cache", "show", "openjdk-"+version+"-jdk-headless").Run() == nil {
			return fromPackages(t, "openjdk-"+version+"-jdk-headless", "openjdk-"+version+"-jre-headless")
		}
	}
	need(t, "a JDK", false)
	return ""
}

// holds reports whether dir has at least n files.
func holds(dir string, n int) bool {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if n--; n <= 0 {
				return fs.SkipAll
			}
		}
		return nil
	})
	return n <= 0
}

// fromPackages unpacks packages of the machine's distribution.
func fromPackages(t testing.TB, names ...string) string {
	t.Helper()
	_, err := exec.LookPath("apt-get")
	need(t, strings.Join(names, " and "), err == nil)
	dir := t.TempDir()
	get := exec.Command("apt-get", append([]string{"download", "-q"}, names...)...)
	get.Dir = dir
	out, err := get.CombinedOutput()
	need(t, fmt.Sprintf("%v: %s", names, out), err == nil)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != len(names) {
		t.Fatalf("downloaded %q, %v", debs, err)
	}
	root := filepath.Join(dir, "root")
	for _, deb := range debs {
		command(t, "dpkg-deb", "-x", deb, root)
	}
	return root
}

// streamed is a layer that is written while it is read.
func streamed(t *testing.T, write func(*script)) io.Reader {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := &script{tb: t, tw: tar.NewWriter(w)}
		write(s)
		w.CloseWithError(s.tw.Close())
	}()
	t.Cleanup(func() { r.Close(); <-done })
	return r
}

// TestLedgerAgainstManySmallFiles has what breaks a model that is only nearly
// right: each file is a chance to be off by a block.
func TestLedgerAgainstManySmallFiles(t *testing.T) {
	n := *smallFiles
	d := newDisk(t, 1<<30+int64(n)*16<<10)
	im := d.image(t)
	im.unpack(streamed(t, func(s *script) {
		for i := range n {
			switch {
			case i%5 == 4: // all in one directory
				s.file(fmt.Sprintf("flat/module-%07d.py", i), int64(i%900)+1)
			case i%50 == 3:
				s.symlink(fmt.Sprintf("deep/%d/%d/link-%d", i/10_000, i/100, i), fmt.Sprintf("../%d", i))
			default:
				s.file(fmt.Sprintf("deep/%d/%d/%d.js", i/10_000, i/100, i), int64(i%6000))
			}
		}
	}))
	im.unpack(streamed(t, func(s *script) {
		s.gone("deep/0")
		for i := 4; i < n; i += 10 {
			s.gone(fmt.Sprintf("flat/module-%07d.py", i))
		}
	}))
}

func TestLedgerAgainstOneHugeFile(t *testing.T) {
	n := *hugeFile
	d := newDisk(t, n+n/8+256<<20)
	im := d.image(t)
	im.unpack(streamed(t, func(s *script) {
		s.file("huge", n)
		s.file("next", 1)
	}))
	im.unpack(streamed(t, func(s *script) { s.gone("huge") }))
}
