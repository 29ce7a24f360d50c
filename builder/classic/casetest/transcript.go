package casetest

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

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

// said is what the build did and said.
func said(o *Outcome) transcript {
	out := transcript{end: slices.Clone(o.Warnings)}
	for i := range out.end {
		out.end[i] = "[Warning] " + out.end[i]
	}
	for _, s := range o.Steps {
		// The plan names steps that a failed build never came to.
		if o.Message == "" || s.Started {
			out.steps = append(out.steps, transcriptStep{s.Source, s.Cached && !isFrom(s.Source), strings.Trim(s.Output, "\n")})
		}
	}
	if o.Message != "" {
		out.end = append(out.end, o.Message)
	}
	return out
}

func isFrom(source string) bool {
	return len(source) > 4 && strings.EqualFold(source[:5], "from ")
}

func (c *caseRun) output(i int, content []byte, lines []string) {
	want, got := c.expected(content, lines), said(c.last)
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
