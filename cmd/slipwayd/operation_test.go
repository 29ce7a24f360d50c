package main_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestRefusedBeforeBuilding(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	ok := dockerfile("FROM busybox", "RUN true")
	tests := []struct {
		name  string
		files tree
		args  []string
		env   []string
		exit  int
		code  string
		says  []string // in what people read
		line  int
	}{
		{name: "wrong token", files: ok, env: []string{"SLIPWAY_API_TOKEN=wrong"}, exit: exitAuth, code: "unauthorized", says: []string{"SLIPWAY_API_TOKEN"}},
		{name: "no token", files: ok, env: []string{"SLIPWAY_API_TOKEN="}, exit: exitAuth, code: "unauthorized", says: []string{"slipway login"}},
		{name: "no daemon", files: ok, env: []string{"SLIPWAY_ADDR=127.0.0.1:1"}, exit: exitUnavailable, code: "unavailable", says: []string{"127.0.0.1:1", "slipwayd"}},
		{name: "no Dockerfile", files: tree{"README": "hi\n"}, exit: exitUser, code: "dockerfile_not_found", says: []string{"Dockerfile"}},
		{name: "empty Dockerfile", files: tree{"Dockerfile": ""}, exit: exitUser, code: "dockerfile_invalid"},
		{name: "unparsable Dockerfile", files: dockerfile("FROM busybox", "RUN true", "COPPY a b"), exit: exitUser, code: "dockerfile_invalid", line: 3,
			says: []string{"COPPY a b", "3 |"}},
		{name: "unknown base", files: dockerfile("FROM busybox AS ok", "FROM "+d.http+"/nosuchimage:7"), exit: exitUser, code: "base_not_found", line: 2, says: []string{"nosuchimage:7"}},
		{name: "unknown tag", files: dockerfile("FROM " + d.http + "/library/busybox:nosuchtag"), exit: exitUser, code: "base_not_found", line: 1, says: []string{"nosuchtag"}},
		{name: "base for another platform", files: dockerfile("FROM --platform=linux/s390x busybox", "COPY Dockerfile /"), exit: exitUser, code: "platform_mismatch", line: 1,
			says: []string{"s390x"}},
		{name: "unknown target", files: ok, args: []string{"--build-target", "nosuch"}, exit: exitUser, code: "dockerfile_invalid", says: []string{"nosuch"}},
		{name: "bad app name", files: ok, args: []string{"-a", "No/Such"}, exit: exitUser, code: "invalid_argument", says: []string{"No/Such"}},
		{name: "COPY of what is not there", files: dockerfile("FROM busybox", "RUN true", "COPY nosuch /"), exit: exitUser, code: "file_not_found", line: 3, says: []string{"nosuch"}},
		{name: "COPY of what is ignored", files: dockerfile("FROM busybox", "COPY secret /").and("secret", "s").and(".dockerignore", "secret\n"),
			exit: exitUser, code: "file_not_found", line: 2, says: []string{"secret", ".dockerignore"}},
		{name: "ADD of a repository", files: dockerfile("FROM busybox", "ADD git@github.com:org/repo.git#v1 /src"), exit: exitUser, code: "not_supported", line: 2,
			says: []string{"git@github.com", "https://github.com/org/repo.git#v1"}},
		{name: "lint with error=true", files: dockerfile("# check=error=true", "FROM busybox as x"), exit: exitUser, code: "dockerfile_invalid", line: 2,
			says: []string{"FromAsCasing", "2 |"}},
		{name: "agent of a detached build", files: ok, args: []string{"--ssh", "default", "--detach"}, exit: exitUser, code: "invalid_argument", says: []string{"--detach"}},
		{name: "a level for auto", files: ok, args: []string{"--compression", "auto", "--compression-level", "3"}, exit: exitUser, code: "invalid_argument", says: []string{"chooses the level"}},
		{name: "registry's port", files: ok, env: []string{"SLIPWAY_ADDR=" + d.http}, exit: exitUnavailable, code: "unavailable", says: []string{d.http + " is a web server", "7070"}},
		{name: "COPY from outside", files: dockerfile("FROM busybox", "COPY ../x /"), exit: exitUser, line: 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := d.client().with(test.env...)
			c.t = t
			dir := test.files.write(t)
			r := c.tryDeploy("refused", dir, test.args...)
			if r.code() != test.exit || r.Error == nil || test.code != "" && r.Error.Code != test.code || r.Status != "failed" {
				t.Fatalf("exit code %d, error %+v; want %d, %s\n%s", r.code(), r.Error, test.exit, test.code, r.text())
			}
			if r.Error.Line != test.line {
				t.Errorf("line %d, want %d", r.Error.Line, test.line)
			}
			plain := c.slipway(append([]string{"deploy", dir, "-a", "refused"}, test.args...)...)
			if plain.code() != test.exit {
				t.Errorf("exit code %d without --json", plain.code())
			}
			if plain.stdout.String() != "" {
				t.Errorf("a failure printed on standard output: %q", plain.stdout.String())
			}
			for _, s := range append(test.says, r.Error.Code) {
				if !strings.Contains(plain.stderr.String(), s) {
					t.Errorf("the message lacks %q:\n%s", s, plain.stderr.String())
				}
			}
		})
	}
	if got := d.tags("refused"); len(got) != 0 {
		t.Errorf("refused deploys pushed %q", got)
	}
}

