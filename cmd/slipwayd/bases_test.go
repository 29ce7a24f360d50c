package main_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// made keeps bases for all tests of a run.
var made struct {
	busybox sync.Once
	image   v1.Image

	debian, golang sync.Mutex
}

// busyboxBase returns an image with a static busybox, its applets, and the
// users root and app (1000).
func busyboxBase(t testing.TB) v1.Image {
	t.Helper()
	path := needCommand(t, "busybox")
	made.busybox.Do(func() { made.image = busyboxImage(t, path) })
	if made.image == nil {
		t.Fatal("the busybox base could not be made")
	}
	return made.image
}

func busyboxImage(t testing.TB, path string) v1.Image {
	t.Helper()
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, content []byte) {
		h.Size, h.ModTime = int64(len(content)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "home/", "root/", "usr/", "var/"} {
		add(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(&tar.Header{Typeflag: tar.TypeDir, Name: "home/app/", Mode: 0o755, Uid: 1000, Gid: 1000}, nil)
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, binary)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"))
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\napp:x:1000:\nextra:x:2000:app\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return configured(t, l)
}

// configured is an image of these layers that runs a shell.
func configured(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return withConfig(t, image, func(c *v1.ConfigFile) {
		c.OS, c.Architecture = "linux", runtime.GOARCH
		c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		c.Config.Cmd = []string{"/bin/sh"}
	})
}

func withConfig(t testing.TB, image v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	change(c)
	if image, err = mutate.ConfigFile(image, c); err != nil {
		t.Fatal(err)
	}
	return image
}

// debianBase returns Debian as debootstrap makes it. It is kept between runs.
func debianBase(t testing.TB) v1.Image {
	t.Helper()
	need(t, "root", os.Geteuid() == 0)
	made.debian.Lock()
	defer made.debian.Unlock()
	file := filepath.Join(cacheDir(t), "debian-bookworm-"+runtime.GOARCH+".tar.gz")
	keep(t, file, func(tmp string) {
		needCommand(t, "debootstrap")
		root := filepath.Join(tmp, "root")
		// In a mount namespace of its own: what the second stage mounts goes
		// with it.
		command(t, "unshare", "--mount", "debootstrap", "--variant=minbase", "bookworm", root, "http://deb.debian.org/debian")
		sources := "deb http://deb.debian.org/debian bookworm main\n"
		if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte(sources), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"var/cache/apt/archives", "var/lib/apt/lists", "dev"} {
			clear(t, filepath.Join(root, dir))
		}
		command(t, "tar", "-C", root, "--numeric-owner", "--xattrs", "--sort=name", "-I", "gzip -3", "-cf", filepath.Join(tmp, "done"), ".")
	})
	return configured(t, layerOf(t, file))
}

// golangBase returns Debian with the Go tree that runs this test.
func golangBase(t testing.TB) v1.Image {
	t.Helper()
	debian := debianBase(t)
	made.golang.Lock()
	defer made.golang.Unlock()
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Fields(string(out))
	file := filepath.Join(cacheDir(t), env[1]+"-"+runtime.GOARCH+".tar.gz")
	keep(t, file, func(tmp string) {
		command(t, "tar", "-C", env[0], "--owner=0", "--group=0", "--sort=name", "--transform", "s,^\\.,usr/local/go,",
			"--exclude=./test", "--exclude=./api", "--exclude=./doc", "--exclude=testdata", "-I", "gzip -3", "-cf", filepath.Join(tmp, "done"), ".")
	})
	image, err := mutate.AppendLayers(debian, layerOf(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return withConfig(t, image, func(c *v1.ConfigFile) {
		c.Config.Env = []string{"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false"}
	})
}

// keep makes file, unless it is there, from what "make" leaves as done in a
// temporary directory beside it.
func keep(t testing.TB, file string, make func(tmp string)) {
	t.Helper()
	if _, err := os.Stat(file); err == nil {
		return
	}
	tmp, err := os.MkdirTemp(filepath.Dir(file), "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	make(tmp)
	if err := os.Rename(filepath.Join(tmp, "done"), file); err != nil {
		t.Fatal(err)
	}
}

func layerOf(t testing.TB, file string) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// clear removes the files below dir, not the directories.
func clear(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return os.Remove(path)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// push puts an image into the daemon's registry, as crane does.
func (d *daemon) push(image v1.Image, repository string) {
	d.t.Helper()
	if err := remote.Write(d.reference(repository), image, d.auth()); err != nil {
		d.t.Fatalf("push %s: %v", repository, err)
	}
}

func (d *daemon) auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "anyone", Password: d.token})
}

// reference names an image of the daemon's registry, given as "path" or
// "path:tag" or in full.
func (d *daemon) reference(path string) name.Reference {
	d.t.Helper()
	if !strings.HasPrefix(path, d.http+"/") {
		path = d.http + "/" + path
	}
	ref, err := name.ParseReference(path, name.Insecure)
	if err != nil {
		d.t.Fatal(err)
	}
	return ref
}

// startWithBusybox starts a daemon for which "FROM busybox" works.
func startWithBusybox(t testing.TB, args ...string) (*daemon, *client) {
	t.Helper()
	d := startDaemon(t, args...)
	d.push(busyboxBase(t), "library/busybox")
	return d, d.client()
}
