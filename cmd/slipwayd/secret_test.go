package main_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// hidden fails the test where one of the texts is in the root of the daemon, in
// what it logs, or in what it tells of a build.
func (d *daemon) hidden(c *client, build string, texts ...string) {
	d.t.Helper()
	places := map[string][]byte{
		"the daemon's log":    []byte(d.log.String()),
		"builds show":         []byte(c.slipway("builds", "show", build).text()),
		"builds show --json":  []byte(c.slipway("builds", "show", build, "--json").text()),
		"builds logs":         []byte(c.slipway("builds", "logs", build).text()),
		"builds logs --json":  []byte(c.slipway("builds", "logs", build, "--json").text()),
		"builds list --json":  []byte(c.slipway("builds", "list", "--json").text()),
		"cache usage, --json": []byte(c.slipway("cache", "usage", "--json").text()),
	}
	files, disk := 0, device(d.t, d.root)
	err := filepath.WalkDir(d.root, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // a daemon at work
		}
		if err != nil {
			return err
		}
		if e.IsDir() && device(d.t, path) != disk {
			return filepath.SkipDir // the file system of a step at work
		}
		if !e.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		files++
		places[path] = b
		return err
	})
	if err != nil || files < 10 {
		d.t.Fatalf("looked at %d files: %v", files, err)
	}
	for place, b := range places {
		for _, text := range texts {
			if bytes.Contains(b, []byte(text)) {
				d.t.Errorf("%q is in %s", text, place)
			}
		}
	}
}

// device is the file system that a directory is on; 0 if it has gone.
func device(t testing.TB, dir string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return uint64(st.Dev) //nolint:unconvert // differs by architecture
}

