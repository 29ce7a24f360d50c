package classic_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func (s *session) Secret(_ context.Context, id string) ([]byte, bool, error) {
	v, ok := s.world.secrets[id]
	return []byte(v), ok, nil
}

func (s *session) Agent(_ context.Context, id string) (io.ReadWriteCloser, error) {
	if s.world.agent == nil {
		return nil, io.EOF
	}
	return s.world.agent(id)
}

// output is what the steps printed, and what was noted about them.
func (o *outcome) output() string {
	var out strings.Builder
	for _, e := range o.events {
		out.Write(e.GetStepLog().GetData())
	}
	return out.String()
}

// made lists what the layers above the base image have.
func (i *image) made() string {
	var out []string
	for _, l := range i.layers[1:] {
		for _, n := range l {
			out = append(out, n.Path)
		}
	}
	return strings.Join(out, " ")
}

func sortedKeys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// pushOther puts fid/other:1 into the registry: the base with one more file.
func (w *world) pushOther() {
	dir := w.tb.TempDir()
	w.write(dir, map[string]string{"etc/other": "of the other\n"})
	plain, err := exec.CommandContext(w.tb.Context(), "tar", "-C", dir, "--owner=0", "--group=0", "-cf", "-", "etc").Output()
	w.must(err)
	w.push("fid/other", "1", dockerspec.DockerOCIImage{Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goarch}}}, plain)
}

