package progress_test

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/console"

	"github.com/slipwayhq/slipway/cmd/slipway/progress"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// terminal runs f on a pseudo terminal and returns what it was sent.
func terminal(t *testing.T, f func(*progress.TTY)) string {
	t.Helper()
	master, name, err := console.NewPty()
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 120, Height: 40}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); io.Copy(&b, master) }() // ends when the slave is closed
	d, err := progress.NewTTY(slave, false)
	if err != nil {
		t.Fatal(err)
	}
	f(d)
	slave.Close()
	<-read
	return b.String()
}

func TestTTY(t *testing.T) {
	got := terminal(t, func(d *progress.TTY) {
		d.Note(progress.Note{Text: "! early warning"})
		d.Begin(head)
		for _, e := range []any{
			planOf("FROM a", "COPY . .", "RUN npm run build"),
			&slipwayv1.Phase{Name: slipwayv1.PhaseName_PHASE_NAME_CONTEXT},
			&slipwayv1.ContextProgress{Files: 10, WantedBytes: 2000, SentBytes: 1000},
			&slipwayv1.StepStarted{Step: 0}, &slipwayv1.StepDone{Step: 0, Cached: true},
			&slipwayv1.PushProgress{Digest: "sha256:0123456789abcdef", Bytes: 5, Total: 10},
			&slipwayv1.StepStarted{Step: 2}, &slipwayv1.StepLog{Step: 2, Data: []byte("error TS2322\n")},
			&slipwayv1.StepDone{Step: 2, Error: "exit code 2", ExitCode: 2, DurationMs: 8400},
		} {
			d.Event(event(e))
		}
		d.Note(progress.Note{Text: "connection lost; the build goes on for 60s …"})
		d.Finish(&slipwayv1.Result{
			Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED,
			Error:  &slipwayv1.Error{Code: "step_failed", Blame: slipwayv1.Blame_BLAME_USER, Line: 3, Message: "RUN npm run build returned exit code 2"},
		})
	})
	for _, part := range []string{"! early warning", "CACHED [build 1/3] FROM a", "ERROR [3/3] RUN npm run build", "error TS2322", "sha256:0123456789ab…", "connection lost",
		"✗ [3/3] RUN npm run build", "> 3 | RUN npm run build", "error: step_failed (user)", "exit code 2"} {
		if !strings.Contains(got, part) {
			t.Errorf("no %q on the terminal:\n%s", part, got)
		}
	}
}

func TestTTYShowsNothingOfNothing(t *testing.T) {
	got := terminal(t, func(d *progress.TTY) {
		d.Finish(&slipwayv1.Result{Status: slipwayv1.ResultStatus_RESULT_STATUS_FAILED, Error: &slipwayv1.Error{Code: "unavailable", Message: "no daemon"}})
	})
	if got != "error: unavailable: no daemon  exit code 6\r\n" {
		t.Errorf("the terminal got %q", got)
	}
}
