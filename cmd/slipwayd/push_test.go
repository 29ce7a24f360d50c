package main_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// A foreign is a registry that is not the daemon's.
type foreign struct {
	t      testing.TB
	server *httptest.Server
	host   string
	app    http.Handler

	mu     sync.Mutex
	refuse func(w http.ResponseWriter, r *http.Request) bool // true if it answered
	puts   []string                                          // manifests that came
}

const (
	foreignUser     = "shipper"
	foreignPassword = "pa:ss word"
)

// startForeign serves a registry that wants a user and a password.
func startForeign(t testing.TB, https bool) *foreign {
	t.Helper()
	c := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  {"rootdirectory": t.(interface{ TempDir() string }).TempDir()},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.HTTP.Secret = "secret of the test"
	app := handlers.NewApp(context.Background(), c)
	f := &foreign{t: t, app: app}
	f.server = httptest.NewUnstartedServer(f)
	if https {
		f.server.StartTLS()
	} else {
		f.server.Start()
	}
	t.Cleanup(func() {
		f.server.Close()
		_ = app.Shutdown()
	})
	f.host = f.server.Listener.Addr().String()
	return f
}

func (f *foreign) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	refuse := f.refuse
	f.mu.Unlock()
	user, password, _ := r.BasicAuth()
	switch {
	case refuse != nil && refuse(w, r):
		return
	case user != foreignUser || password != foreignPassword:
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		f.mu.Lock()
		f.puts = append(f.puts, r.URL.Path)
		f.mu.Unlock()
	}
	f.app.ServeHTTP(w, r)
}

func (f *foreign) manifests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.puts...)
}

// image pulls and validates what the registry has.
func (f *foreign) image(path string) v1.Image {
	f.t.Helper()
	ref, err := name.ParseReference(f.host+"/"+path, name.Insecure)
	if err != nil {
		f.t.Fatal(err)
	}
	image, err := remote.Image(ref, remote.WithAuth(&authn.Basic{Username: foreignUser, Password: foreignPassword}), remote.WithTransport(f.server.Client().Transport))
	if err != nil {
		f.t.Fatalf("pull: %v", err)
	}
	if err := validate.Image(image); err != nil {
		f.t.Error(err)
	}
	return image
}

// login writes what "docker login" does.
func (c *client) login(host, user, password string) {
	c.t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	raw, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.home, ".docker"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.home, ".docker", "config.json"), raw, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func TestPushToForeignRegistry(t *testing.T) {
	t.Parallel()
	for _, https := range []bool{false, true} {
		t.Run(map[bool]string{false: "http", true: "https"}[https], func(t *testing.T) {
			f := startForeign(t, https)
			d := newDaemon(t)
			if https {
				d.env = append(d.env, "SSL_CERT_FILE="+certFile(t, f.server.Certificate().Raw))
			} else {
				d.args = append(d.args, "--insecure-registry", f.host)
			}
			d.start()
			d.push(busyboxBase(t), "library/busybox")
			c := d.client()
			c.login(f.host, foreignUser, foreignPassword)
			dir := dockerfile("FROM busybox", "COPY data /data", "RUN cat /data > /copy").and("data", noise(3<<20)).write(t)
			r := c.deploy("shop", dir, "--push-to", f.host+"/team/shop:v1")
			if r.Image != f.host+"/team/shop:v1" {
				t.Errorf("the image is told as %s", r.Image)
			}
			image := f.image("team/shop:v1")
			if digest, _ := image.Digest(); digest.String() != r.Digest {
				t.Errorf("the registry has %s, the result says %s", digest, r.Digest)
			}
			if got := fileOf(t, unpack(t, image), "copy"); got != noise(3<<20) {
				t.Error("the image has another content")
			}
			for _, l := range r.Layers {
				if l.Pushed != "uploaded" {
					t.Errorf("layer %s was %s, want uploaded", l.CreatedBy, l.Pushed)
				}
			}
			if r.WireBytes < 6<<20 {
				t.Errorf("%d bytes went over the wire", r.WireBytes)
			}
			if d.exists("shop:v1") {
				t.Error("the image went to the daemon's registry, too")
			}
			again := c.deploy("shop", freshCopy(t, dir), "--push-to", f.host+"/team/shop:v2")
			checkUnchanged(t, "again", r, again)
			if again.WireBytes > 64<<10 {
				t.Errorf("%d bytes went over the wire for an unchanged image", again.WireBytes)
			}
			f.image("team/shop:v2")
		})
	}
}

