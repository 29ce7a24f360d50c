package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"golang.org/x/sys/unix"
)

// source makes a directory for a mount to show.
func source(t testing.TB, files ...file) string {
	t.Helper()
	dir := t.TempDir()
	addFiles(t, dir, files)
	return dir
}

func TestMountTargets(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "data/old", data: "old\n"}, file{name: "way", link: "/data"}, file{name: "out", link: "../../../../data/far"},
		file{name: "home/", mode: 0o700}, file{name: "file", data: "image\n"}, file{name: "run/", mode: 0o711})
	src := source(t, file{name: "f", data: "shown\n"}, file{name: "sub/g", data: "deep\n"})
	one := filepath.Join(src, "f")
	for _, tc := range []struct {
		name   string
		mounts []sandbox.Mount
		script string
		want   []string
		layer  []string
	}{
		{"over a directory", []sandbox.Mount{{Target: "/data", Source: src}}, "cat /data/f; ls /data; touch /kept",
			[]string{"shown", "f", "sub"}, []string{"kept"}},
		{"over a file", []sandbox.Mount{{Target: "/file", Source: one}}, "cat /file", []string{"shown"}, nil},
		{"where nothing is", []sandbox.Mount{{Target: "/home/a/b", Source: src}}, "cat /home/a/b/f; stat -c %a /home /home/a",
			[]string{"shown", "700", "755"}, nil},
		{"a file where nothing is", []sandbox.Mount{{Target: "/a/b/c", Source: one}}, "cat /a/b/c", []string{"shown"}, nil},
		{"written beside", []sandbox.Mount{{Target: "/home/a/b", Source: src}}, "echo x >/home/a/c; ls /home/a",
			[]string{"b", "c"}, []string{"home", "home/a", "home/a/c"}},
		{"through a link", []sandbox.Mount{{Target: "/way/new", Source: src}}, "cat /data/new/f /data/old", []string{"shown", "old"}, nil},
		{"a link that leads out", []sandbox.Mount{{Target: "/out", Source: src}}, "cat /data/far/f", []string{"shown"}, nil},
		{"dots lead nowhere", []sandbox.Mount{{Target: "/../../x/../y", Source: src}}, "cat /y/f", []string{"shown"}, nil},
		{"inner before outer", []sandbox.Mount{{Target: "/data/sub/in", Source: src, ReadOnly: true}, {Target: "/data", Source: src}},
			"cat /data/sub/in/f", []string{"shown"}, nil},
		{"below /dev", []sandbox.Mount{{Target: "/dev/pipes/EOF", Source: one}}, "cat /dev/pipes/EOF", []string{"shown"}, nil},
		{"the last one wins", []sandbox.Mount{{Target: "/x", Source: one}, {Target: "/x/", Source: filepath.Join(src, "sub/g")}}, "cat /x", []string{"deep"}, nil},
		{"removed again", []sandbox.Mount{{Target: "/home/a/b", Source: src}}, "touch /home/a/x; rm /home/a/x; rmdir /home/a/b 2>/dev/null || echo busy",
			[]string{"busy"}, []string{"home", "home/a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := step(t, tc.script, base)
			p.Mounts = tc.mounts
			want(t, r, p, tc.want...)
			wantLayer(t, p, tc.layer...)
		})
	}
	// One was made for a mount within a mount, as the runtime does.
	if err := os.Remove(filepath.Join(src, "sub/in")); err != nil {
		t.Error(err)
	}
	if got := layer(t, src); strings.Join(got, " ") != "f sub sub/g" {
		t.Errorf("the source has %q", got)
	}
}

func TestMountRefused(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "file"}, file{name: "loop", link: "loop"})
	src := source(t)
	for _, target := range []string{"/", "", "..", "/file/x", "/file", "/loop/x", "/proc/x"} {
		t.Run(target, func(t *testing.T) {
			p := step(t, "true", base)
			p.Mounts = []sandbox.Mount{{Target: target, Source: src}}
			_, err := r.Run(t.Context(), p)
			start, ok := errors.AsType[*sandbox.StartError](err)
			if !ok || strings.Contains(start.Message, "sandbox-test-") && target != "/file" && target != "/proc/x" {
				t.Errorf("error %v", err)
			}
			wantLayer(t, p)
		})
	}
}

