package progress_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipwayhq/slipway/cmd/slipway/progress"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func event(e any) *slipwayv1.Event {
	ev := &slipwayv1.Event{}
	switch e := e.(type) {
	case *slipwayv1.Phase:
		ev.Event = &slipwayv1.Event_Phase{Phase: e}
	case *slipwayv1.ContextProgress:
		ev.Event = &slipwayv1.Event_Context{Context: e}
	case *slipwayv1.Plan:
		ev.Event = &slipwayv1.Event_Plan{Plan: e}
	case *slipwayv1.StepStarted:
		ev.Event = &slipwayv1.Event_StepStarted{StepStarted: e}
	case *slipwayv1.StepLog:
		ev.Event = &slipwayv1.Event_StepLog{StepLog: e}
	case *slipwayv1.StepDone:
		ev.Event = &slipwayv1.Event_StepDone{StepDone: e}
	case *slipwayv1.PushProgress:
		ev.Event = &slipwayv1.Event_Push{Push: e}
	case *slipwayv1.Warning:
		ev.Event = &slipwayv1.Event_Warning{Warning: e}
	case *slipwayv1.Queued:
		ev.Event = &slipwayv1.Event_Queued{Queued: e}
	case *slipwayv1.Result:
		ev.Event = &slipwayv1.Event_Result{Result: e}
	default:
		panic(e)
	}
	return ev
}

var head = progress.Header{App: "shop", Pipeline: "classic", Dockerfile: "Dockerfile", Content: []byte("FROM a\nCOPY . .\nRUN npm run build\nCMD x\n"), IgnoreFile: ".dockerignore", IgnorePatterns: 14}

func planOf(sources ...string) *slipwayv1.Plan {
	p := &slipwayv1.Plan{Stages: 2}
	for i, s := range sources {
		st := &slipwayv1.PlannedStep{Step: uint32(i), Number: uint32(i + 1), Total: uint32(len(sources)), Source: s, Line: uint32(i + 1)}
		if i == 0 {
			st.Stage = "build"
		}
		p.Steps = append(p.Steps, st)
	}
	return p
}

// show plays events and returns what a log then holds.
func show(o *progress.PlainOptions, res *slipwayv1.Result, events ...any) string {
	var b bytes.Buffer
	p := progress.NewPlain(&b, o)
	p.Begin(head)
	for _, e := range events {
		p.Event(event(e))
	}
	p.Finish(res)
	return b.String()
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func uploaded(size uint64) *slipwayv1.Layer {
	return &slipwayv1.Layer{Size: size, Pushed: slipwayv1.PushOutcome_PUSH_OUTCOME_UPLOADED}
}

func TestPlainCold(t *testing.T) {
	res := &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, RootfsBytes: 240_000_000, RootfsLimit: 8_000_000_000, EarlyBytes: 12_000_000,
		Layers:  []*slipwayv1.Layer{{Pushed: slipwayv1.PushOutcome_PUSH_OUTCOME_MOUNTED}, uploaded(12_000_000), uploaded(100_000)},
		Timings: &slipwayv1.Timings{Push: 400, Total: 38900},
	}
	got := show(nil, res,
		&slipwayv1.Queued{Position: 2},
		planOf("FROM golang:1.26", "RUN go mod download", "RUN go build -o /shop ."),
		&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT, Done: true, DurationMs: 300, Detail: "token deploy:shop (29 days left)"},
		&slipwayv1.ContextProgress{Files: 1204, Bytes: 38_200_000, SentFiles: 1204, SentBytes: 38_200_000, WireBytes: 11_900_000},
		&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT, Done: true, DurationMs: 600},
		&slipwayv1.StepDone{Step: 0, Cached: true},
		&slipwayv1.StepLog{Step: 1, Stream: slipwayv1.LogStream_LOG_STREAM_NOTE, Data: []byte("Step 2/3 : RUN go mod download\n")},
		&slipwayv1.StepLog{Step: 1, Data: []byte("10 %\r50 %\r100 %\ngo: down")},
		&slipwayv1.StepLog{Step: 1, Data: []byte("loading \x1b[31mx\x1b[0m\x1b[2K")},
		&slipwayv1.StepDone{Step: 1, DurationMs: 14200, RootfsDelta: 412_300_000},
		&slipwayv1.StepDone{Step: 2, DurationMs: 102_000, RootfsDelta: -3_000_000, Miss: "parent"},
		&slipwayv1.PushProgress{Digest: "sha256:0123456789abcdef0123", Bytes: 5_000_000, Retries: 1},
		&slipwayv1.Warning{Message: "ARG A is not used", Line: 2, Hint: "leave it out"},
	)
	compare(t, got, `  queue            2 builds first
shop · classic · Dockerfile (3 steps, 2 stages) · ignore: .dockerignore (14 patterns)
✓ preflight        0.3s   token deploy:shop (29 days left)
✓ context          0.6s   1,204 files, 38.2 MB → sent 1,204 files, 11.9 MB
• [build 1/3]    FROM golang:1.26                    cached
  [2/3] | 100 %
  [2/3] | go: downloading x
✓ [2/3]           14.2s   RUN go mod download            +412 MB
✓ [3/3]           1m42s   RUN go build -o /shop .        -3 MB   missed: parent
! push           sha256:0123456789ab… broke after 5.0 MB; going on, retry 1
! Dockerfile:2: ARG A is not used
  hint: leave it out
✓ push             0.4s   3 layers: 1 mounted, 2 uploaded (12.1 MB); 12.0 MB had gone up before the build ended
  rootfs 0.24 of 8 GB ▎░░░░░░░░░ 3 %
`)
}

