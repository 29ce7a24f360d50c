package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// baseName is the image that the workloads' Dockerfiles begin with, as a path
// of a registry that mirrors Docker Hub.
const baseName = "library/debian:bookworm"

const suite = "bookworm"

// baseImage makes the base image, or takes it from an earlier run.
func baseImage(ctx context.Context, o options) (v1.Image, error) {
	file := filepath.Join(o.work, "base.tar.gz")
	if o.base != "" {
		if err := compress(ctx, o.base, file); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(file); err != nil {
		if err := bootstrap(ctx, o.work, file); err != nil {
			return nil, err
		}
	}
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: layer, History: v1.History{CreatedBy: "debootstrap --variant=minbase " + suite},
	})
	if err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", "amd64"
	conf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	conf.Config.Cmd = []string{"bash"}
	return mutate.ConfigFile(img, conf)
}

// bootstrap makes a Debian root file system and packs it.
func bootstrap(ctx context.Context, work, file string) error {
	logf("debootstrap --variant=minbase %s (once)", suite)
	root := filepath.Join(work, "debian")
	defer func() { _ = os.RemoveAll(root) }()
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", suite, root)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w\n%s", err, tail(text))
	}
	for _, dir := range []string{"var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	tar := filepath.Join(work, "debian.tar")
	defer func() { _ = os.Remove(tar) }()
	cmd = exec.CommandContext(ctx, "tar", "--sort=name", "--numeric-owner", "--mtime=@0", "-C", root, "-cf", tar, ".")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tar of the base: %w\n%s", err, tail(text))
	}
	return compress(ctx, tar, file)
}

// compress gzips a tar without its name and time, complete or not at all.
func compress(ctx context.Context, tar, file string) error {
	out, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(out.Name()) }()
	cmd := exec.CommandContext(ctx, "gzip", "-nc", tar)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		_ = out.Close()
		return fmt.Errorf("gzip %s: %w", tar, err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

// pushBase puts the base image into a registry.
func pushBase(ctx context.Context, img v1.Image, host string, auth authn.Authenticator) error {
	ref, err := name.ParseReference(host+"/"+baseName, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(auth)); err != nil {
		return fmt.Errorf("push the base image to %s: %w", host, err)
	}
	return nil
}

// check pulls an image back and verifies its layers: digest, size, and the
// identity of what they hold. It returns the sum of their sizes.
func check(ctx context.Context, image string, auth authn.Authenticator) (int64, error) {
	ref, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		return 0, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(auth))
	if err != nil {
		return 0, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return 0, err
	}
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	if len(layers) != len(conf.RootFS.DiffIDs) {
		return 0, fmt.Errorf("%s: %d layers, but %d diff IDs", image, len(layers), len(conf.RootFS.DiffIDs))
	}
	var sum int64
	for i, l := range layers {
		n, err := checkLayer(l, conf.RootFS.DiffIDs[i])
		if err != nil {
			return 0, fmt.Errorf("%s: layer %d: %w", image, i, err)
		}
		sum += n
	}
	return sum, nil
}

// checkLayer reads a layer. The registry's client checks digest and size on
// the way.
func checkLayer(l v1.Layer, want v1.Hash) (int64, error) {
	r, err := l.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	got, _, err := v1.SHA256(r)
	if err != nil {
		return 0, err
	}
	if got != want {
		return 0, fmt.Errorf("unpacks to %s, want %s", got, want)
	}
	return l.Size()
}
