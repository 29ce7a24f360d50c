package sandbox_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// mounted mounts an overlay of lowers and returns where, and the directory that
// gets what is changed.
func mounted(t *testing.T, lowers ...string) (target, upper string) {
	t.Helper()
	dir := t.TempDir()
	addFiles(t, dir, []file{{name: "upper/"}, {name: "work/"}, {name: "merged/"}})
	target, upper = filepath.Join(dir, "merged"), filepath.Join(dir, "upper")
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + strings.Join(lowers, ":"), "upperdir=" + upper, "workdir=" + filepath.Join(dir, "work"), "index=off"}}
	if err := m.Mount(target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target, upper
}

// A root file system that is mounted already keeps what the process wrote and
// nothing that was made for it.
func TestRoot(t *testing.T) {
	r := sharedRunner(t)
	then := time.Unix(1_000_000_000, 0)
	src := source(t, file{name: "f", data: "shown\n"})
	for name, files := range map[string][]file{
		"bare":     {{name: "keep"}},
		"complete": {{name: "keep"}, {name: "etc/hosts", data: "image\n"}, {name: "etc/resolv.conf", link: "../run/far/resolv.conf"}, {name: "dev/"}, {name: "proc/"}, {name: "sys/"}, {name: "srv/"}},
		"links":    {{name: "keep"}, {name: "etc", link: "usr/etc"}, {name: "srv", link: "/data/srv"}},
	} {
		t.Run(name, func(t *testing.T) {
			base := tree(t, files...)
			before := layer(t, base)
			for _, dir := range []string{"etc", "srv", "."} {
				if err := os.Chtimes(filepath.Join(base, dir), then, then); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			at, upper := mounted(t, base)
			p := step(t, "cat /srv/a/b/f /data/one; grep -c localhost /etc/hosts; cat /etc/resolv.conf >/dev/null && echo written >/new; rm /keep; echo x >>/etc/hosts; [ -c /dev/null ]; mkdir -p /work/place", base)
			p.Lowers, p.Upper, p.Work, p.Root, p.Dir = nil, "", "", at, "/work"
			p.Mounts = []sandbox.Mount{{Target: "/srv/a/b", Source: src}, {Target: "/data/one", Data: []byte("one\n")}}
			want(t, r, p, "shown", "one", "2")
			after := strings.Join(layer(t, at), " ")
			for _, gone := range []string{"keep"} {
				before = append(before[:indexOf(before, gone)], before[indexOf(before, gone)+1:]...)
			}
			for _, made := range []string{"new", "work", "work/place"} {
				if !strings.Contains(" "+after+" ", " "+made+" ") {
					t.Errorf("%s is missing", made)
				}
				after = strings.TrimSpace(strings.Replace(" "+after+" ", " "+made+" ", " ", 1))
			}
			if want := strings.Join(before, " "); after != want {
				t.Errorf("besides what it wrote it has\n%s\nwant\n%s", after, want)
			}
			for _, dir := range []string{"etc", "srv"} {
				if info, err := os.Stat(filepath.Join(at, dir)); err == nil && !info.ModTime().Equal(then) {
					t.Errorf("%s is of %s", dir, info.ModTime())
				}
			}
			if data, err := os.ReadFile(filepath.Join(upper, "new")); err != nil || string(data) != "written\n" {
				t.Errorf("what was written is %q, %v", data, err)
			}
		})
	}
}

func indexOf(list []string, name string) int {
	for i, n := range list {
		if n == name {
			return i
		}
	}
	panic(name)
}

// A process that puts links where something was made for it gains nothing.
func TestRootReplaced(t *testing.T) {
	r := sharedRunner(t)
	outside := t.TempDir()
	addFiles(t, outside, []file{{name: "b/"}, {name: "empty"}})
	at, _ := mounted(t, tree(t))
	p := step(t, "mv /a /moved 2>/dev/null; rmdir /a/b 2>/dev/null; umount /a/b 2>/dev/null; ln -s "+outside+" /a 2>/dev/null; true")
	p.Lowers, p.Upper, p.Work, p.Root = nil, "", "", at
	p.Mounts = []sandbox.Mount{{Target: "/a/b", Source: t.TempDir()}}
	if _, code := run(t, r, p); code != 0 {
		t.Error(code)
	}
	if got := layer(t, outside); strings.Join(got, " ") != "b empty" {
		t.Errorf("outside has %q", got)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "data/old", data: "old\n"})
	before := layer(t, base)
	at, upper := mounted(t, base)
	const script = "cat /data/old /in/f; pwd; (touch /new) 2>&1 | grep -o Read-only; (touch /data/new) 2>&1 | grep -o Read-only; touch /mem/x /dev/shm/x && echo memory"
	lines := []string{"old", "shown", "/work/dir", "Read-only", "Read-only", "memory"}
	for name, set := range map[string]func(*sandbox.Process){
		"of layers":      func(p *sandbox.Process) { p.Upper, p.Work = "", "" },
		"with an upper":  func(*sandbox.Process) {},
		"of a directory": func(p *sandbox.Process) { p.Lowers, p.Upper, p.Work, p.Root = nil, "", "", base },
		"of an overlay":  func(p *sandbox.Process) { p.Lowers, p.Upper, p.Work, p.Root = nil, "", "", at },
	} {
		t.Run(name, func(t *testing.T) {
			p := step(t, script, base)
			p.ReadOnlyRoot, p.Dir = true, "/work/dir"
			p.Mounts = []sandbox.Mount{{Target: "/in", Source: source(t, file{name: "f", data: "shown\n"})}, {Target: "/mem"}}
			set(&p)
			want(t, r, p, lines...)
		})
	}
	if got := layer(t, base); strings.Join(got, " ") != strings.Join(before, " ") {
		t.Errorf("the layer has %q", got)
	}
	if got := layer(t, upper); len(got) > 0 {
		t.Errorf("the upper directory has %q", got)
	}
}