func TestMounts(t *testing.T) {
	w := newWorld(t)
	w.secrets = map[string]string{"key": "hush", "TOKEN": "token", "empty": "", "big": strings.Repeat("x", 512_001)}
	w.pushOther()
	for _, tc := range []struct {
		name       string
		files      map[string]string
		dockerfile string
		args       map[string]string
		needed     string // of the files
		output     string // part of it
		made       string // what is in the layers
		err        string // part of the message
		hint       string
		line       uint32
	}{
		{
			name:  "the context is bound read-only",
			files: map[string]string{"a": "one\n", "d/b": "two\n"},
			dockerfile: `RUN --mount=target=/src cat /src/a /src/d/b && stat -c '%a %u:%g' /src/d && ! touch /src/x 2>/dev/null && touch /kept
RUN test ! -e /src`,
			needed: "a d/b", output: "one\ntwo\n755 0:0\n", made: "/kept",
		},
		{
			name:       "no more than the source travels",
			files:      map[string]string{"a": "one\n", "d/b": "two\n", "d/c/e": "three\n", "link": "->d"},
			dockerfile: "RUN --mount=type=bind,source=link,target=/src find /src | sort && cat /src/c/e",
			needed:     "d/b d/c/e", output: "/src\n/src/b\n/src/c\n/src/c/e\nthree\n",
		},
		{
			name:       "one file, relative to WORKDIR",
			files:      map[string]string{"package.json": "{}\n", "other": "x"},
			dockerfile: "WORKDIR /app\nRUN --mount=type=bind,source=package.json,target=package.json cat /app/package.json; ls /app\nRUN ls /app | wc -l",
			needed:     "package.json", output: "{}\npackage.json\n0\n", made: "/app",
		},
		{
			name:  "what is written to a bind is thrown away",
			files: map[string]string{"f": "old\n", "big": strings.Repeat("x", 200_000)},
			dockerfile: `RUN --mount=target=/src,rw --mount=source=f,target=/f,rw echo new > /src/f && echo new > /f && echo y >> /src/big && chmod 700 /src/big && touch /src/x && cat /src/f /f
RUN --mount=target=/src cat /src/f && ! test -e /src/x && wc -c < /src/big && stat -c %a /src/big`,
			output: "new\nnew\nold\n200000\n644\n",
		},
		{
			name: "a stage, by name, number and link",
			dockerfile: `RUN mkdir -p /out/d && echo a > /out/d/a && chown 7:8 /out/d/a && ln -s /out /l
FROM fid/base:1
RUN --mount=from=one,source=/l/d,target=/in cat /in/a && stat -c %u:%g /in/a && ! touch /in/x 2>/dev/null
RUN --mount=from=0,source=/out/d/a,target=/a,rw echo b >> /a && cat /a
RUN --mount=from=one,target=/one cat /one/out/d/a && test ! -e /out`,
			output: "a\n7:8\na\nb\na\n",
		},
		{
			name:       "an image",
			dockerfile: "RUN --mount=from=fid/other:1,source=/etc,target=/other cat /other/other",
			output:     "of the other\n",
		},
		{
			name:       "nothing at all",
			dockerfile: "RUN --mount=from=scratch,target=/none,rw ls /none | wc -l && touch /none/x",
			output:     "0\n",
		},
		{
			name:       "a source that is not there",
			dockerfile: "RUN --mount=source=missing,target=/x true", err: "file not found in build context or excluded by .dockerignore: stat missing", line: 2,
		},
		{
			name:       "a source that the stage does not have",
			dockerfile: "RUN true\nFROM fid/base:1\nRUN --mount=from=one,source=/missing,target=/x true", err: "stat /missing: file does not exist", line: 4,
		},
		{
			name:       "variables",
			files:      map[string]string{"dir/f": "found\n"},
			args:       map[string]string{"SRC": "dir"},
			dockerfile: "ARG SRC\nENV AT=/at\nRUN --mount=type=bind,source=$SRC,target=${AT}/x cat /at/x/f",
			output:     "found\n",
		},
		{
			name:       "a trigger",
			files:      map[string]string{"f": "found\n"},
			dockerfile: "ONBUILD RUN --mount=source=f,target=/f --mount=from=side,source=/s,target=/s cat /f /s\nFROM fid/base:1 AS side\nRUN echo side > /s\nFROM one",
			output:     "found\nside\n",
		},
		{
			name:       "memory",
			dockerfile: "RUN --mount=type=tmpfs,target=/t,size=1m echo x > /t/f && ! dd if=/dev/zero of=/t/g bs=1M count=2 2>/dev/null && df -m /t | awk 'END{print $2}'",
			output:     "1\n",
		},
		{
			name: "secrets",
			dockerfile: `RUN --mount=type=secret,id=key cat /run/secrets/key && echo && stat -c '%a %u:%g' /run/secrets/key && ! env | grep hush
RUN --mount=type=secret,id=key,target=/k/key,mode=0440,uid=5,gid=6 --mount=type=secret,id=TOKEN,env=T stat -c '%a %u:%g' /k/key && test $T = token && test ! -e /run/secrets
RUN --mount=type=secret,src=TOKEN,dst=/a/b,env= test $TOKEN = token && cat /a/b
RUN --mount=type=secret,target=/x/empty test -e /x/empty && test ! -s /x/empty
RUN --mount=type=secret,id=none --mount=type=secret,id=none,env=NONE test ! -e /run/secrets && test -z "${NONE+x}"`,
			output: "hush\n400 0:0\n440 5:6\ntoken",
		},
		{
			name:       "a secret that is required",
			dockerfile: "RUN --mount=type=secret,id=none,required true", err: "requires the secret none", hint: "--build-secret", line: 2,
		},
		{
			name:       "a secret that is too large",
			dockerfile: "RUN --mount=type=secret,id=big true", err: "512001 bytes", line: 2,
		},
		{
			name:       "an agent that nobody has",
			dockerfile: `RUN --mount=type=ssh test -z "$SSH_AUTH_SOCK" && test ! -e /run/buildkit`,
		},
		{
			name:       "an agent that is required",
			dockerfile: "RUN --mount=type=ssh,id=deploy,required=true true", err: "requires the SSH agent deploy", hint: "--ssh deploy", line: 2,
		},
		{
			name: "here-documents with an interpreter",
			dockerfile: `RUN <<EOF
#!/bin/tail -n+2
one
two
EOF
RUN <<-'EOF'
	#!/bin/sh
	echo $0 $((1+1))
	EOF
RUN test ! -e /dev/pipes`,
			output: "one\ntwo\n/dev/pipes/EOF 2\n",
		},
		{
			name:       "mounts leave nothing",
			files:      map[string]string{"f": "f"},
			dockerfile: "RUN --mount=target=/a/b/c --mount=source=f,target=/root/x/f --mount=type=tmpfs,target=/home/app/t --mount=type=cache,target=/var/cache/c --mount=type=secret,id=key touch /only",
			made:       "/only",
		},
		{
			name:       "wrong before anything runs",
			dockerfile: "RUN echo ran\nRUN --mount=type=cash,target=/c true", err: `unsupported mount type "cash"`, line: 3,
		},
		{
			name:       "an option that is of another type",
			dockerfile: "RUN echo ran\nRUN --mount=type=bind,target=/c,sharing=locked true", err: "invalid cache sharing", line: 3,
		},
		{
			name:       "a target that cannot be",
			dockerfile: "RUN echo ran\nRUN --mount=type=cache,target=/a/../ true", err: "invalid mount target", line: 3,
		},
		{
			name:       "wrong once a variable is known",
			dockerfile: "ARG T=cash\nRUN --mount=type=$T,target=/c true", err: "unsupported mount type", line: 3,
		},
		{
			name:       "no target at the root",
			dockerfile: "RUN --mount=type=cache true", err: "invalid mount target", line: 2,
		},
		{
			name:       "a target that the image cannot have",
			dockerfile: "RUN --mount=type=tmpfs,target=/etc/passwd/x true", err: "cannot mount at /etc/passwd/x: not a directory", hint: "targets of its mounts", line: 2,
		},
		{
			name:       "a stage that is not there",
			dockerfile: "RUN --mount=from=1,target=/c true", err: "invalid from flag value 1: index out of bounds", line: 2,
		},
		{
			name:       "its own stage",
			dockerfile: "RUN --mount=from=one,target=/c true", err: "refers to current build stage", line: 2,
		},
		{
			name: "security", dockerfile: "RUN echo ran\nRUN --security=insecure true", err: "--security is not supported", line: 3,
		},
		{
			name: "devices", dockerfile: "RUN echo ran\nRUN --device=vendor.com/gpu=all true", err: "--device is not supported", line: 3,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			dir := t.TempDir()
			w.write(dir, tc.files)
			o := w.build(t.Context(), request{org: "mounts", dir: dir, dockerfile: "FROM fid/base:1 AS one\n" + tc.dockerfile, start: &slipwayv1.Start{BuildArgs: tc.args}})
			if tc.err != "" {
				if o.Error == nil || !strings.Contains(o.Error.Message, tc.err) || o.Error.Line != tc.line || !strings.Contains(o.Error.Hint, tc.hint) || o.Error.Blame != slipwayv1.Blame_BLAME_USER {
					t.Errorf("error %v, want %q at line %d", o.Error, tc.err, tc.line)
				}
				if strings.Contains(o.output(), "ran") {
					t.Error("a step ran before the error was found")
				}
				return
			}
			img := o.pull()
			if got := o.output(); !strings.Contains(got, tc.output) {
				t.Errorf("output %q, want %q", got, tc.output)
			}
			if got := strings.Join(sortedKeys(o.needed), " "); tc.needed != "" && got != tc.needed {
				t.Errorf("needed %q, want %q", got, tc.needed)
			}
			if got := img.made(); tc.made != "" && got != tc.made {
				t.Errorf("layers have %q, want %q", got, tc.made)
			}
		})
	}
}

