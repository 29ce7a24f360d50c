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
	daemon   *process
	registry *registry
	addr     string
	last     string
}

const buildkitConfig = `[registry."docker.io"]
  mirrors = [%[1]q]
[registry.%[1]q]
  http = true
[registry.%[2]q]
  http = true
`

func openBuildKit(ctx context.Context, s setup) (tool, error) {
	t := &buildkit{setup: s, addr: "unix://" + filepath.Join(s.dir, "buildkitd.sock")}
	if err := t.start(ctx); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *buildkit) start(ctx context.Context) (err error) {
	if t.registry, err = startRegistry(ctx, t.setup); err != nil {
		return err
	}
	conf := filepath.Join(t.dir, "buildkitd.toml")
	text := fmt.Appendf(nil, buildkitConfig, t.registry.host, t.registry.target)
	if t.registry.target == t.registry.host {
		text = text[:bytes.LastIndex(text, []byte("[registry"))] // named once
	}
	if err := os.WriteFile(conf, text, 0o644); err != nil {
		return err
	}
	t.daemon, err = start("buildkitd", filepath.Join(t.dir, "buildkitd.log"), t.bin.path("buildkitd"),
		"--config", conf, "--root", filepath.Join(t.dir, "root"), "--addr", t.addr,
		"--containerd-worker=false", "--oci-worker=true", "--oci-worker-snapshotter=overlayfs", "--oci-worker-binary=runc")
	if err != nil {
		return err
	}
	return t.daemon.ready(ctx, func() error {
		return exec.CommandContext(ctx, t.bin.path("buildctl"), "--addr", t.addr, "debug", "workers").Run()
	})
}

func (t *buildkit) deploy(ctx context.Context, j job) (sample, error) {
	image := fmt.Sprintf("%s/%s:%d", t.registry.target, j.app, time.Now().UnixNano())
	out := fmt.Sprintf("type=image,name=%s,push=%t,registry.insecure=true", image, !j.local)
	if t.compression != "gzip" {
		out += ",oci-mediatypes=true,compression=" + t.compression
	}
	cmd := exec.CommandContext(ctx, t.bin.path("buildctl"), "--addr", t.addr, "build", "--progress=rawjson",
		"--frontend", "dockerfile.v0", "--local", "context="+j.dir, "--local", "dockerfile="+j.dir, "--output", out)
	cmd.Env = environ("DOCKER_CONFIG=" + filepath.Join(t.dir, "docker"))
	s, _, stderr, err := gauge{daemons: []*process{t.daemon, t.registry.process}, sink: t.registry.process}.measure(ctx, cmd)
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
	return check(ctx, strings.Replace(t.last, t.registry.target, t.registry.host, 1), authn.Anonymous)
}

func (t *buildkit) stop() {
	t.daemon.stop()
	t.registry.stop()
}
