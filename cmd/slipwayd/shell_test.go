package main_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

// broken is a build whose last step fails with all that a step can have.
func broken() tree {
	return tree{
		"Dockerfile": `FROM busybox AS tools
RUN echo tool > /tool
FROM busybox
ENV COLOR=green
ARG SHAPE=round
WORKDIR /home/app/work
RUN mkdir -p /srv && chown app:app /srv /home/app/work
USER app
RUN --mount=type=secret,id=key,uid=1000 --mount=type=secret,id=word,env=WORD \
    --mount=type=cache,target=/srv/cache,uid=1000 --mount=type=tmpfs,target=/srv/tmp \
    --mount=target=/srv/context --mount=from=tools,source=/tool,target=/srv/tool \
    echo $COLOR > made && cat /run/secrets/key > /dev/null && echo "$WORD" > /dev/null && echo kept > /srv/cache/file && exit 7
`,
		"source": "of the context\n",
	}
}

// fails builds dir and returns the id of the build.
func (c *client) fails(app, dir string, args ...string) string {
	c.t.Helper()
	d := c.deployFails(exitUser, "step_failed", app, dir, args...)
	if want := "slipway builds shell " + d.BuildID; !strings.Contains(d.Error.Hint, want) {
		c.t.Fatalf("the hint is %q, want one with %q", d.Error.Hint, want)
	}
	return d.BuildID
}

// typed runs slipway with an input, to its end.
func (c *client) typed(input string, args ...string) *call {
	c.t.Helper()
	r := c.startWith(strings.NewReader(input), args...)
	r.wait(patience)
	return r
}

var pipelines = map[string][]string{"classic": nil, "buildkit": {"--buildkit"}}

func TestShellWhereAStepFailed(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	for name, flags := range pipelines {
		t.Run(name, func(t *testing.T) {
			id := c.fails(name, broken().write(t), append(flags, "--build-secret", "key=hush", "--build-secret", "word=hush")...)
			r := c.typed(`pwd; id -un; cat made; echo "$COLOR $SHAPE"; cat /srv/cache/file /srv/context/source /srv/tool
ls /srv/tmp; ls /run/secrets; echo "word: $WORD"; grep -c ' /srv/tmp tmpfs' /proc/mounts; echo done >&2; exit 9
`, "builds", "shell", id)
			want := "/home/app/work\napp\ngreen\ngreen round\nkept\nof the context\ntool\nword: \n1\n"
			if got := r.stdout.String(); got != want || r.code() != 9 {
				t.Errorf("exit code %d, the shell printed\n%s\nwant 9 and\n%s", r.code(), got, want)
			}
			if err := r.stderr.String(); !strings.Contains(err, "done\n") || !strings.Contains(err, "secrets") || strings.Contains(err, "hush") {
				t.Errorf("standard error:\n%s", err)
			}
			// What a shell leaves, the next one finds; what is asked for runs instead.
			if r := c.slipway("builds", "shell", id, "--", "sh", "-c", "echo two > there; exit 3"); r.code() != 3 {
				t.Errorf("exit code %d, want 3\n%s", r.code(), r.text())
			}
			if r := c.slipway("builds", "shell", id, "--json", "--", "cat", "there"); !strings.Contains(r.stdout.String(), `{"type":"output","stream":"stdout","data":"two\n"}`) ||
				!strings.HasSuffix(r.stdout.String(), `{"type":"result","exit_code":0,"error":null}`+"\n") {
				t.Errorf("JSON lines:\n%s", r.text())
			}
			if r := c.slipway("builds", "shell", id, "--", "nope"); r.code() != exitUser || !strings.Contains(r.stderr.String(), "error: not_found (user)") {
				t.Errorf("a program that is not there: exit code %d\n%s", r.code(), r.text())
			}
			d.quiet(10 * time.Second)
		})
	}
	if r := c.slipway("builds", "shell", "01JD9K00000000000000000000"); r.code() != exitUser || !strings.Contains(r.stderr.String(), "no build") {
		t.Errorf("a build that is none: exit code %d\n%s", r.code(), r.text())
	}
	good := c.deploy("good", dockerfile("FROM busybox", "RUN true").write(t))
	if r := c.slipway("builds", "shell", good.BuildID); r.code() != exitUser || !strings.Contains(r.stderr.String(), "nothing is kept") {
		t.Errorf("a build that went well: exit code %d\n%s", r.code(), r.text())
	}
}

