package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Exit codes of slipway, as its users' scripts know them.
const (
	exitDone        = 0
	exitUser        = 2
	exitAuth        = 3
	exitTooLarge    = 4
	exitRegistry    = 5
	exitUnavailable = 6
	exitNetwork     = 7
	exitCancelled   = 130
)

// patience is how long a run of slipway may take.
const patience = 3 * time.Minute

// A client runs the slipway command as one user does.
type client struct {
	t      testing.TB
	daemon *daemon
	home   string
	env    []string
}

// client returns a user of d with the admin's token.
func (d *daemon) client() *client {
	home := d.t.(interface{ TempDir() string }).TempDir()
	return &client{t: d.t, daemon: d, home: home, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "DOCKER_CONFIG=" + filepath.Join(home, ".docker"),
		"SLIPWAY_ADDR=" + d.grpc, "SLIPWAY_API_TOKEN=" + d.token,
	}}
}

// with returns the same user with more in the environment.
func (c *client) with(env ...string) *client {
	with := *c
	with.env = append(append([]string{}, c.env...), env...)
	return &with
}

// A call is one run of slipway.
type call struct {
	t      testing.TB
	daemon *daemon
	cmd    *exec.Cmd
	stdout output
	stderr output
	ended  chan struct{}
}

// start runs slipway without waiting for it.
func (c *client) start(args ...string) *call { c.t.Helper(); return c.startWith(nil, args...) }

// startWith is start with an input.
func (c *client) startWith(stdin io.Reader, args ...string) *call {
	c.t.Helper()
	r := &call{t: c.t, daemon: c.daemon, cmd: exec.Command(filepath.Join(bin, "slipway"), args...), ended: make(chan struct{})}
	r.cmd.Env = c.env
	r.cmd.Dir = c.home
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = stdin, &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	c.t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.ended
	})
	return r
}

// slipway runs slipway to its end.
func (c *client) slipway(args ...string) *call {
	c.t.Helper()
	r := c.start(args...)
	r.wait(patience)
	return r
}

// wait returns the exit code.
func (r *call) wait(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(limit):
		_ = r.cmd.Process.Signal(syscall.SIGQUIT)
		<-r.ended
		r.daemon.dump()
		r.t.Fatalf("slipway %s did not end within %v\n%s\nlog of the daemon:\n%s", strings.Join(r.cmd.Args[1:], " "), limit, r.text(), r.daemon.log)
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *call) code() int { return r.cmd.ProcessState.ExitCode() }

func (r *call) text() string { return r.stdout.String() + r.stderr.String() }

func (r *call) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.t.Fatal(err)
	}
}

// value decodes the one JSON value that a command printed.
func (r *call) value(v any) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.stdout.String()), v); err != nil {
		r.t.Fatalf("slipway %s: %v\n%s", strings.Join(r.cmd.Args[1:], " "), err, r.text())
	}
}

// A result is the last line of a deploy with --json.
type result struct {
	Type              string `json:"type"`
	Status            string `json:"status"`
	BuildID           string `json:"build_id"`
	App               string `json:"app"`
	Image             string `json:"image"`
	Digest            string `json:"digest"`
	Pipeline          string `json:"pipeline"`
	RootFS            int64  `json:"rootfs_bytes"`
	RootFSLimit       int64  `json:"rootfs_limit"`
	UncompressedBytes int64  `json:"uncompressed_bytes"`
	CompressedBytes   int64  `json:"compressed_bytes"`
	Steps             int    `json:"steps"`
	Cached            int    `json:"cached_steps"`
	WireBytes         int64  `json:"wire_bytes"`
	EarlyBytes        int64  `json:"early_bytes"`
	SameAs            string `json:"same_as"`
	Release           *struct {
		ID          string `json:"id"`
		Version     int    `json:"version"`
		Environment string `json:"environment"`
	} `json:"release"`
	Layers  []layer `json:"layers"`
	Context struct {
		Files     int   `json:"files"`
		Bytes     int64 `json:"bytes"`
		SentFiles int   `json:"sent_files"`
		SentBytes int64 `json:"sent_bytes"`
	} `json:"context"`
	Timings map[string]int64 `json:"timings_ms"`
	Error   *failure         `json:"error"`
}

type layer struct {
	Digest       string `json:"digest"`
	DiffID       string `json:"diff_id"`
	Size         int64  `json:"size"`
	Uncompressed int64  `json:"uncompressed"`
	CreatedBy    string `json:"created_by"`
	Cached       bool   `json:"cached"`
	Pushed       string `json:"pushed"`
	MediaType    string `json:"media_type"`
}

type failure struct {
	Code      string `json:"code"`
	Phase     string `json:"phase"`
	Blame     string `json:"blame"`
	Retryable bool   `json:"retryable"`
	Line      int    `json:"line"`
	ExitCode  int    `json:"exit_code"`
	Message   string `json:"message"`
	Hint      string `json:"hint"`
	Excerpt   string `json:"excerpt"`
	Size      *struct {
		Total int64      `json:"total"`
		Limit int64      `json:"limit"`
		Path  string     `json:"path"`
		Paths []pathSize `json:"largest_paths"`
		Lines []struct {
			Line   int    `json:"line"`
			Source string `json:"source"`
			Bytes  int64  `json:"bytes"`
		} `json:"lines"`
	} `json:"size"`
}