// A mount in one that is read-only needs its place there.
func TestMountInReadOnly(t *testing.T) {
	r := sharedRunner(t)
	src := source(t, file{name: "vendor/"}, file{name: "link", link: "vendor"})
	p := step(t, "touch /src/vendor/x && echo made")
	p.Mounts = []sandbox.Mount{{Target: "/src", Source: src, ReadOnly: true}, {Target: "/src/vendor"}}
	want(t, r, p, "made")
	p = step(t, "touch /src/cache/x")
	p.Mounts = []sandbox.Mount{{Target: "/src", Source: src, ReadOnly: true}, {Target: "/src/cache"}}
	_, err := r.Run(t.Context(), p)
	if start, ok := errors.AsType[*sandbox.StartError](err); !ok || start.Message != "cannot mount at /src/cache: /src is read-only and has no such file or directory" {
		t.Errorf("error %v", err)
	}
	p = step(t, "touch /src/cache/x && echo made")
	p.Mounts = []sandbox.Mount{{Target: "/src", Source: src, Discard: true}, {Target: "/src/cache"}}
	want(t, r, p, "made")
	if got := layer(t, src); strings.Join(got, " ") != "link vendor" {
		t.Errorf("the source has %q", got)
	}
}

// Mounts and volumes go into each other.
func TestMountVolumes(t *testing.T) {
	r := sharedRunner(t)
	src := source(t, file{name: "f", data: "shown\n"}, file{name: "vol/g", data: "hidden\n"})
	p := step(t, "cat /data/in/f /m/f; ls /data /m/vol /same; touch /data/x /m/vol/x /data/in/y", tree(t, file{name: "data/old"}))
	p.Volumes = []string{"/data", "/m/vol", "/same"}
	p.Mounts = []sandbox.Mount{{Target: "/data/in", Source: src, Discard: true}, {Target: "/m", Source: src}, {Target: "/same", Source: filepath.Join(src, "vol")}}
	want(t, r, p, "shown", "shown", "/data:", "in", "old", "", "/m/vol:", "", "/same:", "g")
	wantLayer(t, p)
	if got := layer(t, src); strings.Join(got, " ") != "f vol vol/g" {
		t.Errorf("the source has %q", got)
	}
}

func TestMountWrites(t *testing.T) {
	r := sharedRunner(t)
	src := source(t, file{name: "f", data: "old\n", mode: 0o640}, file{name: "a:b,c\\d/f", data: "odd\n"})
	p := step(t, "echo x >/ro/f; touch /ro/new; chmod 777 /ro/f; cat /ro/f 2>&1")
	p.Mounts = []sandbox.Mount{{Target: "/ro", Source: src, ReadOnly: true}}
	if out, _ := run(t, r, p); strings.Count(out, "Read-only file system") != 3 || !strings.HasSuffix(out, "old\n") {
		t.Errorf("read-only: %s", out)
	}
	p = step(t, "echo x >/rw/f; touch /rw/new; cat /rw/f; ls /rw | wc -l; stat -c %a /rw; echo y >/file; cat /file /odd/f; touch /odd/g")
	p.Mounts = []sandbox.Mount{
		{Target: "/rw", Source: src, Discard: true}, {Target: "/file", Source: filepath.Join(src, "f"), Discard: true},
		{Target: "/odd", Source: filepath.Join(src, "a:b,c\\d"), Discard: true},
	}
	want(t, r, p, "x", "3", "755", "y", "odd")
	wantLayer(t, p)
	if got := layer(t, src); strings.Join(got, " ") != "a:b,c\\d a:b,c\\d/f f" {
		t.Errorf("the source has %q", got)
	}
	if data, err := os.ReadFile(filepath.Join(src, "f")); err != nil || string(data) != "old\n" {
		t.Errorf("the source's file has %q, %v", data, err)
	}
	p = step(t, "echo kept >/rw/new")
	p.Mounts = []sandbox.Mount{{Target: "/rw", Source: src}}
	want(t, r, p)
	if data, err := os.ReadFile(filepath.Join(src, "new")); err != nil || string(data) != "kept\n" {
		t.Errorf("what was written is %q, %v", data, err)
	}
}

func TestMountMemory(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "stat -c %a /new /data; ls /data; head -c 2000000 /dev/zero >/new/big 2>/dev/null || echo full; touch /data/x; touch /ro/x 2>/dev/null || echo closed",
		tree(t, file{name: "data/old"}))
	p.Mounts = []sandbox.Mount{{Target: "/new", Size: 1 << 20}, {Target: "/data"}, {Target: "/ro", ReadOnly: true}}
	want(t, r, p, "1777", "755", "full", "closed")
	wantLayer(t, p)
}