// An output that nobody reads while a test waits for text in it.
func (r *call) untilPrinted(text string) {
	r.t.Helper()
	poll(r.t, time.Minute, "slipway to print "+text, func() bool {
		select {
		case <-r.ended:
			r.t.Fatalf("slipway ended before it printed %q\n%s", text, r.text())
		default:
		}
		return strings.Contains(r.stdout.String(), text)
	})
}

// keyboard returns an input, and what types there.
func keyboard(t *testing.T) (in, keys *os.File) {
	t.Helper()
	in, keys, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); keys.Close() })
	return in, keys
}

// Shells of one step are side by side: files, processes, the network.
func TestManyShells(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t, "--network", "none")
	id := c.fails("many", dockerfile("FROM busybox", "RUN echo a > /a; false").write(t))
	in, keys := keyboard(t)
	first := c.startWith(in, "builds", "shell", id)
	fmt.Fprintln(keys, "sleep 1234 > /dev/null 2>&1 & echo ready")
	first.untilPrinted("ready")
	if got := d.containers(); len(got) != 1 {
		t.Errorf("containers: %q", got)
	}
	second := c.typed("cat /a; pidof sleep > /dev/null && echo seen; echo b > /b\n", "builds", "shell", id)
	if got := second.stdout.String(); got != "a\nseen\n" || second.code() != 0 {
		t.Errorf("exit code %d, printed %q\n%s", second.code(), got, second.text())
	}
	fmt.Fprintln(keys, "cat /b; exit 4")
	if code := first.wait(20 * time.Second); code != 4 || first.stdout.String() != "ready\nb\n" {
		t.Errorf("exit code %d, want 4\n%s", code, first.text())
	}
	d.quiet(10 * time.Second)

	// One whose client is killed ends.
	in, keys = keyboard(t)
	third := c.startWith(in, "builds", "shell", id)
	fmt.Fprintln(keys, "echo $$; sleep 1000; echo never")
	third.untilPrinted("\n")
	third.signal(syscall.SIGKILL)
	d.quiet(20 * time.Second)
}

func TestKeptAsLongAsItMay(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t, "--keep-failed", "3s")
	id := c.fails("short", dockerfile("FROM busybox", "RUN touch /made; false").write(t))
	in, keys := keyboard(t)
	r := c.startWith(in, "builds", "shell", id)
	fmt.Fprintln(keys, "sleep 5; echo still here")
	r.untilPrinted("still here")
	if len(kept(t, d)) != 1 {
		t.Errorf("kept: %q", kept(t, d))
	}
	keys.Close()
	if code := r.wait(10 * time.Second); code != 0 {
		t.Errorf("exit code %d\n%s", code, r.text())
	}
	if r := c.slipway("builds", "shell", id); r.code() != exitUser || !strings.Contains(r.stderr.String(), "nothing is kept of build "+id) {
		t.Errorf("after its time: exit code %d\n%s", r.code(), r.text())
	}
	poll(t, 10*time.Second, "the snapshot to be gone", func() bool { return len(kept(t, d)) == 0 })
}