func certFile(t testing.TB, der []byte) string {
	t.Helper()
	file := filepath.Join(t.(interface{ TempDir() string }).TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// A build goes to several repositories at once, the daemon's own among them.
func TestPushToSeveral(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	d, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	dir := dockerfile("FROM busybox", "RUN echo several > /f").write(t)
	r := c.deploy("shop", dir, "--push-to", f.host+"/a/shop:v1", "--push-to", f.host+"/b/shop:v1", "--push-to", d.http+"/c/shop:v1")
	for _, path := range []string{"a/shop:v1", "b/shop:v1"} {
		if digest, _ := f.image(path).Digest(); digest.String() != r.Digest {
			t.Errorf("%s has %s, want %s", path, digest, r.Digest)
		}
	}
	if !d.exists("c/shop:v1") {
		t.Error("the daemon's registry lacks the image")
	}
}

func TestRegistryThatRefuses(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	d, _ := startWithBusybox(t, "--insecure-registry", f.host)
	status := func(code int, when func(r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !when(r) {
				return false
			}
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"no entry for %d"}]}`, code)
			return true
		}
	}
	upload := func(r *http.Request) bool {
		return r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/blobs/uploads/")
	}
	manifest := func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
	}
	tests := []struct {
		name   string
		login  []string
		refuse func(http.ResponseWriter, *http.Request) bool
		early  bool // before anything is built
		says   []string
	}{
		{name: "wrong password", login: []string{foreignUser, "wrong"}, early: true, says: []string{f.host, "401"}},
		{name: "no login", early: true, says: []string{f.host, "401"}},
		{name: "403 for uploads", login: []string{foreignUser, foreignPassword}, refuse: status(http.StatusForbidden, upload), early: true, says: []string{f.host, "403"}},
		{name: "500 for uploads", login: []string{foreignUser, foreignPassword}, refuse: status(http.StatusInternalServerError, upload), early: true, says: []string{f.host, "500"}},
		{name: "403 for the manifest", login: []string{foreignUser, foreignPassword}, refuse: status(http.StatusForbidden, manifest), says: []string{f.host, "403"}},
		{name: "500 for the manifest", login: []string{foreignUser, foreignPassword}, refuse: status(http.StatusInternalServerError, manifest), says: []string{f.host, "500"}},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := d.client()
			c.t = t
			if test.login != nil {
				c.login(f.host, test.login[0], test.login[1])
			}
			f.mu.Lock()
			f.refuse, f.puts = test.refuse, nil
			f.mu.Unlock()
			dir := dockerfile("FROM busybox", fmt.Sprintf("RUN echo %d > /f", i)).write(t)
			r := c.tryDeploy("refused", dir, "--push-to", f.host+"/refused:v1")
			if r.code() != exitRegistry || r.Error == nil || r.Error.Blame != "registry" {
				t.Fatalf("exit code %d, error %+v; want %d\n%s", r.code(), r.Error, exitRegistry, r.text())
			}
			for _, s := range test.says {
				if !strings.Contains(r.Error.Message, s) {
					t.Errorf("the message lacks %q: %s", s, r.Error.Message)
				}
			}
			if strings.Contains(r.text()+d.log.String(), foreignPassword) {
				t.Error("the password was told")
			}
			if ran := ranSteps(r); test.early && len(ran) > 0 {
				t.Errorf("ran %q before the registry refused", ran)
			}
			if got := f.manifests(); len(got) != 0 {
				t.Errorf("manifests %q arrived", got)
			}
		})
	}
}

// A registry that is away for a moment costs time, not the build.
func TestRegistryThatStumbles(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	seen := map[string]int{}
	f.refuse = func(w http.ResponseWriter, r *http.Request) bool { // each kind of request fails the second time
		f.mu.Lock()
		defer f.mu.Unlock()
		class := r.Method
		if strings.Contains(r.URL.Path, "/manifests/") {
			class += " manifest"
		}
		if seen[class]++; seen[class] != 2 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	dir := dockerfile("FROM busybox", "COPY data /data", "RUN cat /data > /copy").and("data", noise(2<<20)).write(t)
	r := c.deploy("stumble", dir, "--push-to", f.host+"/stumble:v1")
	if got := fileOf(t, unpack(t, f.image("stumble:v1")), "copy"); got != noise(2<<20) {
		t.Error("the image has another content")
	}
	if digest, _ := f.image("stumble:v1").Digest(); digest.String() != r.Digest {
		t.Errorf("the registry has %s, want %s", digest, r.Digest)
	}
}

// A registry that cannot be reached is told with its name.
func TestRegistryThatIsAway(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	host := freeAddr(t)
	r := c.tryDeploy("away", dockerfile("FROM busybox", "RUN true").write(t), "--push-to", host+"/away")
	if r.code() != exitRegistry || r.Error == nil || !strings.Contains(r.Error.Message, host) {
		t.Errorf("exit code %d, error %+v; want %d and the name of the host\n%s", r.code(), r.Error, exitRegistry, r.text())
	}
}

// A base image may need the credentials of the client.
func TestBaseBehindLogin(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	ref, err := name.ParseReference(f.host+"/private/base:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, busyboxBase(t), remote.WithAuth(&authn.Basic{Username: foreignUser, Password: foreignPassword})); err != nil {
		t.Fatal(err)
	}
	dir := dockerfile("FROM "+f.host+"/private/base:v1", "RUN echo private > /f").write(t)
	r := c.tryDeploy("private", dir)
	if r.code() == exitDone || r.Error == nil || r.Error.Line != 1 || !strings.Contains(r.Error.Message, f.host) {
		t.Errorf("without a login: exit code %d, error %+v", r.code(), r.Error)
	}
	c.login(f.host, foreignUser, foreignPassword)
	c.deploy("private", dir)
}

// Clients of other projects push to the embedded registry and pull from it;
// without the token they do neither.
func TestEmbeddedRegistry(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	d.push(busyboxBase(t), "other/image:v1")
	if !d.exists("other/image:v1") {
		t.Error("what was pushed is not there")
	}
	for _, auth := range []authn.Authenticator{authn.Anonymous, &authn.Basic{Username: "admin", Password: "wrong"}} {
		if _, err := remote.Head(d.reference("other/image:v1"), remote.WithAuth(auth)); err == nil {
			t.Error("a pull without the token works")
		}
		if err := remote.Write(d.reference("other/image:v2"), busyboxBase(t), remote.WithAuth(auth)); err == nil {
			t.Error("a push without the token works")
		}
	}
}
