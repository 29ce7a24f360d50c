package classic_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
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
	Layers     [][]node
	Tree       map[string]node
	Deleted    []string
}

// A difference is one that Slipway has on purpose.
type difference struct {
	why string

	skip []string         // sources of steps that are not there
	more map[int][]string // by step of the case: sources of steps that come in addition
	errs map[int]string   // by step of the case: the message instead, "" for none
	miss map[int]string   // by step: a source that is cached instead, or not
	rc   map[int]int

	config func(want map[string]any) // rewrites what is expected
	node   func(want *node)
}

var differences = map[string][]difference{
	"02-stages-by-name-and-index": {{
		why:  "a stage that the target does not need is not built",
		skip: []string{"FROM fid/base:1 as unused", "RUN echo side-effect > /unused.txt"},
	}},
	"04-unneeded-stage-fails": {{
		why:  "a stage that the target does not need is not built, so that it cannot fail",
		rc:   map[int]int{0: 0},
		skip: []string{"FROM fid/base:1 AS broken", "RUN echo before; exit 3"},
		more: map[int][]string{0: {"FROM fid/base:1", "RUN echo never > /n"}},
		errs: map[int]string{0: ""},
	}},
	"12-file-dir-conflicts": {{
		why: "the engine's own paths are left out of messages",
		errs: map[int]string{
			0: "COPY failed: mkdir /plain: not a directory",
			1: "COPY failed: mkdir /plain: not a directory",
			2: "COPY failed: mkdir /plain: not a directory",
		},
	}},
	"14-chown": {{
		why: "the engine's own paths are left out of messages",
		errs: map[int]string{
			3: "unable to convert uid/gid chown string to host mapping: can't find uid for user root: open /etc/passwd: no such file or directory",
		},
	}},
	"18-dockerignore-star": {{
		why: "a directory of which only some files are let in keeps its own time",
		node: func(want *node) {
			if want.Path == "/ctx/dir" || want.Path == "/ctx/dir/inner" {
				want.MTime = "1700000000"
			}
		},
	}},
	"20-arg-scope": {{
		why:  "a --build-arg without a value that is not set where the client is does not travel, so that it cannot be warned of",
		errs: map[int]string{0: "[Warning] One or more build-args [UNUSED] were not consumed"},
	}},
	"34-expose-stopsignal-health": {{
		why: "HEALTHCHECK fields left out are not inherited",
		config: func(want map[string]any) {
			health(want)["Healthcheck"] = map[string]any{"Test": []any{"CMD-SHELL", "true"}}
		},
	}},
	"48-base-with-config": {{
		why: "HEALTHCHECK fields left out are not inherited from the parent image",
		config: func(want map[string]any) {
			health(want)["Healthcheck"] = map[string]any{"Test": []any{"CMD-SHELL", "child-check"}, "Timeout": 2e9}
		},
	}},
	"38-add-url": {{
		why:  "another file server, with shorter texts",
		errs: map[int]string{0: "ADD failed: failed to GET http://127.0.0.1:<port>/missing with status 404 Not Found: Nothing matches the given URI."},
	}},
	"40-scratch-run": {{
		why:  "messages have no engine's chain of callers around them",
		errs: map[int]string{1: "unable to start container process: exec: \"/bin/sh\": stat /bin/sh: no such file or directory"},
	}},
	"42-parser": {{
		why:  "ARGs before the first FROM are looked at while the build is planned, and the message says what is missing",
		errs: map[int]string{8: "the Dockerfile (Dockerfile.argonly) has no build stage"},
	}},
}

func health(config map[string]any) map[string]any { return config["config"].(map[string]any) }

func TestCases(t *testing.T) {
	w := newWorld(t)
	dirs, err := filepath.Glob("testdata/cases/[0-9]*")
	if err != nil || len(dirs) < 23 {
		t.Fatalf("%d cases (%v), want 23", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { newCaseRun(t, w.on(t), dir).run() })
	}
}

// A caseRun is one case under way.
type caseRun struct {
	*testing.T
	world *world
	name  string
	dir   string // of the test's data
	fidelityCase
	want    expectation
	context string
	www     string
	port    string
	host    string
	last    *outcome
	seen    map[string]string // what a post step keeps
}

