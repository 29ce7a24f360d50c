package main_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A cache mount outlives the daemon that was killed while a step wrote to it,
// belongs to its app, is counted and can be pruned. Nothing stays mounted.
func TestCacheMountOutlivesDaemon(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	const mounts = "RUN --mount=type=cache,target=/var/cache/c --mount=target=/src,rw --mount=type=tmpfs,target=/new "
	const count = mounts + "echo x >> /var/cache/c/runs; touch /src/x; wc -l < /var/cache/c/runs > /count; echo counted"
	deploy := func(app, text, want string) {
		t.Helper()
		root := unpack(t, d.pull(c.deploy(app, tree{"Dockerfile": "FROM busybox\n" + count + text + "\n", "f": "file"}.write(t))))
		if got := fileOf(t, root, "count"); got != want {
			t.Errorf("%s counts %q, want %q", app, got, want)
		}
		for _, name := range []string{"var/cache", "new", "src"} {
			if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
				t.Errorf("the image has the mount point %s", name)
			}
		}
	}
	deploy("shop", " first", "1\n")
	r := c.startDeploy("shop", tree{"Dockerfile": "FROM busybox\n" + count + "; sleep 600\n", "f": "file"}.write(t))
	r.untilLog("counted")
	d.signal(syscall.SIGKILL)
	d.start()
	d.quiet(10 * time.Second)
	r.wait(90 * time.Second)
	deploy("shop", " again", "3\n")
	deploy("blog", "", "1\n")

	kinds := func() map[string]int {
		var u struct {
			Kinds []struct {
				Kind  string
				Count int
			}
		}
		c.slipway("cache", "usage", "--json").value(&u)
		out := map[string]int{}
		for _, k := range u.Kinds {
			out[k.Kind] = k.Count
		}
		return out
	}
	if n := kinds()["mount"]; n != 2 {
		t.Errorf("%d cache mounts are counted, want 2", n)
	}
	if p := c.slipway("cache", "prune", "-a", "blog", "--all", "--json"); p.code() != exitDone {
		t.Errorf("cache prune: %s", p.text())
	}
	if n := kinds()["mount"]; n != 1 {
		t.Errorf("%d cache mounts are counted after pruning, want 1", n)
	}
}
