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
	"github.com/google/go-containerregistry/pkg/v1/validate"
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

// check pulls an image back and verifies every digest of it. It returns the
// sum of its compressed layers.
func check(ctx context.Context, image string, auth authn.Authenticator) (int64, error) {
	ref, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		return 0, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(auth))
	if err != nil {
		return 0, err
	}
	if err := validate.Image(img); err != nil {
		return 0, fmt.Errorf("%s: %w", image, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, l := range m.Layers {
		sum += l.Size
	}
	return sum, nil
}