func newCaseRun(t *testing.T, w *world, dir string) *caseRun {
	c := &caseRun{T: t, world: w, name: filepath.Base(dir), dir: dir, context: t.TempDir(), www: t.TempDir(), seen: map[string]string{}}
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
		c.image(c.last.pull())
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
	start := &slipwayv1.Start{
		Dockerfile: &slipwayv1.Dockerfile{Name: file, Content: content},
		Targets:    []string{registryHost + "/fid/" + c.name + ":latest"},
	}
	if step.Tag != "" {
		start.Targets = []string{registryHost + "/" + step.Tag}
	}
	c.arguments(start, step.Args)
	c.last = c.world.build(c.Context(), request{org: c.name, dir: c.context, start: start})

	want := c.want.Steps[i]
	if got := c.last.exitCode(); got != c.exitCode(i, want.RC) {
		c.Errorf("step %d (%s): exit code %d, want %d: %v", i+1, file, got, want.RC, c.last.Error)
	}
	c.output(i, content, want.Output)
	if step.Post != "" && c.last.Error == nil {
		got := c.after(step.Post)
		if wanted := strings.TrimRight(strings.Join(want.Post, "\n"), "\n"); got != wanted {
			c.Errorf("step %d, afterwards: %q, want %q", i+1, got, wanted)
		}
	}
}

// arguments reads the docker command line's.
func (c *caseRun) arguments(start *slipwayv1.Start, args []string) {
	start.BuildArgs, start.Labels = map[string]string{}, map[string]string{}
	for i := 0; i < len(args); i++ {
		if args[i] == "--no-cache" {
			start.NoCache = true
			continue
		}
		name, value, ok := strings.Cut(strings.ReplaceAll(args[i+1], "$PORT", c.port), "=")
		switch {
		case args[i] == "--build-arg" && ok:
			start.BuildArgs[name] = value
		case args[i] == "--build-arg": // not set where the client is: not sent
		case args[i] == "--label":
			start.Labels[name] = value
		default:
			c.Fatalf("argument %s", args[i])
		}
		i++
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

// A transcript is what a build said, in the order of its Dockerfile.
type transcript struct {
	steps []transcriptStep
	end   []string // messages after the last step
}

type transcriptStep struct {
	source string
	cached bool
	output string
}

var (
	stepLine = regexp.MustCompile(`^Step \d+/\d+ : (.*)$`)
	noise    = regexp.MustCompile(`^( ---> |Successfully |$|\[WARNING\]|DEPRECATED)`)
)

// expected reads the engine's output.
func (c *caseRun) expected(content []byte, lines []string) transcript {
	var out transcript
	failed := len(lines) > 1 && !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "Successfully built") })
	var text []string
	var last []string
	flush := func() {
		if n := len(out.steps); n > 0 {
			out.steps[n-1].output = strings.Join(text, "\n")
		} else {
			last = append(last, text...)
		}
		text = nil
	}
	for _, line := range lines {
		switch m := stepLine.FindStringSubmatch(line); {
		case m != nil:
			flush()
			out.steps = append(out.steps, transcriptStep{source: m[1]})
		case line == " ---> Using cache":
			out.steps[len(out.steps)-1].cached = true
		case strings.HasPrefix(line, "[Warning] "):
			out.end = append(out.end, line)
		case !noise.MatchString(line):
			text = append(text, line)
		}
	}
	if failed {
		n := len(text)
		cut := 0
		if len(out.steps) > 0 {
			cut = errorStart(out.steps[len(out.steps)-1].source, text)
		}
		out.end = append(out.end, strings.Join(text[cut:n], "\n"))
		text = text[:cut]
	}
	flush()
	out.end = append(out.end, last...)
	meta := metaArgs(content)
	out.steps = out.steps[min(meta, len(out.steps)):]
	for _, d := range differences[c.name] {
		out.steps = slices.DeleteFunc(out.steps, func(s transcriptStep) bool { return slices.Contains(d.skip, s.source) })
	}
	return out
}