// Where nothing is below an upper directory, nothing can be hidden by it.
func TestNoWhiteouts(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "rm /.dockerenv /etc/mtab; touch /etc/own; ls /.dockerenv /etc/mtab 2>/dev/null; rm /bin/sh; mknod /null c 0 0", tree(t))
	if err := os.Rename(filepath.Join(p.Lowers[0], "bin"), filepath.Join(p.Upper, "bin")); err != nil {
		t.Fatal(err)
	}
	p.Lowers = nil
	if out, _ := run(t, r, p); out != "mknod: /null: Operation not permitted\n" && out != "" {
		t.Error(out)
	}
	wantLayer(t, p, "bin", "bin/busybox", "etc", "etc/own")
}

func TestRootInvalid(t *testing.T) {
	r := sharedRunner(t)
	for name, set := range map[string]func(*sandbox.Process){
		"root and layers":  func(p *sandbox.Process) { p.Root = t.TempDir() },
		"work only":        func(p *sandbox.Process) { p.Upper, p.ReadOnlyRoot = "", true },
		"nothing to write": func(p *sandbox.Process) { p.Upper, p.Work = "", "" },
		"missing":          func(p *sandbox.Process) { p.Lowers, p.Upper, p.Work, p.Root = nil, "", "", "/no/such" },
	} {
		p := step(t, "true")
		set(&p)
		if _, err := r.Run(t.Context(), p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMountStack(t *testing.T) {
	r := sharedRunner(t)
	low := source(t, file{name: "low", data: "low\n"}, file{name: "sub/x", data: "deep\n"}, file{name: "out", link: "../../../../etc"}, file{name: "abs", link: "/sub"})
	high := source(t, file{name: "high", data: "high\n"}, file{name: "etc/passwd", data: "mine\n"})
	overlay := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + high + ":" + low}}}
	p := step(t, `cat /all/low /all/high /sub/x /one /abs/x /out/passwd; (touch /all/new) 2>&1 | grep -o Read-only
		df -k /mem | tail -1 | tr -s ' ' | cut -d' ' -f2; cat /mem/low 2>/dev/null; touch /bound/made; echo inner >/all/sub/made; cat /all/sub/made`)
	p.Mounts = []sandbox.Mount{
		{Target: "/all", Stack: overlay, ReadOnly: true},
		{Target: "/all/sub"},
		{Target: "/sub", Stack: overlay, Select: "/sub"},
		{Target: "/one", Stack: overlay, Select: "sub/x"},
		{Target: "/abs", Source: low, Select: "abs"},
		{Target: "/out", Stack: overlay, Select: "out"},
		{Target: "/mem", Stack: []mount.Mount{overlay[0], {Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}}}},
		{Target: "/bound", Source: low, Select: "sub"},
	}
	want(t, r, p, "low", "high", "deep", "deep", "deep", "mine", "Read-only", "1024", "inner")
	wantLayer(t, p)
	if got := layer(t, low); strings.Join(got, " ") != "abs low out sub sub/made sub/x" {
		t.Errorf("the source has %q", got)
	}

	for name, m := range map[string]sandbox.Mount{
		"cannot mount at /x: /nope in what is to be shown: no such file or directory":             {Target: "/x", Source: low, Select: "nope"},
		"cannot mount at /x: /low/in in what is to be shown: not a directory":                     {Target: "/x", Stack: overlay, Select: "low/in"},
		"cannot mount at /x: /etc/shadow in what is to be shown: no such file or directory":       {Target: "/x", Stack: overlay, Select: "../../../etc/shadow"},
		"cannot mount at /x: /proc/self/root/etc in what is to be shown: too many levels of symb": {Target: "/x", Source: "/", Select: "proc/self/root/etc"},
	} {
		p := step(t, "true")
		p.Mounts = []sandbox.Mount{m}
		if _, err := r.Run(t.Context(), p); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("error %v, want %s", err, name)
		}
	}
}

