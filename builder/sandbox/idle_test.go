package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// idling runs an idle container over an image that has nothing but busybox until
// the end of the test.
func idling(t *testing.T, r *sandbox.Runner, p sandbox.Process) string {
	t.Helper()
	p.ID, p.Args, p.Idle = "idle-"+strings.ToLower(t.Name()), nil, true
	ctx, cancel := context.WithCancelCause(context.Background())
	enough := errors.New("enough")
	ended := make(chan error, 1)
	up := make(chan struct{})
	p.Started = func() { close(up) }
	go func() {
		_, err := r.Run(ctx, p)
		ended <- err
	}()
	select {
	case <-up:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel(enough)
		if err := <-ended; !errors.Is(err, enough) {
			t.Errorf("Run: %v, want the cause of its end", err)
		}
	})
	return p.ID
}

func in(t *testing.T, r *sandbox.Runner, id string, c sandbox.Command) (string, int) {
	t.Helper()
	var out bytes.Buffer
	c.Container, c.Stdout, c.Stderr = id, &out, &out
	code, err := r.Exec(t.Context(), c)
	if err != nil {
		t.Fatalf("%q: %v\n%s", c.Args, err, out.String())
	}
	return out.String(), code
}

func TestIdle(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "")
	id := idling(t, r, p)
	script := func(text string) sandbox.Command {
		return sandbox.Command{Args: []string{"/bin/busybox", "sh", "-c", text}}
	}
	// Its first process is tiny, and not alone when others are there.
	if out, code := in(t, r, id, script("echo $$; exit 7")); code != 7 || strings.TrimSpace(out) == "1" {
		t.Errorf("exit code %d, %q", code, out)
	}
	// A process that another one has left is reaped when it ends.
	if out, code := in(t, r, id, script("(busybox sleep 0.2 &); busybox sleep 0.6; for s in /proc/[0-9]*/stat; do busybox cat $s; done | busybox grep -c ' Z '")); code != 1 || strings.TrimSpace(out) != "0" {
		t.Errorf("zombies: %q", out)
	}
	// What one process writes the next one sees, and the upper directory has
	// nothing else.
	in(t, r, id, script("echo mine > /file"))
	if out, _ := in(t, r, id, script("busybox cat /file; echo ls | busybox sh; busybox kill -9 1; echo alive")); !strings.HasPrefix(out, "mine\n") || !strings.HasSuffix(out, "alive\n") {
		t.Errorf("printed %q", out)
	}
	list, err := os.ReadDir(p.Upper)
	if err != nil || len(list) != 1 || list[0].Name() != "file" {
		t.Errorf("the upper directory has %v (%v)", list, err)
	}
}

// No shell, no library, no directory: it needs nothing of the image.
func TestIdleFromScratch(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "", t.TempDir())
	id := idling(t, r, p)
	_, err := r.Exec(t.Context(), sandbox.Command{Container: id, Args: []string{"/bin/sh"}})
	if _, ok := errors.AsType[*sandbox.StartError](err); !ok {
		t.Errorf("a shell that is not there: %v, want a StartError", err)
	}
}

// A process that waits for more input ends with its end, with a terminal too.
func TestInputEnds(t *testing.T) {
	r := sharedRunner(t)
	id := idling(t, r, step(t, ""))
	for _, terminal := range []*sandbox.Terminal{nil, {}} {
		out, code := in(t, r, id, sandbox.Command{
			Args: []string{"/bin/busybox", "sh"}, Terminal: terminal, Stdin: io.NopCloser(strings.NewReader("echo one; exit 3\n")),
		})
		if code != 3 || !strings.Contains(out, "one") {
			t.Errorf("exit code %d, %q", code, out)
		}
		out, code = in(t, r, id, sandbox.Command{
			Args: []string{"/bin/busybox", "cat"}, Terminal: terminal, Stdin: io.NopCloser(strings.NewReader("one\n")),
		})
		if code != 0 || !strings.Contains(out, "one") {
			t.Errorf("exit code %d, %q", code, out)
		}
	}
}