// errorStart tells a failed step's output from the message.
func errorStart(source string, text []string) int {
	for i, line := range text {
		if strings.HasPrefix(line, "The command '") || !strings.HasPrefix(source, "RUN") {
			return i
		}
	}
	return max(0, len(text)-1)
}

// metaArgs counts the ARGs before the first FROM: the classic builder has
// them as steps, Slipway looks at them while it plans.
func metaArgs(content []byte) int {
	parsed, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return 0
	}
	n := 0
	for _, child := range parsed.AST.Children {
		if !strings.EqualFold(child.Value, "arg") {
			break
		}
		n++
	}
	return n
}

// said reads the build's events.
func (c *caseRun) said(o *outcome) transcript {
	var out transcript
	at := map[uint32]int{}
	for _, e := range o.events {
		switch e := e.Event.(type) {
		case *slipwayv1.Event_Plan:
			for _, s := range e.Plan.Steps {
				at[s.Step] = len(out.steps)
				out.steps = append(out.steps, transcriptStep{source: s.Source})
			}
		case *slipwayv1.Event_StepLog:
			out.steps[at[e.StepLog.Step]].output += string(e.StepLog.Data)
		case *slipwayv1.Event_StepDone:
			s := &out.steps[at[e.StepDone.Step]]
			s.cached = e.StepDone.Cached && !isFrom(s.source)
			s.output = strings.Trim(s.output, "\n")
		case *slipwayv1.Event_Warning:
			if e.Warning.Line == 0 {
				out.end = append(out.end, "[Warning] "+e.Warning.Message)
			}
		}
	}
	started := map[uint32]bool{}
	for _, e := range o.events {
		if s := e.GetStepStarted(); s != nil {
			started[s.Step] = true
		}
	}
	if o.Error != nil {
		// The plan names steps that a failed build never came to.
		kept := out.steps[:0]
		for i, s := range out.steps {
			if started[uint32(i+1)] {
				kept = append(kept, s)
			}
		}
		out.steps = kept
		out.end = append(out.end, o.Error.Message)
	}
	return out
}

func isFrom(source string) bool {
	return len(source) > 4 && strings.EqualFold(source[:5], "from ")
}

// hashed is what a COPY or ADD has copied: our hashes are of other fields.
var hashed = regexp.MustCompile(`\b((?:file|dir|multi):|ADD (?:--chown=\S+ )?)[0-9a-f]{64}\b`)

func (c *caseRun) output(i int, content []byte, lines []string) {
	want, got := c.expected(content, lines), c.said(c.last)
	for _, d := range differences[c.name] {
		if message, ok := d.errs[i]; ok {
			want.end = nil
			if message != "" {
				want.end = []string{message}
			}
		}
		for _, source := range d.more[i] {
			want.steps = append(want.steps, transcriptStep{source: source})
		}
		if source, ok := d.miss[i]; ok {
			for k := range want.steps {
				if want.steps[k].source == source {
					want.steps[k].cached = !want.steps[k].cached
				}
			}
		}
	}
	for k := range max(len(want.steps), len(got.steps)) {
		var w, g transcriptStep
		if k < len(want.steps) {
			w = want.steps[k]
		}
		if k < len(got.steps) {
			g = got.steps[k]
		}
		if w != g {
			c.Errorf("step %d of the case, step %d:\n got %+v\nwant %+v", i+1, k+1, g, w)
		}
	}
	for k := range want.end {
		want.end[k] = strings.TrimRight(strings.ReplaceAll(strings.TrimPrefix(want.end[k], "Error response from daemon: "), "127.0.0.1:<port>", c.host), "\n")
	}
	if !slices.Equal(got.end, want.end) {
		c.Errorf("step %d of the case ends\n with %q\n want %q", i+1, got.end, want.end)
	}
}

var inspect = regexp.MustCompile(`^docker image inspect -f '([^']*)' \$TAG$`)

