package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// buildkit is buildkitd with its runc worker on overlayfs, pushing to
// distribution's registry over loopback.
type buildkit struct {
	setup
	daemons []*process
	addr    string
	host    string // of the registry
	last    string
}

const buildkitConfig = `[registry."docker.io"]
  mirrors = [%[1]q]
[registry.%[1]q]
  http = true
`

func openBuildKit(ctx context.Context, s setup) (tool, error) {
	registry, host, err := startRegistry(ctx, s)
	if err != nil {
		return nil, err
	}
	t := &buildkit{setup: s, host: host, addr: "unix://" + filepath.Join(s.dir, "buildkitd.sock")}
	conf := filepath.Join(s.dir, "buildkitd.toml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, buildkitConfig, host), 0o644); err != nil {
		registry.stop()
		return nil, err
	}
	daemon, err := start("buildkitd", filepath.Join(s.dir, "buildkitd.log"), s.bin.path("buildkitd"),
		"--config", conf, "--root", filepath.Join(s.dir, "root"), "--addr", t.addr,
		"--containerd-worker=false", "--oci-worker=true", "--oci-worker-snapshotter=overlayfs", "--oci-worker-binary=runc")
	if err != nil {
		registry.stop()
		return nil, err
	}
	t.daemons = []*process{daemon, registry}
	err = daemon.ready(ctx, func() error {
		return exec.CommandContext(ctx, s.bin.path("buildctl"), "--addr", t.addr, "debug", "workers").Run()
	})
	if err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *buildkit) deploy(ctx context.Context, dir, app string) (sample, error) {
	image := fmt.Sprintf("%s/%s:%d", t.host, app, time.Now().UnixNano())
	out := "type=image,name=" + image + ",push=true,registry.insecure=true"
	if t.compression != "gzip" {
		out += ",oci-mediatypes=true,compression=" + t.compression
	}
	cmd := exec.CommandContext(ctx, t.bin.path("buildctl"), "--addr", t.addr, "build", "--progress=rawjson",
		"--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir, "--output", out)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(t.dir, "docker"))
	s, _, stderr, err := measure(ctx, cmd, t.daemons)
	if err != nil {
		return s, err
	}
	if err := readStatus(&s, stderr); err != nil {
		return s, err
	}
	t.last = image
	return s, nil
}

// solveStatus is a line of buildctl's raw progress.
type solveStatus struct {
	Vertexes []span `json:"vertexes"`
	Statuses []struct {
		span
		ID      string `json:"id"`
		Current int64  `json:"current"`
	} `json:"statuses"`
}

type span struct {
	Name      string     `json:"name"`
	Started   *time.Time `json:"started"`
	Completed *time.Time `json:"completed"`
}

func (s span) seconds() (float64, bool) {
	if s.Started == nil || s.Completed == nil {
		return 0, false
	}
	return s.Completed.Sub(*s.Started).Seconds(), true
}

// readStatus takes what was sent and what took long from the progress.
func readStatus(s *sample, progress []byte) error {
	sent := map[string]int64{}
	s.Phases = map[string]float64{}
	for line := range bytes.Lines(progress) {
		var status solveStatus
		if err := json.Unmarshal(line, &status); err != nil {
			return fmt.Errorf("buildctl's progress: %w: %s", err, line)
		}
		for _, v := range status.Vertexes {
			if took, ok := v.seconds(); ok {
				s.Phases[v.Name] = took
			}
		}
		for _, st := range status.Statuses {
			if strings.HasPrefix(st.ID, "transferring ") {
				sent[st.ID] = max(sent[st.ID], st.Current)
			}
			if took, ok := st.seconds(); ok && !strings.HasPrefix(st.ID, "sha256:") {
				s.Phases[st.ID] = took
			}
		}
	}
	for _, n := range sent {
		s.Sent += n
	}
	return nil
}

func (t *buildkit) verify(ctx context.Context) (int64, error) {
	return check(ctx, t.last, authn.Anonymous)
}

func (t *buildkit) stop() {
	for _, d := range t.daemons {
		d.stop()
	}
}
