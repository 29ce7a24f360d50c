package main

import (
	"context"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// simple accepts a build and ends it with a result.
func simple(r *slipwayv1.Result) func(*session) error {
	return func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		return s.say(plan("FROM scratch", "RUN false"), end(r))
	}
}

func TestDeployServesWantsAndAsks(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n", "a": "alpha", "b": strings.Repeat("beta", 1000), "skip": "no", ".dockerignore": "skip\n"})
	var (
		content map[string]string
		cred    *slipwayv1.Credentials
		secret  *slipwayv1.Answer
		unknown *slipwayv1.Answer
	)
	d := startDaemon(t, func(s *session) error {
		entries, err := s.manifest()
		if err != nil {
			return err
		}
		if err := s.accept(); err != nil {
			return err
		}
		index := map[string]uint32{}
		for i, e := range entries {
			index[string(e.GetPath())] = uint32(i)
		}
		got, err := s.content([]uint32{index["a"]}, []uint32{index["b"]})
		if err != nil {
			return err
		}
		content = map[string]string{"a": string(got[1]), "b": string(got[2])}
		if _, ok := index["skip"]; ok {
			content["skip"] = "present"
		}
		a, err := s.ask(&slipwayv1.Ask{Id: 5, Question: &slipwayv1.Ask_Registry{Registry: "registry.example.com"}})
		if err != nil {
			return err
		}
		if a.GetAskId() == 5 {
			cred = a.GetCredentials()
		}
		if secret, err = s.ask(&slipwayv1.Ask{Id: 6, Question: &slipwayv1.Ask_Secret{Secret: "npm"}}); err != nil {
			return err
		}
		if unknown, err = s.ask(&slipwayv1.Ask{Id: 7, Question: &slipwayv1.Ask_Secret{Secret: "other"}}); err != nil {
			return err
		}
		return s.say(end(succeeded()))
	})
	c := newCLI(t, d)
	auth := base64.StdEncoding.EncodeToString([]byte("me:pass"))
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(`{"auths":{"registry.example.com":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(0, "deploy", dir, "--build-secret", "npm=hush", "--build-arg", "A=1", "--label", "x=y", "--label", "empty", "--image-label", "v1", "--compression", "zstd", "--compression-level", "3", "--push-to", "r.example/x", "--push-to", "r.example/y")
	if content["a"] != "alpha" || content["b"] != strings.Repeat("beta", 1000) || content["skip"] != "" {
		t.Errorf("contents that arrived: %d and %d bytes, ignored file %q", len(content["a"]), len(content["b"]), content["skip"])
	}
	if cred.GetUsername() != "me" || cred.GetPassword() != "pass" {
		t.Errorf("credentials: %v", cred)
	}
	if string(secret.GetSecret()) != "hush" || secret.GetAskId() != 6 {
		t.Errorf("secret: %v", secret)
	}
	if unknown.GetNone() == nil {
		t.Errorf("unknown secret was answered by %v", unknown)
	}
	level := int32(3)
	want := &slipwayv1.Start{
		App: "shop", BuildArgs: map[string]string{"A": "1"}, Labels: map[string]string{"x": "y", "empty": ""}, Tag: "v1", Push: true, Release: true,
		Compression: &slipwayv1.Compression{Type: slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD, Level: &level},
		Targets:     []string{"r.example/x", "r.example/y"}, SecretIds: []string{"npm"}, ClientVersion: "test",
		Dockerfile: &slipwayv1.Dockerfile{Name: "Dockerfile", Content: []byte("FROM scratch\nCOPY . /\n")},
		Context:    d.started.GetContext(),
	}
	if !proto.Equal(d.started, want) {
		t.Errorf("start is\n%v, want\n%v", d.started, want)
	}
	if x := d.started.GetContext(); x.GetIgnoreFile() != ".dockerignore" || x.GetIgnorePatterns() != 1 {
		t.Errorf("context info %v", x)
	}
	if got := c.stdout.String(); got != "127.0.0.1:7071/shop:deployment-1@sha256:5c1e\n" {
		t.Errorf("standard output %q", got)
	}
	if strings.Contains(c.stderr.String(), "hush") || strings.Contains(c.stderr.String(), "pass") {
		t.Errorf("a secret is shown:\n%s", c.stderr.String())
	}
}

func TestDeployExitCodes(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nRUN false\n"})
	user, registry, builder, network := slipwayv1.Blame_BLAME_USER, slipwayv1.Blame_BLAME_REGISTRY, slipwayv1.Blame_BLAME_BUILDER, slipwayv1.Blame_BLAME_NETWORK
	for _, tc := range []struct {
		code  string
		blame slipwayv1.Blame
		phase string
		want  int
	}{
		{"internal", builder, "build", 1},
		{"disk_full", builder, "build", 6},
		{"step_failed", user, "build", 2},
		{"dockerfile_invalid", user, "preflight", 2},
		{"base_not_found", user, "preflight", 2},
		{"context_changed", user, "context", 2},
		{"permission_denied", user, "auth", 3},
		{"unauthorized", user, "auth", 3},
		{"too_large", user, "build", 4},
		{"unauthorized", registry, "push", 5},
		{"permission_denied", registry, "preflight", 5},
		{"registry_unavailable", registry, "push", 5},
		{"unavailable", builder, "queue", 6},
		{"busy", builder, "queue", 6},
		{"connection_lost", network, "context", 7},
		{"cancelled", user, "", 130},
	} {
		t.Run(tc.code+"/"+tc.blame.String(), func(t *testing.T) {
			e := &slipwayv1.Error{Code: tc.code, Blame: tc.blame, Phase: tc.phase, Message: "it went wrong", Hint: "mend it"}
			c := newCLI(t, startDaemon(t, simple(failed(e))))
			c.want(tc.want, "deploy", dir, "--json")
			r := c.result()
			got := r["error"].(map[string]any)
			if r["status"] != "failed" || got["code"] != tc.code || got["message"] != "it went wrong" || r["build_id"] != buildID {
				t.Errorf("result %v", r)
			}
			// The same as the status of a call that never became a build.
			c = newCLI(t, startDaemon(t, func(*session) error { return refuse(codes.Unknown, e) }))
			c.want(tc.want, "deploy", dir, "--json")
			if got := c.result()["error"].(map[string]any); got["code"] != tc.code {
				t.Errorf("error %v", got)
			}
		})
	}
}

func TestDeployBareStatuses(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	for code, want := range map[codes.Code]int{
		codes.Unauthenticated: 3, codes.PermissionDenied: 3, codes.InvalidArgument: 2, codes.NotFound: 2, codes.Unimplemented: 2, codes.Unavailable: 7, codes.ResourceExhausted: 1,
	} {
		c := newCLI(t, startDaemon(t, func(*session) error { return status.Error(code, "no") }))
		c.want(want, "deploy", dir, "--json")
		c.result()
	}
}

func TestDeployJSON(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nRUN true\n"})
	d := startDaemon(t, func(s *session) error {
		s.accept()
		s.say(plan("FROM scratch", "RUN true"), done(slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT, 300, "token ok"),
			output(2, "not \xff UTF-8 <&>\n"), stepDone(&slipwayv1.StepDone{Step: 2, DurationMs: 5, RootfsDelta: -3, Miss: "parent"}),
			&slipwayv1.Event{Event: &slipwayv1.Event_Push{Push: &slipwayv1.PushProgress{Digest: "sha256:aa", Outcome: slipwayv1.PushOutcome_PUSH_OUTCOME_MOUNTED}}})
		return s.say(end(succeeded()))
	})
	c := newCLI(t, d)
	c.want(0, "deploy", dir, "-j")
	r := c.result()
	for _, key := range []string{"type", "status", "build_id", "app", "image", "digest", "pipeline", "rootfs_bytes", "uncompressed_bytes", "compressed_bytes", "layers", "context", "timings_ms", "error"} {
		if _, ok := r[key]; !ok {
			t.Errorf("the result has no %s", key)
		}
	}
	if r["status"] != "succeeded" || r["error"] != nil || r["digest"] != "sha256:5c1e" {
		t.Errorf("result %v", r)
	}
	layer := r["layers"].([]any)[0].(map[string]any)
	if layer["pushed"] != "linked" || layer["diff_id"] != "sha256:bb" {
		t.Errorf("layer %v", layer)
	}
	var types []string
	for i, m := range c.lines() {
		types = append(types, m["type"].(string))
		if seq, ok := m["seq"].(float64); m["type"] != "accepted" && (!ok || int(seq) != i) {
			t.Errorf("line %d has number %v", i, m["seq"])
		}
	}
	if want := []string{"accepted", "plan", "phase", "step_log", "step_done", "push", "result"}; !slices.Equal(types, want) {
		t.Errorf("types %v, want %v", types, want)
	}
	if c.stderr.Len() != 0 {
		t.Errorf("standard error: %s", c.stderr.String())
	}
}

func TestDeployRefusesBeforeConnecting(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	for _, args := range [][]string{
		{"deploy", t.TempDir()},
		{"deploy", filepath.Join(dir, "missing")},
		{"deploy", filepath.Join(dir, "Dockerfile")},
		{"deploy", dir, "-f", "nowhere"},
		{"deploy", dir, "--local-only"},
		{"deploy", dir, "--compression", "lzma"},
		{"deploy", dir, "--build-secret", "x"},
		{"deploy", dir, "--build-arg", "=x"},
		{"deploy", dir, "--progress", "loud"},
		{"deploy", dir, "--progress", "tty"},
		{"deploy", dir, "--no-such-flag"},
		{"deploy", dir, "and", "more"},
		{"deploy", dir, "--build-context-warn-size", "big"},
		{"deploy", "--image", "x", "-f", "Dockerfile"},
		{"deploy", dir, "--addr", "127.0.0.1:1", "--tls-ca", "/nowhere"},
		{"deploy", dir, "--addr", "192.0.2.1:7070"}, // plaintext to another machine
	} {
		c := newCLI(t, nil)
		c.want(2, append(args, "--json")...)
		if r := c.result(); r["status"] != "failed" || r["error"].(map[string]any)["blame"] != "user" {
			t.Errorf("%v: %v", args, r)
		}
		c.want(2, args...)
		if c.stdout.Len() != 0 {
			t.Errorf("%v: standard output %q", args, c.stdout.String())
		}
		c.sees(&c.stderr, "error: ", "exit code 2")
	}
	c := newCLI(t, nil)
	delete(c.vars, "SLIPWAY_APP")
	c.want(2, "deploy", dir)
	c.sees(&c.stderr, "which app? Name it", "SLIPWAY_APP")
}

func TestDeployWithoutDaemon(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	c := newCLI(t, nil)
	c.want(6, "deploy", dir, "--addr", "127.0.0.1:1")
	if want := "error: unavailable (builder): no daemon at 127.0.0.1:1 (connection refused). Start one with slipwayd, or set SLIPWAY_ADDR.  exit code 6\n"; c.stderr.String() != want {
		t.Errorf("standard error\n%swant\n%s", c.stderr.String(), want)
	}
	c.want(6, "deploy", dir, "--addr", "127.0.0.1:1", "--json")
	if e := c.result()["error"].(map[string]any); e["code"] != "unavailable" || e["retryable"] != true {
		t.Errorf("error %v", e)
	}
}

func TestDeployDockerfiles(t *testing.T) {
	dir := tree(t, map[string]string{"dockerfile": "FROM lower\n", "sub/Dockerfile.prod": "FROM prod\n"})
	outside := filepath.Join(tree(t, map[string]string{"My.Dockerfile": "FROM outside\n"}), "My.Dockerfile")
	for _, tc := range []struct{ flag, name, content string }{
		{"", "dockerfile", "FROM lower\n"},
		{"sub/Dockerfile.prod", "sub/Dockerfile.prod", "FROM prod\n"},
		{outside, filepath.ToSlash(outside), "FROM outside\n"},
		{"-", "-", "FROM stdin\n"},
	} {
		d := startDaemon(t, simple(succeeded()))
		c := newCLI(t, d)
		c.stdin = "FROM stdin\n"
		c.want(0, "deploy", dir, "-f", tc.flag)
		if got := d.started.GetDockerfile(); got.GetName() != tc.name || string(got.GetContent()) != tc.content {
			t.Errorf("-f %q: %v", tc.flag, got)
		}
	}
}

func TestDeployWarnsAboutSizeFirst(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", "data/train": strings.Repeat("x", 5000), "a": "small"})
	var asked atomic.Bool
	d := startDaemon(t, func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		if _, err := s.manifest(); err != nil {
			return err
		}
		asked.Store(true)
		if _, err := s.content([]uint32{0}); err != nil {
			return err
		}
		return s.say(plan("FROM scratch"), end(succeeded()))
	})
	c := newCLI(t, d)
	c.wrote = func(line string) {
		if asked.Load() && strings.Contains(line, "the context holds") {
			t.Error("the warning came after contents had been asked for")
		}
	}
	c.want(0, "deploy", dir, "--build-context-warn-size", "4kB")
	c.sees(&c.stderr, "the context holds 5 kB in 3 files", "data/train", "data/\n", ".dockerignore")
	asked.Store(false)
	c.want(0, "deploy", dir)
	if strings.Contains(c.stderr.String(), "the context holds") {
		t.Error("a small context was warned about")
	}
}

// What the client finds wrong with the context, while the daemon builds
// already, ends the build there and is what the user hears.
func TestDeployGivesUp(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n"})
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var cancelled atomic.Bool
	d := startDaemon(t, func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		cancelled.Store(m.GetCancel() != nil)
		return s.say(end(failed(&slipwayv1.Error{Code: "cancelled", Blame: slipwayv1.Blame_BLAME_USER, Message: "cancelled"})))
	})
	c := newCLI(t, d)
	c.want(2, "deploy", dir, "--json")
	if e := c.result()["error"].(map[string]any); e["code"] != "context_unsupported" || !strings.Contains(e["message"].(string), "agent.sock") {
		t.Errorf("error %v", e)
	}
	if !cancelled.Load() {
		t.Error("the daemon was not told")
	}
}

func TestDeployCancel(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	ctx, interrupt := context.WithCancel(t.Context())
	d := startDaemon(t, func(s *session) error {
		if _, err := s.manifest(); err != nil {
			return err
		}
		s.accept()
		s.say(plan("FROM scratch", "RUN sleep"), stepDone(&slipwayv1.StepDone{Step: 1}))
		interrupt()
		m, err := s.stream.Recv()
		if err != nil || m.GetCancel() == nil {
			return status.Errorf(codes.Internal, "got %v, %v instead of a cancel", m, err)
		}
		return s.say(end(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED, BuildId: buildID}))
	})
	c := newCLI(t, d)
	c.ctx = ctx
	c.want(130, "deploy", dir)
	c.sees(&c.stderr, "cancelled on the daemon; 1 finished step stays cached.  exit code 130")
}

func TestDeployCancelOfABusyStream(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	ctx, interrupt := context.WithCancel(t.Context())
	d := startDaemon(t, nil)
	d.build = func(s *session) error {
		s.accept()
		interrupt() // and never read again: the message of the stream is not heard
		<-d.cancelled
		return s.say(end(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED, BuildId: buildID}))
	}
	c := newCLI(t, d)
	c.ctx, c.env.cancelWait = ctx, 30*time.Millisecond
	c.want(130, "deploy", dir, "--json")
	if e := c.result()["error"].(map[string]any); e["code"] != "cancelled" {
		t.Errorf("error %v", e)
	}
}

func TestDeployCancelOfADeafDaemon(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	ctx, interrupt := context.WithCancel(t.Context())
	d := startDaemon(t, func(s *session) error {
		s.accept()
		interrupt()
		<-s.stream.Context().Done()
		return nil
	})
	c := newCLI(t, d)
	c.ctx, c.env.cancelWait = ctx, 30*time.Millisecond
	c.want(130, "deploy", dir)
	c.sees(&c.stderr, "has not said yet how the build ended", "exit code 130")
}

func TestDeployReconnects(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nRUN false\n"})
	d := startDaemon(t, nil)
	d.build = func(s *session) error {
		if _, err := s.manifest(); err != nil {
			return err
		}
		s.accept()
		s.say(plan("FROM scratch", "RUN false"), output(2, "before\n"))
		if err := s.heard(); err != nil {
			return err
		}
		d.lis.cut()
		<-s.stream.Context().Done()
		d.record(output(2, "meanwhile\n"))
		d.record(stepDone(&slipwayv1.StepDone{Step: 2, Error: "exit", ExitCode: 7, DurationMs: 8400}))
		d.record(end(failed(stepFailed)))
		return nil
	}
	c := newCLI(t, d)
	c.want(2, "deploy", dir, "--json")
	r := c.result()
	var types []string
	var seqs []float64
	for _, m := range c.lines() {
		types = append(types, m["type"].(string))
		if seq, ok := m["seq"].(float64); ok {
			seqs = append(seqs, seq)
		}
	}
	if !slices.Contains(types, "connection_lost") || !slices.Contains(types, "reconnected") || !slices.Equal(seqs, []float64{1, 2, 3, 4, 5}) {
		t.Errorf("types %v, numbers %v", types, seqs)
	}
	if hint := r["error"].(map[string]any)["hint"]; !strings.Contains(hint.(string), "Run the same command again") {
		t.Errorf("hint %q", hint)
	}
	if d.builds != 1 {
		t.Errorf("the build ran %d times", d.builds)
	}
}

func TestDeployGivesUpReconnecting(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	d := startDaemon(t, nil)
	d.build = func(s *session) error {
		if _, err := s.manifest(); err != nil {
			return err
		}
		s.accept()
		s.say(plan("FROM scratch"))
		if err := s.heard(); err != nil {
			return err
		}
		d.lis.Close()
		d.lis.cut()
		return nil
	}
	c := newCLI(t, d)
	c.env.reattach = 200 * time.Millisecond
	c.want(7, "deploy", dir)
	c.sees(&c.stderr, "connection lost; the build goes on", "connection_lost (network)", "slipway builds attach "+buildID, "exit code 7")
	if d.builds != 1 {
		t.Errorf("the build ran %d times", d.builds)
	}
}

func TestDeployDetach(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	left := make(chan struct{})
	d := startDaemon(t, func(s *session) error {
		s.accept()
		s.say(done(slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT, 1, ""), done(slipwayv1.PhaseName_PHASE_NAME_CONTEXT, 1, ""))
		<-s.stream.Context().Done()
		left <- struct{}{}
		return nil
	})
	c := newCLI(t, d)
	c.want(0, "deploy", dir, "--detach")
	<-left
	if c.stdout.String() != buildID+"\n" || !d.started.GetDetach() {
		t.Errorf("standard output %q, start %v", c.stdout.String(), d.started)
	}
	c.want(0, "deploy", dir, "--detach", "--json")
	<-left
	if r := c.result(); r["status"] != "detached" || r["build_id"] != buildID || r["error"] != nil {
		t.Errorf("result %v", r)
	}
}

func TestDeployPrebuilt(t *testing.T) {
	d := startDaemon(t, simple(succeeded()))
	c := newCLI(t, d)
	c.want(0, "deploy", "--image", "docker.io/library/nginx:1", "--build-only", "--push")
	if s := d.started; s.GetPipeline() != slipwayv1.Pipeline_PIPELINE_PREBUILT || s.GetImage() == "" || s.GetDockerfile() != nil || s.GetRelease() || !s.GetPush() {
		t.Errorf("start %v", s)
	}
}

func TestDeployFileVanishes(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", "gone": "here for now"})
	d := startDaemon(t, func(s *session) error {
		entries, err := s.manifest()
		if err != nil {
			return err
		}
		s.accept()
		for i, e := range entries {
			if string(e.GetPath()) == "gone" {
				os.Remove(filepath.Join(dir, "gone"))
				_, err = s.content([]uint32{uint32(i)})
			}
		}
		return err
	})
	c := newCLI(t, d)
	c.want(2, "deploy", dir)
	c.sees(&c.stderr, "context_changed (user)", "gone")
}

func TestDeployShowsFailure(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nRUN false\nCMD x\n"})
	d := startDaemon(t, func(s *session) error {
		s.accept()
		return s.say(plan("FROM scratch", "RUN false", "CMD x"), output(2, "boom\n"),
			stepDone(&slipwayv1.StepDone{Step: 2, Error: "exit code 7", ExitCode: 7, DurationMs: 8400}), end(failed(stepFailed)))
	})
	c := newCLI(t, d)
	c.want(2, "deploy", dir, "--progress", "none")
	want := `✗ [2/3] RUN false                      exit code 7 after 8.4s
  boom
  Dockerfile:2
      1 | FROM scratch
    > 2 | RUN false
      3 | CMD x
  error: step_failed (user): RUN false returned exit code 7  exit code 2
`
	if c.stderr.String() != want {
		t.Errorf("standard error\n%s\nwant\n%s", c.stderr.String(), want)
	}
}
