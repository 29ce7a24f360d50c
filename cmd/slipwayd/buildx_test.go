package main_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// buildx returns a user whose docker buildx builds at the daemon, and who has
// logged in to its registry.
func (d *daemon) buildx() *stockClient {
	d.t.Helper()
	c := d.stock()
	auth := base64.StdEncoding.EncodeToString([]byte("anyone:" + d.token))
	dir := filepath.Join(c.home, ".docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	writeFile(d.t, dir, "config.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, d.http, auth))
	c.buildx("create", "--driver", "remote", "--name", "slipway", "--use", c.addr).ok(d.t)
	return c
}

// buildx runs buildx.
func (c *stockClient) buildx(args ...string) *stockRun {
	c.t.Helper()
	return c.run("buildx", args...)
}

// buildxBuild builds with buildx, and returns what it knows of the image.
func (c *stockClient) buildxBuild(t testing.TB, args ...string) *stockRun {
	t.Helper()
	meta := filepath.Join(t.(interface{ TempDir() string }).TempDir(), "meta.json")
	r := c.buildx(append([]string{"build", "--metadata-file", meta}, args...)...)
	if raw, err := os.ReadFile(meta); err == nil {
		r.out = string(raw)
	}
	return r
}

func TestBuildx(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.buildx()
	if got := c.buildx("inspect").ok(t); !strings.Contains(got.out, "running") || !strings.Contains(got.out, "v0.33.1") {
		t.Errorf("inspect: %s", got.out)
	}
	dir := stages().write(t)
	image := d.http + "/kit:1"
	r := c.buildxBuild(t, "--push", "-t", image, "-t", d.http+"/kit:2", "--build-arg", "GREETING=hi", "--label", "by=buildx", dir).ok(t)
	index, err := remote.Index(d.reference("kit:1"), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	if digest, err := index.Digest(); err != nil || digest.String() != r.digest(t) {
		t.Errorf("the registry has %v, %v; buildx says %s", digest, err, r.digest(t))
	}
	platform, err := remote.Image(d.reference("kit:2"), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	if got := fileOf(t, unpack(t, platform), "greeting"); got != "hi\n" || configOf(t, platform).Labels["by"] != "buildx" {
		t.Errorf("greeting %q, labels %v", got, configOf(t, platform).Labels)
	}
	if got := c.buildx("imagetools", "inspect", image).ok(t); !strings.Contains(got.out, r.digest(t)) || !strings.Contains(got.out, "attestation-manifest") {
		t.Errorf("imagetools inspect: %s", got.out)
	}
	if got := c.buildx("imagetools", "inspect", "--format", "{{json .Provenance}}", image).ok(t); !strings.Contains(got.out, "busybox") {
		t.Errorf("provenance: %s", got.out)
	}
	t.Run("history", func(t *testing.T) { buildxHistory(t, c) })
	t.Run("output", func(t *testing.T) { buildxOutput(t, c, dir) })
	t.Run("cache", func(t *testing.T) {
		buildxCache(t, c, dockerfile("FROM busybox", "RUN cat /proc/sys/kernel/random/uuid > /a", "RUN cat /proc/sys/kernel/random/uuid > /b").write(t))
	})
	if got := c.buildx("du").ok(t); !strings.Contains(got.out, "Total:") {
		t.Errorf("du: %s", got.out)
	}
	c.buildx("prune", "--all", "--force").ok(t)
}

func buildxHistory(t *testing.T, c *stockClient) {
	var list struct {
		Ref    string `json:"ref"`
		Status string `json:"status"`
	}
	raw := c.buildx("history", "ls", "--format", "json").ok(t).out
	if err := json.Unmarshal([]byte(strings.SplitN(raw, "\n", 2)[0]), &list); err != nil || list.Status != "Completed" {
		t.Fatalf("%v, %v\n%s", list, err, raw)
	}
	ref := list.Ref[strings.LastIndex(list.Ref, "/")+1:]
	if got := c.buildx("history", "inspect", ref).ok(t); !strings.Contains(got.out, "GREETING") {
		t.Errorf("inspect: %s", got.out)
	}
	if got := c.buildx("history", "logs", ref).ok(t); !strings.Contains(got.out+got.text, "RUN echo hi") {
		t.Errorf("logs: %s%s", got.out, got.text)
	}
	if got := c.buildx("history", "inspect", "attachment", "--type", "provenance", ref).ok(t); !strings.Contains(got.out, "buildDefinition") && !strings.Contains(got.out, "buildType") {
		t.Errorf("attachment: %s", got.out)
	}
	c.buildx("history", "rm", ref).ok(t)
	if got := c.buildx("history", "ls").ok(t); strings.Contains(got.out, ref) {
		t.Errorf("after rm: %s", got.out)
	}
}

func buildxOutput(t *testing.T, c *stockClient, dir string) {
	d := c.daemon
	out := filepath.Join(c.home, "out")
	c.buildxBuild(t, "-o", out, "--target", "made", dir).ok(t)
	if got := fileOf(t, out, "greeting"); got != "hello\n" {
		t.Errorf("greeting %q", got)
	}
	name := d.http + "/epoch:1"
	r := c.buildxBuild(t, "-t", name, "--provenance=false", "--build-arg", "SOURCE_DATE_EPOCH=1600000000",
		"--output", "type=registry,rewrite-timestamp=true,annotation.from=buildx", dir).ok(t)
	img := d.pull(&deployed{result: &result{Image: name, Digest: r.digest(t)}})
	info, err := os.Stat(filepath.Join(unpack(t, img), "last"))
	if err != nil || info.ModTime().Unix() > 1600000000 {
		t.Errorf("rewritten: %v, %v", info.ModTime(), err)
	}
	manifest, err := img.Manifest()
	if err != nil || manifest.Annotations["from"] != "buildx" {
		t.Errorf("manifest %+v, %v", manifest, err)
	}
	c.buildxBuild(t, "-t", name, "--provenance=false", "--output", "type=registry,compression=zstd,force-compression=true,oci-mediatypes=true", dir).ok(t)
	if img, err = remote.Image(d.reference("epoch:1"), d.auth()); err != nil {
		t.Fatal(err)
	}
	if got := fileOf(t, unpack(t, img), "last"); got != "last\n" {
		t.Errorf("compressed with zstd: %q", got)
	}
	manifest, err = img.Manifest()
	for _, l := range manifest.Layers {
		if err != nil || !strings.HasSuffix(string(l.MediaType), "zstd") {
			t.Errorf("layer %+v, %v", l, err)
		}
	}
	// The scanner is an image that cannot be had here.
	c.buildxBuild(t, "--sbom=true", "-t", name, "--push", dir).refused(t, "buildkit-syft-scanner")
}

func buildxCache(t *testing.T, c *stockClient, dir string) {
	ref, image := c.daemon.http+"/cache:kit", c.daemon.http+"/kit:cached"
	to := func(args ...string) *stockRun {
		t.Helper()
		return c.buildxBuild(t, append([]string{"-t", image, "--push", "--provenance=false", dir}, args...)...)
	}
	// The steps make something else each time that they run. What is shown of one
	// that does not is not always CACHED: its layers may have to be fetched.
	layers := func() []v1.Hash {
		t.Helper()
		img, err := remote.Image(c.daemon.reference("kit:cached"), c.daemon.auth())
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		return config.RootFS.DiffIDs
	}
	imported := func(from string, args ...string) {
		t.Helper()
		before := layers()
		if got := to(args...).ok(t); !slices.Equal(layers(), before) {
			t.Errorf("steps ran that were imported from %s: %s", from, got.text)
		}
	}
	for _, cache := range []string{"type=registry,mode=max,ref=" + ref, "type=inline"} {
		to("--cache-to", cache).ok(t)
		c.buildctl("prune", "--all").ok(t)
		from := ref
		if cache == "type=inline" {
			from = image
		}
		imported(cache, "--cache-from", from)
	}
	local := filepath.Join(c.home, "cache")
	to("--cache-to", "type=local,mode=max,dest="+local).ok(t)
	c.buildctl("prune", "--all").ok(t)
	imported("local", "--cache-from", "type=local,src="+local)
	to("--cache-to", "type=gha,url=http://127.0.0.1:1/,token=x").refused(t, "use one of registry, local, inline")
}

// Targets that share files, and one that stands on another.
func TestBuildxBake(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.buildx()
	c.home = dockerfile("FROM busybox AS base", "COPY data /data", "RUN cat /data > /base", "FROM base AS one", "RUN echo one > /one", "FROM base AS two", "RUN echo two > /two").
		and("data", "DATA\n").and("three/Dockerfile", "FROM one\nRUN cat /one /base > /three\n").
		and("docker-bake.json", fmt.Sprintf(`{"group": {"default": {"targets": ["one", "two", "three"]}}, "target": {
			"one": {"target": "one", "tags": ["%[1]s/one:1"], "output": ["type=registry"]},
			"two": {"target": "two", "tags": ["%[1]s/two:1"], "output": ["type=registry"]},
			"three": {"context": "three", "contexts": {"one": "target:one"}, "tags": ["%[1]s/three:1"], "output": ["type=registry"]}}}`, d.http)).write(t)
	c.buildx("bake").ok(t)
	for name, want := range map[string]string{"one": "one\n", "two": "two\n", "three": "one\nDATA\n"} {
		img, err := remote.Image(d.reference(name+":1"), d.auth())
		if err != nil {
			t.Fatal(err)
		}
		if got := fileOf(t, unpack(t, img), name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