type pathSize struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// An event is one JSON line of a deploy, with the fields that tests look at.
type event struct {
	Type        string `json:"type"`
	Seq         uint64 `json:"seq"`
	BuildID     string `json:"build_id"`
	Joined      bool   `json:"joined"`
	Name        string `json:"name"`
	Done        bool   `json:"done"`
	Step        int    `json:"step"`
	Cached      bool   `json:"cached"`
	Miss        string `json:"miss"`
	Data        string `json:"data"`
	Message     string `json:"message"`
	Hint        string `json:"hint"`
	Line        int    `json:"line"`
	Position    int    `json:"position"`
	SentFiles   int    `json:"sent_files"`
	RootFSDelta int64  `json:"rootfs_delta"`
	Steps       plan   `json:"steps"`
}

// A plan lists steps; in a result, "steps" is only their number.
type plan []struct {
	Step   int    `json:"step"`
	Source string `json:"source"`
	Line   int    `json:"line"`
	Stage  string `json:"stage"`
}

func (p *plan) UnmarshalJSON(b []byte) error {
	type steps plan
	if len(b) > 0 && b[0] != '[' {
		return nil
	}
	return json.Unmarshal(b, (*steps)(p))
}

// events decodes the JSON lines there are so far.
func (r *call) events() []event {
	var all []event
	text := r.stdout.String()
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			r.t.Fatalf("standard output has a line that is not JSON: %q", line)
		}
		all = append(all, e)
	}
	return all
}

// log joins what steps have printed so far.
func (r *call) log() string {
	var b strings.Builder
	for _, e := range r.events() {
		if e.Type == "step_log" {
			b.WriteString(e.Data)
		}
	}
	return b.String()
}

// until waits for an event that match accepts.
func (r *call) until(what string, match func(event) bool) event {
	r.t.Helper()
	var found event
	poll(r.t, time.Minute, what, func() bool {
		for _, e := range r.events() {
			if match(e) {
				found = e
				return true
			}
		}
		select {
		case <-r.ended:
			r.t.Fatalf("slipway ended before %s\n%s", what, r.text())
		default:
		}
		return false
	})
	return found
}

// buildID waits until the daemon has given the build an id.
func (r *call) buildID() string {
	r.t.Helper()
	return r.until("the build to be accepted", func(e event) bool { return e.Type == "accepted" }).BuildID
}

// untilLog waits until a step has printed text.
func (r *call) untilLog(text string) {
	r.t.Helper()
	poll(r.t, time.Minute, "the step to print "+text, func() bool {
		select {
		case <-r.ended:
			r.t.Fatalf("slipway ended before a step printed %q\n%s", text, r.text())
		default:
		}
		return strings.Contains(r.log(), text)
	})
}

// result decodes the last line, which must be the only result.
func (r *call) result() *result {
	r.t.Helper()
	lines := bytes.Split(bytes.TrimSpace([]byte(r.stdout.String())), []byte("\n"))
	var res result
	if err := json.Unmarshal(lines[len(lines)-1], &res); err != nil || res.Type != "result" {
		r.t.Fatalf("the last line is no result (%v)\n%s", err, r.text())
	}
	for _, e := range r.events()[:len(lines)-1] {
		if e.Type == "result" {
			r.t.Fatalf("more than one result\n%s", r.text())
		}
	}
	return &res
}

// A deployed is a build that ended.
type deployed struct {
	*call
	*result
}

// deploy builds dir as app and expects success.
func (c *client) deploy(app, dir string, args ...string) *deployed {
	c.t.Helper()
	d := c.tryDeploy(app, dir, args...)
	if d.code() != exitDone || d.Status != "succeeded" || d.Digest == "" || d.Error != nil {
		c.t.Fatalf("deploy failed with exit code %d\n%s", d.code(), d.text())
	}
	return d
}

// deployFails builds dir as app and expects this exit code and error code.
func (c *client) deployFails(exit int, code, app, dir string, args ...string) *deployed {
	c.t.Helper()
	d := c.tryDeploy(app, dir, args...)
	if d.code() != exit || d.Status != "failed" || d.Error == nil || d.Error.Code != code {
		c.t.Fatalf("exit code %d, status %q; want %d, failed with %s\n%s", d.code(), d.Status, exit, code, d.text())
	}
	return d
}

func (c *client) tryDeploy(app, dir string, args ...string) *deployed {
	c.t.Helper()
	r := c.startDeploy(app, dir, args...)
	r.wait(patience)
	return &deployed{r, r.result()}
}

func (c *client) startDeploy(app, dir string, args ...string) *call {
	c.t.Helper()
	return c.start(append([]string{"deploy", dir, "-a", app, "--json"}, args...)...)
}

// A record is a build as builds show tells it.
type record struct {
	ID        string  `json:"id"`
	App       string  `json:"app"`
	Status    string  `json:"status"`
	CreatedBy string  `json:"created_by"`
	Pipeline  string  `json:"pipeline"`
	Result    *result `json:"result"`
}

func (c *client) show(id string) record {
	c.t.Helper()
	var b record
	c.slipway("builds", "show", id, "--json").value(&b)
	return b
}

// untilEnded waits for the record of a build to have a result.
func (c *client) untilEnded(id string, limit time.Duration) record {
	c.t.Helper()
	var b record
	poll(c.t, limit, "build "+id+" to end", func() bool {
		b = c.show(id)
		return b.Status != "queued" && b.Status != "running"
	})
	return b
}
