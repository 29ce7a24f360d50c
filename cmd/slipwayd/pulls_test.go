package main_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// A pulled is an entry of an environment's history that tells of a pull.
type pulled struct {
	Type string `json:"type"`
	Pull *struct {
		App       string `json:"app"`
		Digest    string `json:"digest"`
		Tag       string `json:"tag"`
		Count     int    `json:"count"`
		TokenName string `json:"token_name"`
		Address   string `json:"address"`
		UserAgent string `json:"user_agent"`
	} `json:"pull"`
}

// pulls lists those of an app from production, newest first.
func (c *client) pulls(app string) []pulled {
	c.t.Helper()
	var all, pulls []pulled
	c.want(exitDone, "envs", "history", "production", "-a", app, "--json").value(&all)
	for _, h := range all {
		if h.Type == "pull" {
			pulls = append(pulls, h)
		}
	}
	return pulls
}

// drift is the status of an app in production.
func (c *client) drift(app string) string {
	c.t.Helper()
	var all []standing
	c.want(exitDone, "envs", "drift", "production", "-a", app, "--json").value(&all)
	if len(all) != 1 {
		c.t.Fatalf("%s in production: %+v", app, all)
	}
	return all[0].Status
}

// A cluster pulls with the token of its environment: the daemon tells what, and
// whether that is what was released. When the environment goes, so does the
// token.
func TestPullsOfAnEnvironment(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	var made struct{ Token string }
	c.want(exitDone, "envs", "create", "production", "--json").value(&made)
	cluster := []remote.Option{remote.WithAuth(&authn.Basic{Username: "production", Password: made.Token}), remote.WithUserAgent("cluster/1")}
	head := func(path string) *v1.Descriptor {
		t.Helper()
		desc, err := remote.Head(d.reference(path), cluster...)
		if err != nil {
			t.Fatal(err)
		}
		return desc
	}
	dir := tree{"Dockerfile": "FROM busybox\nCOPY a /a\n", "a": "one\n"}.write(t)
	c.deploy("shop", dir, "--env", "production", "--image-label", "v1")
	if got := c.drift("shop"); got != "pending" {
		t.Errorf("before any pull: %s", got)
	}
	// As others pull it, it leaves no trace.
	if _, err := remote.Get(d.reference("shop:v1"), d.auth()); err != nil {
		t.Fatal(err)
	}
	if got := c.drift("shop"); got != "pending" || len(c.pulls("shop")) != 0 {
		t.Errorf("after a pull of the admin: %s, %+v", got, c.pulls("shop"))
	}
	one := head("shop:v1").Digest
	if _, err := remote.Image(d.reference("shop@"+one.String()), cluster...); err != nil {
		t.Fatal(err)
	}
	all := c.pulls("shop")
	if len(all) != 1 || all[0].Pull.Digest != one.String() || all[0].Pull.Tag != "v1" || all[0].Pull.Count != 2 || all[0].Pull.TokenName != "production" ||
		all[0].Pull.Address != "127.0.0.1" || !strings.HasPrefix(all[0].Pull.UserAgent, "cluster/1") {
		t.Errorf("pulls %+v", all[0].Pull)
	}
	if got := c.drift("shop"); got != "in_sync" {
		t.Errorf("after the pull: %s", got)
	}
	writeFile(t, dir, "a", "two\n")
	c.deploy("shop", dir, "--env", "production", "--image-label", "v2")
	if got := c.drift("shop"); got != "pending" {
		t.Errorf("after another deploy: %s", got)
	}
	time.Sleep(2 * time.Millisecond) // the clock of records
	head("shop:v1")
	if got := c.drift("shop"); got != "drifted" {
		t.Errorf("when the old one is pulled: %s", got)
	}
	head("shop:v2")
	if got := c.drift("shop"); got != "in_sync" {
		t.Errorf("when the new one is: %s", got)
	}
	time.Sleep(2 * time.Millisecond)
	head("shop:v1")
	if got := c.drift("shop"); got != "mixed" {
		t.Errorf("when both are: %s", got)
	}

	// An image for several platforms, that somebody pushed; a signature beside it.
	index, err := random.Index(100, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(d.reference("multi:v1"), index, d.auth()); err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	signature := "multi:sha256-" + digest.Hex + ".sig"
	if err := remote.Write(d.reference(signature), mustImage(t), d.auth()); err != nil {
		t.Fatal(err)
	}
	c.want(exitDone, "releases", "create", "-a", "multi", "--env", "production", "--image", "v1")
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	head("multi:v1")
	head("multi@" + manifest.Manifests[1].Digest.String())
	head(signature)
	if all := c.pulls("multi"); len(all) != 1 || all[0].Pull.Digest != digest.String() || all[0].Pull.Count != 1 {
		t.Errorf("pulls of an index: %+v", all)
	}
	if got := c.drift("multi"); got != "in_sync" {
		t.Errorf("an index: %s", got)
	}

	// What it pulled is known after the daemon has stopped.
	before := len(c.pulls("shop"))
	d.stop()
	d.start()
	if got := len(c.pulls("shop")); got != before {
		t.Errorf("%d pulls after a restart, %d before", got, before)
	}
	if err := remote.Write(d.reference("shop:v3"), mustImage(t), cluster...); err == nil {
		t.Error("the token of an environment could push")
	}
	c.want(exitDone, "envs", "delete", "production")
	_, err = remote.Head(d.reference("shop:v1"), cluster...)
	if refused, ok := err.(*transport.Error); !ok || refused.StatusCode != http.StatusUnauthorized {
		t.Errorf("after the environment was deleted: %v", err)
	}
}

func mustImage(t testing.TB) v1.Image {
	t.Helper()
	img, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
