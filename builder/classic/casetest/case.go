package casetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// A fidelityCase is case.json.
type fidelityCase struct {
	Title string
	Steps []caseStep
	HTTP  bool
}

type caseStep struct {
	Args      []string
	File      string
	Tag       string
	Pre, Post string
	KeepMTime bool `json:"keep_mtime"`
}

// expectation is expected.json.
type expectation struct {
	Steps []struct {
		RC     int
		Output []string
		Post   []string
	}
	Image *expectedImage
}

type expectedImage struct {
	BaseLayers int `json:"base_layers"`
	Config     map[string]any
	Layers     [][]Node
	Tree       map[string]Node
	Deleted    []string
}

// A caseRun is one case under way.
type caseRun struct {
	*testing.T
	builder Builder
	name    string
	dir     string // of the test's data
	fidelityCase
	want    expectation
	context string
	www     string
	port    string
	host    string
	last    *Outcome
	seen    map[string]string // what a post step keeps
}

func newCaseRun(t *testing.T, b Builder, dir string) *caseRun {
	c := &caseRun{T: t, builder: b, name: filepath.Base(dir), dir: dir, context: t.TempDir(), www: t.TempDir(), seen: map[string]string{}}
	c.load("case.json", &c.fidelityCase)
	c.load("expected.json", &c.want)
	c.prepare()
	return c
}

func (c *caseRun) load(name string, into any) {
	c.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, name))
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		c.Fatal(err)
	}
}

// prepare makes the context: what is in ctx, the Dockerfiles, and what
// prepare.sh makes.
func (c *caseRun) prepare() {
	c.Helper()
	if _, err := os.Stat(filepath.Join(c.dir, "ctx")); err == nil {
		c.shell(c.context, `cp -r "$CASE/ctx/." .`)
	}
	c.shell(c.context, `cp "$CASE"/Dockerfile* . && chmod -R u=rwX,go=rX .`)
	if c.HTTP {
		server := httptest.NewServer(http.HandlerFunc(c.serve))
		c.Cleanup(server.Close)
		c.host = strings.TrimPrefix(server.URL, "http://")
		_, c.port, _ = strings.Cut(c.host, ":")
	}
	if _, err := os.Stat(filepath.Join(c.dir, "prepare.sh")); err == nil {
		c.shell(c.context, `. "$CASE/prepare.sh"`)
	}
}

func (c *caseRun) shell(dir, script string) {
	c.Helper()
	abs, err := filepath.Abs(c.dir)
	if err != nil {
		c.Fatal(err)
	}
	cmd := exec.CommandContext(c.Context(), "bash", "-ec", "umask 022; "+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CASE="+abs, "WWW="+c.www, "PORT="+c.port)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// serve is a file server without dates of its own: headers come from a file
// beside each.
func (c *caseRun) serve(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path
	if strings.HasSuffix(name, "/") {
		name += "index"
	}
	data, err := os.ReadFile(filepath.Join(c.www, filepath.Clean("/"+name)))
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, "Nothing matches the given URI.\n")
		return
	}
	headers, _ := os.ReadFile(filepath.Join(c.www, filepath.Clean("/"+name)+".hdr"))
	for _, line := range strings.Split(strings.TrimSpace(string(headers)), "\n") {
		if k, v, ok := strings.Cut(line, ": "); ok {
			w.Header().Set(k, v)
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(data)
}

func (c *caseRun) run() {
	for i, step := range c.Steps {
		if step.Pre != "" {
			c.shell(c.context, step.Pre)
		}
		if !step.KeepMTime {
			c.shell(c.context, "find . -exec touch -h -d @1700000000 {} +")
		}
		c.step(i, step)
		if c.Failed() {
			c.FailNow()
		}
	}
	if c.want.Image != nil {
		c.image(c.builder.Pull(c.T, c.last.Image))
	}
}

// step builds once and compares exit code, output and what is inspected.
func (c *caseRun) step(i int, step caseStep) {
	file := step.File
	if file == "" {
		file = "Dockerfile"
	}
	content, err := os.ReadFile(filepath.Join(c.context, file))
	if err != nil {
		c.Fatal(err)
	}
	args := slices.Clone(step.Args)
	for k := range args {
		args[k] = strings.ReplaceAll(args[k], "$PORT", c.port)
	}
	c.last = c.builder.Build(c.T, Build{Case: c.name, Dir: c.context, File: file, Ref: step.Tag, Args: args})

	want := c.want.Steps[i]
	if got := c.last.ExitCode; got != c.exitCode(i, want.RC) {
		c.Errorf("step %d (%s): exit code %d, want %d: %v", i+1, file, got, want.RC, c.last.Message)
	}
	c.output(i, content, want.Output)
	if step.Post != "" && c.last.Message == "" {
		got := c.after(step.Post)
		if wanted := strings.TrimRight(strings.Join(want.Post, "\n"), "\n"); got != wanted {
			c.Errorf("step %d, afterwards: %q, want %q", i+1, got, wanted)
		}
	}
}

func (c *caseRun) exitCode(step, want int) int {
	for _, d := range differences[c.name] {
		if rc, ok := d.rc[step]; ok {
			return rc
		}
	}
	return want
}

var inspect = regexp.MustCompile(`^docker image inspect -f '([^']*)' \$TAG$`)

// after does what the case does with the image.
func (c *caseRun) after(script string) string {
	img := c.builder.Pull(c.T, c.last.Image)
	if m := inspect.FindStringSubmatch(script); m != nil {
		var shown struct {
			Config dockerspec.DockerOCIImageConfig
			Author string
		}
		if err := json.Unmarshal(img.Config, &shown); err != nil {
			c.Fatal(err)
		}
		tpl := template.Must(template.New("").Funcs(template.FuncMap{"json": func(v any) (string, error) {
			raw, err := json.Marshal(v)
			return string(raw), err
		}}).Parse(m[1]))
		var out strings.Builder
		if err := tpl.Execute(&out, shown); err != nil {
			c.Fatal(err)
		}
		return out.String()
	}
	if c.name != "28-no-cache-and-newest" {
		c.Fatalf("no way to run %q", script)
	}
	content, id := img.Tree["/uuid"].SHA256, string(img.Config)
	var out []string
	switch {
	case strings.Contains(script, "content-of-the-no-cache-build"):
		if content == c.seen["u2"] {
			out = append(out, "content-of-the-no-cache-build")
		}
	case strings.Contains(script, "new-content"):
		if content != c.seen["u1"] {
			out = append(out, "new-content")
		}
		c.seen["u2"] = content
	case strings.Contains(script, "same-content"):
		if content == c.seen["u1"] {
			out = append(out, "same-content")
		}
		if id == c.seen["i1"] {
			out = append(out, "same-id")
		}
	default:
		c.seen["u1"], c.seen["i1"] = content, id
	}
	return strings.Join(out, "\n")
}
