package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
)

const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q}
`

// A registry is distribution's.
type registry struct {
	*process
	host   string // where it listens
	target string // where images are pushed to: host, or a slow link in front of it
	link   *link  // nil if there is none
}

// startRegistry runs distribution's registry with the base images in it.
func startRegistry(ctx context.Context, s setup) (*registry, error) {
	r := &registry{}
	var err error
	if r.host, err = freePort(); err != nil {
		return nil, err
	}
	conf := filepath.Join(s.dir, "registry.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, registryConfig, filepath.Join(s.dir, "registry"), r.host), 0o644); err != nil {
		return nil, err
	}
	if r.process, err = start("registry", filepath.Join(s.dir, "registry.log"), s.bin.path("registry"), "serve", conf); err != nil {
		return nil, err
	}
	if err = r.fill(ctx, s); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// fill puts the base images there, then the link in front.
func (r *registry) fill(ctx context.Context, s setup) error {
	if err := r.ready(ctx, func() error { return get("http://" + r.host + "/v2/") }); err != nil {
		return err
	}
	r.target = r.host
	if s.slow {
		var err error
		if r.link, err = startLink(r.host, linkRate, linkDelay); err != nil {
			return err
		}
		r.target = r.link.addr
	}
	return pushBases(ctx, s.bases, r.host, authn.Anonymous)
}

func (r *registry) stop() {
	if r == nil {
		return
	}
	if r.link != nil {
		r.link.stop()
	}
	r.process.stop()
}

// get succeeds if a server answers 200.
func get(url string) error {
	resp, err := http.Get(url) //nolint:noctx,gosec // loopback
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
