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

// buildahs is buildah, which has no daemon: build with cached layers, then push.
type buildahs struct {
	setup
	registry *registry
	last     string
}

const buildahRegistries = `unqualified-search-registries = ["docker.io"]
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = %q
insecure = true
`

func openBuildah(ctx context.Context, s setup) (tool, error) {
	t := &buildahs{setup: s}
	var err error
	if t.registry, err = startRegistry(ctx, s); err != nil {
		return nil, err
	}
	files := map[string]string{
		"registries.conf": fmt.Sprintf(buildahRegistries, t.registry.host),
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"auth.json":       "{}\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			t.stop()
			return nil, err
		}
	}
	return t, nil
}

func (t *buildahs) deploy(ctx context.Context, j job) (sample, error) {
	in := func(name string) string { return filepath.Join(t.dir, name) }
	image := fmt.Sprintf("%s/%s:%d", t.registry.target, j.app, time.Now().UnixNano())
	store := fmt.Sprintf("buildah --root %s --runroot %s --storage-driver overlay ", in("root"), in("run"))
	line := store + fmt.Sprintf("bud --layers --isolation chroot --signature-policy %s -t %s %s", in("policy.json"), image, j.dir)
	if !j.local {
		line += "; " + store + fmt.Sprintf("push --tls-verify=false --signature-policy %s %s", in("policy.json"), image)
	}
	cmd := exec.CommandContext(ctx, "sh", "-ec", line)
	cmd.Env = environ("CONTAINERS_REGISTRIES_CONF="+in("registries.conf"), "REGISTRY_AUTH_FILE="+in("auth.json"), "TMPDIR="+t.dir)
	s, _, _, err := gauge{daemons: []*process{t.registry.process}, alone: true, sink: t.registry.process}.measure(ctx, cmd)
	t.last = image
	return s, err
}

func (t *buildahs) verify(ctx context.Context) (int64, error) {
	return check(ctx, strings.Replace(t.last, t.registry.target, t.registry.host, 1), authn.Anonymous)
}

func (t *buildahs) stop() { t.registry.stop() }