// after does what the case does with the image.
func (c *caseRun) after(script string) string {
	img := c.last.pull()
	if m := inspect.FindStringSubmatch(script); m != nil {
		var shown struct {
			Config any
			Author string
		}
		shown.Config, shown.Author = img.config.Config, img.config.Author
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
	content, id := img.tree["/uuid"].SHA256, string(img.raw)
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

// image compares the last step's image.
func (c *caseRun) image(got *image) {
	want := c.want.Image
	rewrite := c.rewrite()
	for _, layer := range want.Layers {
		for i := range layer {
			rewrite(&layer[i])
		}
	}
	for p, n := range want.Tree {
		n.Path = p
		rewrite(&n)
		want.Tree[p] = n
	}
	c.config(got, want)
	if len(got.layers) != want.BaseLayers+len(want.Layers) {
		c.Errorf("%d layers, want %d", len(got.layers), want.BaseLayers+len(want.Layers))
		return
	}
	for i, layer := range want.Layers {
		compareNodes(c.T, fmt.Sprintf("layer %d", i+1), byPath(got.layers[want.BaseLayers+i]), byPath(layer))
	}
	base := map[string]node{}
	if want.BaseLayers > 0 {
		base = c.world.pull("fid/base", "1").tree
	}
	for _, p := range want.Deleted {
		if _, ok := got.tree[p]; ok {
			c.Errorf("%s is not deleted", p)
		}
		delete(base, p)
	}
	tree := maps.Clone(got.tree)
	for p, n := range base {
		if _, changed := want.Tree[p]; !changed && p != "/" {
			want.Tree[p] = n
		}
	}
	delete(tree, "/")
	compareNodes(c.T, "tree", tree, want.Tree)
}

// referenceBusybox is the busybox that the cases were observed with.
const referenceBusybox = "3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6"

// rewrite returns what turns an observed path into the expected one: with this
// machine's busybox, and with what is different on purpose.
func (c *caseRun) rewrite() func(*node) {
	busybox := c.world.pull("fid/base", "1").tree["/bin/busybox"]
	return func(n *node) {
		if n.SHA256 == referenceBusybox {
			n.SHA256, n.Size = busybox.SHA256, busybox.Size
		}
		for _, d := range differences[c.name] {
			if d.node != nil {
				d.node(n)
			}
		}
	}
}

func byPath(nodes []node) map[string]node {
	out := map[string]node{}
	for _, n := range nodes {
		out[n.Path] = n
	}
	return out
}

func compareNodes(t *testing.T, what string, got, want map[string]node) {
	t.Helper()
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if g, w := got[p], want[p]; !reflect.DeepEqual(g, w) {
			t.Errorf("%s: %s\n got %+v\nwant %+v", what, p, g, w)
		}
	}
}

// config compares the config and the history.
func (c *caseRun) config(img *image, want *expectedImage) {
	for _, d := range differences[c.name] {
		if d.config != nil {
			d.config(want.Config)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(img.raw, &got); err != nil {
		c.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339, fmt.Sprint(got["created"])); err != nil || time.Since(at) > recent {
		c.Errorf("created %v (%v)", got["created"], err)
	}
	delete(got, "created")
	delete(got, "rootfs")
	got["n_layers"] = float64(len(img.layers))
	for _, h := range got["history"].([]any) {
		delete(h.(map[string]any), "created")
	}
	g, w := indent(c.T, dropEmpty(got)), indent(c.T, dropEmpty(want.Config))
	if g != w {
		c.Errorf("config\n got %s\nwant %s", g, w)
	}
}

func indent(t *testing.T, v any) string {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return hashed.ReplaceAllString(string(raw), "${1}HASH")
}

// dropEmpty removes fields that say nothing.
func dropEmpty(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			e = dropEmpty(e)
			switch x := e.(type) {
			case nil:
				delete(v, k)
				continue
			case string:
				if x == "" {
					delete(v, k)
					continue
				}
			case bool:
				if !x {
					delete(v, k)
					continue
				}
			case []any:
				if len(x) == 0 {
					delete(v, k)
					continue
				}
			}
			v[k] = e
		}
	case []any:
		for i := range v {
			v[i] = dropEmpty(v[i])
		}
	}
	return v
}
