package main_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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
	push := "type=image,push=true,name=" + d.http + "/kit:1"
	r := c.build(dir, "--output", push)
	r.ok(t)
	root := c.image(t, "kit:1", r)
	for path, want := range map[string]string{"greeting": "hello\n", "all": "A\nB\n", "last": "last\n"} {
		if got := fileOf(t, root, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	again := c.build(dir, "--output", push)
	if again.ok(t).digest(t) != r.digest(t) || !strings.Contains(again.text, "CACHED") {
		t.Errorf("unchanged: %s\n%s", again.out, again.text)
	}

	// Several names, one of them in another repository.
	both := c.build(dir, "--output", fmt.Sprintf("type=image,push=true,\"name=%[1]s/kit:2,%[1]s/other:1\"", d.http))
	both.ok(t)
	for _, name := range []string{"kit:2", "other:1"} {
		c.image(t, name, both)
	}
	t.Run("secret", func(t *testing.T) {
		secret := filepath.Join(c.home, "secret")
		writeFile(t, c.home, "secret", "hush")
		files := dockerfile("FROM busybox", "RUN --mount=type=secret,id=key wc -c < /run/secrets/key > /size", "RUN --mount=type=secret,id=key,env=KEY echo ${#KEY} >> /size")
		r := c.build(files.write(t), "--secret", "id=key,src="+secret, "--output", "type=image,push=true,name="+d.http+"/secret:1")
		if got := fileOf(t, c.image(t, "secret:1", r.ok(t)), "size"); got != "4\n4\n" {
			t.Errorf("sizes %q", got)
		}
		c.build(files.and("x", "y").write(t), "--no-cache").refused(t, "exit code: 1")
		c.build(dockerfile("FROM busybox", "RUN --mount=type=secret,id=key,required=true true").write(t)).refused(t, "secret key: not found", "InvalidArgument")
	})
	t.Run("ssh", func(t *testing.T) {
		key := filepath.Join(c.home, "key")
		command(t, needCommand(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key)
		files := dockerfile("FROM busybox", "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK", "RUN --mount=type=ssh,required=true true").write(t)
		c.build(files, "--ssh", "default="+key).ok(t)
		c.build(files, "--no-cache").refused(t, "exit code: 1")
	})
	t.Run("network", func(t *testing.T) {
		out := filepath.Join(c.home, "none")
		files := dockerfile("FROM busybox AS b", "RUN --network=none ls /sys/class/net > /net", "FROM scratch", "COPY --from=b /net /")
		c.build(files.write(t), "--output", "type=local,dest="+out).ok(t)
		if got := fileOf(t, out, "net"); got != "lo\n" {
			t.Errorf("interfaces %q", got)
		}
		files = dockerfile("FROM busybox", "RUN --network=host true")
		c.build(files.write(t)).refused(t, "network.host is not allowed", "PermissionDenied")
		c.build(files.write(t), "--allow", "network.host").refused(t, "the entitlement network.host is not allowed", "PermissionDenied")
		c.build(dockerfile("FROM busybox", "RUN --security=insecure true").write(t)).refused(t, "security.insecure is not allowed")
	})
	t.Run("cache mount", func(t *testing.T) {
		step := func(app, word string, args ...string) string {
			files := dockerfile("FROM busybox", "RUN --mount=type=cache,target=/c echo "+word+" >> /c/log && cat /c/log > /seen")
			name := app + ":" + strings.ToLower(rand.Text())
			r := c.build(files.write(t), append(args, "--output", "type=image,push=true,name="+d.http+"/"+name)...)
			return fileOf(t, c.image(t, name, r.ok(t)), "seen")
		}
		for _, tc := range []struct {
			app, word, want string
			args            []string
		}{
			{"one", "1", "1\n", nil},
			{"one", "2", "1\n2\n", nil},
			{"two", "3", "3\n", nil},
			// As BuildKit does by itself, and for the app alone.
			{"one", "4", "4\n", []string{"--no-cache"}},
			{"one", "5", "4\n5\n", nil},
			{"two", "6", "3\n6\n", nil},
		} {
			if got := step(tc.app, tc.word, tc.args...); got != tc.want {
				t.Errorf("%s of app %s with %v saw %q, want %q", tc.word, tc.app, tc.args, got, tc.want)
			}
		}
	})
	t.Run("outputs", func(t *testing.T) {
		files := dockerfile("FROM busybox AS b", "RUN echo made > /made", "FROM scratch", "COPY --from=b /made /").write(t)
		for typ, dest := range map[string]string{"tar": "out.tar", "oci": "oci.tar", "docker": "docker.tar"} {
			file := filepath.Join(c.home, dest)
			c.build(files, "--output", "type="+typ+",dest="+file+",name=made:1").ok(t)
			raw, err := exec.Command("tar", "-tf", file).CombinedOutput()
			if list := string(raw); err != nil || typ == "tar" && list != "made\n" || typ != "tar" && !strings.Contains(list, "index.json") || typ == "docker" && !strings.Contains(list, "manifest.json") {
				t.Errorf("%s holds %s", typ, list)
			}
		}
		c.build(files, "--output", "type=moby").refused(t, "use one of image, local, tar, oci, docker")
	})
	t.Run("cache", func(t *testing.T) {
		if got := c.buildctl("debug", "workers").ok(t); !strings.Contains(got.out, "linux/amd64") {
			t.Errorf("workers: %s", got.out)
		}
		if got := c.buildctl("du").ok(t); !strings.Contains(got.out, "Total:") {
			t.Errorf("du: %s", got.out)
		}
		poll(t, 5*time.Second, "nothing to be in use", func() bool {
			c.buildctl("prune", "--all").ok(t)
			return strings.Contains(c.buildctl("du").ok(t).out, "Total:\t\t0B")
		})
		c.build(dir, "--output", push).ok(t)
	})
	t.Run("failures", func(t *testing.T) {
		c.build(dockerfile("FROM busybox", "RUN exit 7").write(t)).refused(t, "exit code: 7", "Dockerfile:2")
		c.build(dockerfile("FROM busybox", "COPY absent /").write(t)).refused(t, `"/absent": not found`)
		c.build(dockerfile("# syntax=127.0.0.1:1/no/frontend:1", "FROM scratch").write(t)).refused(t, "127.0.0.1:1", "Unavailable")
	})
	if n := d.metric(`slipway_builds_total{pipeline="buildkit",status="succeeded"}`); n < 3 {
		t.Errorf("%v builds were counted", n)
	}
	if n := d.metric("slipway_builds_running"); n != 0 {
		t.Errorf("%v builds run", n)
	}
}

// Clients at the same time share steps, and one that goes does not take the
// others with it.
func TestStockClientsTogether(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.stock()
	dir := dockerfile("FROM busybox", "RUN sleep 1; head -c 20 /dev/urandom | od > /random", "RUN echo done > /done").write(t)
	runs := make([]*stockRun, 2)
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			runs[i] = c.build(dir, "--output", fmt.Sprintf("type=image,push=true,name=%s/app%d:1", d.http, i))
		})
	}
	wg.Wait()
	var seen []string
	for i, r := range runs {
		seen = append(seen, fileOf(t, c.image(t, fmt.Sprintf("app%d:1", i), r.ok(t)), "random"))
	}
	if seen[0] != seen[1] {
		t.Error("the step ran twice")
	}

	slow := dockerfile("FROM busybox", "RUN echo begun > /x; sleep 60").write(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan *stockRun, 1)
	go func() {
		ended <- c.runIn(ctx, "buildctl", "--addr", c.addr, "build", "--frontend", "dockerfile.v0", "--local", "context="+slow, "--local", "dockerfile="+slow)
	}()
	poll(t, 20*time.Second, "the step to run", func() bool { return len(d.containers()) > 0 })
	cancel()
	if r := <-ended; r.err == nil {
		t.Errorf("cancelled, and yet %s", r.text)
	}
	poll(t, 10*time.Second, "the step to end", func() bool {
		return len(d.containers()) == 0 && d.metric("slipway_builds_running") == 0 && d.metric(`slipway_builds_total{pipeline="buildkit",status="cancelled"}`) == 1
	})
	c.build(dir, "--output", "type=image,push=true,name="+d.http+"/app0:2").ok(t)
}