func TestPlainUnchanged(t *testing.T) {
	res := &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED,
		Layers: []*slipwayv1.Layer{{Pushed: slipwayv1.PushOutcome_PUSH_OUTCOME_PRESENT}},
	}
	compare(t, show(nil, res,
		planOf("FROM a", "COPY . ."),
		&slipwayv1.ContextProgress{Files: 1204, Bytes: 38_200_000},
		&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT, Done: true, DurationMs: 100},
		&slipwayv1.StepDone{Step: 0, Cached: true},
		&slipwayv1.StepDone{Step: 1, Cached: true},
		&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_BUILD, Done: true, DurationMs: 20},
	), `shop · classic · Dockerfile (2 steps, 2 stages) · ignore: .dockerignore (14 patterns)
✓ context          0.1s   1,204 files unchanged → sent 0
✓ build            0.0s   2 of 2 steps cached
✓ push             0.0s   all layers present
`)
}

func contextDone(c *slipwayv1.ContextProgress) []any {
	return []any{c, &slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT, Done: true, DurationMs: 100}}
}

func TestPlainContext(t *testing.T) {
	for want, c := range map[string]*slipwayv1.ContextProgress{
		"no files":                          {},
		"1 file unchanged → sent 0":         {Files: 1, Bytes: 12},
		"12,000 files unchanged → sent 0":   {Files: 12000, Bytes: 716_000_000},
		"2 files, 9 kB → sent 1 file, 1 kB": {Files: 2, Bytes: 9000, WantedFiles: 1, WantedBytes: 5000, SentFiles: 1, SentBytes: 5000, WireBytes: 1000},
		"2 files, 9 kB → sent 0 files, 0 B": {Files: 2, Bytes: 9000, WantedFiles: 1, WantedBytes: 5000},
	} {
		if got := show(nil, nil, contextDone(c)...); !strings.HasSuffix(got, "   "+want+"\n") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// FROM scratch does nothing, and so is never missed.
func TestPlainFromScratch(t *testing.T) {
	res := &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED}
	for from, want := range map[string]string{
		"FROM scratch": "2 of 2 steps cached", "from --platform=linux/arm64 scratch AS build": "2 of 2 steps cached",
		"FROM scratchpad": "✓ [build 1/2]      0.0s   FROM scratchpad", "FROM base AS scratch": "✓ [build 1/2]      0.0s   FROM base AS scratch",
	} {
		got := show(nil, res, planOf(from, "COPY . ."), &slipwayv1.StepDone{Step: 0}, &slipwayv1.StepDone{Step: 1, Cached: true})
		if !strings.Contains(got, want) {
			t.Errorf("%s: no %q in\n%s", from, want, got)
		}
	}
}

func TestPlainSmall(t *testing.T) {
	for used, want := range map[uint64]string{
		512: "512 B of 8 GB", 2_700_000: "2.7 MB of 8 GB", 99_000_000: "99.0 MB of 8 GB", 240_000_000: "0.24 of 8 GB", 7_990_000_000: "7.99 of 8 GB",
	} {
		res := &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED, RootfsBytes: used, RootfsLimit: 8_000_000_000}
		if got := show(nil, res); !strings.HasPrefix(got, "  rootfs "+want+" ") {
			t.Errorf("%d bytes: %q, want %q", used, got, want)
		}
	}
}

