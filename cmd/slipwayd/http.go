package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/gitfetch"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/registry"
)

// handler serves the registry, metrics, health and, unless that is nil, the
// pages for people.
func (d *daemon) handler(pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v2/", d.registry.Handler())
	mux.Handle("/metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ok\n")
	})
	if pages != nil {
		mux.Handle("/", pages)
		return mux
	}
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "slipwayd %s\nregistry: /v2/   metrics: /metrics   health: /healthz\n", version)
	})
	return mux
}

// ownRepository returns the repository of this daemon's registry that an image
// reference is read from, by its name or as a mirror.
func (d *daemon) ownRepository(image string) (name string, own, mirrored bool) {
	ref, err := base.Parse(image)
	if err != nil {
		return "", false, false
	}
	host, name := ref.Context().RegistryStr(), ref.Context().RepositoryStr()
	if d.isLocal(host) {
		return name, true, false
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	for _, m := range d.config.mirrorURLs[host] {
		if d.isLocal(m.Host) {
			return name, true, true
		}
	}
	return "", false, false
}

// cutHost splits "host/path".
func cutHost(name string) (host, path string, ok bool) {
	return strings.Cut(name, "/")
}

// readable is a repository that some may not read.
type readable struct {
	base.Repository
	check func(context.Context) error
}

func (r readable) Manifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	if err := r.check(ctx); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return r.Repository.Manifest(ctx, reference)
}

func (r readable) Blob(ctx context.Context, d digest.Digest) (string, int64, error) {
	if err := r.check(ctx); err != nil {
		return "", 0, err
	}
	return r.Repository.Blob(ctx, d)
}

// invalidRepository stands for a name that no repository can have.
type invalidRepository struct{ err error }

func (i invalidRepository) Manifest(context.Context, string) (ocispec.Descriptor, []byte, error) {
	return ocispec.Descriptor{}, nil, fmt.Errorf("%w: %v", registry.ErrNotFound, i.err)
}

func (i invalidRepository) Blob(context.Context, digest.Digest) (string, int64, error) {
	return "", 0, fmt.Errorf("%w: %v", registry.ErrNotFound, i.err)
}

// checks are the daemon's part of slipway doctor.
func (d *daemon) checks(ctx context.Context) []*slipwayv1.Check {
	var out []*slipwayv1.Check
	for _, c := range d.runner.Check(ctx) {
		status := slipwayv1.CheckStatus_CHECK_STATUS_OK
		if !c.OK {
			status = slipwayv1.CheckStatus_CHECK_STATUS_FAILED
		}
		out = append(out, &slipwayv1.Check{Name: c.Name, Status: status, Detail: c.Detail, Hint: c.Hint})
	}
	return append(out, gitCheck(ctx), d.diskCheck(ctx))
}

func gitCheck(ctx context.Context) *slipwayv1.Check {
	c := &slipwayv1.Check{Name: "git", Status: slipwayv1.CheckStatus_CHECK_STATUS_OK}
	version, err := gitfetch.Check(ctx)
	if c.Detail = version; err != nil {
		c.Status, c.Detail = slipwayv1.CheckStatus_CHECK_STATUS_WARNING, "not there: ADD of Git repositories fails"
		c.Hint = "install git where the daemon runs"
	}
	return c
}

func (d *daemon) diskCheck(ctx context.Context) *slipwayv1.Check {
	c := &slipwayv1.Check{Name: "disk", Status: slipwayv1.CheckStatus_CHECK_STATUS_OK}
	var fs unix.Statfs_t
	if err := unix.Statfs(d.config.root, &fs); err != nil {
		c.Status, c.Detail = slipwayv1.CheckStatus_CHECK_STATUS_FAILED, err.Error()
		return c
	}
	free := float64(fs.Bavail) / float64(max(1, fs.Blocks))
	c.Detail = fmt.Sprintf("root has %.0f %% free", 100*free)
	if u, err := d.cache.Usage(ctx, "", ""); err == nil {
		c.Detail += fmt.Sprintf("; cache %.1f of %.0f GB", float64(u.Bytes)/1e9, float64(u.Limit)/1e9)
	}
	if free < 0.1 {
		c.Status, c.Hint = slipwayv1.CheckStatus_CHECK_STATUS_WARNING, "free some, or lower --cache-size"
	}
	return c
}