// The limit and the registry's word bind stock clients, too.
func TestStockClientsAreBound(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t, "--max-rootfs", "50MB")
	c := d.stock()
	name := "type=image,push=true,name=" + d.http + "/big:1"
	c.build(dockerfile("FROM busybox", "RUN echo fine > /f", "RUN dd if=/dev/zero of=/endless bs=65536").write(t), "--output", name).
		refused(t, "ResourceExhausted", "unpacked root file system reached", "/endless", "line 3")
	c.build(dockerfile("FROM busybox", "COPY big /").and("big", strings.Repeat("x", 60*megabyte)).write(t), "--output", name).
		refused(t, "ResourceExhausted", "unpacked root file system reached", "/big")
	if d.exists(d.http + "/big:1") {
		t.Error("an image over the limit was pushed")
	}
	// Who may not push is told before anything is built.
	f := startForeign(t, false)
	r := c.build(dockerfile("FROM busybox", "RUN echo built").write(t), "--output", "type=image,push=true,name="+f.host+"/a/b:1")
	if r.refused(t, "PermissionDenied", "log in"); strings.Contains(r.text, "RUN echo") {
		t.Errorf("it was built first: %s", r.text)
	}
	dir := filepath.Join(c.home, ".docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte(foreignUser + ":" + foreignPassword))
	writeFile(t, dir, "config.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.host, auth))
	c.build(dockerfile("FROM busybox", "RUN echo built").write(t), "--output", "type=image,push=true,name="+f.host+"/a/b:1").ok(t)
	if len(f.puts) == 0 {
		t.Error("nothing was pushed")
	}
}

// A frontend that is an image runs in the sandbox, and asks for its build.
func TestFrontendImage(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	c := d.stock()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the frontend: %v\n%s", err, out)
	}
	writeFile(t, dir, "Dockerfile", "FROM scratch\nCOPY dockerfile-frontend /\nENTRYPOINT [\"/dockerfile-frontend\"]\n")
	c.build(dir, "--output", "type=image,push=true,name="+d.http+"/frontend:1").ok(t)
	files := dockerfile("# syntax="+d.http+"/frontend:1", "FROM busybox", "RUN --mount=type=cache,target=/c echo built > /f").write(t)
	r := c.build(files, "--output", "type=image,push=true,name="+d.http+"/kit:1")
	if got := fileOf(t, c.image(t, "kit:1", r.ok(t)), "f"); got != "built\n" || !strings.Contains(r.text, "resolve image config for docker-image://"+d.http+"/frontend:1") {
		t.Errorf("built %q\n%s", got, r.text)
	}
	c.build(dockerfile("# syntax="+d.http+"/frontend:1", "FROM busybox", "RUN exit 3").write(t)).refused(t, "exit code: 3", "Dockerfile:3")
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
	build(append(secret, "--opt", "context:more="+other.URL+"#gone")...).refused(t, other.URL+"#gone", "name a branch")
	repo.Commit(map[string]string{"docker/f": "two"})
	if got := fileOf(t, c.image(t, "kit:git", build(secret...).ok(t)), "f"); got != "two" {
		t.Errorf("the branch moved: %q", got)
	}
}