func TestExcerptEndsWithTheFile(t *testing.T) {
	for excerpt, want := range map[string]string{
		"  1 | FROM a\n> 2 | RUN x\n  3 | \n":    "  Dockerfile:2\n      1 | FROM a\n    > 2 | RUN x\n  error:",
		"    1 | FROM a\n>   2 | RUN x\n    3 |": "  Dockerfile:2\n        1 | FROM a\n    >   2 | RUN x\n  error:",
		"  1 | \n> 2 | RUN x\n  3 | CMD y\n":     "  Dockerfile:2\n      1 | \n    > 2 | RUN x\n      3 | CMD y\n  error:",
	} {
		res := &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, Error: &slipwayv1.Error{Code: "x", Line: 2, Message: "m", Excerpt: excerpt}}
		if got := show(&progress.PlainOptions{Quiet: true}, res); !strings.HasPrefix(got, want) {
			t.Errorf("%q: got\n%s\nwant\n%s", excerpt, got, want)
		}
	}
}

func TestJoin(t *testing.T) {
	for want, parts := range map[string][2]string{
		"which app? Name it.":         {"which app?", "Name it."},
		"no daemon (x). Start one.":   {"no daemon (x)", "Start one."},
		"no token; give one":          {"no token", "give one"},
		"it is so. Deploy again":      {"it is so.", "Deploy again"},
		"no token. --access-token is": {"no token", "--access-token is"},
		"alone":                       {"alone", ""}, "only": {"", "only"},
	} {
		if got := progress.Join(parts[0], parts[1]); got != want {
			t.Errorf("%q: got %q, want %q", parts, got, want)
		}
	}
}

func TestPlainFailure(t *testing.T) {
	res := &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED,
		Error: &slipwayv1.Error{Code: "step_failed", Blame: slipwayv1.Blame_BLAME_USER, Line: 3, Message: "RUN npm run build returned exit code 2",
			Hint: "slipway builds shell opens a shell where it failed"},
	}
	log := func(step uint32, text string) any { return &slipwayv1.StepLog{Step: step, Data: []byte(text)} }
	fails := &slipwayv1.StepDone{Step: 2, Error: "exit", ExitCode: 2, DurationMs: 8400}
	end := `  Dockerfile:3
      2 | COPY . .
    > 3 | RUN npm run build
      4 | CMD x
  error: step_failed (user): RUN npm run build returned exit code 2
  hint: slipway builds shell opens a shell where it failed  exit code 2
`
	plan := planOf("FROM a", "COPY . .", "RUN npm run build")
	head := "shop · classic · Dockerfile (3 steps, 2 stages) · ignore: .dockerignore (14 patterns)\n"
	cross := "✗ [3/3] RUN npm run build              exit code 2 after 8.4s\n"
	compare(t, show(nil, res, plan, log(2, "error TS2322\n"), fails), head+"  [3/3] | error TS2322\n"+cross+end)
	// What was printed in between makes the output hard to find: it comes again.
	compare(t, show(nil, res, plan, log(2, "error TS2322\n"), log(1, "other\n"), fails),
		head+"  [3/3] | error TS2322\n  [2/3] | other\n"+cross+"  error TS2322\n"+end)
	compare(t, show(&progress.PlainOptions{Quiet: true}, res, plan, log(2, "error TS2322\n"), fails), cross+"  error TS2322\n"+end)
}

