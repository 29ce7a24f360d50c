package main_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A released is a release as slipway tells it.
type released struct {
	ID           string `json:"id"`
	App          string `json:"app"`
	Environment  string `json:"environment"`
	Version      int    `json:"version"`
	Image        string `json:"image"`
	Digest       string `json:"digest"`
	BuildID      string `json:"build_id"`
	PromotedFrom string `json:"promoted_from"`
	Unchanged    bool   `json:"unchanged"`
}

// A standing is an app in an environment as slipway tells it.
type standing struct {
	App      string    `json:"app"`
	Status   string    `json:"status"`
	Behind   int       `json:"behind"`
	Released *released `json:"released"`
}

// want runs slipway and expects an exit code.
func (c *client) want(code int, args ...string) *call {
	c.t.Helper()
	r := c.slipway(args...)
	if r.code() != code {
		c.t.Fatalf("slipway %s: exit code %d, want %d\n%s", strings.Join(args, " "), r.code(), code, r.text())
	}
	return r
}

// releases lists those of an app, newest first.
func (c *client) releases(app string, args ...string) []released {
	c.t.Helper()
	var all []released
	c.want(exitDone, append([]string{"releases", "list", "-a", app, "--json", "-n", "1000"}, args...)...).value(&all)
	return all
}

// Deploys to environments: what is recorded, refused, promoted and taken back,
// on a daemon that restarts in between.
func TestDeployToEnvironments(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.want(exitDone, "envs", "create", "staging", "--no-token")
	c.want(exitDone, "envs", "create", "production", "--no-token")
	dir := tree{"Dockerfile": "FROM busybox\nCOPY a /a\n", "a": "one\n"}.write(t)

	refused := c.deployFails(exitUser, "not_found", "shop", dir, "--env", "qa")
	if refused.Context.SentFiles != 0 || refused.Error.Phase != "preflight" || !strings.Contains(refused.Error.Hint, "slipway envs create qa") || refused.BuildID != "" {
		t.Errorf("deploy to nowhere: %+v, %+v", refused.result, refused.Error)
	}
	c.deployFails(exitUser, "invalid_argument", "shop", dir, "--env", "../qa")

	one := c.deploy("shop", dir, "--env", "staging")
	if one.Release == nil || one.Release.Version != 1 || one.Release.Environment != "staging" {
		t.Errorf("released %+v", one.Release)
	}
	plain := c.want(exitDone, "deploy", dir, "-a", "shop", "--env", "staging", "--progress", "plain")
	if !strings.Contains(plain.stderr.String(), "released v2 to staging") {
		t.Errorf("the output does not say what was released: %s", plain.text())
	}
	if r := c.deploy("shop", dir, "--build-only", "--push").Release; r != nil {
		t.Errorf("--build-only released %+v", r)
	}
	if r := c.deploy("shop", dir).Release; r == nil || r.Version != 1 || r.Environment != "" {
		t.Errorf("a deploy to none released %+v", r)
	}

	var promoted released
	c.want(exitDone, "promote", "-a", "shop", "--from", "staging", "--to", "production", "--json").value(&promoted)
	if promoted.Digest != one.Digest || promoted.Version != 1 || promoted.PromotedFrom != "staging" || promoted.Unchanged {
		t.Errorf("promoted %+v", promoted)
	}
	writeFile(t, dir, "a", "two\n")
	two := c.deploy("shop", dir, "--env", "production", "--image-label", "v2")
	d.signal(syscall.SIGKILL)
	d.start()
	var back released
	c.want(exitDone, "releases", "rollback", "-a", "shop", "--env", "production", "--json").value(&back)
	if back.Digest != one.Digest || back.Version != 3 {
		t.Errorf("rolled back to %+v", back)
	}
	c.want(exitDone, "releases", "create", "-a", "shop", "--env", "production", "--image", d.http+"/shop:v2", "--json").value(&back)
	if back.Digest != two.Digest || back.Version != 4 || back.BuildID != two.BuildID {
		t.Errorf("released by tag: %+v", back)
	}
	c.want(exitUser, "releases", "create", "-a", "shop", "--env", "production", "--image", "v3")
	c.want(exitUser, "releases", "create", "-a", "soap", "--env", "production", "--image", two.Digest)
	if all := c.releases("shop", "--env", "production"); len(all) != 4 || all[0].ID != back.ID || all[3].ID != promoted.ID {
		t.Errorf("releases %+v", all)
	}

	var drift []standing
	c.want(exitUser, "envs", "drift", "production", "--exit-code", "--json").value(&drift)
	if len(drift) != 1 || drift[0].Status != "pending" || drift[0].Behind != 4 || drift[0].Released.Digest != two.Digest {
		t.Errorf("drift %+v", drift)
	}
	c.want(exitDone, "envs", "delete", "production")
	c.want(exitUser, "envs", "show", "production")
	if h := c.want(exitDone, "envs", "history", "production"); strings.Count(h.stdout.String(), "release v") != 4 {
		t.Errorf("history of a deleted environment:\n%s", h.text())
	}
	c.deployFails(exitUser, "not_found", "shop", dir, "--env", "production")
}

// A daemon that is killed around the end of builds has, for each build that
// succeeded, one release, and none for the others.
func TestKilledWhileReleasing(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.want(exitDone, "envs", "create", "production", "--no-token")
	dir := dockerfile("FROM busybox", "RUN true").write(t)
	c.deploy("shop", dir, "--env", "production")
	told := map[string]int{}
	for i := range 8 {
		writeFile(t, dir, "Dockerfile", fmt.Sprintf("FROM busybox\nLABEL n=%d\n", i))
		r := c.startDeploy("shop", dir, "--env", "production")
		poll(t, 30*time.Second, "the push", func() bool {
			select {
			case <-r.ended:
				return true
			default:
			}
			return strings.Contains(r.stdout.String(), `"name":"push"`)
		})
		time.Sleep(time.Duration(i) * 4 * time.Millisecond) // any moment will do
		d.signal(syscall.SIGKILL)
		d.start()
		r.wait(90 * time.Second)
		if res := r.result(); res.Release != nil {
			told[res.BuildID] = res.Release.Version
		}
	}
	last := c.deploy("shop", dir, "--env", "production")
	told[last.BuildID] = last.Release.Version
	var builds []record
	c.slipway("builds", "list", "--json", "-n", "1000").value(&builds)
	all := c.releases("shop", "--env", "production")
	killed := 0
	for _, b := range builds {
		of := slices.DeleteFunc(slices.Clone(all), func(r released) bool { return r.BuildID != b.ID })
		switch {
		case b.Status != "succeeded":
			killed++
			if len(of) != 0 || b.Result.Release != nil {
				t.Errorf("build %s is %s and has the releases %+v", b.ID, b.Status, of)
			}
		case len(of) != 1 || b.Result.Release == nil || b.Result.Release.ID != of[0].ID || b.Result.Release.Version != of[0].Version:
			t.Errorf("build %s succeeded with %+v and has the releases %+v", b.ID, b.Result.Release, of)
		}
	}
	for i, r := range all {
		if r.Version != len(all)-i {
			t.Errorf("release %d of %d is v%d", i, len(all), r.Version)
		}
		if v := told[r.BuildID]; v != 0 && v != r.Version {
			t.Errorf("the client of build %s was told of v%d, which is v%d", r.BuildID, v, r.Version)
		}
		delete(told, r.BuildID)
	}
	if len(told) > 0 {
		t.Errorf("clients were told of releases that are not there: %v", told)
	}
	t.Logf("%d of %d builds were killed before their end", killed, len(builds))
}