// Secrets reach the steps that mount them, and no other place.
func TestSecrets(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	values := map[string]string{"npm": "value-4711-of-npm", "file": "value-4711-of-file", "var": "value-4711-of-var"}
	sum := func(id string) string {
		s := sha256.Sum256([]byte(values[id]))
		return hex.EncodeToString(s[:])
	}
	file := filepath.Join(c.home, "a file")
	if err := os.WriteFile(file, []byte(values["file"]), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := dockerfile("FROM busybox",
		"RUN --mount=type=secret,id=npm echo npm $(sha256sum < /run/secrets/npm)",
		"RUN --mount=type=secret,id=file,target=/etc/token --mount=type=secret,id=npm echo file $(sha256sum < /etc/token), npm again $(sha256sum < /run/secrets/npm)",
		"RUN --mount=type=secret,id=var,env=TOKEN echo var $(printf %s \"$TOKEN\" | sha256sum)",
		"RUN ls /run/secrets /etc/token 2>/dev/null; echo \"after: ${TOKEN:-nothing}\"",
		// A secret that a step prints is that step's own doing; this one only fails.
		"RUN --mount=type=secret,id=other test ! -e /run/secrets/other && echo none").write(t)
	c = c.with("MY_TOKEN=" + values["var"])
	r := c.deploy("secrets", dir, "--compression", "none", "--build-secret", "npm="+values["npm"], "--build-secret", "id=file,src="+file, "--build-secret", "id=var,env=MY_TOKEN")
	for _, want := range []string{"npm " + sum("npm"), "file " + sum("file"), "npm again " + sum("npm"), "var " + sum("var"), "after: nothing", "none"} {
		if !strings.Contains(r.log(), want) {
			t.Errorf("the steps did not print %q:\n%s", want, r.log())
		}
	}
	if strings.Contains(r.text(), "value-4711") {
		t.Errorf("deploy shows a secret:\n%s", r.text())
	}
	d.hidden(c, r.BuildID, "value-4711")

	// Another value is no other step: what a secret holds must not count.
	again := c.deploy("secrets", dir, "--compression", "none", "--build-secret", "npm=other", "--build-secret", "id=file,src="+file, "--build-secret", "id=var,env=MY_TOKEN")
	if again.Cached != again.Steps {
		t.Errorf("%d of %d steps cached with another value", again.Cached, again.Steps)
	}
}

// A step that fails does so without telling its secret; one that requires a
// secret says which.
func TestSecretsOfFailingSteps(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN --mount=type=secret,id=npm test -s /run/secrets/npm && exit 7").write(t)
	r := c.deployFails(exitUser, "step_failed", "secrets", dir, "--build-secret", "npm=value-4712")
	if r.Error.ExitCode != 7 {
		t.Errorf("error %+v", r.Error)
	}
	d.hidden(c, r.BuildID, "value-4712")
	dir = dockerfile("FROM busybox", "RUN --mount=type=secret,id=npm,required=true true").write(t)
	r = c.tryDeploy("secrets", dir)
	if r.code() != exitUser || r.Error == nil || r.Error.Line != 2 || !strings.Contains(r.text(), "npm") {
		t.Errorf("a secret that is required: %d\n%s", r.code(), r.text())
	}
}

// A detached build keeps its secrets in memory until it has ended.
func TestSecretsOfADetachedBuild(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN sleep 1", "RUN --mount=type=secret,id=npm echo the sum is $(sha256sum < /run/secrets/npm)").write(t)
	r := c.startDeploy("secrets", dir, "--compression", "none", "--detach", "--build-secret", "npm=value-4713")
	if code := r.wait(patience); code != exitDone {
		t.Fatalf("exit code %d\n%s", code, r.text())
	}
	id := r.acceptedAs()
	if b := c.untilEnded(id, patience); b.Status != "succeeded" {
		t.Fatalf("build %+v", b)
	}
	s := sha256.Sum256([]byte("value-4713"))
	if logs := c.slipway("builds", "logs", id).text(); !strings.Contains(logs, hex.EncodeToString(s[:])) {
		t.Errorf("the step saw another secret:\n%s", logs)
	}
	d.hidden(c, id, "value-4713")
}

// acceptedAs is the id of a build whose deploy has ended.
func (r *call) acceptedAs() string {
	for _, e := range r.events() {
		if e.Type == "accepted" {
			return e.BuildID
		}
	}
	r.t.Fatalf("the build was not accepted\n%s", r.text())
	return ""
}

// Steps sign with keys of the client, which stay there.
func TestSSH(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(block)
	file := filepath.Join(c.home, "id_ed25519")
	if err := os.WriteFile(file, private, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := dockerfile("FROM busybox", "COPY sshkeys /bin/",
		"RUN --mount=type=ssh sshkeys",
		"RUN --mount=type=ssh,id=deploy sshkeys && sshkeys",
		"RUN sshkeys || echo \"without a mount: exit code $?\"").write(t)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "sshkeys"), "./testdata/sshkeys")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := c.deploy("ssh", dir, "--compression", "none", "--ssh", "default="+file, "--ssh", "deploy="+file)
	wire, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("key %s", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(wire))))
	if n := strings.Count(r.log(), line); n != 3 || strings.Count(r.log(), "signs: true") != 3 {
		t.Errorf("the steps saw the key %d times:\n%s", n, r.log())
	}
	if strings.Contains(r.log(), "removed") || !strings.Contains(r.log(), "without a mount: exit code 3") {
		t.Errorf("the steps printed\n%s", r.log())
	}
	d.hidden(c, r.BuildID, string(key.Seed()), strings.Split(string(private), "\n")[2])
}

// While a step has its secrets, they are on no disk either.
func TestSecretsOfARunningStep(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN --mount=type=secret,id=npm --mount=type=secret,id=npm,env=TOKEN test -s /run/secrets/npm && echo ready: ${#TOKEN} && sleep 600").write(t)
	r := c.startDeploy("secrets", dir, "--build-secret", "npm=value-4714")
	r.untilLog("ready: 10")
	d.hidden(c, r.buildID(), "value-4714")
	r.signal(syscall.SIGINT)
	if code := r.wait(patience); code != exitCancelled {
		t.Errorf("exit code %d\n%s", code, r.text())
	}
	d.hidden(c, r.acceptedAs(), "value-4714")
}