// What a step's key depends on: content that is bound, never times, secrets, or
// what a cache mount holds.
func TestMountKeys(t *testing.T) {
	w := newWorld(t)
	w.secrets = map[string]string{"key": "one"}
	dir := t.TempDir()
	w.write(dir, map[string]string{"d/f": "one", "other": "one"})
	const dockerfile = `FROM fid/base:1 AS src
RUN --mount=source=other,target=/o cat /o > /out
FROM fid/base:1
RUN --mount=source=d,target=/d cat /d/f
RUN --mount=type=secret,id=key,required --mount=type=cache,target=/c,id=keys date >> /c/runs; cat /run/secrets/key
RUN --mount=from=src,target=/s cat /s/out`
	build := func(want, needed string) {
		t.Helper()
		o := w.build(t.Context(), request{dir: dir, dockerfile: dockerfile})
		o.pull()
		if got := o.cached(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got := strings.Join(sortedKeys(o.needed), " "); got != needed {
			t.Errorf("needed %q, want %q", got, needed)
		}
	}
	build("----", "d/f other")
	then := time.Now().Add(-time.Hour)
	w.must(os.Chtimes(filepath.Join(dir, "d/f"), then, then))
	w.secrets = nil // nobody asks for it
	build("++++", "")
	w.secrets = map[string]string{"key": "two"}
	build("++++", "")
	w.write(dir, map[string]string{"d/f": "two"})
	build("+---", "d/f")
	w.write(dir, map[string]string{"other": "two"})
	build("-++-", "other")
}

// cacheBuild is a build of an app that counts in a cache mount.
func (w *world) cacheBuild(t *testing.T, org, dockerfile string) *outcome {
	t.Helper()
	o := w.build(t.Context(), request{org: org, dockerfile: "FROM fid/base:1 AS one\n" + dockerfile, start: &slipwayv1.Start{NoCache: true}})
	o.pull()
	return o
}

func TestCacheMounts(t *testing.T) {
	w := newWorld(t)
	const count = "RUN --mount=type=cache,target=/c echo x >> /c/runs && wc -l < /c/runs"
	for i, want := range []string{"1\n", "2\n"} {
		if got := w.cacheBuild(t, "acme", count).output(); got != want {
			t.Errorf("build %d sees %q, want %q", i, got, want)
		}
	}
	if got := w.cacheBuild(t, "other", count).output(); got != "1\n" {
		t.Errorf("another org sees %q", got)
	}
	for _, tc := range []struct{ name, dockerfile, want string }{
		{"by id", "RUN --mount=type=cache,target=/x,id=/c --mount=type=cache,target=/y,id=/c cmp /x/runs /y/runs && wc -l < /x/runs", "2\n"},
		{"in one step and the next", count + "\n" + count, "3\n4\n"},
		{"read-only", "RUN --mount=type=cache,target=/c,ro touch /c/x 2>&1 | grep -c Read-only", "1\n"},
		{"owner and mode", "RUN --mount=type=cache,target=/c,uid=5,gid=6,mode=0700 stat -c '%u:%g %a' /c && ls /c | wc -l", "5:6 700\n0\n"},
		{"a user's", "USER 1234\nRUN --mount=type=cache,target=/home/app/c,uid=1234 touch /home/app/c/x && ls /home/app/c", "x\n"},
		{"from a stage", "RUN mkdir -p /seed/d && echo a > /seed/d/a && chown 3:4 /seed/d/a\nFROM fid/base:1\nRUN --mount=type=cache,target=/c,from=one,source=/seed ls /c/d; stat -c %u:%g /c/d/a; touch /c/b\nRUN --mount=type=cache,target=/c,from=one,source=/seed ls /c", "a\n3:4\nb\nd\n"},
		{"others' content is not in it", "RUN --mount=type=cache,target=/other ls /other | wc -l", "0\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := w.on(t).cacheBuild(t, "acme", tc.dockerfile).output(); got != tc.want {
				t.Errorf("output %q, want %q", got, tc.want)
			}
		})
	}
	img := w.cacheBuild(t, "acme", count).pull()
	if got := img.made(); got != "" {
		t.Errorf("layers have %q", got)
	}
	u, err := w.cache.Usage(t.Context(), "acme", "case")
	w.must(err)
	at := slices.IndexFunc(u.Kinds, func(k layercache.KindUsage) bool { return k.Kind == "mount" })
	if at < 0 || u.Kinds[at].Count < 4 || u.Kinds[at].Bytes == 0 {
		t.Errorf("usage %+v", u.Kinds)
	}
}

