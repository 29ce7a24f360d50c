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

// startRegistry runs distribution's registry with the base image in it.
func startRegistry(ctx context.Context, s setup) (*process, string, error) {
	host, err := freePort()
	if err != nil {
		return nil, "", err
	}
	conf := filepath.Join(s.dir, "registry.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, registryConfig, filepath.Join(s.dir, "registry"), host), 0o644); err != nil {
		return nil, "", err
	}
	p, err := start("registry", filepath.Join(s.dir, "registry.log"), s.bin.path("registry"), "serve", conf)
	if err != nil {
		return nil, "", err
	}
	if err = p.ready(ctx, func() error { return get("http://" + host + "/v2/") }); err == nil {
		err = pushBase(ctx, s.base, host, authn.Anonymous)
	}
	if err != nil {
		p.stop()
		return nil, "", err
	}
	return p, host, nil
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
