package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
)

// slipway is slipwayd with its embedded registry, or beside one of its own.
type slipway struct {
	setup
	daemons []*process
	grpc    string
	token   string
	foreign string // registry to push to; "" for the embedded one
	auth    authn.Authenticator
	last    string
}

// openSlipway starts slipwayd. With foreign the image goes to distribution's
// registry over HTTP, as the peers' do, and the base comes from there.
func openSlipway(foreign bool) func(context.Context, setup) (tool, error) {
	return func(ctx context.Context, s setup) (tool, error) {
		t := &slipway{setup: s, auth: authn.Anonymous}
		if err := t.start(ctx, foreign); err != nil {
			t.stop()
			return nil, err
		}
		return t, nil
	}
}

func (t *slipway) start(ctx context.Context, foreign bool) (err error) {
	var web string
	if t.grpc, err = freePort(); err != nil {
		return err
	}
	if web, err = freePort(); err != nil {
		return err
	}
	root := filepath.Join(t.dir, "root")
	args := []string{"--root", root, "--grpc", t.grpc, "--http", web}
	var registry *process
	mirror := web
	if foreign {
		if registry, t.foreign, err = startRegistry(ctx, t.setup); err != nil {
			return err
		}
		mirror = t.foreign
		args = append(args, "--insecure-registry", t.foreign)
	}
	args = append(args, "--registry-mirror", "docker.io=http://"+mirror)
	daemon, err := start("slipwayd", filepath.Join(t.dir, "slipwayd.log"), t.bin.path("slipwayd"), args...)
	if daemon != nil {
		t.daemons = append(t.daemons, daemon)
	}
	if registry != nil {
		t.daemons = append(t.daemons, registry)
	}
	if err != nil {
		return err
	}
	if err := daemon.ready(ctx, func() error { return get("http://" + web + "/healthz") }); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(root, "admin.token"))
	if err != nil {
		return err
	}
	t.token = string(bytes.TrimSpace(token))
	if foreign {
		return nil
	}
	t.auth = authn.FromConfig(authn.AuthConfig{Username: "x", Password: t.token})
	return pushBase(ctx, t.base, web, t.auth)
}

// slipwayResult is what deploy --json says last.
type slipwayResult struct {
	Type    string
	Image   string
	Digest  string
	Context struct {
		SentBytes int64 `json:"sent_bytes"`
	}
	Timings map[string]float64 `json:"timings_ms"`
}

func (t *slipway) deploy(ctx context.Context, dir, app string) (sample, error) {
	args := []string{"deploy", dir, "-a", app, "--addr", t.grpc, "--json", "--compression", t.compression}
	if t.foreign != "" {
		args = append(args, "--push-to", t.foreign+"/"+app)
	}
	cmd := exec.CommandContext(ctx, t.bin.path("slipway"), args...)
	cmd.Env = append(os.Environ(),
		"SLIPWAY_API_TOKEN="+t.token, "SLIPWAY_CONFIG="+filepath.Join(t.dir, "login.json"),
		"XDG_CACHE_HOME="+filepath.Join(t.dir, "client"), "DOCKER_CONFIG="+filepath.Join(t.dir, "docker"))
	s, stdout, _, err := measure(ctx, cmd, t.daemons)
	if err != nil {
		return s, err
	}
	lines := slices.Collect(bytes.Lines(stdout))
	if len(lines) == 0 {
		return s, fmt.Errorf("slipway deploy printed nothing")
	}
	var res slipwayResult
	if err := json.Unmarshal(lines[len(lines)-1], &res); err != nil || res.Type != "result" {
		return s, fmt.Errorf("slipway deploy: the last line is no result (%w): %s", err, lines[len(lines)-1])
	}
	s.Sent = res.Context.SentBytes
	s.Phases = map[string]float64{}
	for k, ms := range res.Timings {
		s.Phases[k] = ms / 1000
	}
	t.last = res.Image
	return s, nil
}

func (t *slipway) verify(ctx context.Context) (int64, error) { return check(ctx, t.last, t.auth) }

func (t *slipway) stop() {
	for _, d := range t.daemons {
		d.stop()
	}
}
