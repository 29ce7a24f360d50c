package registry_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/slipwayhq/slipway/registry"
)

// tool returns a function that runs a program of the machine with input, in an
// empty home, and returns what it printed.
func tool(t *testing.T, program string) func(stdin string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skip(err)
	}
	home := t.TempDir()
	return func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Env = []string{"HOME=" + home, "DOCKER_CONFIG=" + home, "PATH=" + os.Getenv("PATH")}
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

func TestSkopeo(t *testing.T) {
	skopeo := tool(t, "skopeo")
	s, _ := open(t, registry.Options{Access: decide(policy)})
	dir := t.TempDir()
	index, err := random.Index(1000, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(dir+"/in", index); err != nil {
		t.Fatal(err)
	}
	target := "docker://" + s.host + "/shop:v1"
	if out, err := skopeo("", "copy", "--all", "--dest-tls-verify=false", "--dest-creds", "x:"+secret, "oci:"+dir+"/in", target); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	linked := mutate.ConfigMediaType(mutate.MediaType(randomImage(t), types.OCIManifestSchema1), types.OCIConfigJSON)
	link(t, s.repository(t, "linked"), linked, t.TempDir(), "v1")
	source := "docker://" + s.host + "/linked:v1"
	if out, err := skopeo("", "copy", "--src-tls-verify=false", "--src-creds", "x:"+secret, source, "oci:"+dir+"/out"); err != nil {
		t.Fatalf("pull: %v\n%s", err, out)
	}
	got, err := layout.ImageIndexFromPath(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	for creds, want := range map[string]string{"x:nope": "token not recognized", "x:sr_shop": "this token may pull from shop"} {
		out, err := skopeo("", "copy", "--src-tls-verify=false", "--src-creds", creds, source, "oci:"+dir+"/denied")
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("pull with %s: %v, %s; want %q", creds, err, out, want)
		}
	}
}

func TestDockerLogin(t *testing.T) {
	docker := tool(t, "docker")
	s, _ := open(t, registry.Options{})
	if out, err := docker(secret, "login", "-u", "x", "--password-stdin", s.host); err != nil {
		t.Errorf("login: %v\n%s", err, out)
	}
	if out, err := docker("nope", "login", "-u", "x", "--password-stdin", s.host); err == nil {
		t.Errorf("logged in with a wrong token: %s", out)
	}
}
