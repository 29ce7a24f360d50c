package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A build on the user's machine is pushed to the registry of the daemon that
// the user is logged in to, and leaves a cache but no process. Two at a time
// take turns.
func TestLocalOnly(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.client()
	cache := t.TempDir()
	own := c.with("XDG_CACHE_HOME="+cache, "SLIPWAY_REGISTRY_MIRROR=docker.io=http://"+d.http)
	dir := dockerfile("FROM busybox", "COPY a /a", "RUN cat /a > /b").and("a", "made here").write(t)
	first := own.deploy("home", dir, "--local-only")
	if !strings.HasPrefix(first.Image, d.http+"/home:") {
		t.Errorf("image %s is not at %s", first.Image, d.http)
	}
	image, err := remote.Image(d.reference(first.Image), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	if list := c.releases("home"); first.Release == nil || len(list) != 1 || list[0].ID != first.Release.ID || list[0].Digest != first.Digest {
		t.Errorf("it was released as %+v; the daemon has %+v", first.Release, list)
	}
	if got := fileOf(t, unpack(t, image), "b"); got != "made here" {
		t.Errorf("file is %q", got)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if r := own.deploy("home", dir, "--local-only"); r.Digest != first.Digest || !strings.Contains(r.text(), `"steps":3,"cached_steps":3`) {
				t.Errorf("again: %s instead of %s, or not cached\n%s", r.Digest, first.Digest, r.text())
			}
		})
	}
	wg.Wait()
	if list := c.slipway("builds", "list", "-a", "home", "--json"); strings.Contains(list.stdout.String(), first.BuildID) {
		t.Error("the daemon has built it")
	}
	own.deployFails(exitUser, "not_found", "home", dir, "--local-only", "--env", "production")
	c.want(exitDone, "envs", "create", "production", "--no-token")
	if r := own.deploy("home", dir, "--local-only", "--env", "production").Release; r == nil || r.Version != 1 || r.Environment != "production" {
		t.Errorf("released %+v to production", r)
	}
	root := filepath.Join(cache, "slipway", "local")
	if log, err := os.ReadFile(root + ".log"); err != nil || !strings.Contains(string(log), "slipwayd is ready") {
		t.Errorf("log: %v\n%s", err, log)
	}
	if procs := processesOf(t, root); len(procs) > 0 {
		t.Errorf("processes are left: %v", procs)
	}
	bad := own.slipway("deploy", dir, "-a", "home", "--local-only", "--detach")
	if bad.code() != exitUser {
		t.Errorf("--detach: exit code %d", bad.code())
	}
	nowhere := own.with("SLIPWAY_ADDR=127.0.0.1:1").slipway("deploy", dir, "-a", "home", "--local-only")
	if nowhere.code() != exitUser || !strings.Contains(nowhere.text(), "--push-to") {
		t.Errorf("no daemon to push to: exit code %d\n%s", nowhere.code(), nowhere.text())
	}
	alone := dockerfile("FROM scratch", "COPY Dockerfile /").write(t)
	if r := own.with("SLIPWAY_ADDR=127.0.0.1:1").slipway("deploy", alone, "-a", "home", "--local-only", "--build-only"); r.code() != exitDone {
		t.Errorf("--build-only: exit code %d\n%s", r.code(), r.text())
	}
}

// processesOf lists the command lines that name a directory.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && strings.Contains(string(line), dir) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