// kept are the files called made that snapshots have.
func kept(t *testing.T, d *daemon) []string {
	t.Helper()
	var all []string
	for _, below := range []string{"", "home/app/work/"} {
		found, err := filepath.Glob(filepath.Join(d.root, "cache/snapshots/snapshots/*/fs", below, "made"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// What is kept counts, and is the first to go.
func TestKeptAsLongAsThereIsRoom(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	for name, flags := range pipelines {
		id := c.fails(name, dockerfile("FROM busybox", "RUN dd if=/dev/zero of=/made bs=1M count=3; false").write(t), flags...)
		in, keys := keyboard(t)
		r := c.startWith(in, "builds", "shell", id)
		fmt.Fprintln(keys, "dd if=/dev/zero of=/more bs=1M count=3 2> /dev/null; echo ready; read x; cat /made | wc -c")
		r.untilPrinted("ready")
		if n := c.kept(name); n.Count != 1 {
			t.Errorf("%s: usage %+v", name, n)
		}
		prune := func() {
			t.Helper()
			if p := c.slipway("cache", "prune", "--all"); p.code() != exitDone {
				t.Error(p.text())
			}
		}
		prune() // nothing that somebody is in
		fmt.Fprintln(keys, "")
		keys.Close()
		if code := r.wait(20 * time.Second); code != 0 || !strings.Contains(r.stdout.String(), "3145728") {
			t.Errorf("%s: exit code %d\n%s", name, code, r.text())
		}
		if n := c.kept(name); n.Count != 1 || n.Bytes < 3<<20 {
			t.Errorf("%s: usage %+v", name, n)
		}
		prune()
		if n := c.kept(name); n.Count != 0 || n.Bytes != 0 || len(kept(t, d)) != 0 {
			t.Errorf("%s: usage %+v after all was pruned, kept %q", name, n, kept(t, d))
		}
		if r := c.slipway("builds", "shell", id); r.code() != exitUser || !strings.Contains(r.stderr.String(), "nothing is kept") {
			t.Errorf("%s: exit code %d\n%s", name, r.code(), r.text())
		}
	}
}

type kindUsage struct {
	Kind  string
	Bytes int64
	Count int
}

// kept is what the cache says that failed steps of an app have.
func (c *client) kept(app string) kindUsage {
	c.t.Helper()
	var u struct{ Kinds []kindUsage }
	c.slipway("cache", "usage", "-a", app, "--json").value(&u)
	for _, k := range u.Kinds {
		if k.Kind == "failed step" {
			return k
		}
	}
	c.t.Fatal("the usage has no failed steps")
	return kindUsage{}
}

// Shells and commands have the limits and the network of RUN steps.
func TestShellsHaveLimits(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t, "--network", "none", "--build-pids", "77", "--build-memory", "100MB")
	const look = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; ls /sys/class/net"
	check := func(r *call) {
		t.Helper()
		got := strings.Fields(r.stdout.String())
		if len(got) != 3 || got[0] != "77" || !strings.HasPrefix(got[1], "99") && got[1] != "100000000" || got[2] != "lo" {
			t.Errorf("%s", r.text())
		}
	}
	for name, flags := range pipelines {
		check(c.slipway("builds", "shell", c.fails(name, dockerfile("FROM busybox", "RUN false").write(t), flags...), "--", "sh", "-c", look))
	}
	c.deploy("shop", dockerfile("FROM busybox", "RUN true").write(t))
	check(c.slipway("exec", "-a", "shop", "--", "sh", "-c", look))
}

// What a bind mount shows can be changed for the moment; who wants a locked cache
// mount waits.
func TestMountsOfShells(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	for name, flags := range pipelines {
		files := tree{"Dockerfile": "FROM busybox\nRUN --mount=target=/src,rw --mount=type=cache,target=/c,sharing=locked touch /src/f; echo a >> /c/f; false\n", "f": "file\n"}
		dir := files.write(t)
		id := c.fails(name, dir, flags...)
		in, keys := keyboard(t)
		first := c.startWith(in, "builds", "shell", id)
		fmt.Fprintln(keys, "cat /src/f; echo changed > /src/f; cat /src/f; echo b >> /c/f; echo ready")
		first.untilPrinted("file\nchanged\nready\n")
		second := c.startDeploy(name, files.and("f", "other\n").write(t), flags...)
		if name == "classic" {
			second.untilLog("waiting for the cache mount")
		}
		keys.Close()
		if code := first.wait(20 * time.Second); code != 0 {
			t.Errorf("%s: exit code %d\n%s", name, code, first.text())
		}
		second.wait(patience)
		if second.code() != exitUser {
			t.Errorf("%s: exit code %d\n%s", name, second.code(), second.text())
		}
		if r := c.slipway("builds", "shell", id, "--", "cat", "/src/f", "/c/f"); r.stdout.String() != "file\na\nb\na\n" {
			t.Errorf("%s: afterwards\n%s", name, r.text())
		}
	}
}

func TestNothingIsKept(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t, "--keep-failed", "0")
	d := c.deployFails(exitUser, "step_failed", "none", dockerfile("FROM busybox", "RUN false").write(t))
	if strings.Contains(d.Error.Hint, "builds shell") {
		t.Errorf("hint %q", d.Error.Hint)
	}
	if r := c.slipway("builds", "shell", d.BuildID); r.code() != exitUser || !strings.Contains(r.stderr.String(), "--keep-failed") {
		t.Errorf("exit code %d\n%s", r.code(), r.text())
	}
}

func TestShellFromScratch(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	id := c.fails("scratch", dockerfile("FROM busybox AS b", "FROM scratch", "COPY --from=b /bin/busybox /busybox", `RUN ["/busybox", "false"]`).write(t))
	if r := c.slipway("builds", "shell", id); r.code() != exitUser || !strings.Contains(r.stderr.String(), "has no shell") || !strings.Contains(r.stderr.String(), "-- CMD") {
		t.Errorf("exit code %d\n%s", r.code(), r.text())
	}
	if r := c.slipway("builds", "shell", id, "--", "/busybox", "echo", "hi"); r.code() != 0 || r.stdout.String() != "hi\n" {
		t.Errorf("exit code %d\n%s", r.code(), r.text())
	}
}

// Nothing is left of a daemon that is killed while a shell is open.
func TestKilledDaemonWithAShell(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	for name, flags := range pipelines {
		id := c.fails(name, broken().write(t), append(flags, "--build-secret", "key=hush", "--build-secret", "word=hush")...)
		in, keys := keyboard(t)
		r := c.startWith(in, "builds", "shell", id)
		fmt.Fprintln(keys, "echo ready; sleep 1000")
		r.untilPrinted("ready")
		d.signal(syscall.SIGKILL)
		keys.Close()
		if code := r.wait(time.Minute); code != exitUnavailable && code != exitNetwork {
			t.Errorf("%s: exit code %d\n%s", name, code, r.text())
		}
		d.start()
		if left := d.leftovers(); len(left) > 0 {
			t.Errorf("%s: the restarted daemon left %q", name, left)
		}
		if ghosts := processesIn(d.root); len(ghosts) > 0 {
			t.Errorf("%s: processes of the killed daemon live on: %q", name, ghosts)
		}
		if r := c.slipway("builds", "shell", id); r.code() != exitUser || !strings.Contains(r.stderr.String(), "nothing is kept") {
			t.Errorf("%s: exit code %d\n%s", name, r.code(), r.text())
		}
		if p := c.slipway("cache", "prune", "--all"); p.code() != exitDone {
			t.Error(p.text())
		}
		poll(t, 10*time.Second, "the snapshot to be gone", func() bool { return len(kept(t, d)) == 0 })
	}
}

// A daemon that stops ends what is open, and says so.
func TestStoppedDaemonWithAShell(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	id := c.fails("shop", dockerfile("FROM busybox", "RUN false").write(t))
	c.deploy("shop", dockerfile("FROM busybox", "RUN true").write(t))
	in, keys := keyboard(t)
	inside := c.startWith(in, "builds", "shell", id)
	fmt.Fprintln(keys, "echo ready; sleep 1000")
	inside.untilPrinted("ready")
	running := c.start("exec", "-a", "shop", "--", "sh", "-c", "echo ready; sleep 1000")
	running.untilPrinted("ready")
	began := time.Now()
	d.signal(syscall.SIGTERM)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took the daemon %v to stop", took)
	}
	for _, r := range []*call{inside, running} {
		if code := r.wait(20 * time.Second); code != exitUnavailable || !strings.Contains(r.stderr.String(), "daemon_stopped") {
			t.Errorf("exit code %d\n%s", code, r.text())
		}
	}
	d.checkNothingLeft()
}

// A terminal is one: it has a size, which follows the user's, echoes, and passes
// keys on.
func TestShellOnATerminal(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	id := c.fails("tty", dockerfile("FROM busybox", "RUN false").write(t))
	pty, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	user, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	if err := pty.Resize(console.WinSize{Height: 33, Width: 101}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "slipway"), "builds", "shell", id)
	cmd.Env, cmd.Dir = append(c.env, "TERM=vt220"), c.home
	cmd.Stdin, cmd.Stdout, cmd.Stderr = user, user, user
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var shown output
	go func() { _, _ = io.Copy(&shown, pty) }()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	expect := func(keys, text string) {
		t.Helper()
		shown.reset()
		if _, err := io.WriteString(pty, keys); err != nil {
			t.Fatal(err)
		}
		poll(t, 20*time.Second, fmt.Sprintf("%q on the screen", text), func() bool {
			return strings.Contains(strings.ReplaceAll(shown.String(), "\r\n", "\n"), text)
		})
	}
	expect("stty size; echo $TERM; tty -s && echo yes\r", "33 101\nvt220\nyes\n")
	if err := pty.Resize(console.WinSize{Height: 44, Width: 77}); err != nil {
		t.Fatal(err)
	}
	poll(t, 20*time.Second, "the new size", func() bool {
		expect("stty size; echo o''k\r", "ok\n")
		return strings.Contains(shown.String(), "44 77")
	})
	// Ctrl-C goes to what runs there, and leaves the shell alone.
	expect("sh -c 'echo sleeping; sleep 1000'\r", "\nsleeping\n")
	expect("\x03", "^C")
	expect("echo stopped with $?\r", "stopped with 130\n")
	expect("exit 5\r", "exit 5")
	select {
	case err := <-ended:
		if code := cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("exit code %d (%v), want 5\n%s", code, err, shown.String())
		}
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatalf("the shell does not end\n%s", shown.String())
	}
}
