package main_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// begin runs buildctl on a directory in the background. What it prints so far is
// in text.
func (c *stockClient) begin(dir string, args ...string) *background {
	c.t.Helper()
	b := &background{ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.interrupt = cancel
	args = append([]string{"--addr", c.addr, "build", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir}, args...)
	go func() {
		defer close(b.ended)
		defer cancel()
		b.run = c.runIn(ctx, "buildctl", args...)
	}()
	c.t.Cleanup(func() { cancel(); <-b.ended })
	return b
}

// A background is a run of a stock client that may still be under way.
type background struct {
	interrupt func()
	ended     chan struct{}
	run       *stockRun // set when ended
}

func (b *background) wait() *stockRun {
	<-b.ended
	return b.run
}

// builds lists records, the newest first.
func (c *client) builds(args ...string) []record {
	c.t.Helper()
	var all []record
	c.slipway(append([]string{"builds", "list", "--json"}, args...)...).value(&all)
	return all
}

// untilBuild waits for a record of an app with a status.
func (c *client) untilBuild(app, status string) record {
	c.t.Helper()
	var found record
	poll(c.t, time.Minute, "a build of "+app+" that is "+status, func() bool {
		for _, b := range c.builds("-a", app) {
			if b.Status == status {
				found = b
				return true
			}
		}
		return false
	})
	return found
}

// What clients of BuildKit build is on record as deploys are.
func TestBuildsOfBuildctlAreRecords(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.stock()
	r := c.build(stages().write(t), "--output", "type=image,push=true,name="+d.http+"/kit:7").ok(t)
	c.build(dockerfile("FROM busybox", "RUN echo away > /f").write(t)).ok(t)
	broken := dockerfile("FROM busybox", "RUN echo before; exit 42").write(t)
	c.build(broken, "--output", "type=image,push=true,name="+d.http+"/broken:1").refused(t, "exit code: 42")

	all := c.builds()
	if len(all) != 3 || all[0].App != "broken" || all[1].App != "-" || all[2].App != "kit" {
		t.Fatalf("builds list: %+v", all)
	}
	bad, none, good := c.show(all[0].ID), c.show(all[1].ID), c.show(all[2].ID)
	if good.Status != "succeeded" || good.CreatedBy != "admin" || good.Pipeline != "buildkit" || good.Result.Digest != r.digest(t) ||
		good.Result.Image != d.http+"/kit:7" || good.Result.Steps != 5 || good.Result.Cached != 0 {
		t.Errorf("pushed: %+v, %+v", good, good.Result)
	}
	if none.Status != "succeeded" || none.Result.Digest != "" {
		t.Errorf("without an output: %+v, %+v", none, none.Result)
	}
	if e := bad.Result.Error; bad.Status != "failed" || e == nil || e.Code != "step_failed" || e.ExitCode != 42 || e.Line != 2 {
		t.Errorf("failed: %+v, %+v", bad, e)
	}
	logs := c.slipway("builds", "logs", bad.ID, "--json")
	if logs.log() != "before\n" || logs.result().Error.Code != "step_failed" {
		t.Errorf("builds logs: %s", logs.text())
	}
	sources := ""
	for _, e := range c.slipway("builds", "logs", good.ID, "--json").events() {
		for _, s := range e.Steps {
			sources += s.Source + "\n"
		}
	}
	if !strings.Contains(sources, "RUN echo hello > /greeting") {
		t.Errorf("builds logs tells of %s", sources)
	}
}

// A build of buildctl's waits for its turn as deploys do, and says so; a deploy
// waits for it.
func TestBuildsOfBuildctlWait(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t, "--max-builds", "1")
	c := d.stock()
	ahead := c.startDeploy("ahead", sleeper().write(t))
	ahead.untilLog("sleeping")
	to := "type=image,push=true,name=" + d.http + "/behind:1"
	behind := c.begin(sleeper().write(t), "--output", to)
	waiting := c.untilBuild("behind", "queued")
	time.Sleep(time.Second) // long enough to hear of the queue
	third := c.begin(sleeper().write(t), "--output", "type=image,push=true,name="+d.http+"/third:1")
	last := c.untilBuild("third", "queued")
	if r := c.slipway("builds", "cancel", last.ID); r.code() != exitDone {
		t.Fatalf("cancel: %s", r.text())
	}
	third.wait().refused(t, "the build was cancelled")
	if n := len(c.builds("-a", "ahead")); n != 1 || c.show(waiting.ID).Status != "queued" {
		t.Errorf("%d builds ahead, the one behind is %s", n, c.show(waiting.ID).Status)
	}
	ahead.signal(syscall.SIGINT)
	running := c.untilBuild("behind", "running")
	if running.ID != waiting.ID {
		t.Errorf("build %s runs, %s waited", running.ID, waiting.ID)
	}
	deploy := c.startDeploy("after", dockerfile("FROM busybox").write(t))
	deploy.until("the deploy to wait", func(e event) bool { return e.Type == "queued" && e.Position == 1 })
	if r := c.slipway("builds", "cancel", running.ID); r.code() != exitDone {
		t.Fatalf("cancel: %s", r.text())
	}
	got := behind.wait()
	got.refused(t, "the build was cancelled", "waiting for other builds of this daemon", "place 1 in the queue")
	if b := c.untilEnded(running.ID, patience); b.Status != "cancelled" {
		t.Errorf("the record says %s", b.Status)
	}
	if code := deploy.wait(patience); code != exitDone {
		t.Errorf("the deploy after it: %s", deploy.text())
	}
	if tags := d.tags("behind"); len(tags) != 0 {
		t.Errorf("a cancelled build has %q", tags)
	}
}