func TestOutOfMemory(t *testing.T) {
	r := newRunner(t, sandbox.Options{Network: sandbox.None})
	for _, tc := range []struct {
		script string
		code   int
		want   bool
	}{
		{"x=; while :; do x=$x$x-; done", 137, true},
		{"sh -c 'x=; while :; do x=$x$x-; done'; exit 5", 5, true},
		{"exit 137", 137, false},
		{"true", 0, false},
	} {
		told := false
		p := step(t, tc.script)
		p.Limits.Memory = 32 << 20
		p.OutOfMemory = func() { told = true }
		if _, code := run(t, r, p); code != tc.code || told != tc.want {
			t.Errorf("%s: exit code %d, told %t, want %d, %t", tc.script, code, told, tc.code, tc.want)
		}
	}
	// Nothing is left when it cannot start or is stopped either.
	p := step(t, "")
	p.Args, p.OutOfMemory = []string{"nope"}, func() { t.Error("called") }
	if _, err := r.Run(t.Context(), p); err == nil {
		t.Error("no error")
	}
}

func TestMoreLimits(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "ulimit -n; ulimit -Hn; ulimit -c")
	p.Ulimits = []sandbox.Ulimit{{Name: "nofile", Soft: 99, Hard: 1234}, {Name: "core", Soft: -1, Hard: -1}}
	want(t, r, p, "99", "1234", "unlimited")

	limits := sandbox.Limits{Memory: 64 << 20, Swap: 96 << 20, CPUs: 0.5, CPUPeriod: 50 * time.Millisecond, CPUShares: 512, CPUSet: "0", MemorySet: "0"}
	p = step(t, "cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus cpuset/cpuset.mems memory/memory.limit_in_bytes")
	lines := []string{"25000", "50000", "512", "0", "0", "67108864"}
	if unified(t) {
		p = step(t, "cd /sys/fs/cgroup; cat cpu.max cpuset.cpus cpuset.mems memory.max memory.swap.max")
		lines = []string{"25000 50000", "0", "0", "67108864", "33554432"}
	}
	p.Limits = limits
	want(t, r, p, lines...)
}

// It is told once that a process runs, and never of one that does not.
func TestStarted(t *testing.T) {
	r := sharedRunner(t)
	for script, want := range map[string]int{"true": 1, "": 0} {
		p := step(t, script)
		if script == "" {
			p.Args = []string{"nope"}
		}
		told := 0
		p.Started = func() { told++ }
		var out bytes.Buffer
		p.Stdout = &out
		_, _ = r.Run(t.Context(), p)
		if told != want {
			t.Errorf("%q: told %d times, want %d", script, told, want)
		}
	}
}