// What people see when nothing has changed.
func TestUnchangedOutput(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	c := d.client()
	dir := dockerfile("FROM scratch", "COPY a /a", "CMD [\"/a\"]").and("a", "a").write(t)
	deploy := []string{"deploy", dir, "-a", "same", "--compression", "zstd", "--compression-level", "19"}
	if first := c.slipway(deploy...); first.code() != exitDone {
		t.Fatalf("exit code %d\n%s", first.code(), first.text())
	}
	again := c.slipway(deploy...)
	for _, s := range []string{"2 files unchanged → sent 0\n", "3 of 3 steps cached\n", "all layers present\n", " kB of 8 GB "} {
		if !strings.Contains(again.stderr.String(), s) {
			t.Errorf("no %q in\n%s", s, again.stderr.String())
		}
	}
}

func TestFailingRun(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN echo fine", "", "# this fails", "RUN echo about to fail; \\", "    echo to stderr >&2; exit 42").write(t)
	r := c.deployFails(exitUser, "step_failed", "failing", dir)
	if r.Error.ExitCode != 42 || r.Error.Line != 5 || r.Error.Blame != "user" || r.Error.Phase != "build" {
		t.Errorf("error %+v", r.Error)
	}
	if log := r.log(); !strings.Contains(log, "about to fail\n") || !strings.Contains(log, "to stderr\n") {
		t.Errorf("the log lacks output: %q", log)
	}
	plain := c.slipway("deploy", dir, "-a", "failing")
	for _, s := range []string{"about to fail", "to stderr", "Dockerfile:5", "42", "step_failed"} {
		if !strings.Contains(plain.stderr.String(), s) {
			t.Errorf("the message lacks %q:\n%s", s, plain.stderr.String())
		}
	}
	if got := d.tags("failing"); len(got) != 0 {
		t.Errorf("a failed build pushed %q", got)
	}
	if b := c.show(r.BuildID); b.Status != "failed" || b.Result.Error.ExitCode != 42 {
		t.Errorf("the record says %s, %+v", b.Status, b.Result)
	}
}

// A file may move between the scan and the moment when it is read. A build
// that waits in the queue makes this moment long.
func TestContextThatChanges(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t, "--max-builds", "1")
	tests := map[string]func(path string) error{
		"vanishes": os.Remove,
		"changes":  func(path string) error { return os.WriteFile(path, []byte("other text"), 0o644) },
		"grows":    func(path string) error { return os.WriteFile(path, []byte("first text, and more"), 0o644) },
		"becomes a link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			ahead := c.startDeploy("ahead", sleeper().write(t))
			ahead.untilLog("sleeping")
			app := "moving-" + strings.ReplaceAll(name, " ", "-")
			dir := dockerfile("FROM busybox", "COPY moving /").and("moving", "first text").write(t)
			r := c.startDeploy(app, dir)
			r.buildID()
			if err := change(filepath.Join(dir, "moving")); err != nil {
				t.Fatal(err)
			}
			ahead.signal(syscall.SIGINT)
			r.wait(patience)
			res := r.result()
			if r.code() != exitUser || res.Error == nil || res.Error.Code != "context_changed" || !strings.Contains(res.Error.Message, "moving") {
				t.Errorf("exit code %d, error %+v; want %d, context_changed that names the file", r.code(), res.Error, exitUser)
			}
			if tags := d.tags(app); len(tags) != 0 {
				t.Errorf("pushed %q", tags)
			}
		})
	}
}

