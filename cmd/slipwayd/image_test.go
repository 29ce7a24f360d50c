package main_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// pull returns the image that a deploy pushed, after checking every layer,
// digest and size of it as "crane validate --remote" does.
func (d *daemon) pull(r *deployed) v1.Image {
	d.t.Helper()
	image, err := remote.Image(d.reference(r.Image), d.auth())
	if err != nil {
		d.t.Fatalf("pull %s: %v", r.Image, err)
	}
	if err := validate.Image(image); err != nil {
		d.t.Errorf("%s is not valid: %v", r.Image, err)
	}
	digest, err := image.Digest()
	if err != nil {
		d.t.Fatal(err)
	}
	if digest.String() != r.Digest {
		d.t.Errorf("the registry has %s as %s; the result says %s", r.Image, digest, r.Digest)
	}
	return image
}

// exists reports whether the daemon's registry has an image.
func (d *daemon) exists(image string) bool {
	_, err := remote.Head(d.reference(image), d.auth())
	return err == nil
}

// tags are those of a repository of the daemon's registry.
func (d *daemon) tags(repository string) []string {
	d.t.Helper()
	tags, err := remote.List(d.reference(repository).Context(), d.auth())
	if err != nil && !strings.Contains(err.Error(), "NAME_UNKNOWN") {
		d.t.Fatal(err)
	}
	return tags
}

func configOf(t testing.TB, image v1.Image) v1.Config {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.Config
}

// unpack writes the root file system of an image, layer after layer.
func unpack(t testing.TB, image v1.Image) string {
	t.Helper()
	need(t, "root", os.Geteuid() == 0)
	dir, err := os.MkdirTemp("", "slipwayd-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Apply(context.Background(), root, r); err != nil {
			t.Fatalf("unpack: %v", err)
		}
		r.Close()
	}
	return root
}

// runImage starts an image with runc as its config says and returns what it
// prints. Arguments replace the config's command.
func runImage(t testing.TB, image v1.Image, args ...string) string {
	t.Helper()
	root := unpack(t, image)
	c := configOf(t, image)
	if len(args) == 0 {
		args = c.Cmd
	}
	return runRoot(t, root, c, append(append([]string{}, c.Entrypoint...), args...))
}

func runRoot(t testing.TB, root string, c v1.Config, args []string) string {
	t.Helper()
	bundle := filepath.Dir(root)
	spec := specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: args, Env: c.Env, Cwd: c.WorkingDir, User: userOf(t, c.User)},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}},
		},
	}
	if spec.Process.Cwd == "" {
		spec.Process.Cwd = "/"
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, "runc", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, filepath.Base(bundle))
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("run %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// userOf reads "uid[:gid]"; names are not what these tests start images with.
func userOf(t testing.TB, s string) specs.User {
	t.Helper()
	var u specs.User
	uid, gid, _ := strings.Cut(s, ":")
	for text, id := range map[string]*uint32{uid: &u.UID, gid: &u.GID} {
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatalf("user %q: %v", s, err)
		}
		*id = uint32(n)
	}
	return u
}

// fileOf reads a file of an unpacked image.
func fileOf(t testing.TB, root, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Errorf("the image lacks a file: %v", err)
	}
	return string(b)
}
