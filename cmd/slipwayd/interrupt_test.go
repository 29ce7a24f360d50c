package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleeper is a build whose second step says so and then goes on for long.
func sleeper() tree {
	return dockerfile("FROM busybox", "RUN echo done > /first", "RUN echo sleeping; sleep 600")
}

// quiet waits until the daemon has no trace of a running step.
func (d *daemon) quiet(limit time.Duration) {
	d.t.Helper()
	var left []string
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for left = d.leftovers(); len(left) > 0; left = d.leftovers() {
		if time.Now().After(deadline) {
			d.t.Fatalf("after %v there still are %q", limit, left)
		}
		<-tick.C
	}
}

func TestInterruptCancelsOnTheDaemon(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := sleeper().write(t)
	r := c.startDeploy("sleeper", dir)
	id := r.buildID()
	r.untilLog("sleeping")
	if len(d.containers()) != 1 {
		t.Errorf("containers while a step runs: %q", d.containers())
	}
	began := time.Now()
	r.signal(syscall.SIGINT)
	if code := r.wait(20 * time.Second); code != exitCancelled {
		t.Errorf("exit code %d, want %d\n%s", code, exitCancelled, r.text())
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v to cancel", took)
	}
	if res := r.result(); res.Status != "failed" || res.Error == nil || res.Error.Code != "cancelled" {
		t.Errorf("result %+v, error %+v", res, res.Error)
	}
	if !strings.Contains(r.stderr.String(), "cancel") {
		t.Errorf("standard error does not say that the build was cancelled: %q", r.stderr.String())
	}
	d.quiet(10 * time.Second)
	if b := c.untilEnded(id, 10*time.Second); b.Status != "cancelled" {
		t.Errorf("the record says %s", b.Status)
	}
	if tags := d.tags("sleeper"); len(tags) != 0 {
		t.Errorf("a cancelled build pushed %q", tags)
	}
	// What had finished stays.
	writeFile(t, dir, "Dockerfile", "FROM busybox\nRUN echo done > /first\nRUN true\n")
	if ran := ranSteps(c.deploy("sleeper", dir)); len(ran) != 1 {
		t.Errorf("ran %q after the cancelled build", ran)
	}
}

func TestCancelCommand(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	r := c.startDeploy("sleeper", sleeper().write(t))
	id := r.buildID()
	r.untilLog("sleeping")
	if cancel := c.slipway("builds", "cancel", id, "--json"); cancel.code() != exitDone {
		t.Errorf("builds cancel: exit code %d\n%s", cancel.code(), cancel.text())
	}
	if code := r.wait(20 * time.Second); code != exitCancelled {
		t.Errorf("exit code %d of the deploy, want %d\n%s", code, exitCancelled, r.text())
	}
	d.quiet(10 * time.Second)
	if b := c.show(id); b.Status != "cancelled" {
		t.Errorf("the record says %s", b.Status)
	}
}

// A client that is killed says no word; its build ends after a grace, in which
// it could come back.
func TestLostClientCancelsAfterGrace(t *testing.T) {
	t.Parallel()
	const grace = 3 * time.Second
	d, c := startWithBusybox(t, "--client-grace", grace.String())
	r := c.startDeploy("sleeper", sleeper().write(t))
	id := r.buildID()
	r.untilLog("sleeping")
	killed := time.Now()
	r.signal(syscall.SIGKILL)
	r.wait(10 * time.Second)
	if b := c.show(id); b.Status != "running" && time.Since(killed) < grace {
		t.Errorf("the build is %s right after its client was killed; it has a grace", b.Status)
	}
	b := c.untilEnded(id, 30*time.Second)
	if b.Status != "cancelled" {
		t.Errorf("the build ended as %s", b.Status)
	}
	if took := time.Since(killed); took < grace || took > grace+15*time.Second {
		t.Errorf("the build was cancelled %v after its client was killed, want %v", took, grace)
	}
	if b.Result == nil || b.Result.Error == nil || !strings.Contains(b.Result.Error.Message, "client") {
		t.Errorf("the result does not tell why: %+v", b.Result)
	}
	d.quiet(10 * time.Second)
}

// A client whose build goes on can look at it again.
func TestDetach(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := tree{"Dockerfile": "FROM busybox\nCOPY a /a\nRUN echo one; sleep 2; echo two\n", "a": "a\n"}.write(t)
	r := c.startDeploy("detached", dir, "--detach")
	if code := r.wait(20 * time.Second); code != exitDone {
		t.Fatalf("exit code %d\n%s", code, r.text())
	}
	res := r.result()
	if res.Status != "detached" || res.BuildID == "" {
		t.Fatalf("result %+v", res)
	}
	attach := c.slipway("builds", "attach", res.BuildID, "--json")
	if attach.code() != exitDone {
		t.Fatalf("attach: exit code %d\n%s", attach.code(), attach.text())
	}
	done := &deployed{attach, attach.result()}
	d.pull(done)
	if log := attach.log(); log != "one\ntwo\n" {
		t.Errorf("attach shows %q of the log", log)
	}
}

