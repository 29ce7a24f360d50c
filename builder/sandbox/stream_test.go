package sandbox_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// either runs f for the first process of a container and for one more.
func either(t *testing.T, r *sandbox.Runner, f func(*testing.T, func(script string, in io.ReadCloser, out io.Writer, tty *sandbox.Terminal) (int, error))) {
	t.Helper()
	t.Run("first process", func(t *testing.T) {
		f(t, func(script string, in io.ReadCloser, out io.Writer, tty *sandbox.Terminal) (int, error) {
			p := step(t, script)
			p.Stdin, p.Stdout, p.Stderr, p.Terminal = in, out, out, tty
			return r.Run(t.Context(), p)
		})
	})
	p := step(t, hold)
	p.ID = "either" + strings.Map(func(r rune) rune {
		if r == '/' || r == '_' {
			return -1
		}
		return r
	}, t.Name())
	background(t, r, p)
	t.Run("another", func(t *testing.T) {
		f(t, func(script string, in io.ReadCloser, out io.Writer, tty *sandbox.Terminal) (int, error) {
			c := command(p.ID, script)
			c.Stdin, c.Stdout, c.Stderr, c.Terminal = in, out, out, tty
			return r.Exec(t.Context(), c)
		})
	})
}

func TestStdin(t *testing.T) {
	either(t, sharedRunner(t), func(t *testing.T, run func(string, io.ReadCloser, io.Writer, *sandbox.Terminal) (int, error)) {
		var out bytes.Buffer
		text := strings.Repeat("a line of input\n", 100_000)
		code, err := run("wc -c; echo end", io.NopCloser(strings.NewReader(text)), &out, nil)
		if strings.TrimSpace(out.String()) != "1600000\nend" || code != 0 || err != nil {
			t.Errorf("exit code %d, %v, output %q", code, err, out.String())
		}
		// Neither an input that never ends nor one that nobody reads is waited for.
		in, feed := io.Pipe()
		out.Reset()
		if code, err := run("echo done", in, &out, nil); out.String() != "done\n" || code != 0 || err != nil {
			t.Errorf("exit code %d, %v, output %q", code, err, out.String())
		}
		if _, err := feed.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the input is still open: %v", err)
		}
		if code, err := run("exit 3", io.NopCloser(strings.NewReader(text)), nil, nil); code != 3 || err != nil {
			t.Errorf("exit code %d, %v", code, err)
		}
		// One that breaks off is no end of input.
		broken := io.MultiReader(strings.NewReader("half"), failing{errors.New("line is dead")})
		if _, err := run("cat; sleep 1000", io.NopCloser(broken), nil, nil); err == nil || err.Error() != "read standard input: line is dead" {
			t.Errorf("error %v", err)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// An input is closed also when nothing could be run.
func TestStdinOfNothing(t *testing.T) {
	r := sharedRunner(t)
	in, feed := io.Pipe()
	p := step(t, "true")
	p.Stdin, p.User = in, "ghost"
	if _, err := r.Run(t.Context(), p); !errors.Is(err, sandbox.ErrUser) {
		t.Error(err)
	}
	if _, err := feed.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the input is still open: %v", err)
	}
	in, feed = io.Pipe()
	c := command("nobody", "true")
	c.Stdin = in
	if _, err := r.Exec(t.Context(), c); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Error(err)
	}
	if _, err := feed.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the input is still open: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	either(t, sharedRunner(t), func(t *testing.T, run func(string, io.ReadCloser, io.Writer, *sandbox.Terminal) (int, error)) {
		in, feed := io.Pipe()
		sizes := make(chan sandbox.Size)
		var out bytes.Buffer
		said := func(text string) bool { return strings.Contains(out.String(), text) }
		stage := 0
		w := writerFunc(func(b []byte) (int, error) {
			out.Write(b)
			switch {
			case stage == 0 && said("ready\r\n"):
				stage++
				go func() { _, _ = io.WriteString(feed, "typed\n") }()
			case stage == 1 && said("got typed\r\n"):
				stage++
				go func() { sizes <- sandbox.Size{Rows: 50, Cols: 132}; close(sizes) }()
			case stage == 2 && said("changed 50 132\r\n"):
				stage++
				go func() { _, _ = io.WriteString(feed, "\x03") }() // as Ctrl-C
			}
			return len(b), nil
		})
		code, err := run(`
			tty >/dev/null && echo terminal $TERM; echo $(stty size)
			trap 'echo changed $(stty size)' WINCH; trap 'echo interrupted; exit 5' INT
			echo ready; read line; echo got $line
			while :; do sleep 0.05; done`, in, w, &sandbox.Terminal{Size: sandbox.Size{Rows: 24, Cols: 80}, Resize: sizes})
		want := "terminal xterm\r\n24 80\r\nready\r\ntyped\r\ngot typed\r\nchanged 50 132\r\n^Cinterrupted\r\n"
		if got := out.String(); got != want || code != 5 || err != nil {
			t.Errorf("exit code %d, %v, output %q, want %q", code, err, got, want)
		}
		// Nothing of the last output is lost, and nobody need type.
		out.Reset()
		code, err = run("head -c 200000 /dev/zero | tr '\\0' x; exit 6", nil, &out, &sandbox.Terminal{})
		if out.Len() != 200_000 || code != 6 || err != nil {
			t.Errorf("exit code %d, %v, %d bytes of output", code, err, out.Len())
		}
	})
}

// The runtime's words are an error on a terminal too.
func TestTerminalOfNothing(t *testing.T) {
	r := sharedRunner(t)
	p := step(t, "")
	var out bytes.Buffer
	p.Args, p.Stdout, p.Terminal = []string{"nope"}, &out, &sandbox.Terminal{}
	_, err := r.Run(t.Context(), p)
	if start, ok := errors.AsType[*sandbox.StartError](err); !ok || !strings.Contains(start.Message, `exec: "nope"`) || out.Len() > 0 {
		t.Errorf("error %v, output %q", err, out.String())
	}
}
