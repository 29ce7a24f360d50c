package progress

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// report says how a build ended.
type report struct {
	w     io.Writer
	style style
	head  Header
	plan  *plan
	tail  bool // show the output of a failed step
}

func (r *report) printf(format string, args ...any) { fmt.Fprintf(r.w, format+"\n", args...) }

func (r *report) print(res *slipwayv1.Result) {
	switch {
	case res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED:
		r.succeeded(res)
	case res.GetStatus() == slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED:
		line := "cancelled on the daemon; no step had finished."
		if kept := r.kept(); kept != "" {
			line = "cancelled on the daemon; " + kept
		}
		r.printf("%s", r.exit(line, client.ExitCancelled))
	case res.GetError() != nil:
		r.failed(client.FromProto(res.GetError()))
	}
}

// kept says how many steps need not run again, "" if it is none.
func (r *report) kept() string {
	switch n, _ := r.plan.kept(); n {
	case 0:
		return ""
	case 1:
		return "1 finished step stays cached."
	default:
		return plural(n, "finished step") + " stay cached."
	}
}

// exit appends the exit code, as every last line of a failure has it.
func (r *report) exit(line string, code int) string {
	return line + r.style.dim(fmt.Sprintf("  exit code %d", code))
}

// row is a line of the success column: mark, name, time, text.
func row(s style, name, took, text string) string {
	line := s.green("✓") + " " + pad(name, 14)
	line += strings.Repeat(" ", max(1, 7-len(took)-max(0, len([]rune(name))-14))) + took
	if text == "" {
		return line
	}
	return line + "   " + text
}

func (r *report) succeeded(res *slipwayv1.Result) {
	if text := pushed(res); text != "" {
		r.printf("%s", row(r.style, "push", millis(res.GetTimings().GetPush()), text))
	}
	if limit := res.GetRootfsLimit(); limit > 0 && (res.GetRootfsBytes() > 0 || res.GetDigest() != "") {
		used, of := gigabytes(res.GetRootfsBytes(), limit)
		share := float64(res.GetRootfsBytes()) / float64(limit)
		r.printf("  rootfs %s of %s %s %.0f %%", used, of, bar(share), share*100)
	}
	for _, h := range r.plan.hints() {
		r.printf("hint: %s", h)
	}
}

// pushed sums the layers up by how they came to be in the registry; "" if
// nothing was pushed.
func pushed(res *slipwayv1.Result) string {
	count := map[slipwayv1.PushOutcome]int{}
	var bytes uint64
	for _, l := range res.GetLayers() {
		count[l.GetPushed()]++
		if l.GetPushed() == slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED {
			bytes += l.GetSize()
		}
	}
	n := len(res.GetLayers())
	switch {
	case n == count[slipwayv1.PushOutcome_PUSH_OUTCOME_UNSPECIFIED]:
		return ""
	case n == count[slipwayv1.PushOutcome_PUSH_OUTCOME_PRESENT]:
		return "all layers present"
	}
	var parts []string
	for _, o := range []struct {
		outcome slipwayv1.PushOutcome
		name    string
	}{
		{slipwayv1.PushOutcome_PUSH_OUTCOME_PRESENT, "present"},
		{slipwayv1.PushOutcome_PUSH_OUTCOME_MOUNTED, "mounted"},
		{slipwayv1.PushOutcome_PUSH_OUTCOME_LINKED, "linked"},
		{slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED, "uploaded"},
	} {
		if c := count[o.outcome]; c > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c, o.name))
		}
	}
	text := plural(n, "layer") + ": " + strings.Join(parts, ", ")
	if bytes > 0 {
		text += " (" + Size(bytes) + ")"
	}
	if early := res.GetEarlyBytes(); early > 0 {
		text += "; " + Size(early) + " had gone up before the build ended"
	}
	return text
}

// Trailer is what follows the image's name on the last line of a success.
func Trailer(res *slipwayv1.Result) string {
	s := "total " + millis(res.GetTimings().GetTotal())
	if v := res.GetReleaseVersion(); v > 0 {
		s = Released(v, res.GetEnvironment()) + "  " + s
	}
	if same := res.GetSameAs(); same != "" {
		s = "(same image as " + same + ")  " + s
	}
	return s
}

// Released says which release was made: "released v12 to production".
func Released(version uint64, environment string) string {
	s := fmt.Sprintf("released v%d", version)
	if environment != "" {
		s += " to " + environment
	}
	return s
}

func (r *report) failed(e *client.Error) {
	st := r.plan.failure()
	if st == nil && e.GetLine() == 0 && e.GetSize() == nil && e.GetExcerpt() == "" {
		r.printf("%s", r.exit(r.style.red("error: ")+oneLine(e), e.ExitCode()))
		return
	}
	if st != nil {
		r.failedStep(st, e)
	}
	if e.GetSize() == nil {
		r.excerpt(e)
	}
	last := "  " + r.style.red("error: ") + indent(e.Error())
	if s := e.GetSize(); s != nil {
		r.printf("%s", last)
		r.size(s)
		last = strings.TrimRight("  Nothing was pushed. "+r.kept(), " ")
		if e.GetHint() != "" {
			r.printf("  hint: %s", indent(e.GetHint()))
		}
	} else if e.GetHint() != "" {
		r.printf("%s", last)
		last = "  hint: " + indent(e.GetHint())
	}
	r.printf("%s", r.exit(last, e.ExitCode()))
}

