package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
)

// stock are the programs of BuildKit's own clients, built once.
var stock struct {
	once sync.Once
	err  error
	text []byte
}

// A stockClient runs buildctl and buildx, as they are, against a daemon.
type stockClient struct {
	*client
	addr string // of a socket that adds the token
}

// stock returns a user of d with BuildKit's clients.
func (d *daemon) stock() *stockClient {
	d.t.Helper()
	stock.once.Do(func() {
		build := exec.Command("go", "build", "-o", bin+"/", "github.com/moby/buildkit/cmd/buildctl", "github.com/docker/buildx/cmd/buildx")
		build.Dir = filepath.Join("testdata", "clients")
		stock.text, stock.err = build.CombinedOutput()
	})
	if stock.err != nil {
		d.t.Fatalf("build the stock clients: %v\n%s", stock.err, stock.text)
	}
	c := d.client()
	c.env = append(c.env, "BUILDX_CONFIG="+filepath.Join(c.home, "buildx"), "BUILDKIT_PROGRESS=plain")
	return &stockClient{c, "unix://" + d.door(d.token)}
}

// door returns a socket whose calls reach the daemon with a token.
func (d *daemon) door(token string) string {
	d.t.Helper()
	path := filepath.Join(rootDir(d.t), "s")
	l, err := (&net.ListenConfig{}).Listen(d.t.Context(), "unix", path)
	if err != nil {
		d.t.Fatal(err)
	}
	conn, err := grpc.NewClient(d.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(frames{})))
	if err != nil {
		d.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.ForceServerCodec(frames{}), grpc.UnknownServiceHandler(func(_ any, client grpc.ServerStream) error { return pass(client, conn, token) }))
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) })
	d.t.Cleanup(func() { g.Stop(); serving.Wait(); conn.Close() })
	return path
}

// pass takes one call to the daemon.
func pass(client grpc.ServerStream, conn *grpc.ClientConn, token string) error {
	ctx, cancel := context.WithCancel(client.Context())
	defer cancel()
	md, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	for k, v := range md {
		if !strings.HasPrefix(k, ":") && !strings.HasPrefix(k, "grpc-") && k != "content-type" && k != "user-agent" {
			out[k] = v
		}
	}
	out.Set("authorization", "Bearer "+token)
	method, _ := grpc.MethodFromServerStream(client)
	server, err := conn.NewStream(metadata.NewOutgoingContext(ctx, out), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var m []byte
			if err := client.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					_ = server.CloseSend()
				}
				return
			}
			if server.SendMsg(&m) != nil {
				return
			}
		}
	}()
	headed := false
	for {
		var m []byte
		err := server.RecvMsg(&m)
		if !headed {
			headed = true
			if h, err := server.Header(); err == nil {
				_ = client.SendHeader(h)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := client.SendMsg(&m); err != nil {
			return err
		}
	}
}

// frames are messages as they are.
type frames struct{}

func (frames) Name() string { return "proto" }

func (frames) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (frames) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// A run is one run of a stock client that has ended.
type stockRun struct {
	name string
	out  string // what it printed to stdout
	text string // and to stderr
	err  error
}

// run runs a stock client.
func (c *stockClient) run(program string, args ...string) *stockRun {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.runIn(ctx, program, args...)
}

func (c *stockClient) runIn(ctx context.Context, program string, args ...string) *stockRun {
	c.t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, program), args...)
	cmd.Env, cmd.Dir = c.env, c.home
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, text output
	cmd.Stdout, cmd.Stderr = &out, &text
	err := cmd.Run()
	return &stockRun{program + " " + strings.Join(args, " "), out.String(), text.String(), err}
}

// ok fails the test unless the run succeeded.
func (r *stockRun) ok(t testing.TB) *stockRun {
	t.Helper()
	if r.err != nil {
		t.Fatalf("%s: %v\n%s%s", r.name, r.err, r.out, r.text)
	}
	return r
}

