package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The images that the workloads' Dockerfiles begin with, as Docker Hub would
// have them: the tools' registries mirror it.
const (
	debianBase = "debian:bookworm"
	nodeBase   = "slipway-bench-node"
	goBase     = "slipway-bench-go"
)

const suite = "bookworm"

// systemCA is what the machine trusts. The bases have it where they find it
// themselves, so that RUN steps get through a proxy that the machine is behind.
const systemCA = "/etc/ssl/certs/ca-certificates.crt"

// A baseImage is an image with its name.
type baseImage struct {
	name  string
	image v1.Image
}

// makeBase makes a base image, or takes it from an earlier run.
func (b *bench) makeBase(ctx context.Context, name string) error {
	if _, ok := b.images[name]; ok {
		return nil
	}
	make := map[string]func(context.Context, *bench) (v1.Image, error){debianBase: makeDebian, nodeBase: makeNode, goBase: makeGo}[name]
	img, err := make(ctx, b)
	if err != nil {
		return fmt.Errorf("base image %s: %w", name, err)
	}
	b.images[name] = baseImage{name, img}
	return nil
}

func makeDebian(ctx context.Context, b *bench) (v1.Image, error) {
	file := filepath.Join(b.opts.work, "base.tar.gz")
	if b.opts.base != "" {
		if err := compress(ctx, b.opts.base, file); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(file); err != nil {
		if err := bootstrap(ctx, b.opts.work, file, nil); err != nil {
			return nil, err
		}
	}
	return imageOf(empty.Image, file, "debootstrap --variant=minbase "+suite)
}

// makeNode is Debian with its Node.js, and npm from where npm comes from:
// Debian's wants 400 packages.
func makeNode(ctx context.Context, b *bench) (v1.Image, error) {
	file := filepath.Join(b.opts.work, "node.tar.gz")
	if _, err := os.Stat(file); err != nil {
		if err := bootstrap(ctx, b.opts.work, file, addNPM, "ca-certificates", "nodejs"); err != nil {
			return nil, err
		}
	}
	return imageOf(empty.Image, file, "debootstrap --variant=minbase --include=ca-certificates,nodejs "+suite+", and npm "+npmVersion, "NODE_EXTRA_CA_CERTS="+systemCA)
}

const (
	npmVersion = "10.9.2"
	npmSum     = "iriPEPIkoMYUy3F6f3wwSZAU93E0Eg6cHwIR6jzzOXWSy+SD/rOODEs74cVONHKSx2obXtuUoyidVEhISrisgQ=="
)

// addNPM installs npm, and the certificates that this machine trusts.
func addNPM(ctx context.Context, root string) error {
	if ca, err := os.ReadFile(systemCA); err == nil {
		if err := os.WriteFile(filepath.Join(root, systemCA), ca, 0o644); err != nil {
			return err
		}
	}
	archive, err := download(ctx, "https://registry.npmjs.org/npm/-/npm-"+npmVersion+".tgz", npmSum)
	if err != nil {
		return err
	}
	to := filepath.Join(root, "usr", "local", "lib", "node_modules", "npm")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "tar", "-xz", "--strip-components=1", "--no-same-owner", "-C", to)
	cmd.Stdin = bytes.NewReader(archive)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack npm: %w\n%s", err, tail(text))
	}
	return os.Symlink("../lib/node_modules/npm/bin/npm-cli.js", filepath.Join(root, "usr", "local", "bin", "npm"))
}

// download gets a small file and checks its SHA-512, in base64.
func download(ctx context.Context, url, sum string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	const most = 50 << 20
	data, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if got := sha512.Sum512(data); base64.StdEncoding.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s is not what it was", url)
	}
	return data, nil
}

// makeGo is Debian with the Go tree of this machine.
func makeGo(ctx context.Context, b *bench) (v1.Image, error) {
	if err := b.makeBase(ctx, debianBase); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	root, version, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	file := filepath.Join(b.opts.work, version+".tar.gz")
	if _, err := os.Stat(file); err != nil {
		logf("pack %s (once)", version)
		args := []string{"--owner=0", "--group=0", "--exclude=./test", "--exclude=./api", "--exclude=./doc", "--exclude=testdata", "--transform", `s,^\.,usr/local/go,`, "-C", root, "."}
		if _, err := os.Stat(systemCA); err == nil {
			args = append(args, "--transform", "s,^/,,", "-P", systemCA)
		}
		if err := pack(ctx, file, args...); err != nil {
			return nil, err
		}
	}
	return imageOf(b.images[debianBase].image, file, "the Go tree of this machine", "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false")
}

// imageOf adds a layer to an image.
func imageOf(below v1.Image, file, by string, env ...string) (v1.Image, error) {
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	below = mutate.ConfigMediaType(mutate.MediaType(below, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(below, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: by}})
	if err != nil {
		return nil, err
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", "amd64"
	conf.Config.Env = append([]string{"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	conf.Config.Cmd = []string{"bash"}
	return mutate.ConfigFile(img, conf)
}

// bootstrap makes a Debian root file system with some more packages and what
// more adds, which may be nil, and packs it.
func bootstrap(ctx context.Context, work, file string, more func(context.Context, string) error, packages ...string) error {
	args := []string{"--variant=minbase"}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	root := filepath.Join(work, "debian")
	args = append(args, suite, root)
	logf("debootstrap %s (once)", strings.Join(args, " "))
	defer func() { _ = wipe(root) }()
	if err := wipe(root); err != nil {
		return err
	}
	if text, err := exec.CommandContext(ctx, "debootstrap", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w\n%s", err, tail(text))
	}
	for _, dir := range []string{"var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	if more != nil {
		if err := more(ctx, root); err != nil {
			return err
		}
	}
	return pack(ctx, file, "-C", root, ".")
}

// pack makes a compressed tar that is the same each time.
func pack(ctx context.Context, file string, args ...string) error {
	tar := file + ".tar"
	defer func() { _ = os.Remove(tar) }()
	args = append([]string{"--sort=name", "--numeric-owner", "--mtime=@0", "-cf", tar}, args...)
	if text, err := exec.CommandContext(ctx, "tar", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w\n%s", err, tail(text))
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

// pushBases puts the base images into a registry.
func pushBases(ctx context.Context, bases []baseImage, host string, auth authn.Authenticator) error {
	for _, b := range bases {
		if err := pushImage(ctx, b.image, host+"/library/"+b.name, auth); err != nil {
			return err
		}
	}
	return nil
}

func pushImage(ctx context.Context, img v1.Image, to string, auth authn.Authenticator) error {
	ref, err := name.ParseReference(to, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(auth)); err != nil {
		return fmt.Errorf("push %s: %w", to, err)
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