// WriteFailure says why a build failed that w shows nothing else of.
func WriteFailure(w io.Writer, e *client.Error) {
	(&report{w: w, plan: &plan{}}).failed(e)
}

// ErrorLine returns an error on one line, with its hint and exit code.
func ErrorLine(e *client.Error) string {
	return fmt.Sprintf("error: %s  exit code %d", oneLine(e), e.ExitCode())
}

func oneLine(e *client.Error) string {
	return Join(strings.Join(strings.Fields(e.Error()), " "), strings.Join(strings.Fields(e.GetHint()), " "))
}

func indent(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n         ")
}

func (r *report) failedStep(st *step, e *client.Error) {
	took := time.Duration(st.failed.GetDurationMs()) * time.Millisecond
	how := "failed after " + Duration(took)
	switch {
	case e.GetCode() == client.CodeTooLarge:
		how = "stopped after " + seconds(took)
		if s := e.GetSize(); s != nil {
			_, limit := gigabytes(s.GetTotal(), s.GetLimit())
			how += ": the image would pass " + limit
		}
	case st.failed.GetExitCode() != 0:
		how = fmt.Sprintf("exit code %d after %s", st.failed.GetExitCode(), Duration(took))
	}
	r.printf("%s %s %s   %s", r.style.red("✗"), st.label, pad(clip(st.source, 100), 28), how)
	if !r.tail {
		return
	}
	for _, l := range st.tail {
		r.printf("  %s", l.text)
	}
}

// excerpt shows the Dockerfile around the line of the error.
func (r *report) excerpt(e *client.Error) {
	name := cmp.Or(r.head.Dockerfile, "Dockerfile")
	if name == "-" {
		name = "Dockerfile"
	}
	text := strings.TrimRight(e.GetExcerpt(), "\n")
	if text == "" {
		text = around(r.head.Content, int(e.GetLine()))
	}
	if text == "" {
		if e.GetLine() > 0 {
			r.printf("  %s:%d", name, e.GetLine())
		}
		return
	}
	if e.GetLine() > 0 && !strings.HasPrefix(text, name+":") {
		r.printf("  %s:%d", name, e.GetLine())
	}
	for line := range strings.Lines(emptyEnd.ReplaceAllString(text, "")) {
		r.printf("    %s", strings.TrimRight(line, "\r\n"))
	}
}

// emptyEnd matches a last line of an excerpt that has nothing but its number:
// after the end of most files there is one.
var emptyEnd = regexp.MustCompile(`\n *\d+ \| *$`)

// around returns a line of content with its neighbours, numbered and marked.
func around(content []byte, line int) string {
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	if line < 1 || line > len(lines) || len(content) == 0 {
		return ""
	}
	var b strings.Builder
	for n := max(1, line-1); n <= min(len(lines), line+1); n++ {
		mark := " "
		if n == line {
			mark = ">"
		}
		fmt.Fprintf(&b, "%s %*d | %s\n", mark, len(fmt.Sprint(line+1)), n, clean([]byte(lines[n-1])))
	}
	return b.String()
}

// size shows what fills the image: by line on the left, by path on the right.
func (r *report) size(s *slipwayv1.SizeReport) {
	lines := slices.SortedStableFunc(slices.Values(s.GetLines()), func(a, b *slipwayv1.LineSize) int {
		return cmp.Compare(b.GetBytes(), a.GetBytes())
	})
	paths := largest(s)
	const leftWidth, rightWidth = 38, 48
	r.printf("")
	r.printf("  %s  %s", pad("by Dockerfile line", leftWidth), "largest")
	for i := range max(len(lines), len(paths)) {
		left, right := "", ""
		if i < len(lines) {
			at := "base"
			if n := lines[i].GetLine(); n > 0 {
				at = fmt.Sprint(n)
			}
			left = fmt.Sprintf("%4s  %s %8s", at, pad(clip(lines[i].GetSource(), 22), 22), Size(lines[i].GetBytes()))
		}
		if i < len(paths) {
			right = fmt.Sprintf("%s %8s", pad(clipLeft(paths[i].GetPath(), rightWidth), rightWidth), Size(paths[i].GetBytes()))
		}
		r.printf("%s", strings.TrimRight("  "+pad(left, leftWidth)+"  "+right, " "))
	}
}

// largest merges directories and files, without the directories that hold
// little beside one entry that is listed too.
func largest(s *slipwayv1.SizeReport) []*slipwayv1.PathSize {
	all := slices.Concat(s.GetLargestPaths(), s.GetLargestDirectories())
	slices.SortStableFunc(all, func(a, b *slipwayv1.PathSize) int { return cmp.Compare(b.GetBytes(), a.GetBytes()) })
	var out []*slipwayv1.PathSize
	for _, d := range all {
		prefix := strings.TrimSuffix(d.GetPath(), "/") + "/"
		explained := slices.ContainsFunc(all, func(p *slipwayv1.PathSize) bool {
			return p.GetPath() != d.GetPath() && strings.HasPrefix(p.GetPath(), prefix) && p.GetBytes() >= d.GetBytes()/10*8
		})
		double := slices.ContainsFunc(out, func(p *slipwayv1.PathSize) bool { return p.GetPath() == d.GetPath() })
		if !explained && !double && len(out) < 10 {
			out = append(out, d)
		}
	}
	return out
}

// clipLeft keeps the end of a path, which tells more than its beginning.
func clipLeft(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return "…" + string(r[len(r)-n+1:])
	}
	return s
}
