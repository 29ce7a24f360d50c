package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// A contender is one way to get something done.
type contender struct {
	name        string
	peer        bool // what Slipway is compared with
	compression string
	programs    []string // that must be installed
	open        func(context.Context, setup) (tool, error)
}

// setup is what a contender gets to start from nothing.
type setup struct {
	bin         binaries
	dir         string // empty: all caches are cold
	work        string // of the whole run
	bases       []baseImage
	compression string
	slow        bool // images are pushed through a slow link
}

// A tool is a contender with its daemons running, its caches empty and the
// base images in its registry, not yet pulled. What more it can do is in the
// interfaces that the scenarios ask for.
type tool interface{ stop() }

// A deployer makes an image of a directory.
type deployer interface {
	tool
	deploy(context.Context, job) (sample, error)
	// verify pulls the image that was pushed last and checks its digests.
	verify(context.Context) (compressed int64, err error)
}

// A job is one deploy.
type job struct {
	dir, app string
	local    bool // build only, push nothing
}

// The tools. Peers with a compression are compared with Slipway's of the same.
const (
	slipwayGzip     = "slipway-gzip"
	slipwayRegistry = "slipway-registry-gzip"
	slipwayZstd     = "slipway-zstd"
	slipwayBuildKit = "slipway-buildkit-gzip"
	buildkitGzip    = "buildkit-gzip"
	buildkitZstd    = "buildkit-zstd"
	docker          = "docker"
	buildah         = "buildah"
	curl            = "curl"
	crane           = "crane"
	skopeo          = "skopeo"
)

func allContenders() []contender {
	return []contender{
		{name: slipwayGzip, compression: "gzip", open: openSlipway(false)},
		{name: buildkitGzip, compression: "gzip", peer: true, open: openBuildKit},
		{name: slipwayRegistry, compression: "gzip", open: openSlipway(true)},
		{name: slipwayZstd, compression: "zstd", open: openSlipway(false)},
		{name: slipwayBuildKit, compression: "gzip", open: openSlipwayBuildKit},
		{name: buildkitZstd, compression: "zstd", peer: true, open: openBuildKit},
		{name: docker, compression: "gzip", peer: true, programs: []string{"dockerd", "containerd", "docker"}, open: openDocker},
		{name: buildah, compression: "gzip", peer: true, programs: []string{"buildah"}, open: openBuildah},
		{name: curl, compression: "gzip", peer: true, programs: []string{"curl"}},
		{name: crane, compression: "gzip", peer: true},
		{name: skopeo, compression: "gzip", peer: true, programs: []string{"skopeo"}},
	}
}

func contenderNames() []string {
	var names []string
	for _, c := range allContenders() {
		names = append(names, c.name)
	}
	return names
}

// contenderOf returns the contender of a name that exists.
func contenderOf(name string) contender {
	all := allContenders()
	return all[slices.IndexFunc(all, func(c contender) bool { return c.name == name })]
}

// missing names the first program that is not installed, "" if all are.
func (c contender) missing() string {
	for _, p := range c.programs {
		if _, err := exec.LookPath(p); errors.Is(err, exec.ErrNotFound) {
			return p
		}
	}
	return ""
}

// meantTools are the names of the tools that the options leave.
func meantTools(o options) ([]string, error) {
	if o.tools == "" && o.quick {
		return []string{slipwayGzip, slipwayRegistry, buildkitGzip, curl, crane, skopeo}, nil
	}
	if o.tools == "" {
		return contenderNames(), nil
	}
	names := strings.Split(o.tools, ",")
	for _, n := range names {
		if !slices.Contains(contenderNames(), n) {
			return nil, fmt.Errorf("no tool %q; there are %s", n, strings.Join(contenderNames(), ", "))
		}
	}
	return names, nil
}

// environ is the environment with some variables set.
func environ(vars ...string) []string { return append(os.Environ(), vars...) }
