package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"golang.org/x/sys/unix"
)

const busybox = "/bin/busybox"

// needRoot skips what cannot be tried without the means.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc:", err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs busybox-static for a root file system:", err)
	}
}

// newRunner returns a Runner on a fresh root that is closed and found empty at
// the end of the test.
func newRunner(t testing.TB, opts sandbox.Options) *sandbox.Runner {
	t.Helper()
	needRoot(t)
	if opts.Root == "" {
		opts.Root = t.TempDir()
	}
	r, err := sandbox.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
		wantNothingLeft(t, opts.Root)
	})
	return r
}

func wantNothingLeft(t testing.TB, root string) {
	t.Helper()
	for _, dir := range []string{"run", "runc"} {
		if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v (%v) after the end", dir, left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), root) {
		t.Errorf("mounted below %s after the end (%v):\n%s", root, err, mounts)
	}
}

// shared returns a Runner that many tests use, with the network of the
// processes off unless they ask for another.
var shared = struct {
	sync.Mutex
	runner *sandbox.Runner
	root   string
}{}

func sharedRunner(t testing.TB) *sandbox.Runner {
	t.Helper()
	needRoot(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.runner == nil {
		root, err := os.MkdirTemp("", "sandbox-test-")
		if err != nil {
			t.Fatal(err)
		}
		r, err := sandbox.New(context.Background(), sandbox.Options{Root: root, Network: sandbox.None})
		if err != nil {
			t.Fatal(err)
		}
		shared.runner, shared.root = r, root
	}
	return shared.runner
}

func TestMain(m *testing.M) {
	if root := os.Getenv(victimRoot); root != "" {
		victim(root)
		return
	}
	if root := os.Getenv(containedRoot); root != "" {
		contained(root)
		return
	}
	code := m.Run()
	if shared.runner != nil {
		if err := errors.Join(shared.runner.Close(context.Background()), os.RemoveAll(shared.root)); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

// A file is one entry of a tree: a directory if the name ends in a slash, a
// symbolic link if link is set.
type file struct {
	name, data, link string
	mode             uint32
}

// tree makes a directory of busybox and files.
func tree(t testing.TB, files ...file) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	files = append([]file{
		{name: "bin/busybox", data: string(program), mode: 0o755},
		{name: "bin/sh", link: "busybox"},
	}, files...)
	addFiles(t, dir, files)
	return dir
}

func addFiles(t testing.TB, dir string, files []file) {
	t.Helper()
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		mode := f.mode
		if mode == 0 {
			mode = 0o644
		}
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case err != nil:
		case f.link != "":
			err = os.Symlink(f.link, path)
		case strings.HasSuffix(f.name, "/"):
			if err = os.MkdirAll(path, 0o755); err == nil && f.mode != 0 {
				err = unix.Chmod(path, f.mode)
			}
		default:
			if err = os.WriteFile(path, []byte(f.data), 0o644); err == nil {
				err = unix.Chmod(path, mode)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// step returns a Process that runs a shell script over lowers in a fresh upper
// directory.
func step(t testing.TB, script string, lowers ...string) sandbox.Process {
	t.Helper()
	if len(lowers) == 0 {
		lowers = []string{tree(t)}
	}
	dir := t.TempDir()
	p := sandbox.Process{
		Lowers: lowers,
		Upper:  filepath.Join(dir, "upper"),
		Work:   filepath.Join(dir, "work"),
		// busybox finds its applets without a file for each.
		Args: []string{"/bin/busybox", "sh", "-c", script},
	}
	for _, d := range []string{p.Upper, p.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// run runs p and returns its output, of both kinds, and exit code.
func run(t testing.TB, r *sandbox.Runner, p sandbox.Process) (string, int) {
	t.Helper()
	var out bytes.Buffer
	p.Stdout, p.Stderr = &out, &out
	code, err := r.Run(t.Context(), p)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, out.String())
	}
	return out.String(), code
}

// want runs p and fails the test unless it prints exactly lines and ends well.
func want(t testing.TB, r *sandbox.Runner, p sandbox.Process, lines ...string) {
	t.Helper()
	out, code := run(t, r, p)
	if got, want := strings.TrimSpace(out), strings.Join(lines, "\n"); got != want || code != 0 {
		t.Errorf("exit code %d, output:\n%s\nwant:\n%s", code, got, want)
	}
}

// layer returns the names of all that is in upper.
func layer(t testing.TB, upper string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(upper, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != upper {
			rel, _ := filepath.Rel(upper, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func wantLayer(t testing.TB, p sandbox.Process, names ...string) {
	t.Helper()
	if got := layer(t, p.Upper); strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("layer has %q, want %q", got, names)
	}
}

func TestExitCode(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "bin/plain", data: "no program"})
	for _, tc := range []struct {
		script string
		want   int
	}{
		{"true", 0},
		{"exit 7", 7},
		{"exit 255", 255},
		{"sh -c 'kill -9 $$'; exit $?", 137},
		{"sh -c 'kill -TERM $$'; exit $?", 143},
		{"exec /bin/plain", 126},
		{"/missing/command", 127},
		{"read line", 1}, // standard input is empty
	} {
		t.Run(tc.script, func(t *testing.T) {
			if _, code := run(t, r, step(t, tc.script, base)); code != tc.want {
				t.Errorf("exit code %d, want %d", code, tc.want)
			}
		})
	}
}

func TestStartError(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t,
		file{name: "bin/text", data: "not a program", mode: 0o755},
		file{name: "bin/plain", data: "#!/bin/sh\n"})
	for _, tc := range []struct {
		name string
		set  func(*sandbox.Process)
		want string
	}{
		{"not in PATH", func(p *sandbox.Process) { p.Args = []string{"nope"} }, `exec: "nope": executable file not found in $PATH`},
		{"no such file", func(p *sandbox.Process) { p.Args = []string{"/nope"} }, `exec: "/nope": stat /nope: no such file or directory`},
		{"not executable", func(p *sandbox.Process) { p.Args = []string{"/bin/plain"} }, "permission denied"},
		{"volume on file", func(p *sandbox.Process) { p.Volumes = []string{"/bin/text"} }, "cannot mount volume over existing file"},
		{"volume on root", func(p *sandbox.Process) { p.Volumes = []string{"/"} }, "destination can't be '/'"},
		{"directory is a file", func(p *sandbox.Process) { p.Dir = "/bin/text" }, "Cannot mkdir: /bin/text is not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := step(t, "echo ran", base)
			tc.set(&p)
			var out bytes.Buffer
			p.Stdout, p.Stderr = &out, &out
			_, err := r.Run(t.Context(), p)
			var start *sandbox.StartError
			if !errors.As(err, &start) || !strings.Contains(start.Message, tc.want) {
				t.Errorf("error %v, want a StartError with %q", err, tc.want)
			}
			if out.Len() > 0 {
				t.Errorf("the runtime's words came as output: %s", out.String())
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "etc/passwd", data: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"})
	for _, tc := range []struct {
		name  string
		set   func(*sandbox.Process)
		print string
		want  string
	}{
		{"HOME of root", func(p *sandbox.Process) {}, "$HOME", "/root"},
		{"HOME of user", func(p *sandbox.Process) { p.User = "app" }, "$HOME", "/home/app"},
		{"HOME of nobody", func(p *sandbox.Process) { p.User = "4242" }, "$HOME", "/"},
		{"HOME is set", func(p *sandbox.Process) { p.Env = []string{"HOME=/own"} }, "$HOME", "/own"},
		{"PATH", func(p *sandbox.Process) {}, "$PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"PATH is set", func(p *sandbox.Process) { p.Env = []string{"PATH=/bin"} }, "$PATH", "/bin"},
		{"last value", func(p *sandbox.Process) { p.Env = []string{"A=1", "A=2=3"} }, "$A", "2=3"},
		{"hostname", func(p *sandbox.Process) { p.ID = "0123456789abcdef" }, "$HOSTNAME $(hostname) $(cat /etc/hostname)", "0123456789ab 0123456789ab 0123456789ab"},
		{"hostname is chosen", func(p *sandbox.Process) { p.Hostname = "ship" }, "$HOSTNAME $(hostname)", "ship ship"},
		{"HOSTNAME is set", func(p *sandbox.Process) { p.Hostname, p.Env = "ship", []string{"HOSTNAME=x"} }, "$HOSTNAME $(hostname)", "x ship"},
		{"extra hosts", func(p *sandbox.Process) { p.ExtraHosts = []string{"db:10.1.2.3", "six:fd00::1"} }, `$(grep -E 'db|six' /etc/hosts | tr '\t\n' '  ')`, "10.1.2.3 db fd00::1 six "},
		{"directory", func(p *sandbox.Process) {}, "$(pwd)", "/"},
		{"umask", func(p *sandbox.Process) {}, "$(umask)", "0022"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := step(t, "", base)
			p.Args = []string{"/bin/busybox", "sh", "-c", `echo "` + tc.print + `"`}
			tc.set(&p)
			out, code := run(t, r, p)
			if strings.TrimRight(out, "\n") != tc.want || code != 0 {
				t.Errorf("exit code %d, printed %q, want %q", code, out, tc.want)
			}
		})
	}
}

func TestUser(t *testing.T) {
	r := sharedRunner(t)
	files := []file{
		{name: "etc/passwd", link: "/usr/share/passwd"}, // absolute, yet inside
		{name: "usr/share/passwd", data: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"},
		{name: "etc/group", data: "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\ndisk:x:6:app\n"},
	}
	base := tree(t, files...)
	for _, tc := range []struct{ user, want string }{
		{"", "0 0 0 10"},
		{"app", "1000 1001 6 10 1001"},
		{"1000", "1000 1001 6 10 1001"},
		{"app:disk", "1000 6 6"},
		{"4242", "4242 0 0"},
		{"4242:4343", "4242 4343 4343"},
	} {
		t.Run("user "+tc.user, func(t *testing.T) {
			p := step(t, "echo $(id -u) $(id -g) $(grep Groups: /proc/self/status | cut -f2)", base)
			p.User = tc.user
			want(t, r, p, tc.want)
		})
	}
	for _, tc := range []struct{ user, want string }{
		{"ghost", "unable to find user ghost: no matching entries in passwd file"},
		{"app:ghosts", "unable to find group ghosts: no matching entries in group file"},
		{"4294967295", "range"},
	} {
		p := step(t, "true", base)
		p.User = tc.user
		_, err := r.Run(t.Context(), p)
		if !errors.Is(err, sandbox.ErrUser) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("user %s: %v, want %s", tc.user, err, tc.want)
		}
	}
}

// An image may hold anything where the user database is expected.
func TestUserDatabase(t *testing.T) {
	r := sharedRunner(t)
	for name, base := range map[string]string{
		"none":   tree(t),
		"loop":   tree(t, file{name: "etc/passwd", link: "passwd"}),
		"escape": tree(t, file{name: "etc/passwd", link: "../../../../../../../../etc/passwd"}),
	} {
		t.Run(name, func(t *testing.T) {
			p := step(t, "id -u", base)
			p.User = "65534"
			want(t, r, p, "65534")
			p = step(t, "id -u", base)
			p.User = "nobody" // the host has one
			if _, err := r.Run(t.Context(), p); !errors.Is(err, sandbox.ErrUser) {
				t.Errorf("error %v, want ErrUser", err)
			}
		})
	}
}

// The runtime would wait for ever for somebody to write.
func TestUserDatabaseFIFO(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "etc/"})
	if err := unix.Mkfifo(filepath.Join(base, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(t.Context(), step(t, "id -u", base)); !errors.Is(err, sandbox.ErrUser) {
		t.Errorf("error %v, want ErrUser", err)
	}
}

func TestPrivileges(t *testing.T) {
	r := sharedRunner(t)
	want(t, r, step(t, `
		grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '
		for ns in mnt pid ipc uts net; do readlink /proc/self/ns/$ns | grep -c "$(cat /ns-$ns)"; done
		mount -t tmpfs x /mnt 2>&1 | grep -o 'ermission denied'
		unshare -m true 2>&1 | grep -o 'Operation not permitted'
		(echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -o 'Read-only'
		(echo 1 >/sys/kernel/mm/x) 2>&1 | grep -oE 'Read-only|nonexistent'
		ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w
		cat /proc/self/oom_score_adj
		mknod /tmp-disk b 254 0 && dd if=/tmp-disk of=/dev/null count=1 2>&1 | grep -o 'Operation not permitted'
		`, tree(t, file{name: "mnt/"}, namespaceFile(t, "mnt"), namespaceFile(t, "pid"), namespaceFile(t, "ipc"), namespaceFile(t, "uts"), namespaceFile(t, "net"))),
		"CapInh: 0000000000000000", "CapPrm: 00000000a80425fb", "CapEff: 00000000a80425fb",
		"CapBnd: 00000000a80425fb", "CapAmb: 0000000000000000", "NoNewPrivs: 0", "Seccomp: 2",
		"0", "0", "0", "0", "0",
		"ermission denied", "Operation not permitted", "Read-only", "Read-only", "0", "0", "Operation not permitted")
}

// namespaceFile records a namespace of the host.
func namespaceFile(t *testing.T, kind string) file {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return file{name: "ns-" + kind, data: name}
}

func TestMounts(t *testing.T) {
	r := sharedRunner(t)
	cgroup, kind := "/sys/fs/cgroup", "cgroup2"
	if !unified(t) {
		cgroup, kind = "/sys/fs/cgroup/memory", "cgroup"
	}
	p := step(t, `while read -r _ _ _ _ target opts rest; do
			case $target in /proc|/sys|/dev|/dev/pts|/dev/shm|/dev/mqueue|`+cgroup+`)
				set -- $rest; while [ "$1" != - ]; do shift; done
				ro=; case ,$opts, in *,ro,*) ro=ro;; esac
				echo $target $2 $ro;; esac
		done </proc/self/mountinfo | sort
		df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2
		tty >/dev/null || echo no tty
		echo x >/dev/stdout
		stat -c %a /dev/shm; readlink /etc/mtab`)
	want(t, r, p, "/dev tmpfs", "/dev/mqueue mqueue", "/dev/pts devpts", "/dev/shm tmpfs", "/proc proc",
		"/sys sysfs ro", cgroup+" "+kind+" ro", "65536", "no tty", "x", "1777", "/proc/mounts")

	p = step(t, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2")
	p.ShmSize = 1 << 20
	want(t, r, p, "1024")
}

// unified reports whether the machine has cgroups of version 2 only.
func unified(t *testing.T) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC
}

func TestWorkingDirectory(t *testing.T) {
	r := sharedRunner(t)
	base := tree(t, file{name: "real/"}, file{name: "link", link: "/real"})
	p := step(t, "pwd; touch here", base)
	p.Dir = "/link/a/b"
	want(t, r, p, "/real/a/b")
	wantLayer(t, p, "real", "real/a", "real/a/b", "real/a/b/here")
}

// A writer that fails stops the process, however quiet that is afterwards.
func TestWriterError(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "echo one; sleep 1000")
	full := errors.New("full")
	p.Stdout = writerFunc(func([]byte) (int, error) { return 0, full })
	if _, err := r.Run(t.Context(), p); !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestOutput(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "echo out; echo err >&2; echo 'runc run failed: me' >&2")
	var out, errs bytes.Buffer
	p.Stdout, p.Stderr = &out, &errs
	if code, err := r.Run(t.Context(), p); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if out.String() != "out\n" || errs.String() != "err\nrunc run failed: me\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
	// It comes while the process runs, which would not end by itself.
	p = step(t, "echo ready; sleep 1000")
	seen := make(chan struct{})
	running(&p, func() { close(seen) })
	p.Watch = func(context.Context) error { <-seen; return io.EOF }
	if _, err := r.Run(t.Context(), p); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want %v", err, io.EOF)
	}
}

func TestLimits(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "x=; while :; do x=$x$x-; done")
	p.Limits.Memory = 32 << 20
	if _, code := run(t, r, p); code != 137 {
		t.Errorf("exit code %d of a process out of memory, want 137", code)
	}
	p = step(t, "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo all")
	p.Limits.Pids = 6
	if out, code := run(t, r, p); code == 0 || !strings.Contains(out, "can't fork") {
		t.Errorf("exit code %d, %q; want a failed fork", code, out)
	}
	if !unified(t) {
		p = step(t, "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
		p.Limits.CPUs = 0.5
		want(t, r, p, "50000", "100000")
	} else {
		p = step(t, "cat /sys/fs/cgroup/cpu.max")
		p.Limits.CPUs = 0.5
		want(t, r, p, "50000 100000")
	}
}

func TestInvalid(t *testing.T) {
	r := sharedRunner(t)
	for name, set := range map[string]func(*sandbox.Process){
		"id with a path": func(p *sandbox.Process) { p.ID = "../x" },
		"dots":           func(p *sandbox.Process) { p.ID = ".." },
		"no command":     func(p *sandbox.Process) { p.Args = nil },
		"no upper":       func(p *sandbox.Process) { p.Upper = "" },
		"network":        func(p *sandbox.Process) { p.Network = "bridge" },
		"host":           func(p *sandbox.Process) { p.ExtraHosts = []string{"x"} },
		"host with line": func(p *sandbox.Process) { p.ExtraHosts = []string{"a\n1.1.1.1 b:10.0.0.1"} },
	} {
		p := step(t, "true")
		set(&p)
		if _, err := r.Run(t.Context(), p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := sandbox.ParseMode("bridge"); err == nil {
		t.Error("network bridge is known")
	}
}