func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := tree{
		"Dockerfile": "FROM busybox\nCOPY a /a\nRUN echo done > /first\nRUN echo sleeping; sleep 600\n",
		"a":          "a\n",
	}.write(t)
	before := c.deploy("before", dockerfile("FROM busybox", "RUN echo before > /before").write(t))
	r := c.startDeploy("victim", dir)
	id := r.buildID()
	r.untilLog("sleeping")
	d.signal(syscall.SIGKILL)
	d.start()
	if left := d.leftovers(); len(left) > 0 {
		t.Errorf("the restarted daemon left %q", left)
	}
	if ghosts := processesIn(d.root); len(ghosts) > 0 {
		t.Errorf("processes of the killed daemon live on: %q", ghosts)
	}
	r.wait(90 * time.Second)
	if code := r.code(); code != exitUnavailable {
		t.Errorf("exit code %d of the deploy; want %d\n%s", code, exitUnavailable, r.text())
	}
	b := c.untilEnded(id, 10*time.Second)
	if b.Status != "failed" || b.Result == nil || b.Result.Error == nil || b.Result.Error.Code != "daemon_stopped" {
		t.Errorf("after the restart the record says %s, %+v", b.Status, b.Result)
	}
	if b := c.show(before.BuildID); b.Status != "succeeded" || b.Result.Digest != before.Digest {
		t.Errorf("the build before is %s, %+v", b.Status, b.Result)
	}
	d.pull(before)
	if logs := c.slipway("builds", "logs", id, "--json"); !strings.Contains(logs.log(), "sleeping") {
		t.Errorf("the killed build's log lost what was shown: %s", logs.text())
	}

	// Cached steps stay, and contents that had arrived.
	writeFile(t, dir, "Dockerfile", "FROM busybox\nCOPY a /a\nRUN echo done > /first\nRUN echo again > /second\n")
	again := c.deploy("victim", dir)
	if ran := ranSteps(again); len(ran) != 1 || again.Context.SentFiles != 0 {
		t.Errorf("after the restart ran %q, sent %d files; want the changed step only and no file", ran, again.Context.SentFiles)
	}
	root := unpack(t, d.pull(again))
	if got := fileOf(t, root, "first") + fileOf(t, root, "second"); got != "done\nagain\n" {
		t.Errorf("the image has %q", got)
	}
}

// A daemon that is killed at any moment of a build loses nothing that it had
// acknowledged, and builds right images afterwards.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	files := tree{"Dockerfile": "FROM busybox\nCOPY src /src\nRUN cat /src/* > /all\nCOPY src/1 /one\nRUN cat /one >> /all\n", "src/1": "1\n", "src/2": "2\n"}
	moments := []string{`"type":"accepted"`, `"type":"context"`, `"type":"step_done"`, `"type":"layer"`, `"name":"push"`}
	var acknowledged []*deployed
	for i, moment := range moments {
		files["src/1"] = strings.Repeat("x", i+1) + "\n"
		dir := files.write(t)
		r := c.startDeploy("moments", dir)
		poll(t, 30*time.Second, moment, func() bool {
			select {
			case <-r.ended:
				return true
			default:
			}
			return strings.Contains(r.stdout.String(), moment)
		})
		d.signal(syscall.SIGKILL)
		d.start()
		r.wait(90 * time.Second)
		if r.code() == exitDone {
			acknowledged = append(acknowledged, &deployed{r, r.result()})
		}
		done := c.deploy("moments", dir)
		acknowledged = append(acknowledged, done)
		root := unpack(t, d.pull(done))
		if got, want := fileOf(t, root, "all"), files["src/1"]+"2\n"+files["src/1"]; got != want {
			t.Errorf("killed at %s: the image has %q, want %q", moment, got, want)
		}
	}
	for _, a := range acknowledged {
		d.pull(a)
		if b := c.show(a.BuildID); b.Status != "succeeded" {
			t.Errorf("build %s is %s", a.BuildID, b.Status)
		}
	}
	var all []record
	c.slipway("builds", "list", "--json").value(&all)
	for _, b := range all {
		if b.Status == "running" || b.Status == "queued" {
			t.Errorf("build %s of a killed daemon is still %s", b.ID, b.Status)
		}
	}
}

// processesIn lists processes whose root or working directory is below dir.
func processesIn(dir string) []string {
	var found []string
	roots, _ := filepath.Glob("/proc/[0-9]*/root")
	for _, r := range roots {
		if to, err := os.Readlink(r); err == nil && strings.HasPrefix(to, dir+"/") {
			found = append(found, r+" "+to)
		}
	}
	return found
}

func TestDrain(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	r := c.startDeploy("drained", dockerfile("FROM busybox", "RUN echo started; sleep 3; echo finished > /f").write(t))
	r.untilLog("started")
	if err := d.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	poll(t, 5*time.Second, "the daemon to drain", func() bool { return strings.Contains(d.log.String(), "draining") })
	late := c.tryDeploy("late", dockerfile("FROM busybox", "RUN true").write(t))
	if late.code() != exitUnavailable {
		t.Errorf("exit code %d of a deploy to a draining daemon; want %d\n%s", late.code(), exitUnavailable, late.text())
	}
	if code := r.wait(30 * time.Second); code != exitDone {
		t.Errorf("the build under way ended with exit code %d\n%s", code, r.text())
	}
	<-d.ended
	if d.exit != nil {
		t.Errorf("slipwayd: %v\n%s", d.exit, d.log)
	}
	d.checkNothingLeft()
	d.start()
	done := &deployed{r, r.result()}
	d.pull(done)
}

// SIGTERM waits no longer than it was told.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t, "--drain-timeout", "1s")
	r := c.startDeploy("slow", sleeper().write(t))
	id := r.buildID()
	r.untilLog("sleeping")
	began := time.Now()
	d.signal(syscall.SIGTERM)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	d.checkNothingLeft()
	d.start()
	r.wait(90 * time.Second)
	if r.code() != exitUnavailable {
		t.Errorf("exit code %d of the deploy; want %d\n%s", r.code(), exitUnavailable, r.text())
	}
	if b := c.show(id); b.Status != "failed" || b.Result.Error.Code != "daemon_stopped" {
		t.Errorf("the record says %s, %+v", b.Status, b.Result)
	}
}