// A cache mount that is locked is waited for, and whoever waits can be told to
// stop.
func TestCacheMountLocked(t *testing.T) {
	w := newWorld(t)
	const dockerfile = "FROM fid/base:1\nRUN --mount=type=cache,target=/c,sharing=locked echo ran"
	mount := func() *layercache.Mount {
		m, err := w.cache.Org("acme").Mount(t.Context(), layercache.MountOptions{App: "case", ID: "/c", Sharing: layercache.Locked})
		w.must(err)
		return m
	}
	m := mount()
	w.onEmit = func(e *slipwayv1.Event) {
		if l := e.GetStepLog(); l.GetStream() == slipwayv1.LogStream_LOG_STREAM_NOTE && strings.Contains(string(l.GetData()), "/c") {
			m.Release()
		}
	}
	o := w.build(t.Context(), request{dockerfile: dockerfile})
	o.pull()
	if got := o.output(); !strings.HasSuffix(got, "\nran\n") || !strings.Contains(got, "waiting") {
		t.Errorf("output %q", got)
	}

	m = mount()
	defer m.Release()
	ctx, cancel := context.WithCancelCause(t.Context())
	w.onEmit = func(e *slipwayv1.Event) {
		if e.GetStepLog() != nil {
			cancel(context.Canceled)
		}
	}
	if o := w.build(ctx, request{dockerfile: dockerfile, start: &slipwayv1.Start{NoCache: true}}); o.Error == nil || o.Error.Code != "cancelled" {
		t.Errorf("cancelled while it waits: %v", o.Error)
	}
}

