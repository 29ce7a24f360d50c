package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// dockerd is Docker with its classic builder: build, then push. RUN steps use
// the host's network, so that dockerd leaves the machine's firewall alone.
type dockerd struct {
	setup
	containerd *process
	daemon     *process
	registry   *registry
	host       string // for the client
	last       string
}

func openDocker(ctx context.Context, s setup) (tool, error) {
	t := &dockerd{setup: s, host: "unix://" + filepath.Join(s.dir, "docker.sock")}
	if err := t.start(ctx); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *dockerd) start(ctx context.Context) (err error) {
	if t.registry, err = startRegistry(ctx, t.setup); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(t.dir, name) }
	for name, text := range map[string]string{"containerd.toml": "version = 2\n", "daemon.json": "{}\n"} { // not the machine's
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	sock := in("containerd.sock")
	if t.containerd, err = start("containerd", in("containerd.log"), "containerd", "--config", in("containerd.toml"),
		"--root", in("containerd"), "--state", in("containerd.run"), "--address", sock); err != nil {
		return err
	}
	if t.daemon, err = start("dockerd", in("dockerd.log"), "dockerd", "--config-file", in("daemon.json"), "--host", t.host,
		"--data-root", in("root"), "--exec-root", in("run"), "--pidfile", in("docker.pid"), "--containerd", sock, "--bridge=none", "--iptables=false", "--ip6tables=false",
		"--registry-mirror", "http://"+t.registry.host, "--insecure-registry", t.registry.host, "--insecure-registry", t.registry.target); err != nil {
		return err
	}
	return t.daemon.ready(ctx, func() error { return t.command(ctx, "docker version").Run() })
}

func (t *dockerd) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-ec", line)
	cmd.Env = environ("DOCKER_HOST="+t.host, "DOCKER_BUILDKIT=0", "DOCKER_CONFIG="+filepath.Join(t.dir, "docker"))
	return cmd
}

func (t *dockerd) deploy(ctx context.Context, j job) (sample, error) {
	image := fmt.Sprintf("%s/%s:%d", t.registry.target, j.app, time.Now().UnixNano())
	line := fmt.Sprintf("docker build -q --network host -t %s %s", image, j.dir)
	if !j.local {
		line += "; docker push -q " + image
	}
	s, _, _, err := gauge{daemons: []*process{t.daemon, t.containerd, t.registry.process}, sink: t.registry.process}.measure(ctx, t.command(ctx, line))
	t.last = image
	s.Sent = unknown
	return s, err
}

func (t *dockerd) verify(ctx context.Context) (int64, error) {
	return check(ctx, strings.Replace(t.last, t.registry.target, t.registry.host, 1), authn.Anonymous)
}

func (t *dockerd) stop() {
	t.daemon.stop()
	t.containerd.stop()
	t.registry.stop()
}
