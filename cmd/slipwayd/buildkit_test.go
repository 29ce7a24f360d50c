package main_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/builder/gitfetch/gittest"
)

// What the classic pipeline makes of a Dockerfile, BuildKit makes too.
func TestBuildKitInstructions(t *testing.T) {
	t.Parallel()
	d, _ := startWithBusybox(t)
	for i, r := range recipes {
		if r.buildkit != "" {
			continue
		}
		r.args = append(slices.Clone(r.args), "--buildkit")
		t.Run(r.name, func(t *testing.T) { r.run(t, d, fmt.Sprint("recipe", i)) })
	}
}

// stages is a build of some steps that are cached one by one.
func stages() tree {
	return dockerfile("FROM busybox AS made", "ARG GREETING=hello", "COPY src /src", "RUN echo $GREETING > /greeting && cat /src/* > /all",
		"FROM busybox", "LABEL from=file", "COPY --from=made /greeting /all /", "RUN echo last > /last").
		and("src/a", "A\n").and("src/b", "B\n")
}

func TestBuildKit(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := stages().write(t)
	args := []string{"--buildkit", "--build-arg", "GREETING=hi", "--label", "by=flag"}
	first := c.deploy("kit", dir, args...)
	if first.Pipeline != "buildkit" || first.RootFS <= 0 || first.CompressedBytes <= 0 || first.Steps != 5 || len(first.Layers) != 3 || first.Context.SentFiles != 2 {
		t.Errorf("result %+v", first.result)
	}
	image := d.pull(first)
	root := unpack(t, image)
	for path, want := range map[string]string{"greeting": "hi\n", "all": "A\nB\n", "last": "last\n"} {
		if got := stat(t, root, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if l := configOf(t, image).Labels; l["by"] != "flag" || l["from"] != "file" {
		t.Errorf("labels %v", l)
	}
	for i, l := range first.Layers {
		if l.Pushed != "linked" || l.Cached != (i == 0) || i > 0 && l.CreatedBy == "" {
			t.Errorf("layer %d: %+v", i, l)
		}
	}

	again := c.deploy("kit", freshCopy(t, dir), args...)
	checkUnchanged(t, "fresh copy", first, again)

	// What decides is the content: neither size nor time need change.
	before, err := os.Stat(filepath.Join(dir, "src/a"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "src/a", "Z\n")
	if err := os.Chtimes(filepath.Join(dir, "src/a"), before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	changed := c.deploy("kit", dir, args...)
	if got := stat(t, unpack(t, d.pull(changed)), "all"); got != "Z\nB\n" || changed.Context.SentFiles != 1 {
		t.Errorf("/all is %q after a change, %d files sent", got, changed.Context.SentFiles)
	}

	// Without the cache, the same image.
	fresh := c.deploy("kit", dir, append(args, "--no-cache")...)
	if fresh.Cached > 2 { // the two FROMs
		t.Errorf("%d of %d steps cached with --no-cache", fresh.Cached, fresh.Steps)
	}

	// What one pipeline has made, the other need not send.
	classic := c.deploy("kit", dir, "--build-arg", "GREETING=hi")
	if classic.Context.SentFiles != 0 {
		t.Errorf("the classic pipeline asked for %d files that BuildKit has had", classic.Context.SentFiles)
	}
}

func TestBuildKitFailures(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t, "--max-rootfs", "50MB")
	tests := []struct {
		name  string
		files tree
		args  []string
		exit  int
		code  string
		line  int
		child int // exit code of the RUN
		says  string
	}{
		{name: "RUN", files: dockerfile("FROM busybox", "RUN echo fine", "RUN exit 17"), exit: exitUser, code: "step_failed", line: 3, child: 17, says: "exit code: 17"},
		{name: "no such command", files: dockerfile("FROM busybox", "RUN nosuch"), exit: exitUser, code: "step_failed", line: 2, child: 127, says: "nosuch"},
		{name: "no such file", files: dockerfile("FROM busybox", "COPY gone /"), exit: exitUser, code: "file_not_found", line: 2, says: `"/gone": not found`},
		{name: "no such base", files: dockerfile("FROM busybox", "FROM nosuchbase:1"), exit: exitUser, code: "base_not_found", line: 2, says: "nosuchbase:1"},
		{name: "no such stage", files: dockerfile("FROM busybox"), args: []string{"--build-target", "gone"}, exit: exitUser, code: "dockerfile_invalid", says: "gone"},
		{name: "unknown instruction", files: dockerfile("FROM busybox", "RUM x"), exit: exitUser, code: "dockerfile_invalid", line: 2, says: "RUM"},
		{name: "empty", files: tree{"Dockerfile": " \n"}, exit: exitUser, code: "dockerfile_invalid", says: "empty"},
		{name: "host network", files: dockerfile("FROM busybox", "RUN --network=host true"), exit: exitUser, code: "permission_denied", says: "network.host"},
		{name: "insecure", files: dockerfile("FROM busybox", "RUN --security=insecure true"), exit: exitUser, code: "permission_denied", says: "security.insecure"},
		{name: "no such secret", files: dockerfile("FROM busybox", "RUN --mount=type=secret,id=s,required cat /run/secrets/s"), exit: exitUser, code: "invalid_argument", line: 2, says: "secret"},
		{name: "too large COPY", files: dockerfile("FROM busybox", "COPY big /big").and("big", strings.Repeat("x", 60*megabyte)), exit: exitTooLarge, code: "too_large", line: 2, says: "/big"},
		{name: "too large RUN", files: dockerfile("FROM busybox", "RUN dd if=/dev/zero of=/endless bs=65536"), exit: exitTooLarge, code: "too_large", line: 2, says: "/endless"},
		{name: "too large in sum", files: dockerfile("FROM busybox", "RUN head -c 30000000 /dev/zero > /a", "RUN head -c 30000000 /dev/zero > /b"), exit: exitTooLarge, code: "too_large", line: 3, says: "/b"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := *c
			c.t = t
			r := c.deployFails(test.exit, test.code, "fails", test.files.write(t), append(test.args, "--buildkit")...)
			if r.Error.Line != test.line || r.Error.ExitCode != test.child || !strings.Contains(r.Error.Message, test.says) || r.Error.Hint == "" || r.Error.Blame != "user" {
				t.Errorf("error %+v; want line %d, exit code %d, %q", r.Error, test.line, test.child, test.says)
			}
			if test.exit == exitTooLarge && (r.Error.Size == nil || len(r.Error.Size.Paths) == 0 || len(r.Error.Size.Lines) == 0) {
				t.Errorf("report %+v", r.Error.Size)
			}
			if len(c.daemon.tags("fails")) != 0 {
				t.Error("a failed build has pushed something")
			}
		})
	}
}

// Layers go up while later steps run; what other stages leave does not.
func TestBuildKitPushesWhileBuilding(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	dir := dockerfile("FROM busybox AS other", "RUN head -c 3000000 /dev/urandom > /unwanted",
		"FROM busybox", "RUN head -c 5000000 /dev/urandom > /wanted", "COPY --from=other /etc/group /group", "RUN sleep 2; echo end > /end").write(t)
	r := c.deploy("early", dir, "--buildkit", "--push-to", f.host+"/early")
	if r.EarlyBytes < 5_000_000 || r.WireBytes > 6_500_000 {
		t.Errorf("%d bytes had gone up when the build ended, %d at all", r.EarlyBytes, r.WireBytes)
	}
}

func TestBuildKitSecrets(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	const secret = "squeamish ossifrage of the BuildKit pipeline"
	dir := dockerfile("FROM busybox", "RUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E tr a-z A-Z < /run/secrets/s > /upper && test \"$E\" = \"$(cat /run/secrets/s)\"").write(t)
	r := c.deploy("secret", dir, "--buildkit", "--build-secret", "s="+secret, "--build-secret", "e="+secret)
	if got := stat(t, unpack(t, d.pull(r)), "upper"); got != strings.ToUpper(secret) {
		t.Errorf("/upper is %q", got)
	}
	d.hidden(c, r.BuildID, secret)
}

// The rules for steps' network are those of the classic pipeline.
func TestBuildKitNetwork(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	_, port, _ := net.SplitHostPort(d.http)
	dir := dockerfile("FROM busybox", "RUN ! wget -T 3 -qO- http://127.0.0.1:"+port+"/healthz", "RUN ! wget -T 3 -qO- http://169.254.169.254/",
		"RUN --network=none ip -o link | grep -v ': lo:' > /addr || true").write(t)
	r := c.deploy("net", dir, "--buildkit")
	if got := stat(t, unpack(t, d.pull(r)), "addr"); got != "" {
		t.Errorf("a step without network has %q", got)
	}
	// Nor does the daemon fetch for a step what that may not.
	add := dockerfile("FROM scratch", "ADD http://127.0.0.1:"+port+"/healthz /h").write(t)
	if r := c.tryDeploy("net", add, "--buildkit"); r.code() != exitUser {
		t.Errorf("ADD of the daemon's own address ended with %d\n%s", r.code(), r.text())
	}
}

func TestBuildKitCacheMounts(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	build := func(app, word string) string {
		dir := dockerfile("FROM busybox", "RUN --mount=type=cache,target=/c echo "+word+" >> /c/f; cp /c/f /f").write(t)
		return stat(t, unpack(t, d.pull(c.deploy(app, dir, "--buildkit"))), "f")
	}
	if got := build("one", "first"); got != "first\n" {
		t.Errorf("first: %q", got)
	}
	if got := build("one", "second"); got != "first\nsecond\n" {
		t.Errorf("second: %q", got)
	}
	if got := build("two", "other"); got != "other\n" {
		t.Errorf("another app's: %q", got)
	}
}

func TestBuildKitAttests(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN echo made > /made").write(t)
	r := c.deploy("attested", dir, "--buildkit", "--provenance=max")
	desc, err := remote.Get(d.reference(strings.TrimPrefix(r.Image, d.http+"/")), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Manifests []struct {
			Digest      string            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(desc.Manifest, &index); err != nil || len(index.Manifests) != 2 || index.Manifests[1].Annotations["vnd.docker.reference.type"] != "attestation-manifest" {
		t.Fatalf("%v: %s", err, desc.Manifest)
	}
	attestation, err := remote.Image(d.reference("attested@"+index.Manifests[1].Digest), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := attestation.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	if r := c.slipway("deploy", dir, "-a", "attested", "--provenance"); r.code() != exitUser || !strings.Contains(r.text(), "--buildkit") {
		t.Errorf("--provenance without --buildkit: exit code %d\n%s", r.code(), r.text())
	}
}

// A cancelled build, a killed client and a killed daemon leave nothing behind,
// and what was built before is cached.
func TestBuildKitInterrupt(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := sleeper().write(t)
	r := c.startDeploy("sleeper", dir, "--buildkit")
	r.untilLog("sleeping")
	r.signal(syscall.SIGINT)
	if code := r.wait(20 * time.Second); code != exitCancelled {
		t.Errorf("exit code %d, want %d\n%s", code, exitCancelled, r.text())
	}
	d.quiet(10 * time.Second)

	hiding := dockerfile("FROM busybox", "RUN --mount=type=secret,id=s echo sleeping; sleep 600").write(t)
	secretive := c.startDeploy("hider", hiding, "--buildkit", "--build-secret", "s=hidden")
	secretive.untilLog("sleeping")
	r = c.startDeploy("sleeper", dir, "--buildkit")
	r.untilLog("sleeping")
	d.signal(syscall.SIGKILL)
	<-d.ended
	d.start()
	d.quiet(10 * time.Second)
	if left, err := os.ReadDir(filepath.Join(d.root, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("temporary files of the daemon that was killed: %v, %v", left, err)
	}
	writeFile(t, dir, "Dockerfile", "FROM busybox\nRUN echo done > /first\nRUN echo awake > /second\n")
	again := c.deploy("sleeper", dir, "--buildkit")
	if again.Cached != 2 {
		t.Errorf("after a kill, %d of %d steps are cached, want FROM and the first RUN\n%s", again.Cached, again.Steps, again.log())
	}
}

// Builds that want the same step at once run it once; one that is cancelled
// takes nothing from the other.
func TestBuildKitSharesSteps(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN --mount=type=cache,target=/runs,id=runs echo run >> /runs/log; echo waiting; sleep 3; cat /runs/log > /log", "RUN echo end > /end").write(t)
	first := c.startDeploy("shared", dir, "--buildkit")
	first.untilLog("waiting")
	second := c.startDeploy("shared", dir, "--buildkit")
	second.untilLog("waiting")
	first.signal(syscall.SIGINT)
	if code := first.wait(20 * time.Second); code != exitCancelled {
		t.Errorf("the cancelled build ended with %d\n%s", code, first.text())
	}
	if code := second.wait(patience); code != exitDone {
		t.Fatalf("the other build ended with %d\n%s", code, second.text())
	}
	if got := stat(t, unpack(t, d.pull(&deployed{second, second.result()})), "log"); got != "run\n" {
		t.Errorf("the step ran as %q", got)
	}
	d.quiet(10 * time.Second)
}

// A detached build goes on when its client has gone.
func TestBuildKitDetached(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN sleep 1", "COPY data /data").and("data", noise(1<<20)).write(t)
	r := c.slipway("deploy", dir, "-a", "alone", "--buildkit", "--detach", "--json")
	if r.code() != exitDone {
		t.Fatalf("exit code %d\n%s", r.code(), r.text())
	}
	b := c.untilEnded(r.buildID(), patience)
	if b.Status != "succeeded" || b.Result == nil || !d.exists("alone:deployment-"+b.ID) {
		t.Errorf("the build ended as %+v", b)
	}
}

// Several targets get the same image, and zstd and no compression are what they
// are told to be.
func TestBuildKitCompression(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN seq 1 100000 > /numbers").write(t)
	for kind, want := range map[string]string{"gzip": "tar+gzip", "zstd": "tar+zstd", "none": "v1.tar"} {
		r := c.deploy("zip-"+kind, dir, "--buildkit", "--no-cache", "--compression", kind)
		last := r.Layers[len(r.Layers)-1]
		if !strings.HasSuffix(last.MediaType, want) || last.Size <= 0 {
			t.Errorf("%s: the layer is %+v", kind, last)
		}
		if !d.exists("zip-" + kind + ":deployment-" + r.BuildID) {
			t.Errorf("%s: the image is not there", kind)
		}
	}
}

// The cache that a build leaves in a registry serves a daemon that has none.
func TestBuildKitCacheElsewhere(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	d, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	dir := dockerfile("FROM busybox", "RUN date +%N > /when", "RUN echo end > /end").write(t)
	first := c.deploy("lend", dir, "--buildkit", "--cache-to", "type=registry,ref="+f.host+"/lend/cache:v1,mode=max")
	c.slipway("cache", "prune", "--all")
	other, oc := startWithBusybox(t, "--insecure-registry", f.host)
	oc.login(f.host, foreignUser, foreignPassword)
	again := oc.deploy("lend", dir, "--buildkit", "--cache-from", f.host+"/lend/cache:v1")
	if again.Cached != again.Steps {
		t.Errorf("%d of %d steps came from the cache elsewhere\n%s", again.Cached, again.Steps, again.log())
	}
	if a, b := stat(t, unpack(t, d.pull(first)), "when"), stat(t, unpack(t, other.pull(again)), "when"); a != b {
		t.Errorf("the step ran again: %q, %q", a, b)
	}
}

// A repository comes by the daemon's own git, and counts for the cache by its
// commit.
func TestBuildKitGit(t *testing.T) {
	t.Parallel()
	server := gittest.Serve(t, true)
	repo := server.Repo("org/app")
	commit := repo.Commit(map[string]string{"docs/page": "one", "run.sh": "#!/bin/sh"})
	repo.Git("tag", "-a", "-m", "m", "v1")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, filepath.Dir(ca), "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	d, c := startWithBusybox(t, "--allow-egress", "127.0.0.1/32", "--build-ca", ca)
	dir := dockerfile("FROM busybox", "ADD "+repo.URL+"#v1:docs /docs/", "ADD "+repo.URL+"#"+commit+" /commit", "ADD --checksum="+commit+" "+repo.URL+"#v1 /checked",
		"ADD --keep-git-dir "+repo.URL+"#main /all", "RUN test -x /all/run.sh && test -d /all/.git && test ! -e /commit/.git").write(t)
	first := c.deploy("git", dir, "--buildkit")
	if first.Steps != 6 {
		t.Errorf("%d steps, want one an instruction", first.Steps)
	}
	root := unpack(t, d.pull(first))
	for _, p := range []string{"docs/page", "commit/docs/page", "checked/docs/page", "all/docs/page"} {
		if got := fileOf(t, root, p); got != "one" {
			t.Errorf("%s is %q", p, got)
		}
	}
	if got := mode(t, root, "docs/page") + ", " + mode(t, root, "all/run.sh"); got != "0644 0:0, 0755 0:0" {
		t.Errorf("the files have %s", got)
	}
	checkUnchanged(t, "again", first, c.deploy("git", dir, "--buildkit"))
	repo.Commit(map[string]string{"docs/page": "two"})
	later := c.deploy("git", dir, "--buildkit")
	root = unpack(t, d.pull(later))
	if got := fileOf(t, root, "all/docs/page") + fileOf(t, root, "checked/docs/page"); got != "twoone" || later.Cached != first.Steps-2 {
		t.Errorf("the branch moved: %q, %d of %d cached\n%s", got, later.Cached, later.Steps, later.log())
	}
	wrong := dockerfile("FROM busybox", "ADD --checksum=1234567 "+repo.URL+"#v1 /x").write(t)
	r := c.tryDeploy("git", wrong, "--buildkit")
	if r.code() != exitUser || r.Error == nil || r.Error.Code != "fetch_failed" || r.Error.Line != 2 || !strings.Contains(r.Error.Message, "is at commit "+commit) {
		t.Errorf("wrong checksum: exit code %d, %+v", r.code(), r.Error)
	}
	if left, err := os.ReadDir(filepath.Join(d.root, "git")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	_, closed := startWithBusybox(t)
	r = closed.tryDeploy("git", dockerfile("FROM busybox", "ADD "+repo.URL+" /all").write(t), "--buildkit")
	if r.code() != exitUser || r.Error == nil || r.Error.Code != "fetch_failed" || r.Error.Line != 2 || !strings.Contains(r.Error.Hint, "--allow-egress") {
		t.Errorf("without leave: exit code %d, %+v", r.code(), r.Error)
	}
}

// A private repository opens to a build secret, which nobody sees.
func TestBuildKitGitSecret(t *testing.T) {
	t.Parallel()
	server := gittest.Serve(t, false)
	repo := server.Repo("closed")
	repo.Commit(map[string]string{"f": "private"})
	const token = "squeamish-ossifrage-of-a-repository"
	header := "Basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+token))
	server.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == header {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	d, c := startWithBusybox(t, "--allow-egress", "127.0.0.1/32")
	dir := dockerfile("FROM busybox", "ADD "+repo.URL+" /src", "ADD --keep-git-dir "+repo.URL+" /all").write(t)
	r := c.tryDeploy("closed", dir, "--buildkit")
	if r.code() != exitUser || r.Error == nil || r.Error.Code != "fetch_failed" || !strings.Contains(r.Error.Hint, "GIT_AUTH_TOKEN") {
		t.Errorf("without the secret: exit code %d, %+v", r.code(), r.Error)
	}
	done := c.deploy("closed", dir, "--buildkit", "--build-secret", "GIT_AUTH_TOKEN="+token, "--provenance=max")
	d.hidden(c, done.BuildID, token)
	d.hidden(c, done.BuildID, strings.TrimPrefix(header, "Basic "))
}

// An image for several platforms is an index of one for each.
func TestBuildKitPlatforms(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := dockerfile("FROM scratch", "ARG TARGETARCH", "COPY bin-$TARGETARCH /bin/program").and("bin-amd64", "amd").and("bin-arm64", "arm").write(t)
	r := c.deploy("many", dir, "--buildkit", "--platform", "linux/amd64,linux/arm64")
	index, err := remote.Index(d.reference(strings.TrimPrefix(r.Image, d.http+"/")), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 2 {
		t.Fatalf("%d manifests, %v", len(m.Manifests), err)
	}
	for _, desc := range m.Manifests {
		image, err := index.Image(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.TrimSuffix(desc.Platform.Architecture, "64")
		if got := stat(t, unpack(t, image), "bin/program"); got != want {
			t.Errorf("the program for %s is %q", desc.Platform, got)
		}
	}
	// The classic pipeline has one platform, and says who has more.
	refused := c.deployFails(exitUser, "not_supported", "many", dir, "--platform", "linux/amd64,linux/arm64")
	if !strings.Contains(refused.Error.Hint, "--buildkit") {
		t.Errorf("hint %q", refused.Error.Hint)
	}
}

// What one pipeline has of a base image, the other does not pull.
func TestBuildKitSharesBases(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t)
	dir := dockerfile("FROM busybox", "RUN echo shared > /f").write(t)
	for i, args := range [][]string{{"--buildkit"}, nil} {
		app := fmt.Sprint("base", i)
		first := c.deploy(app, dir, args...)
		if !slices.ContainsFunc(first.events(), func(e event) bool { return e.Type == "pull" }) {
			t.Errorf("%v tells of no pull", args)
		}
		other := []string{"--buildkit"}
		if i == 0 {
			other = nil
		}
		r := c.deploy(app, dir, other...)
		for _, e := range r.events() {
			if e.Type == "pull" {
				t.Errorf("%v after %v pulls the base image", other, args)
				break
			}
		}
		if r := c.slipway("cache", "prune", "--all"); r.code() != exitDone {
			t.Fatal(r.text())
		}
	}
	var usage struct {
		Kinds []struct {
			Kind  string `json:"kind"`
			Bytes int64  `json:"bytes"`
			Count int64  `json:"count"`
		} `json:"kinds"`
	}
	c.slipway("cache", "usage", "--json").value(&usage)
	for _, k := range usage.Kinds {
		if k.Kind == "buildkit" && k.Count > 0 {
			t.Errorf("after a prune of all, BuildKit keeps %d records of %d bytes", k.Count, k.Bytes)
		}
	}
}

// What a step takes away from the image below it makes room for what it writes.
func TestBuildKitCreditsRewrites(t *testing.T) {
	t.Parallel()
	_, c := startWithBusybox(t, "--max-rootfs", "50MB")
	dir := dockerfile("FROM busybox", "RUN head -c 35000000 /dev/zero > /a", "RUN sleep 1; chmod 700 /a; sleep 1", "RUN rm /a && head -c 35000000 /dev/zero > /b; sleep 1").write(t)
	if r := c.deploy("rewrite", dir, "--buildkit"); r.RootFS > 40*megabyte {
		t.Errorf("the image takes %d bytes", r.RootFS)
	}
}

// A scanner, which is an image, is run over what was built, and what it finds
// goes with the image (BuildKit's protocol for SBOM scanners).
func TestBuildKitScans(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	scanner := c.deploy("scanner", tree{
		"Dockerfile": "FROM busybox\nCOPY scan /scan\nENTRYPOINT [\"/bin/sh\", \"/scan\"]\n",
		"scan": `set -e
found=$(cd "$BUILDKIT_SCAN_SOURCE" && ls made)
printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"name":"%s"}}' "$found" > "$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
`,
	}.write(t), "--image-label", "v1")
	r := c.deploy("scanned", dockerfile("FROM busybox", "RUN echo made > /made").write(t), "--buildkit", "--sbom=generator="+scanner.Image)
	index, err := remote.Index(d.reference(strings.TrimPrefix(r.Image, d.http+"/")), d.auth())
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 2 {
		t.Fatalf("%+v, %v", manifest, err)
	}
	attestation, err := index.Image(manifest.Manifests[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := attestation.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var statement struct {
		PredicateType string `json:"predicateType"`
		Subject       []struct{ Digest map[string]string }
		Predicate     struct{ Name string }
	}
	if err := json.NewDecoder(content).Decode(&statement); err != nil {
		t.Fatal(err)
	}
	subject := "sha256:"
	if len(statement.Subject) > 0 {
		subject += statement.Subject[0].Digest["sha256"]
	}
	if statement.PredicateType != "https://spdx.dev/Document" || statement.Predicate.Name != "made" || subject != manifest.Manifests[0].Digest.String() {
		t.Errorf("attested %+v of %s", statement, manifest.Manifests[0].Digest)
	}
}