func TestPlainTooLarge(t *testing.T) {
	res := &slipwayv1.Result{
		Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED,
		Error: &slipwayv1.Error{Code: "too_large", Blame: slipwayv1.Blame_BLAME_USER, Line: 3, Message: "unpacked root file system reached 8.00 of 8 GB at /usr/lib/libtorch.so",
			Hint: "copy the result into a smaller base",
			Size: &slipwayv1.SizeReport{
				Total: 8_000_000_100, Limit: 8_000_000_000,
				LargestPaths:       []*slipwayv1.PathSize{{Path: "/data/train.parquet", Bytes: 400_000_000}},
				LargestDirectories: []*slipwayv1.PathSize{{Path: "/usr/lib", Bytes: 1_900_000_000}, {Path: "/data", Bytes: 410_000_000}},
				Lines:              []*slipwayv1.LineSize{{Line: 2, Source: "COPY . /app", Bytes: 500_000_000}, {Line: 1, Source: "FROM nvidia/cuda:12.4", Bytes: 4_900_000_000}},
			}},
	}
	compare(t, show(&progress.PlainOptions{Quiet: true}, res, planOf("FROM a", "COPY . .", "RUN pip install"),
		&slipwayv1.StepDone{Step: 0, Cached: true}, &slipwayv1.StepDone{Step: 1},
		&slipwayv1.StepDone{Step: 2, Error: "too large", DurationMs: 41_000},
	), `✗ [3/3] RUN pip install                stopped after 41s: the image would pass 8 GB
  error: too_large (user): unpacked root file system reached 8.00 of 8 GB at /usr/lib/libtorch.so

  by Dockerfile line                      largest
     1  FROM nvidia/cuda:12.4    4.9 GB   /usr/lib                                           1.9 GB
     2  COPY . /app              500 MB   /data/train.parquet                                400 MB
  hint: copy the result into a smaller base
  Nothing was pushed. 2 finished steps stay cached.  exit code 4
`)
}

func TestPlainTooLargeKeepsOne(t *testing.T) {
	res := &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, Error: &slipwayv1.Error{Code: "too_large", Size: &slipwayv1.SizeReport{Total: 2, Limit: 1}}}
	for steps, want := range map[int]string{0: "  Nothing was pushed.  exit", 1: "  Nothing was pushed. 1 finished step stays cached.  exit", 2: " 2 finished steps stay cached.  exit"} {
		events := []any{planOf("FROM a", "COPY . .", "RUN x")}
		for i := range steps {
			events = append(events, &slipwayv1.StepDone{Step: uint32(i)})
		}
		if got := show(&progress.PlainOptions{Quiet: true}, res, events...); !strings.Contains(got, want) {
			t.Errorf("%d steps: no %q in\n%s", steps, want, got)
		}
	}
}

func TestPlainCancelled(t *testing.T) {
	compare(t, show(&progress.PlainOptions{Quiet: true}, &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED},
		planOf("FROM a", "COPY . ."), &slipwayv1.StepDone{Step: 0, Cached: true}, &slipwayv1.StepDone{Step: 1}),
		"cancelled on the daemon; 2 finished steps stay cached.  exit code 130\n")
	compare(t, show(&progress.PlainOptions{Quiet: true}, &slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_CANCELLED}, planOf("FROM a")),
		"cancelled on the daemon; no step had finished.  exit code 130\n")
}

