package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// slipway is slipwayd with its embedded registry, or beside one of its own.
type slipway struct {
	setup
	daemon  *process
	foreign *registry // nil if there is none beside it
	away    bool      // images go to the foreign registry
	solver  bool      // BuildKit's solver builds
	grpc    string
	web     string
	token   string
	auth    authn.Authenticator // of the registry that is pushed to
	last    string
}

// openSlipway starts slipwayd. With foreign the image goes to distribution's
// registry over HTTP, as the peers' do, and the base comes from there.
func openSlipway(foreign bool) func(context.Context, setup) (tool, error) {
	return func(ctx context.Context, s setup) (tool, error) { return startSlipway(ctx, s, foreign, foreign) }
}

// openSlipwayBuildKit starts slipwayd, for deploys with --buildkit.
func openSlipwayBuildKit(ctx context.Context, s setup) (tool, error) {
	t, err := startSlipway(ctx, s, false, false)
	if err != nil {
		return nil, err
	}
	t.solver = true
	return t, nil
}

// startSlipway starts slipwayd, with a foreign registry beside it, to which it
// pushes if away says so.
func startSlipway(ctx context.Context, s setup, beside, away bool) (*slipway, error) {
	t := &slipway{setup: s, away: away, auth: authn.Anonymous}
	if err := t.start(ctx, beside); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *slipway) start(ctx context.Context, beside bool) (err error) {
	if t.grpc, err = freePort(); err != nil {
		return err
	}
	if t.web, err = freePort(); err != nil {
		return err
	}
	root := filepath.Join(t.dir, "root")
	args := []string{"--root", root, "--grpc", t.grpc, "--http", t.web}
	mirror := t.web
	if beside {
		if t.foreign, err = startRegistry(ctx, t.setup); err != nil {
			return err
		}
		args = append(args, "--insecure-registry", t.foreign.host, "--insecure-registry", t.foreign.target)
	}
	if t.away {
		mirror = t.foreign.host
	}
	if _, err := os.Stat(systemCA); err == nil {
		args = append(args, "--build-ca", systemCA)
	}
	args = append(args, "--registry-mirror", "docker.io=http://"+mirror)
	if t.daemon, err = start("slipwayd", filepath.Join(t.dir, "slipwayd.log"), t.bin.path("slipwayd"), args...); err != nil {
		return err
	}
	if err := t.daemon.ready(ctx, func() error { return get("http://" + t.web + "/healthz") }); err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(root, "admin.token"))
	if err != nil {
		return err
	}
	t.token = string(bytes.TrimSpace(token))
	if t.away {
		return nil
	}
	t.auth = authn.FromConfig(authn.AuthConfig{Username: "x", Password: t.token})
	return pushBases(ctx, t.bases, t.web, t.auth)
}

// daemons are those that work for a deploy, the builder first.
func (t *slipway) daemons() []*process {
	all := []*process{t.daemon}
	if t.foreign != nil {
		all = append(all, t.foreign.process)
	}
	return all
}

// slipwayResult is what deploy --json says last.
type slipwayResult struct {
	Type    string
	Image   string
	Digest  string
	Context struct {
		SentBytes int64 `json:"sent_bytes"`
	}
	WireBytes int64              `json:"wire_bytes"`
	Timings   map[string]float64 `json:"timings_ms"`
}

func (t *slipway) deploy(ctx context.Context, j job) (sample, error) {
	args := []string{j.dir, "-a", j.app, "--compression", t.compression}
	if t.solver {
		args = append(args, "--buildkit")
	}
	switch {
	case j.local:
		args = append(args, "--build-only")
	case t.away:
		args = append(args, "--push-to", t.foreign.target+"/"+j.app)
	}
	return t.run(ctx, args...)
}

// run runs slipway deploy.
func (t *slipway) run(ctx context.Context, args ...string) (sample, error) {
	s, _, err := t.output(ctx, args...)
	return s, err
}

// output runs slipway deploy and returns the JSON lines that it printed.
func (t *slipway) output(ctx context.Context, args ...string) (sample, []byte, error) {
	args = append([]string{"deploy", "--addr", t.grpc, "--json"}, args...)
	cmd := exec.CommandContext(ctx, t.bin.path("slipway"), args...)
	cmd.Env = environ("SLIPWAY_API_TOKEN="+t.token, "SLIPWAY_LOGIN_FILE="+filepath.Join(t.dir, "login.json"),
		"XDG_CACHE_HOME="+filepath.Join(t.dir, "client"), "DOCKER_CONFIG="+filepath.Join(t.dir, "docker"))
	s, stdout, _, err := gauge{daemons: t.daemons()}.measure(ctx, cmd)
	if err != nil {
		return s, nil, err
	}
	lines := slices.Collect(bytes.Lines(stdout))
	if len(lines) == 0 {
		return s, nil, errors.New("slipway deploy printed nothing")
	}
	var res slipwayResult
	if err := json.Unmarshal(lines[len(lines)-1], &res); err != nil || res.Type != "result" {
		return s, nil, fmt.Errorf("slipway deploy: the last line is no result (%w): %s", err, lines[len(lines)-1])
	}
	s.Sent, s.Pushed = res.Context.SentBytes, res.WireBytes
	s.Phases = map[string]float64{}
	for k, ms := range res.Timings {
		s.Phases[k] = ms / 1000
	}
	t.last = res.Image
	return s, stdout, nil
}

// verify reads the image from the registry itself, not through a slow link.
func (t *slipway) verify(ctx context.Context) (int64, error) {
	image := t.last
	if t.away {
		image = strings.Replace(image, t.foreign.target, t.foreign.host, 1)
	}
	return check(ctx, image, t.auth)
}

func (t *slipway) stop() {
	t.daemon.stop()
	t.foreign.stop()
}