func TestTwoDeploysOfOneApp(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dirs := []string{
		tree{"Dockerfile": "FROM busybox\nRUN sleep 0.5\nCOPY a /a\nRUN cat /a > /b\n", "a": "one\n"}.write(t),
		tree{"Dockerfile": "FROM busybox\nRUN sleep 0.5\nCOPY a /a\nRUN cat /a > /b\n", "a": "two\n"}.write(t),
		tree{"Dockerfile": "FROM busybox\nRUN sleep 0.5\nCOPY a /a\nRUN cat /a > /b\n", "a": "one\n"}.write(t),
	}
	results := make([]*call, len(dirs))
	for i, dir := range dirs {
		results[i] = c.startDeploy("same", dir)
	}
	for i, r := range results {
		if code := r.wait(patience); code != exitDone {
			t.Fatalf("deploy %d: exit code %d\n%s", i, code, r.text())
		}
		root := unpack(t, d.pull(&deployed{r, r.result()}))
		if got, want := fileOf(t, root, "b"), []string{"one\n", "two\n", "one\n"}[i]; got != want {
			t.Errorf("deploy %d built %q, want %q", i, got, want)
		}
	}
	if n := len(d.tags("same")); n != len(dirs) {
		t.Errorf("%d tags, want %d", n, len(dirs))
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t, "--max-builds", "1")
	var calls []*call
	for i := range 3 {
		r := c.startDeploy(fmt.Sprint("queued", i), dockerfile("FROM busybox", fmt.Sprintf("RUN echo %d > /f; sleep 0.5", i)).write(t))
		r.buildID()
		calls = append(calls, r)
	}
	waited := 0
	for _, r := range calls {
		if code := r.wait(patience); code != exitDone {
			t.Fatalf("exit code %d\n%s", code, r.text())
		}
		for _, e := range r.events() {
			if e.Type == "queued" && e.Position > 0 {
				waited++
				break
			}
		}
	}
	if waited == 0 {
		t.Error("no build told its place in the queue")
	}
}

func TestIdempotencyKeyJoins(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN echo once; sleep 1").write(t)
	first := c.startDeploy("joined", dir, "--idempotency-key", "k1")
	id := first.buildID()
	second := c.startDeploy("joined", dir, "--idempotency-key", "k1")
	if got := second.buildID(); got != id {
		t.Errorf("the second deploy is build %s, the first %s", got, id)
	}
	for _, r := range []*call{first, second} {
		if code := r.wait(patience); code != exitDone {
			t.Fatalf("exit code %d\n%s", code, r.text())
		}
	}
	third := c.deploy("joined", dir, "--idempotency-key", "k1")
	if third.BuildID != id || third.Digest != first.result().Digest || second.result().Digest != third.Digest {
		t.Errorf("joined builds differ: %s, %s", third.BuildID, id)
	}
	if other := c.deploy("joined", dir, "--idempotency-key", "k2"); other.BuildID == id {
		t.Error("another key joined the same build")
	}
	var all []record
	c.slipway("builds", "list", "-a", "joined", "--json").value(&all)
	if len(all) != 2 {
		t.Errorf("%d builds on record, want 2", len(all))
	}
}

