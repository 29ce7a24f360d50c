package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/slipwayhq/slipway/tokens"
)

// issue makes a token, or an environment with one, and returns its ID and value.
func (c *client) issue(args ...string) (id, value string) {
	c.t.Helper()
	var made struct {
		ID      string `json:"id"`
		TokenID string `json:"token_id"` // of an environment
		Token   string `json:"token"`
	}
	r := c.slipway(append(args, "--json")...)
	if r.code() != exitDone {
		c.t.Fatalf("%q: %s", args, r.text())
	}
	r.value(&made)
	return made.ID + made.TokenID, made.Token
}

func (c *client) revoke(id string) {
	c.t.Helper()
	if r := c.slipway("tokens", "revoke", id); r.code() != exitDone {
		c.t.Fatal(r.text())
	}
}

// A shopper is an unmodified client of registries. Its functions return what it
// printed.
type shopper struct {
	name string
	push func(token, ref string) (string, error)
	pull func(token, ref string) (string, error)
	drop func(token, ref string) (string, error) // deletes a tag, or the image with it; nil if it cannot
	mute bool                                    // shows the status of what was refused, but not why
}

// seed is the name of the image in the archive that clients push.
const seed = "seed.test/seed:1"

// seedArchive writes an image as docker save does.
func seedArchive(t *testing.T) string {
	t.Helper()
	img, err := random.Image(1<<20, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(seed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRegistryClients drives what people use: docker, containerd, skopeo and
// crane, as they are.
func TestRegistryClients(t *testing.T) {
	t.Parallel()
	archive := seedArchive(t)
	for _, c := range []struct {
		name string
		open func(t *testing.T, archive string) shopper
	}{
		{"crane", craneClient},
		{"skopeo", skopeoClient},
		{"containerd", containerdClient},
		{"docker", dockerClient},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			goShopping(t, startDaemon(t), c.open(t, archive))
		})
	}
}

// goShopping does with a client what its tokens let it do, and more.
func goShopping(t *testing.T, d *daemon, c shopper) {
	admin := d.client()
	deployID, deploy := admin.issue("tokens", "create", "deploy", "-a", "shop")
	readerID, reader := admin.issue("tokens", "create", "readonly")
	envID, env := admin.issue("envs", "create", "production")
	_, writer := admin.issue("tokens", "create", "registry", "--permission", "read-write")
	_, shell := admin.issue("tokens", "create", "ssh")
	for _, s := range []struct {
		what  string
		do    func(token, ref string) (string, error)
		token string
		ref   string
		want  string // pattern of what it prints; "" if it must succeed
	}{
		{"push with its app's token", c.push, deploy, "shop:v1", ""},
		{"pull with its app's token", c.pull, deploy, "shop:v1", ""},
		{"push to another app", c.push, deploy, "blog:v1", `denied|403`}, // the first answer has no body
		{"push to another app with a token for all", c.push, writer, "blog:v1", ""},
		{"pull another app", c.pull, deploy, "blog:v1", `for app "shop", not "blog"`},
		{"pull with a readonly token", c.pull, reader, "shop:v1", ""},
		{"pull with an environment's token", c.pull, env, "shop:v1", ""},
		{"push with a readonly token", c.push, reader, "shop:v2", "lacks the scope registry:push"},
		{"pull with an ssh token", c.pull, shell, "shop:v1", "lacks the scope registry:pull"},
		{"pull with a mistyped token", c.pull, reader[:len(reader)-1] + "-", "shop:v1", "malformed token"},
		{"pull with a forged token", c.pull, tokens.New("so_"), "shop:v1", "token not recognized"},
	} {
		out, err := s.do(s.token, d.http+"/"+s.ref)
		c.check(t, s.what, out, err, s.want)
	}
	admin.revoke(readerID)
	out, err := c.pull(reader, d.http+"/shop:v1")
	c.check(t, "pull with a revoked token", out, err, "token revoked")
	admin.revoke(deployID)
	out, err = c.push(deploy, d.http+"/shop:v3")
	c.check(t, "push with a revoked token", out, err, "token revoked")
	if tags := d.tags("shop"); fmt.Sprint(tags) != "[v1]" {
		t.Errorf("the registry has %v", tags)
	}
	if c.drop != nil {
		out, err := c.drop(writer, d.http+"/shop:v1")
		c.check(t, "delete with a registry token", out, err, "registry:delete|403")
		out, err = c.drop(d.token, d.http+"/shop:v1")
		c.check(t, "delete with the admin's token", out, err, "")
		if tags := d.tags("shop"); len(tags) > 0 {
			t.Errorf("deleted; the registry has %v", tags)
		}
	}
	poll(t, 10*time.Second, "the pull to be recorded", func() bool {
		return strings.Contains(admin.slipway("envs", "history", "production", "--json").text(), `"token_id":"`+envID+`"`)
	})
}

// check holds what a client printed to a pattern, or to success if that is
// empty.
func (c shopper) check(t *testing.T, what, out string, err error, want string) {
	t.Helper()
	if c.mute && want != "" {
		want += "|401 Unauthorized|403 Forbidden"
	}
	switch {
	case want == "" && err != nil:
		t.Fatalf("%s: %v\n%s", what, err, out)
	case want != "" && err == nil:
		t.Errorf("%s went well:\n%s", what, out)
	case !regexp.MustCompile("(?i)" + want).MatchString(strings.ReplaceAll(out, `\"`, `"`)):
		t.Errorf("%s: want %q in\n%s", what, want, out)
	}
}

// program returns a function that runs one in a home of its own, with
// input, and returns what it prints.
func program(t *testing.T, path string, env ...string) func(stdin string, args ...string) (string, error) {
	home := t.TempDir()
	return func(stdin string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append([]string{"HOME=" + home, "DOCKER_CONFIG=" + home, "XDG_RUNTIME_DIR=" + home, "PATH=" + os.Getenv("PATH")}, env...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// craneBuild builds crane once.
var craneBuild = sync.OnceValues(func() (string, error) {
	build := exec.Command("go", "build", "-o", bin+"/", "github.com/google/go-containerregistry/cmd/crane")
	build.Dir = filepath.Join("testdata", "clients")
	out, err := build.CombinedOutput()
	return string(out), err
})

func craneClient(t *testing.T, archive string) shopper {
	if out, err := craneBuild(); err != nil {
		t.Fatalf("build crane: %v\n%s", err, out)
	}
	crane := program(t, filepath.Join(bin, "crane"))
	as := func(token, ref string, args ...string) (string, error) {
		host, _, _ := strings.Cut(ref, "/")
		if out, err := crane(token, "auth", "login", "-u", "anyone", "--password-stdin", host); err != nil {
			return out, err
		}
		return crane("", append([]string{"--insecure"}, args...)...)
	}
	return shopper{
		name: "crane",
		push: func(token, ref string) (string, error) { return as(token, ref, "push", archive, ref) },
		pull: func(token, ref string) (string, error) { return as(token, ref, "pull", ref, os.DevNull) },
		drop: func(token, ref string) (string, error) { return as(token, ref, "delete", ref) },
	}
}

func skopeoClient(t *testing.T, archive string) shopper {
	skopeo := program(t, needCommand(t, "skopeo"))
	as := func(token, ref string, args ...string) (string, error) {
		host, _, _ := strings.Cut(ref, "/")
		if out, err := skopeo(token, "login", "--tls-verify=false", "-u", "anyone", "--password-stdin", host); err != nil && !strings.Contains(out, "invalid username/password") {
			return out, err
		}
		return skopeo("", append([]string{"--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds", "anyone:" + token, "--dest-creds", "anyone:" + token}, args...)...)
	}
	return shopper{
		name: "skopeo",
		push: func(token, ref string) (string, error) {
			return as(token, ref, "docker-archive:"+archive, "docker://"+ref)
		},
		pull: func(token, ref string) (string, error) {
			return as(token, ref, "docker://"+ref, "dir:"+t.TempDir())
		},
		drop: func(token, ref string) (string, error) {
			return skopeo("", "delete", "--tls-verify=false", "--creds", "anyone:"+token, "docker://"+ref)
		},
	}
}

func containerdClient(t *testing.T, archive string) shopper {
	ctr := program(t, needCommand(t, "ctr"), "CONTAINERD_ADDRESS="+startContainerd(t))
	if out, err := ctr("", "images", "import", archive); err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	return shopper{
		name: "containerd", mute: true,
		push: func(token, ref string) (string, error) {
			return ctr("", "images", "push", "--plain-http", "--user", "anyone:"+token, ref, seed)
		},
		pull: func(token, ref string) (string, error) {
			return ctr("", "images", "pull", "--plain-http", "--user", "anyone:"+token, ref)
		},
	}
}

func dockerClient(t *testing.T, archive string) shopper {
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("needs dockerd, of Debian's docker.io")
	}
	docker := program(t, needCommand(t, "docker"), "DOCKER_HOST="+startDocker(t))
	if out, err := docker("", "load", "-i", archive); err != nil {
		t.Fatalf("load: %v\n%s", err, out)
	}
	as := func(token, ref string, args ...string) (string, error) {
		host, _, _ := strings.Cut(ref, "/")
		if out, err := docker(token, "login", "-u", "anyone", "--password-stdin", host); err != nil {
			return out, err
		}
		return docker("", args...)
	}
	return shopper{
		name: "docker",
		push: func(token, ref string) (string, error) {
			if out, err := docker("", "tag", seed, ref); err != nil {
				return out, err
			}
			return as(token, ref, "push", ref)
		},
		pull: func(token, ref string) (string, error) {
			_, _ = docker("", "rmi", "-f", ref)
			return as(token, ref, "pull", ref)
		},
	}
}

// startContainerd starts a containerd of our own, and returns its socket.
func startContainerd(t *testing.T) string {
	need(t, "root", os.Geteuid() == 0)
	dir := rootDir(t)
	socket, config := filepath.Join(dir, "s"), filepath.Join(dir, "config.toml")
	writeFile(t, dir, "config.toml", fmt.Sprintf(`
version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket))
	serveUntilEnd(t, socket, needCommand(t, "containerd"), "--config", config)
	return socket
}

// startDocker starts a Docker daemon of our own, and returns its address.
func startDocker(t *testing.T) string {
	containerd, dir := startContainerd(t), rootDir(t)
	socket := filepath.Join(dir, "s")
	serveUntilEnd(t, socket, needCommand(t, "dockerd"), "--host", "unix://"+socket, "--containerd", containerd, "--config-file", writeJSON(t, dir),
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--iptables=false", "--ip6tables=false", "--bridge=none")
	return "unix://" + socket
}

// writeJSON writes an empty configuration, so that the machine's is not read.
func writeJSON(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveUntilEnd runs a server that listens on a socket until the test ends.
func serveUntilEnd(t *testing.T, socket, server string, args ...string) {
	t.Helper()
	var log output
	cmd := exec.Command(server, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Errorf("%s did not end\n%s", server, &log)
		}
	})
	poll(t, 30*time.Second, server, func() bool {
		select {
		case <-ended:
			t.Fatalf("%s ended\n%s", server, &log)
		default:
		}
		_, err := os.Stat(socket)
		return err == nil
	})
}

// TestRevokedInBetween revokes a token between two requests of one client, and
// while a third is under way.
func TestRevokedInBetween(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	admin := d.client()
	id, value := admin.issue("tokens", "create", "org")
	var grant struct{ Token string }
	if status, body, _ := d.ask(t, "GET", "/v2/token?scope=registry:catalog:*&scope=repository:shop:pull,push", nil, func(r *http.Request) { r.SetBasicAuth("anyone", value) }); status != 200 || json.Unmarshal([]byte(body), &grant) != nil {
		t.Fatal(status, body)
	}
	bearer := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+grant.Token) }
	if status, body, _ := d.ask(t, "GET", "/v2/_catalog", nil, bearer); status != 200 {
		t.Errorf("before: %d %s", status, body)
	}
	_, _, upload := d.ask(t, "POST", "/v2/shop/blobs/uploads/", nil, bearer)
	body, feed := io.Pipe()
	ended := make(chan string, 1)
	go func() {
		status, text, _ := d.ask(t, "PATCH", upload, body, bearer)
		ended <- fmt.Sprint(status, text)
	}()
	chunk := make([]byte, 1<<20)
	for range 32 { // more than sockets hold: the daemon is at it
		if _, err := feed.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for { // until the connection breaks, or the test ends
			if _, err := feed.Write(chunk); err != nil {
				return
			}
		}
	}()
	admin.revoke(id)
	select {
	case got := <-ended:
		if strings.HasPrefix(got, "2") || strings.HasPrefix(got, "401") {
			t.Errorf("the upload was answered: %s", got)
		}
	case <-time.After(time.Second):
		t.Error("the upload went on")
	}
	feed.Close()
	if status, body, _ := d.ask(t, "GET", "/v2/_catalog", nil, bearer); status != 401 || !strings.Contains(body, "token revoked") {
		t.Errorf("after: %d %s", status, body)
	}
}

// ask sends a request to the registry, and returns the answer with the place that
// it points to. The status is 0 if there is none.
func (d *daemon) ask(t *testing.T, method, path string, body io.Reader, auth func(*http.Request)) (status int, text, location string) {
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.http+path, body)
	if err != nil {
		return 0, err.Error(), ""
	}
	auth(req)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error(), ""
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error(), ""
	}
	return resp.StatusCode, string(raw), resp.Header.Get("Location")
}
