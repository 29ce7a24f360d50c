package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
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

	slipwayd "github.com/slipwayhq/slipway/cmd/slipwayd"
	"github.com/slipwayhq/slipway/registry"
	"github.com/slipwayhq/slipway/tokens"
)

// A purse has tokens that can be revoked.
type purse struct {
	mu      sync.Mutex
	byID    map[string]tokens.Principal
	byValue map[string]string // value → ID
	lives   map[string]life
}

type life struct {
	context.Context
	end context.CancelFunc
}

// issue returns a fresh token of org acme.
func (p *purse) issue(typ, app string) (id, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	value, id = tokens.New(tokens.Prefix(typ)), fmt.Sprintf("tok_%d", len(p.byID))
	scopes := tokens.Scopes(typ)
	p.byID[id] = tokens.Principal{ID: id, Org: "acme", Type: typ, App: app, Scopes: scopes}
	p.byValue[value] = id
	ctx, end := context.WithCancel(context.Background())
	p.lives[id] = life{ctx, end}
	return id, value
}

func (p *purse) revoke(id string) { p.lives[id].end() }

// Authenticate implements tokens.Authenticator.
func (p *purse) Authenticate(ctx context.Context, value string) (tokens.Principal, error) {
	if _, err := tokens.Check(value); err != nil {
		return tokens.Principal{}, err
	}
	p.mu.Lock()
	id := p.byValue[value]
	p.mu.Unlock()
	return p.Principal(ctx, id)
}

// Principal returns whom the token of that ID stands for.
func (p *purse) Principal(_ context.Context, id string) (tokens.Principal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.byID[id]
	switch {
	case !ok:
		return tokens.Principal{}, tokens.ErrUnauthorized
	case p.lives[id].Err() != nil:
		return tokens.Principal{}, fmt.Errorf("%w: token revoked", tokens.ErrUnauthorized)
	}
	return one, nil
}

// Allow decides without a record.
func (*purse) Allow(_ context.Context, p tokens.Principal, action, app string) error {
	return tokens.Allow(p, action, app)
}

// Watch implements registry.Watcher.
func (p *purse) Watch(ctx context.Context, id string) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(p.lives[id], cancel)
	return ctx
}

// A hub is a registry with the daemon's rules.
type hub struct {
	*purse
	registry *registry.Registry
	host     string

	mu     sync.Mutex
	events []registry.Event
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{purse: &purse{byID: map[string]tokens.Principal{}, byValue: map[string]string{}, lives: map[string]life{}}}
	access := slipwayd.RegistryAccess(h.purse, func(context.Context, string, *tokens.Principal) (string, error) { return "acme", nil })
	var err error
	h.registry, err = registry.Open(t.Context(), registry.Options{Root: t.TempDir(), Access: access, Host: "registry.test", OnManifest: func(_ context.Context, e registry.Event) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, e)
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h.registry.Handler())
	h.host = strings.TrimPrefix(server.URL, "http://")
	t.Cleanup(func() {
		server.Close()
		if err := h.registry.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// pulled reports whether a manifest of the repository was asked for with the
// token.
func (h *hub) pulled(id, repository string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Token == id && e.Repository == repository && e.Method != http.MethodPut && e.Digest != "" && e.Remote == "127.0.0.1" {
			return true
		}
	}
	return false
}

// A shopper is an unmodified client of registries. Its functions return what it
// printed.
type shopper struct {
	name string
	push func(token, ref string) (string, error)
	pull func(token, ref string) (string, error)
	mute bool // shows the status of what was refused, but not why
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
			goShopping(t, newHub(t), c.open(t, archive))
		})
	}
}

// goShopping does with a client what its tokens let it do, and more.
func goShopping(t *testing.T, h *hub, c shopper) {
	deployID, deploy := h.issue(tokens.TypeDeploy, "shop")
	readerID, reader := h.issue(tokens.TypeReadOnly, "")
	_, shell := h.issue(tokens.TypeSSH, "")
	_, org := h.issue(tokens.TypeOrg, "")
	steps := []struct {
		what  string
		do    func(token, ref string) (string, error)
		token string
		ref   string
		want  string // pattern of what it prints; "" if it must succeed
	}{
		{"push with its app's token", c.push, deploy, "shop:v1", ""},
		{"pull with its app's token", c.pull, deploy, "shop:v1", ""},
		{"push to another app", c.push, deploy, "blog:v1", `denied|403`}, // the first answer has no body
		{"push to another app with a token for all", c.push, org, "blog:v1", ""},
		{"pull another app", c.pull, deploy, "blog:v1", `for app "shop", not "blog"`},
		{"pull with a readonly token", c.pull, reader, "shop:v1", ""},
		{"push with a readonly token", c.push, reader, "shop:v2", "lacks the scope registry:push"},
		{"pull with an ssh token", c.pull, shell, "shop:v1", "lacks the scope registry:pull"},
		{"pull with something else", c.pull, "hunter2", "shop:v1", "malformed token"},
		{"pull with a mistyped token", c.pull, reader[:len(reader)-1] + "-", "shop:v1", "malformed token"},
		{"pull with a forged token", c.pull, tokens.New("so_"), "shop:v1", "token not recognized"},
	}
	for _, s := range steps {
		out, err := s.do(s.token, h.host+"/"+s.ref)
		c.check(t, s.what, out, err, s.want)
	}
	h.revoke(readerID)
	out, err := c.pull(reader, h.host+"/shop:v1")
	c.check(t, "pull with a revoked token", out, err, "token revoked")
	h.revoke(deployID)
	out, err = c.push(deploy, h.host+"/shop:v3")
	c.check(t, "push with a revoked token", out, err, "token revoked")

	repository, err := h.registry.Repository("shop")
	if err != nil {
		t.Fatal(err)
	}
	if tags, err := repository.Tags(t.Context()); err != nil || fmt.Sprint(tags) != "[v1]" {
		t.Errorf("the registry has %v, %v", tags, err)
	}
	if !h.pulled(deployID, "shop") || !h.pulled(readerID, "shop") || h.pulled(deployID, "blog") {
		t.Errorf("events %+v", h.events)
	}
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

// TestBearerOfRevokedToken revokes a token between two requests of one client.
func TestBearerOfRevokedToken(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	id, value := h.issue(tokens.TypeOrg, "")
	ask := func(path string, auth func(*http.Request)) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+h.host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		auth(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body struct {
			Token  string
			Errors []struct{ Message string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		if len(body.Errors) > 0 {
			return resp.StatusCode, body.Errors[0].Message
		}
		return resp.StatusCode, body.Token
	}
	_, bearer := ask("/v2/token?scope=registry:catalog:*", func(r *http.Request) { r.SetBasicAuth("anyone", value) })
	with := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+bearer) }
	if status, message := ask("/v2/_catalog", with); status != 200 {
		t.Errorf("before: %d %s", status, message)
	}
	h.revoke(id)
	if status, message := ask("/v2/_catalog", with); status != 401 || !strings.Contains(message, "token revoked") {
		t.Errorf("after: %d %s", status, message)
	}
}