func TestBuildsAreRecords(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN for i in 1 2 3 4 5; do echo line $i; done").write(t)
	good := c.deploy("recorded", dir)
	bad := c.deployFails(exitUser, "step_failed", "broken", dockerfile("FROM busybox", "RUN exit 3").write(t))
	check := func(t *testing.T, c *client) {
		var all, one []record
		c.slipway("builds", "list", "--json").value(&all)
		if len(all) != 2 || all[0].ID != bad.BuildID || all[0].Status != "failed" || all[1].ID != good.BuildID || all[1].Status != "succeeded" {
			t.Errorf("builds list: %+v", all)
		}
		c.slipway("builds", "list", "-a", "recorded", "--json").value(&one)
		if len(one) != 1 || one[0].ID != good.BuildID {
			t.Errorf("builds list -a: %+v", one)
		}
		if b := c.show(good.BuildID); b.Result == nil || b.Result.Digest != good.Digest || b.App != "recorded" {
			t.Errorf("builds show: %+v", b)
		}
		logs := c.slipway("builds", "logs", good.BuildID, "--json")
		if logs.code() != exitDone || logs.log() != "line 1\nline 2\nline 3\nline 4\nline 5\n" {
			t.Errorf("builds logs: exit code %d, %q", logs.code(), logs.log())
		}
		if got := logs.result(); got.Digest != good.Digest {
			t.Errorf("builds logs ends with %+v", got)
		}
		checkSequence(t, logs, 1)
		from := c.slipway("builds", "logs", good.BuildID, "--from", "7", "--json")
		checkSequence(t, from, 7)
		plain := c.slipway("builds", "logs", good.BuildID)
		if !strings.Contains(plain.stdout.String(), "line 3") {
			t.Errorf("builds logs prints %q", plain.stdout.String())
		}
		if attach := c.slipway("builds", "attach", bad.BuildID, "--json"); attach.code() != exitUser {
			t.Errorf("attach to a failed build: exit code %d", attach.code())
		}
		for _, sub := range []string{"show", "logs", "attach", "cancel"} {
			if r := c.slipway("builds", sub, "01AAAAAAAAAAAAAAAAAAAAAAAA", "--json"); r.code() != exitUser {
				t.Errorf("builds %s of an unknown build: exit code %d\n%s", sub, r.code(), r.text())
			}
		}
	}
	check(t, c)
	d.stop()
	d.start()
	check(t, d.client())
}

// checkSequence fails unless events are numbered without a gap.
func checkSequence(t *testing.T, r *call, first uint64) {
	t.Helper()
	next := first
	for _, e := range r.events() {
		if e.Seq == 0 {
			continue
		}
		if e.Seq != next {
			t.Errorf("event %d follows %d", e.Seq, next-1)
		}
		next = e.Seq + 1
	}
	if next == first {
		t.Error("there are no events")
	}
}

func TestCacheCommands(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "COPY big /big", "RUN cat /big /big > /bigger").and("big", noise(2<<20)).write(t)
	first := c.deploy("cached", dir)
	var usage struct {
		Bytes int64 `json:"bytes"`
		Apps  []struct {
			App   string `json:"app"`
			Bytes int64  `json:"bytes"`
		} `json:"apps"`
	}
	c.slipway("cache", "usage", "--json").value(&usage)
	if usage.Bytes < 4<<20 || len(usage.Apps) != 1 || usage.Apps[0].App != "cached" {
		t.Errorf("usage %+v", usage)
	}
	if metric := d.metric("slipway_cache_bytes"); metric < 4<<20 {
		t.Errorf("slipway_cache_bytes is %g", metric)
	}
	was, disk := usage.Bytes, diskUse(t, d.root+"/cache")
	var pruned struct {
		Freed   int64 `json:"freed_bytes"`
		Records int   `json:"records"`
	}
	c.slipway("cache", "prune", "--all", "--json").value(&pruned)
	c.slipway("cache", "usage", "--json").value(&usage)
	if pruned.Freed < 4<<20 || pruned.Records == 0 || usage.Bytes > was-pruned.Freed+1<<20 {
		t.Errorf("pruned %+v; the cache had %d bytes and has %d", pruned, was, usage.Bytes)
	}
	if now := diskUse(t, d.root+"/cache"); now > disk-2<<20 {
		t.Errorf("the cache had %d bytes on disk, and %d after the prune", disk, now)
	}
	// What was pushed is the registry's, and a build makes the same again.
	d.pull(first)
	again := c.deploy("cached", dir)
	if again.Cached == again.Steps {
		t.Error("steps are cached after everything was pruned")
	}
	root := unpack(t, d.pull(again))
	if got := fileOf(t, root, "bigger"); got != noise(2<<20)+noise(2<<20) {
		t.Error("the image after the prune has another content")
	}
}

// noise is text that does not compress, the same each time.
func noise(n int) string {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return string(b)
}

