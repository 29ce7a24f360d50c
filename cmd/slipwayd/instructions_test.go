package main_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
)

// A recipe is a Dockerfile and what it must make of its context.
type recipe struct {
	name  string
	lines []string
	files tree
	args  []string
	want  map[string]string // contents by path; "-> " begins a link, "/" a directory, "!" says that there is nothing
	modes map[string]string // "mode uid:gid" by path
	check func(t *testing.T, c v1.Config)
	exit  int    // of the deploy, if it must fail
	code  string // of the error then

	buildkit string // why BuildKit makes another image of it; empty if it does not
}

var recipes = []recipe{
	{name: "scratch", lines: []string{"FROM scratch", "COPY a /a"}, files: tree{"a": "A"}, want: map[string]string{"a": "A"}},
	{name: "stage by name and index", lines: []string{"FROM busybox AS one", "RUN echo 1 > /f", "FROM one AS two", "RUN echo 2 >> /f", "FROM scratch", "COPY --from=0 /f /zero", "COPY --from=two /f /two"},
		want: map[string]string{"zero": "1\n", "two": "1\n2\n"}},
	{name: "image as source", lines: []string{"FROM scratch", "COPY --from=busybox /etc/group /group"}, want: map[string]string{"group": "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"}},
	{name: "unneeded stage is skipped", lines: []string{"FROM busybox AS broken", "RUN false", "FROM busybox", "RUN echo fine > /f"}, want: map[string]string{"f": "fine\n"}},
	{name: "target", args: []string{"--build-target", "first"}, lines: []string{"FROM busybox AS first", "RUN echo first > /f", "FROM busybox", "RUN false"}, want: map[string]string{"f": "first\n"}},
	{name: "platform of this machine", lines: []string{"FROM --platform=linux/" + runtime.GOARCH + " busybox", "RUN echo ok > /f"}, want: map[string]string{"f": "ok\n"}},

	{name: "RUN shell and exec", lines: []string{"FROM busybox", "RUN echo $((1+1)) > /shell", `RUN ["/bin/sh", "-c", "echo \"$0 $1\" > /exec", "a b", "c"]`, `RUN ["touch", "/$HOME"]`},
		want: map[string]string{"shell": "2\n", "exec": "a b c\n", "$HOME": ""}},
	{name: "RUN over several lines", lines: []string{"FROM busybox", `RUN echo one > /f && \`, "    # a comment", `    echo two >> /f`}, want: map[string]string{"f": "one\ntwo\n"}},
	{name: "RUN heredoc", lines: []string{"FROM busybox", "RUN <<EOF", "echo one > /f", "echo two >> /f", "EOF"}, want: map[string]string{"f": "one\ntwo\n"}},
	{name: "RUN sees no trace of the sandbox", lines: []string{"FROM busybox", "RUN cat /etc/resolv.conf > /dev/null; echo 127.1.2.3 own >> /etc/hosts; echo ok > /f"},
		want: map[string]string{"f": "ok\n", "etc/resolv.conf": "!", "etc/hosts": "!", ".dockerenv": "!", "etc/hostname": "!"}},
	{name: "RUN removes and replaces", lines: []string{"FROM busybox", "RUN mkdir /d && echo 1 > /d/a && echo 2 > /d/b && ln -s a /d/l && echo x > /gone", "RUN rm /gone && rm -r /d && mkdir /d && echo 3 > /d/c"},
		want: map[string]string{"d/a": "!", "d/b": "!", "d/l": "!", "d/c": "3\n", "gone": "!"}},
	{name: "RUN keeps owners, modes and links", lines: []string{"FROM busybox",
		"RUN echo f > /f && chown 1000:2000 /f && chmod 4750 /f && ln /f /hard && ln -s ../f /etc/soft && mkdir /d && chmod 1777 /d"},
		want: map[string]string{"hard": "f\n", "etc/soft": "-> ../f"}, modes: map[string]string{"f": "4750 1000:2000", "hard": "4750 1000:2000", "d": "1777 0:0"}},

	{name: "COPY file, directory, wildcard, several", files: tree{"a.txt": "a", "b.txt": "b", "c.md": "c", "d/x": "x", "d/y/z": "z"},
		lines: []string{"FROM scratch", "COPY a.txt /renamed", "COPY d /dir", "COPY *.txt /wild/", "COPY a.txt c.md d /multi/", "COPY d/ ."},
		want:  map[string]string{"renamed": "a", "dir/x": "x", "dir/y/z": "z", "wild/a.txt": "a", "wild/b.txt": "b", "wild/c.md": "!", "multi/a.txt": "a", "multi/c.md": "c", "multi/x": "x", "x": "x", "y/z": "z"}},
	{name: "COPY JSON form", files: tree{"a b": "ab"}, lines: []string{"FROM scratch", `COPY ["a b", "/to here"]`}, want: map[string]string{"to here": "ab"}},
	{name: "COPY through links of the image", files: tree{"a": "a"}, lines: []string{"FROM busybox", "RUN mkdir /real && ln -s real /link && ln -s /real/file /filelink", "COPY a /link/", "COPY a /filelink"},
		want: map[string]string{"real/a": "a", "link": "-> real", "real/file": "a", "filelink": "-> /real/file"}},
	{name: "COPY keeps links of the context", files: tree{"d/f": "f", "d/l": "-> f", "d/dangling": "-> nowhere"}, lines: []string{"FROM scratch", "COPY d /d"},
		want: map[string]string{"d/l": "-> f", "d/dangling": "-> nowhere"}},
	{name: "COPY cannot leave the image", files: tree{"a": "a"}, lines: []string{"FROM busybox", "RUN ln -s ../../../../../../etc /out", "COPY a /out/inside"}, want: map[string]string{"etc/inside": "a"}},
	{name: "COPY --chown and --chmod", files: tree{"a": "a", "d/f": "f"}, lines: []string{"FROM busybox", "COPY --chown=app a /a", "COPY --chown=1:2 d /d", "COPY --chmod=750 a /b"},
		modes: map[string]string{"a": "0644 1000:1000", "d/f": "0644 1:2", "b": "0750 0:0"}},
	{name: "COPY keeps execute bits", files: tree{"run": "#!/bin/sh\n"}, lines: []string{"FROM scratch", "COPY run /run"}, modes: map[string]string{"run": "0755 0:0"}},
	{name: "COPY heredoc", lines: []string{"FROM scratch", "COPY <<one <<\"two\" /etc/", "hello $PATH", "one", "no $expansion", "two"}, want: map[string]string{"etc/two": "no $expansion\n"}},
	{name: "COPY relative to WORKDIR", files: tree{"a": "a"}, lines: []string{"FROM scratch", "WORKDIR /w", "WORKDIR x", "COPY a ./", "COPY a b"}, want: map[string]string{"w/x/a": "a", "w/x/b": "a"}},
	{name: "empty directory", files: tree{"d/": ""}, lines: []string{"FROM scratch", "COPY . /c"}, want: map[string]string{"c/d": "/"}},

	{name: "ADD unpacks archives", files: tree{"t.tar": string(tarOf(tarFile{"in/tar", "t"})), "g.tgz": string(tarGz(tarFile{"in/gz", "g"})), "plain.gz": "not an archive"},
		lines: []string{"FROM scratch", "ADD t.tar /x", "ADD g.tgz /x", "ADD plain.gz /x/"}, want: map[string]string{"x/in/tar": "t", "x/in/gz": "g", "x/plain.gz": "not an archive"},
		modes: map[string]string{"x/in/tar": "0640 7:8"}},
	{name: "COPY does not unpack", files: tree{"t.tar": string(tarOf(tarFile{"in/tar", "t"}))}, lines: []string{"FROM scratch", "COPY t.tar /t.tar"}, want: map[string]string{"t.tar": string(tarOf(tarFile{"in/tar", "t"}))}},
	{name: "archive cannot leave the image", files: tree{"t.tar": string(tarOf(tarFile{"../../../../../../outside", "t"}, tarFile{"/absolute", "b"}))},
		lines: []string{"FROM busybox", "ADD t.tar /x/", "RUN ls /x > /f"}, want: map[string]string{"x/absolute": "b"}},

	{name: "variables", args: []string{"--build-arg", "GIVEN=given", "--build-arg", "GLOBAL=busybox"},
		lines: []string{"ARG GLOBAL=nosuchbase", "FROM ${GLOBAL}", "ARG GIVEN=default", "ARG DEFAULT=default", "ARG UNSET", "ENV E=${GIVEN}-${DEFAULT} F=\"a b\"", "ENV G=${E#given}", "RUN echo $GIVEN $DEFAULT ${UNSET:-unset} $E $F $G > /f", "WORKDIR /$GIVEN", "RUN pwd > /pwd"},
		want:  map[string]string{"f": "given default unset given-default a b -default\n", "pwd": "/given\n"},
		check: func(t *testing.T, c v1.Config) {
			want := []string{"E=given-default", "F=a b", "G=-default"}
			if len(c.Env) != 4 || !reflect.DeepEqual(c.Env[1:], want) {
				t.Errorf("Env %q, want %q after the base's", c.Env, want)
			}
		}},
	{name: "ARG does not cross stages", lines: []string{"FROM busybox AS a", "ARG X=1", "RUN echo $X > /x", "FROM a", "RUN echo [$X] > /f"}, want: map[string]string{"f": "[]\n"},
		buildkit: "BuildKit's stages inherit the ARGs of the stage that they begin with"},
	{name: "config", buildkit: "BuildKit sets ArgsEscaped", args: []string{"--label", "from=flag", "--label", "b=flag"}, lines: []string{"FROM busybox", `LABEL a=1 b="two words"`, "MAINTAINER somebody <s@example.com>", "WORKDIR /w", "USER app:extra",
		"EXPOSE 80 53/udp", "VOLUME /data /more", `SHELL ["/bin/sh", "-ec"]`, "STOPSIGNAL SIGUSR1", "HEALTHCHECK --interval=5s --timeout=1s --retries=2 CMD wget -q localhost", `ENTRYPOINT ["/bin/echo"]`, "CMD hello $HOME", "ONBUILD RUN echo triggered > /triggered"},
		check: func(t *testing.T, c v1.Config) {
			want := v1.Config{
				User: "app:extra", WorkingDir: "/w", StopSignal: "SIGUSR1", Env: c.Env,
				Entrypoint: []string{"/bin/echo"}, Cmd: []string{"/bin/sh", "-ec", "hello $HOME"}, Shell: []string{"/bin/sh", "-ec"},
				Labels:       map[string]string{"a": "1", "b": "flag", "from": "flag"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}, "/more": {}},
				Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "wget -q localhost"}, Interval: 5 * time.Second, Timeout: time.Second, Retries: 2},
				OnBuild:     []string{"RUN echo triggered > /triggered"},
			}
			if !reflect.DeepEqual(c, want) {
				t.Errorf("config\n%+v, want\n%+v", c, want)
			}
		}, want: map[string]string{"w": "/"}},
	{name: "USER and SHELL of RUN", lines: []string{"FROM busybox", "USER app", "RUN id -u > /tmp/uid; id -G > /tmp/groups; echo $HOME > /tmp/home", "USER 0", `SHELL ["/bin/sh", "-c", "echo shell > /tmp/shell; eval \"$0\""]`, "RUN echo run > /tmp/run"},
		want: map[string]string{"tmp/uid": "1000\n", "tmp/groups": "1000 2000\n", "tmp/home": "/home/app\n", "tmp/shell": "shell\n", "tmp/run": "run\n"}},
	{name: "VOLUME drops later writes of RUN", buildkit: "BuildKit's VOLUME is part of the config and nothing else", files: tree{"a": "a"}, lines: []string{"FROM busybox", "RUN mkdir /v && echo before > /v/before", "VOLUME /v", "RUN echo after > /v/after", "COPY a /v/copied"},
		want: map[string]string{"v/before": "before\n", "v/after": "!", "v/copied": "a"}},
	{name: "escape directive and comments", lines: []string{"# escape=`", "FROM busybox", "RUN echo a `", "  > /f"}, want: map[string]string{"f": "a\n"}},

	{name: "unknown instruction flag", lines: []string{"FROM busybox", "COPY --nosuch a /a"}, files: tree{"a": "a"}, exit: exitUser, code: "dockerfile_invalid"},
	{name: "no stage", lines: []string{"RUN true"}, exit: exitUser, code: "dockerfile_invalid"},
	{name: "unknown stage as source", lines: []string{"FROM busybox", "COPY --from=9 /a /a"}, exit: exitUser},
	{name: "unknown user", lines: []string{"FROM busybox", "USER ghost", "RUN true"}, exit: exitUser},
	{name: "unknown command", lines: []string{"FROM busybox", `RUN ["/nosuch"]`}, exit: exitUser, code: "step_failed"},
}

func TestInstructions(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	for i, r := range recipes {
		t.Run(r.name, func(t *testing.T) { r.run(t, d, fmt.Sprint("recipe", i)) })
	}
}

func (r *recipe) run(t *testing.T, d *daemon, app string) {
	c := d.client()
	c.t = t
	dir := r.files.write(t)
	writeFile(t, dir, "Dockerfile", strings.Join(r.lines, "\n")+"\n")
	done := c.tryDeploy(app, dir, r.args...)
	if r.exit != exitDone {
		if done.code() != r.exit || done.Error == nil || r.code != "" && done.Error.Code != r.code || len(d.tags(app)) != 0 {
			t.Errorf("exit code %d, error %+v; want %d, %s", done.code(), done.Error, r.exit, r.code)
		}
		return
	}
	if done.code() != exitDone {
		t.Fatalf("exit code %d\n%s", done.code(), done.text())
	}
	image := d.pull(done)
	root := unpack(t, image)
	for path, want := range r.want {
		if got := stat(t, root, path); got != want {
			t.Errorf("%s is %.200q, want %.200q", path, got, want)
		}
	}
	for path, want := range r.modes {
		if got := mode(t, root, path); got != want {
			t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
	if r.check != nil {
		r.check(t, configOf(t, image))
	}
	again := c.deploy(app, freshCopy(t, dir), r.args...)
	if again.Digest != done.Digest || again.Cached != again.Steps || again.Context.SentFiles != 0 {
		t.Errorf("again: %d of %d steps cached, %d files sent, digest %s after %s\n%s", again.Cached, again.Steps, again.Context.SentFiles, again.Digest, done.Digest, misses(again))
	}
}

// stat tells what a path of an unpacked image is, as [recipe] has it.
func stat(t testing.TB, root, path string) string {
	t.Helper()
	full := filepath.Join(root, path)
	info, err := os.Lstat(full)
	switch {
	case os.IsNotExist(err):
		return "!"
	case err != nil:
		t.Fatal(err)
	case info.IsDir():
		return "/"
	case info.Mode()&os.ModeSymlink != 0:
		to, _ := os.Readlink(full)
		return "-> " + to
	}
	b, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mode(t testing.TB, root, path string) string {
	t.Helper()
	info, err := os.Lstat(filepath.Join(root, path))
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
}

func TestOnbuild(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.deploy("parent", dockerfile("FROM busybox", "ONBUILD COPY a /a", "ONBUILD RUN cat /a > /b").write(t), "--image-label", "v1")
	r := c.deploy("child", dockerfile("FROM "+d.http+"/parent:v1", "RUN cat /b > /c").and("a", "content").write(t))
	image := d.pull(r)
	if got := fileOf(t, unpack(t, image), "c"); got != "content" {
		t.Errorf("the triggers made %q", got)
	}
	if got := configOf(t, image).OnBuild; len(got) != 0 {
		t.Errorf("the child has triggers %q", got)
	}
}

func TestAddURL(t *testing.T) {
	t.Parallel()
	var body atomic.Value
	body.Store("version 1")
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/dir/file.txt" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
		fmt.Fprint(w, body.Load())
	}))
	t.Cleanup(site.Close)
	d, c := startWithBusybox(t, "--allow-egress", "127.0.0.0/8")
	dir := dockerfile("FROM scratch", "ADD "+site.URL+"/dir/file.txt /named", "ADD "+site.URL+"/dir/file.txt /in/").write(t)
	first := c.deploy("url", dir)
	root := unpack(t, d.pull(first))
	if got := fileOf(t, root, "named") + "," + fileOf(t, root, "in/file.txt"); got != "version 1,version 1" {
		t.Errorf("the image has %q", got)
	}
	if got := mode(t, root, "named"); got != "0600 0:0" {
		t.Errorf("the file has %s", got)
	}
	if info, err := os.Stat(filepath.Join(root, "named")); err != nil || info.ModTime().Unix() != 1445412480 {
		t.Errorf("the file's time is not that of the server: %v, %v", info.ModTime(), err)
	}
	if again := c.deploy("url", dir); again.Digest != first.Digest || again.Cached != again.Steps {
		t.Errorf("again: %d of %d cached, digest %s after %s", again.Cached, again.Steps, again.Digest, first.Digest)
	}
	body.Store("version 2")
	if root := unpack(t, d.pull(c.deploy("url", dir))); fileOf(t, root, "named") != "version 2" {
		t.Errorf("the site changed, the image has %q", fileOf(t, root, "named"))
	}
	missing := c.tryDeploy("url", dockerfile("FROM scratch", "ADD "+site.URL+"/nosuch /x").write(t))
	if missing.code() != exitUser || missing.Error.Line != 2 || !strings.Contains(missing.Error.Message, "404") {
		t.Errorf("exit code %d, error %+v", missing.code(), missing.Error)
	}
}

// Without leave of the operator nobody reaches the daemon's own network.
func TestAddURLOfPrivateAddress(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 16)
	site := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached <- struct{}{} }))
	t.Cleanup(site.Close)
	d, c := startWithBusybox(t)
	for _, line := range []string{"ADD " + site.URL + "/x /x", "RUN wget -T 3 -O /x " + site.URL, "RUN wget -T 3 -O /x http://" + d.http + "/healthz"} {
		r := c.tryDeploy("private", dockerfile("FROM busybox", line).write(t))
		if r.code() != exitUser || r.Error == nil || r.Error.Line != 2 {
			t.Errorf("%s: exit code %d, error %+v", line, r.code(), r.Error)
		}
	}
	if len(reached) > 0 {
		t.Error("a build reached the loopback of the daemon")
	}
}

// A repository is fetched over TLS with the operator's certificates, and counts
// for the cache by its commit.
func TestAddGit(t *testing.T) {
	t.Parallel()
	server := gittest.Serve(t, true)
	repo := server.Repo("org/app")
	repo.Commit(map[string]string{"docs/page": "one", "run.sh": "#!/bin/sh"})
	repo.Git("tag", "v1")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, filepath.Dir(ca), "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	d, c := startWithBusybox(t, "--allow-egress", "127.0.0.1/32", "--build-ca", ca)
	dir := dockerfile("FROM busybox", "ADD "+repo.URL+"#v1:docs /docs/", "ADD --keep-git-dir "+repo.URL+" /all", "RUN test -x /all/run.sh && test -d /all/.git").write(t)
	first := c.deploy("git", dir)
	root := unpack(t, d.pull(first))
	if got := fileOf(t, root, "docs/page"); got != "one" {
		t.Errorf("the image has %q", got)
	}
	if got := mode(t, root, "docs/page") + ", " + mode(t, root, "all/run.sh"); got != "0644 0:0, 0755 0:0" {
		t.Errorf("the files have %s", got)
	}
	if again := c.deploy("git", dir); again.Digest != first.Digest || again.Cached != again.Steps {
		t.Errorf("again: %d of %d cached", again.Cached, again.Steps)
	}
	repo.Commit(map[string]string{"docs/page": "two"})
	if later := c.deploy("git", dir); later.Cached != first.Steps-2 {
		t.Errorf("the branch moved: %d of %d cached", later.Cached, later.Steps)
	}
	if left, err := os.ReadDir(filepath.Join(d.root, "git")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	_, closed := startWithBusybox(t)
	r := closed.tryDeploy("git", dir)
	if r.code() != exitUser || r.Error == nil || r.Error.Code != "fetch_failed" || r.Error.Line != 2 {
		t.Errorf("without leave: exit code %d, %+v", r.code(), r.Error)
	}
}

// Archives are told by their content, however they are compressed.
func TestAddCompressedArchives(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	for _, tool := range []string{"gzip", "bzip2", "zstd", "xz"} {
		t.Run(tool, func(t *testing.T) {
			path := needCommand(t, tool)
			c := d.client()
			c.t = t
			dir := dockerfile("FROM scratch", "ADD archive /x/").write(t)
			cmd := exec.Command(path, "-c")
			cmd.Stdin = strings.NewReader(string(tarOf(tarFile{"in/file", "content"})))
			packed, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v", tool, err)
			}
			writeFile(t, dir, "archive", string(packed))
			if got := fileOf(t, unpack(t, d.pull(c.deploy("packed", dir))), "x/in/file"); got != "content" {
				t.Errorf("the image has %q", got)
			}
		})
	}
}

func TestIgnoreFiles(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	tests := []struct {
		name    string
		ignores tree
		args    []string
		want    string // what the image has
	}{
		{name: "none", want: "a.log a.txt keep/b.log keep/b.txt"},
		{name: ".dockerignore", ignores: tree{".dockerignore": "# comment\n**/*.log\n!keep/b.log\n"}, want: "a.txt keep/b.log keep/b.txt"},
		{name: "directory", ignores: tree{".dockerignore": "keep\n"}, want: "a.log a.txt"},
		{name: "of the Dockerfile", ignores: tree{".dockerignore": "*\n", "Dockerfile.dockerignore": "*.txt\n"}, want: "a.log keep/b.log keep/b.txt"},
		{name: "flag", ignores: tree{".dockerignore": "*\n", "Dockerfile.dockerignore": "*\n", "other.ignore": "**/*.txt\n"}, args: []string{"--ignorefile", "DIR/other.ignore"}, want: "a.log keep/b.log"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := d.client()
			c.t = t
			files := tree{"Dockerfile": "FROM busybox\nCOPY . /in\nRUN cd /in && find . -type f | sed s,^./,, | grep -v ignore | grep -v Dockerfile | sort | tr '\\n' ' ' > /list\n",
				"a.txt": "1", "a.log": "2", "keep/b.txt": "3", "keep/b.log": "4"}
			for name, content := range test.ignores {
				files[name] = content
			}
			dir := files.write(t)
			var args []string
			for _, a := range test.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			root := unpack(t, d.pull(c.deploy("ignore", dir, args...)))
			if got := strings.TrimSpace(fileOf(t, root, "list")); got != test.want {
				t.Errorf("the image has %q, want %q", got, test.want)
			}
		})
	}
}

// The Dockerfile may lie outside of the context, or come on standard input.
func TestDockerfileElsewhere(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := tree{"a": "content"}.write(t)
	recipe := filepath.Join(dockerfile("FROM busybox", "COPY a /b").write(t), "Dockerfile")
	done := c.deploy("elsewhere", dir, "-f", recipe)
	if got := fileOf(t, unpack(t, d.pull(done)), "b"); got != "content" {
		t.Errorf("the image has %q", got)
	}
	cmd := exec.Command(filepath.Join(bin, "slipway"), "deploy", dir, "-a", "elsewhere", "-f", "-")
	cmd.Env, cmd.Stdin = c.env, strings.NewReader("FROM busybox\nCOPY a /b\n")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), done.Digest) {
		t.Errorf("-f -: %v\n%s", err, out)
	}
}

// Layers may be compressed otherwise; the file systems are the same.
func TestCompression(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	for kind, media := range map[string]string{"gzip": "tar+gzip", "zstd": "tar+zstd", "none": "layer.v1.tar", "auto": "layer.v1.tar"} {
		t.Run(kind, func(t *testing.T) {
			c := d.client()
			c.t = t
			data := strings.Repeat(kind+" ", 100000)
			r := c.deploy("zip", dockerfile("FROM busybox", "COPY data /data").and("data", data).write(t), "--compression", kind)
			top := r.Layers[len(r.Layers)-1]
			if !strings.HasSuffix(top.MediaType, media) || (media == "layer.v1.tar") != (top.Size > top.Uncompressed/10) {
				t.Errorf("layer %+v", top)
			}
			image, err := remote.Image(d.reference(r.Image), d.auth())
			if err != nil {
				t.Fatal(err)
			}
			if got := fileOf(t, unpack(t, image), "data"); got != data {
				t.Error("the image has another content")
			}
		})
	}
	// Layers that exist stay as they are, unless that is asked for.
	files := dockerfile("FROM busybox", "COPY data /data").and("data", strings.Repeat("data ", 100000)).write(t)
	c := d.client()
	before := c.deploy("zip", files)
	kept := c.deploy("zip", files, "--compression", "zstd")
	forced := c.deploy("zip", files, "--compression", "zstd", "--force-compression")
	again := c.deploy("zip", files, "--compression", "zstd", "--force-compression")
	if kept.Digest != before.Digest || forced.Digest == before.Digest || again.Digest != forced.Digest {
		t.Errorf("digests %s, kept %s, forced %s, again %s", before.Digest, kept.Digest, forced.Digest, again.Digest)
	}
	for i, l := range forced.Layers {
		if !strings.HasSuffix(l.MediaType, "tar+zstd") || l.DiffID != before.Layers[i].DiffID {
			t.Errorf("forced layer %+v, was %+v", l, before.Layers[i])
		}
	}
	image, err := remote.Image(d.reference(forced.Image), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	if got := fileOf(t, unpack(t, image), "data"); got != strings.Repeat("data ", 100000) {
		t.Error("the recompressed image has another content")
	}
	for level, want := range map[string]int{"1": exitDone, "9": exitDone, "77": exitUser} {
		c := d.client()
		if r := c.tryDeploy("zip", dockerfile("FROM busybox", "COPY Dockerfile /").write(t), "--compression-level", level); r.code() != want {
			t.Errorf("level %s: exit code %d\n%s", level, r.code(), r.text())
		}
	}
}