// refused fails the test unless the run failed and said why.
func (r *stockRun) refused(t testing.TB, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if r.err == nil || !strings.Contains(r.text, text) {
			t.Errorf("%s: %v; want %q in\n%s", r.name, r.err, text, r.text)
		}
	}
}

// buildctl runs buildctl.
func (c *stockClient) buildctl(args ...string) *stockRun {
	c.t.Helper()
	return c.run("buildctl", append([]string{"--addr", c.addr}, args...)...)
}

// build has buildctl build a directory.
func (c *stockClient) build(dir string, args ...string) *stockRun {
	c.t.Helper()
	meta := filepath.Join(c.t.(interface{ TempDir() string }).TempDir(), "meta.json")
	r := c.buildctl(append([]string{"build", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir, "--metadata-file", meta}, args...)...)
	if raw, err := os.ReadFile(meta); err == nil {
		r.out = string(raw)
	}
	return r
}

// digest is that of the image that a run has made.
func (r *stockRun) digest(t testing.TB) string {
	t.Helper()
	var meta map[string]any
	if err := json.Unmarshal([]byte(r.out), &meta); err != nil {
		t.Fatalf("%s: %v\n%s", r.name, err, r.out)
	}
	d, _ := meta["containerimage.digest"].(string)
	return d
}

// image pulls what a run has pushed.
func (c *stockClient) image(t testing.TB, name string, r *stockRun) string {
	t.Helper()
	return unpack(t, c.daemon.pull(&deployed{result: &result{Image: c.daemon.http + "/" + name, Digest: r.digest(t)}}))
}

func TestBuildctl(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.stock()
	dir := stages().write(t)
	r := c.build(dir, "--output", "type=image,push=true,name="+d.http+"/kit:1")
	r.ok(t)
	root := c.image(t, "kit:1", r)
	for path, want := range map[string]string{"greeting": "hello\n", "all": "A\nB\n", "last": "last\n"} {
		if got := fileOf(t, root, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	t.Log(r.text, r.out)
}

// A repository is a build's context, and another one is a context with a name;
// the secret opens them.
func TestBuildctlGit(t *testing.T) {
	t.Parallel()
	server := gittest.Serve(t, false)
	repo, other := server.Repo("app"), server.Repo("other")
	repo.Commit(map[string]string{"docker/Dockerfile": "FROM busybox\nCOPY f /f\nCOPY --from=more g /g\n", "docker/f": "one"})
	other.Commit(map[string]string{"g": "g"})
	server.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Basic ") {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	d, _ := startWithBusybox(t, "--allow-egress", "127.0.0.1/32")
	c := d.stock()
	writeFile(t, c.home, "token", "a token")
	build := func(args ...string) *stockRun {
		meta := filepath.Join(c.home, "meta.json")
		r := c.buildctl(append([]string{"build", "--frontend", "dockerfile.v0", "--opt", "context=" + repo.URL + "#main:docker", "--opt", "context:more=" + other.URL,
			"--metadata-file", meta, "--output", "type=image,push=true,name=" + d.http + "/kit:git"}, args...)...)
		if raw, err := os.ReadFile(meta); err == nil {
			r.out = string(raw)
		}
		return r
	}
	build().refused(t, repo.URL, "build secret GIT_AUTH_TOKEN")
	secret := []string{"--secret", "id=GIT_AUTH_TOKEN,src=" + filepath.Join(c.home, "token")}
	first := build(secret...).ok(t)
	root := c.image(t, "kit:git", first)
	if got := fileOf(t, root, "f") + fileOf(t, root, "g"); got != "oneg" {
		t.Errorf("the image has %q", got)
	}
	if again := build(secret...).ok(t); again.digest(t) != first.digest(t) {
		t.Errorf("again, the image is another one\n%s", again.text)
	}
	repo.Commit(map[string]string{"docker/f": "two"})
	if got := fileOf(t, c.image(t, "kit:git", build(secret...).ok(t)), "f"); got != "two" {
		t.Errorf("the branch moved: %q", got)
	}
}