// until returns a script's wait for a file that a test makes in dir, which is to
// be mounted at /signal.
const until = "while ! [ -e /signal/go ]; do sleep 0.02; done"

func signal(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// A secret is in the process, and nowhere on a disk while that runs.
func TestMountSecret(t *testing.T) {
	const secret = "correct horse battery staple"
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root, Network: sandbox.None})
	p := step(t, "echo $TOKEN; cat /run/secrets/key; stat -c '%a %u %g' /run/secrets/key; (echo x >/run/secrets/key) 2>/dev/null || echo closed; "+until,
		tree(t, file{name: "run/"}))
	flag := t.TempDir()
	p.Mounts = []sandbox.Mount{
		{Target: "/run/secrets/key", Data: []byte(secret + "\n"), Mode: 0o440, UID: 5, GID: 6, ReadOnly: true},
		{Target: "/signal", Source: flag},
	}
	p.SecretEnv = []string{"TOKEN=" + secret}
	var out bytes.Buffer
	up := make(chan struct{})
	running(&p, func() { close(up) })
	p.Stdout = io.MultiWriter(&out, p.Stdout)
	p.Watch = func(context.Context) error {
		defer signal(t, flag)
		<-up
		if seen := grep(t, root, secret) + grep(t, filepath.Dir(p.Upper), secret); seen > 0 {
			t.Errorf("%d files on the disk have the secret", seen)
		}
		return nil
	}
	code, err := r.Run(t.Context(), p)
	if want := secret + "\n" + secret + "\n440 5 6\nclosed\n"; err != nil || code != 0 || out.String() != want {
		t.Errorf("%d, %v, output %q, want %q", code, err, out.String(), want)
	}
	wantLayer(t, p)
}

// A file that may be executed is one that can be.
func TestMountProgram(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "/dev/pipes/EOF")
	p.Mounts = []sandbox.Mount{{Target: "/dev/pipes/EOF", Data: []byte("#!/bin/sh\necho ran $0\n"), Mode: 0o755, ReadOnly: true}}
	want(t, r, p, "ran /dev/pipes/EOF")
}

// A socket passes on what is said to it, until the process ends.
func TestMountSocket(t *testing.T) {
	root := t.TempDir()
	r := newRunner(t, sandbox.Options{Root: root, Network: sandbox.None})
	flag := t.TempDir()
	p := step(t, "stat -c '%F %a %u %g' /run/agent/sock; "+until)
	p.ID = "agent"
	ends := make(chan net.Conn, 1)
	var calls atomic.Int32
	p.Mounts = []sandbox.Mount{
		{Target: "/signal", Source: flag},
		{Target: "/run/agent/sock", Mode: 0o660, UID: 7, GID: 8, Dial: func(context.Context) (io.ReadWriteCloser, error) {
			if calls.Add(1) > 1 {
				return nil, io.ErrUnexpectedEOF
			}
			near, far := net.Pipe()
			ends <- far
			return near, nil
		}},
	}
	var out bytes.Buffer
	var kept net.Conn
	up := make(chan struct{})
	running(&p, func() { close(up) })
	p.Stdout = io.MultiWriter(&out, p.Stdout)
	p.Watch = func(context.Context) error {
		defer signal(t, flag)
		<-up
		kept = dialAgent(t, root)
		far := <-ends
		refused := dialAgent(t, root)
		defer refused.Close()
		if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("no agent: %v", err)
		}
		say(t, kept, far, "ping")
		say(t, far, kept, "pong")
		return nil
	}
	if code, err := r.Run(t.Context(), p); err != nil || code != 0 || out.String() != "socket 660 7 8\n" {
		t.Errorf("%d, %v, output %q", code, err, out.String())
	}
	wantLayer(t, p)
	defer kept.Close()
	if _, err := kept.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end of the process: %v", err)
	}
}

// dialAgent connects to the socket as the process would.
func dialAgent(t *testing.T, root string) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "unix", "/proc/"+firstProcess(t, root, "agent")+"/root/run/agent/sock")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func say(t *testing.T, from io.Writer, to io.Reader, text string) {
	t.Helper()
	go func() { _, _ = io.WriteString(from, text) }()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Errorf("heard %q, %v, want %q", got, err, text)
	}
}

// grep counts the files below dir that have the text, but for those in memory.
func grep(t *testing.T, dir, text string) (count int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Statfs_t
		if err != nil || unix.Statfs(path, &st) != nil {
			return nil // gone
		}
		if st.Type == unix.RAMFS_MAGIC {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil // runc's pipe would have its reader wait for ever
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(text)) {
			count++
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return count
}