// A build ends with its client, and with the daemon.
func TestBuildsOfBuildctlEnd(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.stock()
	to := "type=image,push=true,name=" + d.http + "/%s:1"
	left := c.begin(sleeper().write(t), "--output", fmt.Sprintf(to, "left"))
	b := c.untilBuild("left", "running")
	watch := c.start("builds", "attach", b.ID, "--json")
	watch.untilLog("sleeping")
	left.interrupt()
	left.wait()
	if b = c.untilEnded(b.ID, 20*time.Second); b.Status != "cancelled" {
		t.Errorf("after its client was interrupted the build is %s, %+v", b.Status, b.Result)
	}
	watch.wait(patience)

	killed := c.begin(sleeper().write(t), "--output", fmt.Sprintf(to, "killed"))
	b = c.untilBuild("killed", "running")
	// Others who watch and leave do not end it.
	watch = c.start("builds", "attach", b.ID, "--json")
	watch.untilLog("sleeping")
	d.signal(syscall.SIGKILL)
	d.start()
	killed.wait()
	if b = c.show(b.ID); b.Status != "failed" || b.Result.Error.Code != "daemon_stopped" {
		t.Errorf("after a restart the record says %s, %+v", b.Status, b.Result)
	}
	d.quiet(patience)
}

// A target of bake waits for those that stand on it, which need a place of
// their own.
func TestBakeWithOnePlace(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t, "--max-builds", "1")
	c := d.buildx()
	c.home = dockerfile("FROM busybox AS one", "RUN echo one > /one").
		and("two/Dockerfile", "FROM one\nRUN echo two > /two\n").and("three/Dockerfile", "FROM two\nRUN cat /one /two > /three\n").
		and("docker-bake.json", fmt.Sprintf(`{"group": {"default": {"targets": ["one", "two", "three"]}}, "target": {
			"one": {"target": "one", "tags": ["%[1]s/one:1"], "output": ["type=registry"]},
			"two": {"context": "two", "contexts": {"one": "target:one"}, "tags": ["%[1]s/two:1"], "output": ["type=registry"]},
			"three": {"context": "three", "contexts": {"two": "target:two"}, "tags": ["%[1]s/three:1"], "output": ["type=registry"]}}}`, d.http)).write(t)
	began := time.Now()
	c.buildx("bake").ok(t)
	t.Logf("baked in %v", time.Since(began))
	for _, name := range []string{"one", "two", "three"} {
		if all := c.builds("-a", name); len(all) != 1 || all[0].Status != "succeeded" {
			t.Errorf("%s: %+v", name, all)
		}
	}
}

// The token of the call is enough for a cache in the daemon's own registry, as
// it is for an image. It is none for others.
func TestCacheOfBuildctlNeedsNoLogin(t *testing.T) {
	t.Parallel()
	d, deploys := startWithBusybox(t)
	c := d.stock()
	dir := dockerfile("FROM busybox", "RUN echo a > /a", "RUN echo b > /b").write(t)
	cached := func(r *stockRun) int { return strings.Count(r.ok(t).text, "CACHED") }
	for i, attrs := range []string{"", ",registry.insecure=true"} {
		cache := fmt.Sprintf("type=registry,ref=%s/kit:cache%d%s", d.http, i, attrs)
		c.build(dir, "--export-cache", cache+",mode=max", "--output", "type=image,push=true,name="+d.http+"/kit:1").ok(t)
		c.buildctl("prune", "--all").ok(t)
		if n := cached(c.build(dir, "--import-cache", fmt.Sprintf("type=registry,ref=%s/kit:cache%d", d.http, i))); n < 2 {
			t.Errorf("%d steps came from the cache that %s has made", n, cache)
		}
		c.buildctl("prune", "--all").ok(t)
	}
	deploys.deploy("kit", dir, "--buildkit", "--cache-to", "type=registry,mode=max,ref="+d.http+"/kit:deployed")
	c.buildctl("prune", "--all").ok(t)
	if n := cached(c.build(dir, "--import-cache", "type=registry,ref="+d.http+"/kit:deployed")); n < 2 {
		t.Errorf("%d steps came from the cache that a deploy has made", n)
	}
	foreign := startForeign(t, false)
	foreign.refuse = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="elsewhere"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	c.build(dir, "--export-cache", "type=registry,ref="+foreign.host+"/kit:cache").refused(t, "401")
}
