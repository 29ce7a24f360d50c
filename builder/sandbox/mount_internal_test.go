package sandbox

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/continuity/fs"
)

// FuzzPoints holds the places of mounts to the root file system, wherever its
// links lead, and the mount points that are made to their own directory.
func FuzzPoints(f *testing.F) {
	for _, seed := range []string{"/a/b", "rel/../x", "/link/new", "/up/up/new", "/dangling/x", "/loop/x", "/file/x", "/", "..", "/a\x00b", "/deep/link/../y", "/dev/x"} {
		f.Add(seed, "/a")
		f.Add("/a", seed)
	}
	rootfs := f.TempDir()
	for name, to := range map[string]string{"link": "/dir", "up": "../../../../", "dangling": "/none/at/all", "loop": "loop", "deep/link": "../../dir/./sub"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(rootfs, name)), 0o755), os.Symlink(to, filepath.Join(rootfs, name))); err != nil {
			f.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(rootfs, "dir/sub"), 0o755), os.WriteFile(filepath.Join(rootfs, "file"), nil, 0o600)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		list, err := points(rootfs, &Process{Mounts: []Mount{{Target: one}, {Target: two}}})
		stubs := filepath.Join(t.TempDir(), "stubs")
		if err == nil {
			for _, p := range list {
				if p.path == "/" || !path.IsAbs(p.path) || p.path != path.Clean(p.path) {
					t.Fatalf("%q is mounted at %q", p.Target, p.path)
				}
				if at, err := fs.RootPath(rootfs, p.path); !p.inside && (err != nil || at != filepath.Join(rootfs, p.path)) {
					t.Fatalf("%q is mounted at %q, which leads to %s, %v", p.Target, p.path, at, err)
				}
			}
			_, err = makeStubs(stubs, rootfs, list)
		}
		if _, ok := errors.AsType[*StartError](err); err != nil && !ok && !strings.Contains(err.Error(), "file name too long") {
			t.Fatalf("%q, %q: %v", one, two, err)
		}
		if made, err := filepath.Glob(filepath.Join(rootfs, "*")); err != nil || len(made) != 7 {
			t.Fatalf("the image has %q, %v", made, err)
		}
	})
}