// What later steps bind travels while an earlier one runs, if no variable
// decides it.
func TestMountPrefetch(t *testing.T) {
	w := newWorld(t)
	m, err := w.cache.Org("acme").Mount(t.Context(), layercache.MountOptions{App: "case", ID: "/c", Sharing: layercache.Locked})
	w.must(err)
	w.onNeed = func(path string) {
		if path == "d/later" {
			m.Release()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dir := t.TempDir()
	w.write(dir, map[string]string{"d/later": "1", "named": "2", "skipped": "3"})
	o := w.build(ctx, request{dir: dir, dockerfile: "FROM fid/base:1\nARG F=named\nRUN --mount=type=cache,target=/c,sharing=locked true\n" +
		"RUN --mount=source=$F,target=/f cat /f\nRUN --mount=source=d,target=/d cat /d/later"})
	o.pull()
	if got := strings.Join(sortedKeys(o.needed), " "); got != "d/later named" {
		t.Errorf("needed %q", got)
	}
}

// Steps that lock the same two caches in different orders do not wait for each
// other for ever, and never run at once.
func TestCacheMountOrder(t *testing.T) {
	w := newWorld(t)
	run := func(first, second string) string {
		return "RUN --mount=type=cache,target=/1,id=" + first + ",sharing=locked --mount=type=cache,target=/2,id=" + second +
			",sharing=locked for i in 1 2 3 4 5; do test ! -e /1/busy && touch /1/busy /2/busy && sleep 0.02 && rm /1/busy /2/busy || exit 1; done\n"
	}
	dockerfile := "FROM fid/base:1 AS one\n" + run("a", "b") + run("b", "a") + "FROM fid/base:1 AS two\n" + run("b", "a") + run("a", "b") +
		"FROM fid/base:1\nCOPY --from=one /etc/group /1\nCOPY --from=two /etc/group /2"
	w.build(t.Context(), request{dockerfile: dockerfile}).pull()
}

// A secret's value is nowhere but in the process that asked for it.
func TestSecretNowhere(t *testing.T) {
	w := newWorld(t)
	const secret = "correct horse battery staple"
	w.secrets = map[string]string{"key": secret}
	o := w.build(t.Context(), request{dockerfile: "FROM fid/base:1\nRUN --mount=type=secret,id=key --mount=type=secret,id=key,env=KEY test -s /run/secrets/key && test \"$KEY\" = '" + "correct horse'*" + " || test -n \"$KEY\" && env > /tmp/env && sed -i /KEY/d /tmp/env"})
	o.pull()
	bad := w.build(t.Context(), request{dockerfile: "FROM fid/base:1\nRUN --mount=type=secret,id=key,env=KEY /no/such/$KEY"})
	if bad.Error == nil || strings.Contains(bad.Error.Message+bad.Error.Hint, secret) {
		t.Errorf("error %v", bad.Error)
	}
	for _, e := range o.events {
		if strings.Contains(e.String(), secret) {
			t.Errorf("event %v", e)
		}
	}
	if strings.Contains(w.log.String(), secret) {
		t.Error("the log has it")
	}
	w.must(filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), secret) {
			t.Errorf("%s has it", path)
		}
		return err
	}))
}

// A step talks to the client's agent, through a socket that is its own.
func TestAgent(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "talk"), "./testdata/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var calls atomic.Int32
	w.agent = func(id string) (io.ReadWriteCloser, error) {
		calls.Add(1)
		if id == "broken" {
			return nil, errors.New("gone")
		}
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			heard := make([]byte, 4)
			if _, err := io.ReadFull(far, heard); err == nil {
				_, _ = io.WriteString(far, id+" heard "+string(heard)+"\n")
			}
		}()
		return near, nil
	}
	const talk = " --mount=source=talk,target=/talk "
	o := w.build(t.Context(), request{dir: dir, start: &slipwayv1.Start{AgentIds: []string{"default", "deploy", "broken"}}, dockerfile: "FROM fid/base:1\n" +
		"RUN --mount=type=ssh" + talk + "echo $SSH_AUTH_SOCK && stat -c '%a %u' $SSH_AUTH_SOCK && /talk && /talk\n" +
		"RUN --mount=type=ssh,id=deploy,target=/a/sock,mode=0666,uid=1234,required" + talk + "echo $SSH_AUTH_SOCK && stat -c '%a %u' $SSH_AUTH_SOCK && /talk\n" +
		"ENV SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1\n" +
		"RUN --mount=type=ssh,id=broken --mount=type=ssh" + talk + "/talk; SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0 /talk || echo failed\n" +
		"RUN test ! -e /run/buildkit && test ! -e /a"})
	img := o.pull()
	got := o.output()
	for _, want := range []string{
		"/run/buildkit/ssh_agent.0\n600 0\ndefault heard ping\ndefault heard ping\n", "/a/sock\n666 1234\ndeploy heard ping\n",
		"failed\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("output %q, want %q", got, want)
		}
	}
	if calls.Load() != 5 || img.made() != "" {
		t.Errorf("%d connections, layers have %q", calls.Load(), img.made())
	}
}