func TestPlainColour(t *testing.T) {
	done := &slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_PREFLIGHT, Done: true}
	if got := show(&progress.PlainOptions{Color: true}, nil, done); !strings.Contains(got, "\x1b[32m✓\x1b[0m") {
		t.Errorf("no colour in %q", got)
	}
	if got := show(nil, nil, done); strings.Contains(got, "\x1b") {
		t.Errorf("colour in %q", got)
	}
}

func TestPlainIsHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := progress.NewPlain(&b, nil)
		p.Begin(head)
		p.Event(event(planOf("FROM a", "RUN make")))
		p.Event(event(&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT}))
		time.Sleep(5 * time.Second)
		p.Event(event(&slipwayv1.ContextProgress{Files: 100, Bytes: 80_000_000, WantedFiles: 50, WantedBytes: 40_000_000, SentFiles: 12, SentBytes: 10_000_000}))
		time.Sleep(6 * time.Second)
		p.Event(event(&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT, Done: true, DurationMs: 11_000}))
		p.Event(event(&slipwayv1.StepStarted{Step: 1}))
		time.Sleep(61 * time.Second)
		p.Event(event(&slipwayv1.StepDone{Step: 1, DurationMs: 61_000}))
		p.Event(event(&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_PUSH}))
		p.Event(event(&slipwayv1.PushProgress{Digest: "sha256:a", Bytes: 20_000_000, Total: 30_000_000}))
		time.Sleep(10*time.Second + time.Millisecond)
		p.Finish(nil)
		compare(t, b.String(), `shop · classic · Dockerfile (2 steps, 2 stages) · ignore: .dockerignore (14 patterns)
  context          12 of 50 files sent, 10.0 MB of 40.0 MB (1.0 MB/s, 30s left)
✓ context         11.0s   100 files, 80.0 MB → sent 12 files, 0 B
  [2/2]          30s     still running: RUN make
  [2/2]          1m00s   still running: RUN make
✓ [2/2]           1m01s   RUN make
  push             1 layer, 20.0 MB of 30.0 MB (2.0 MB/s, 5s left)
`)
	})
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 18_400: "18 kB", 999_499: "999 kB", 999_500: "1.0 MB", 11_900_000: "11.9 MB", 206_000_000: "206 MB", 4_900_000_000: "4.9 GB"} {
		if got := progress.Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{300 * time.Millisecond: "0.3s", 59_940 * time.Millisecond: "59.9s", 59_960 * time.Millisecond: "1m00s", 102 * time.Second: "1m42s", 2*time.Hour + 5*time.Minute: "2h05m"} {
		if got := progress.Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
	if got := progress.Count(1_234_567); got != "1,234,567" {
		t.Errorf("Count: %q", got)
	}
}

func FuzzPlainOutput(f *testing.F) {
	f.Add([]byte("a\rb\n\x1b[31mred\x1b[0m\x1b]0;title\x07"), 3)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		cut = min(max(cut, 0), len(data))
		got := show(nil, nil, planOf("FROM a"), &slipwayv1.StepLog{Data: data[:cut]}, &slipwayv1.StepLog{Data: data[cut:]}, &slipwayv1.StepDone{})
		for _, r := range got {
			if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
				t.Fatalf("%q became %q", data, got)
			}
		}
	})
}

// A context of which nothing was needed is not called unchanged when a step
// ran: that the daemon has it does not say that.
func TestPlainContextOfABuildThatMissed(t *testing.T) {
	got := show(nil, nil, append([]any{planOf("FROM a", "RUN b"), &slipwayv1.StepDone{Step: 0, Cached: true}, &slipwayv1.StepDone{Step: 1}},
		contextDone(&slipwayv1.ContextProgress{Files: 12000, Bytes: 716_000_000})...)...)
	if !strings.HasSuffix(got, "   12,000 files, 716 MB → sent 0\n") {
		t.Errorf("got %q", got)
	}
}