func TestHealthMetricsDoctor(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	for path, want := range map[string]int{"/healthz": 200, "/metrics": 200, "/": 200, "/v2/": 401, "/v2/_catalog": 401, "/nosuch": 404} {
		resp, err := http.Get("http://" + d.http + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, resp.Status, want)
		}
	}
	var doctor struct {
		OK     bool `json:"ok"`
		Checks []struct {
			Name   string `json:"name"`
			Status string `json:"status"`
			Detail string `json:"detail"`
		} `json:"checks"`
	}
	r := c.slipway("doctor", "--json")
	r.value(&doctor)
	if r.code() != exitDone || !doctor.OK || len(doctor.Checks) < 6 || !strings.Contains(r.text(), `"git"`) {
		t.Errorf("doctor: exit code %d\n%s", r.code(), r.text())
	}
	if r := c.with("SLIPWAY_API_TOKEN=wrong").slipway("doctor"); r.code() != exitAuth {
		t.Errorf("doctor with a wrong token: exit code %d\n%s", r.code(), r.text())
	}
	if r := c.with("SLIPWAY_ADDR=127.0.0.1:1").slipway("doctor"); r.code() != exitUnavailable {
		t.Errorf("doctor without a daemon: exit code %d\n%s", r.code(), r.text())
	}
	c.deploy("counted", dockerfile("FROM busybox", "COPY Dockerfile /").write(t))
	c.tryDeploy("counted", dockerfile("FROM busybox", "RUN false").write(t))
	for prefix, least := range map[string]float64{
		`slipway_builds_total{pipeline="classic",status="succeeded"}`: 1, `slipway_builds_total{pipeline="classic",status="failed"}`: 1,
		"slipway_phase_seconds_count": 2, "slipway_context_received_bytes_total": 1, "slipway_layers_compressed_bytes_total": 1,
		"slipway_push_bytes_total": 1, "slipway_push_blobs_total": 1, "slipway_steps_total": 1, "process_resident_memory_bytes": 1,
	} {
		if got := d.metric(prefix); got < least {
			t.Errorf("%s is %g", prefix, got)
		}
	}
}

// What people read: the image on standard output and nothing else there.
func TestPlainOutput(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	dir := greeter.write(t)
	r := c.slipway("deploy", dir, "-a", "plain")
	out := r.stdout.String()
	if r.code() != exitDone || strings.Count(out, "\n") != 1 || !strings.Contains(out, "/plain:deployment-") || !strings.Contains(out, "@sha256:") {
		t.Errorf("exit code %d, standard output %q", r.code(), out)
	}
	for _, s := range []string{"plain", "classic", "Dockerfile", "preflight", "context", "COPY words/ words/", "push", "rootfs"} {
		if !strings.Contains(r.stderr.String(), s) {
			t.Errorf("standard error lacks %q:\n%s", s, r.stderr.String())
		}
	}
	if strings.Contains(r.text(), "\x1b[") {
		t.Error("there are colours in what does not go to a terminal")
	}
	again := c.slipway("deploy", dir, "-a", "plain").stderr.String()
	for _, s := range []string{"sent 0", "cached", "same image as"} {
		if !strings.Contains(again, s) {
			t.Errorf("the second deploy does not say %q:\n%s", s, again)
		}
	}
}

func TestLoginIsSaved(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	bare := c.with("SLIPWAY_API_TOKEN=", "SLIPWAY_ADDR=")
	if r := bare.slipway("login", "--addr", d.grpc, "-t", d.token); r.code() != exitDone {
		t.Fatalf("login: exit code %d\n%s", r.code(), r.text())
	}
	var who struct {
		Name string `json:"name"`
		Addr string `json:"addr"`
	}
	r := bare.slipway("whoami", "--json")
	r.value(&who)
	if r.code() != exitDone || who.Name == "" || who.Addr != d.grpc {
		t.Errorf("whoami: %s", r.text())
	}
	bare.deploy("loggedin", dockerfile("FROM busybox", "RUN true").write(t))
}

// Many builds at once leave the right images and nothing else.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	var calls sync.Map
	for i := range 8 {
		dir := tree{"Dockerfile": fmt.Sprintf("FROM busybox\nCOPY a /a\nRUN echo %d >> /a\nCOPY a /b\nRUN cat /a /b > /c\n", i), "a": "same\n"}.write(t)
		calls.Store(i, c.startDeploy(fmt.Sprint("many", i%3), dir))
	}
	calls.Range(func(i, v any) bool {
		r := v.(*call)
		if code := r.wait(patience); code != exitDone {
			t.Errorf("deploy %v: exit code %d\n%s", i, code, r.text())
			return true
		}
		root := unpack(t, d.pull(&deployed{r, r.result()}))
		if got, want := fileOf(t, root, "c"), fmt.Sprintf("same\n%d\nsame\n", i); got != want {
			t.Errorf("deploy %v built %q, want %q", i, got, want)
		}
		return true
	})
	d.quiet(10 * time.Second)
}
